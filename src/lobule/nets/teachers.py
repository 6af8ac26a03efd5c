"""Frozen teachers for reverse distillation: backbones with three maps, each half as large as the one
before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lobule.errors import ConfigError, ModelError
from lobule.nets.digest import weights_digest
from lobule.nets.encoders import fetched
from lobule.nets.reverse_distillation import STUDENT_BLOCKS, Maps, StudentShape, initialise
from lobule.nets.scaling import PLAIN_SCALING, InputScaling

LEAST_SPREAD = 0.01
"""Minimum spread of a channel, relative to the mean spread of its map."""
NO_NETWORK_REMEDY = "Use a local file: --set weights=FILE when training, --teacher FILE when converting"


class Teacher(nn.Module):
    """A frozen backbone that computes three feature maps of scaled images.

    `stages` computes maps with strides s, 2s and 4s. An image whose sides are not multiples of 8s is padded
    by repeating its right and lower edges, so that bottleneck and decoder can halve and double the sides
    exactly.
    """

    def __init__(self, name: str, stages: nn.Module, strides: Sequence[int], scaling: InputScaling) -> None:
        super().__init__()
        if len(strides) != 3 or any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
            raise ConfigError(
                "this backbone cannot be a teacher",
                subject=name,
                expected="three maps with strides s, 2s and 4s",
                actual=f"strides {list(strides)}",
            )
        self.name = name
        self.stages = stages
        self.strides = tuple(strides)
        self.scaling = scaling
        self.standardised = False
        self.every_depth = False
        """Whether the maps of a transformer come from all of its depths. In earlier bundles they do not."""
        self.requires_grad_(False)
        super().train(False)

    @property
    def multiple(self) -> int:
        """Images whose sides are multiples of this are not padded."""
        return 8 * self.strides[0]

    def train(self, mode: bool = True) -> Teacher:
        """Do nothing: the teacher stays in eval mode, because its batch statistics must not change."""
        del mode
        return self

    def padded_size(self, rows: int, columns: int) -> tuple[int, int]:
        """The size of an image after padding."""
        return rows + -rows % self.multiple, columns + -columns % self.multiple

    @torch.no_grad()
    def forward(self, images: Tensor) -> Maps:
        """Three maps of scaled images (B, 3, H, W); their sides are the padded sides over the strides."""
        rows, columns = images.shape[-2:]
        full_rows, full_columns = self.padded_size(rows, columns)
        if (rows, columns) != (full_rows, full_columns):
            edges = (0, full_columns - columns, 0, full_rows - rows)
            images = nn.functional.pad(images, edges, mode="replicate")
        maps = self.stages(images)
        if self.standardised:
            maps = [
                (features - self.get_buffer(f"mean{stage}")) / self.get_buffer(f"spread{stage}")
                for stage, features in enumerate(maps, start=1)
            ]
        first, second, third = maps
        return first, second, third

    def standardise(self, means: Sequence[Tensor], spreads: Sequence[Tensor]) -> None:
        """From now on, subtract a mean from each channel of the maps and divide it by a spread.

        The statistics are buffers of the teacher (`mean1` to `mean3`, `spread1` to `spread3`), so they are
        stored with its weights.

        Args:
            means: For each of the three maps, (channels,).
            spreads: For each of the three maps, (channels,), all above 0.
        """
        for stage, (mean, spread) in enumerate(zip(means, spreads, strict=True), start=1):
            self.register_buffer(f"mean{stage}", mean.reshape(1, -1, 1, 1))
            self.register_buffer(f"spread{stage}", spread.reshape(1, -1, 1, 1))
        self.standardised = True

    def probe(self) -> Maps:
        """The maps of a fixed noise image of the smallest unpadded size."""
        noise = torch.randn(1, 3, self.multiple, self.multiple, generator=torch.Generator().manual_seed(0))
        device = next(self.stages.parameters()).device
        maps: Maps = self(noise.to(device))
        return maps

    def student_shape(self, shortcut: int = 1) -> StudentShape:
        """Architecture of the matching student, with linear ends if a map has negative values."""
        maps = self.probe()
        c1, c2, c3 = (m.shape[1] for m in maps)
        return StudentShape(
            channels=(c1, c2, c3),
            shortcut=3 if shortcut == 3 else 1,
            signed=any(bool((m < 0).any()) for m in maps),
            **STUDENT_BLOCKS.get(self.name, {}),
        )

    def identity(self) -> dict[str, Any]:
        """Identity of the teacher, stored with a student, whose thresholds hold for this teacher only."""
        return {
            "teacher": self.name,
            "strides": list(self.strides),
            "weights_sha256": weights_digest(self if self.standardised else self.stages),
            **({"every_depth": True} if self.every_depth else {}),
        }


class ChannelStatistics:
    """Mean and standard deviation of each channel over the maps of many images, accumulated in float64."""

    def __init__(self) -> None:
        self._counts = [0, 0, 0]
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, maps: Maps) -> None:
        """Add the maps of a batch."""
        wide = [features.to("cpu", torch.float64) for features in maps]
        sums = [features.sum(dim=(0, 2, 3)) for features in wide]
        squares = [features.square().sum(dim=(0, 2, 3)) for features in wide]
        counts = [features[:, 0].numel() for features in wide]
        if not self._sums:
            self._sums, self._squares, self._counts = sums, squares, counts
            return
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
        self._squares = [a + b for a, b in zip(self._squares, squares, strict=True)]
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]

    def result(self) -> tuple[list[Tensor], list[Tensor]]:
        """Means and spreads of each map in float32.

        A spread is at least `LEAST_SPREAD` of the mean spread of its map: a channel that hardly changes on
        normal tissue would otherwise outweigh all the others wherever it does change.
        """
        means, spreads = [], []
        for total, square, count in zip(self._sums, self._squares, self._counts, strict=True):
            mean = total / count
            spread = (square / count - mean.square()).clamp(min=0).sqrt()
            floor = max(float(spread.mean()) * LEAST_SPREAD, torch.finfo(torch.float32).tiny)
            means.append(mean.float())
            spreads.append(spread.clamp(min=floor).float())
        return means, spreads


class ResNetStages(nn.Module):
    """torchvision's ResNet up to layer3; layer4 is not used."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        for name in names:
            self.add_module(name, resnet.get_submodule(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, module in self.named_children():
            x = module(x)
            if name.startswith("layer"):
                maps.append(x)
        return maps


class SqueezeNetStages(nn.Module):
    """torchvision's SqueezeNet 1.1 at strides 4, 8 and 16, without its classifier.

    Its first convolution has no padding, so the last column and row are repeated to get the full sides.
    """

    ends = (4, 7, 12)

    def __init__(self, squeezenet: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *list(squeezenet.get_submodule("features").children())[: 1 + self.ends[-1]]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.ends:
                maps.append(x)
        return maps


class TinyStages(nn.Module):
    """Three small untrained stages at strides 4, 8 and 16, for machines without an accelerator."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = _convolved(3, widths[0])
        self.stages = nn.ModuleList(
            _convolved(into, out) for into, out in zip((widths[0], *widths), widths, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _convolved(into: int, out: int) -> nn.Sequential:
    """Two convolutions, of which the first halves the side."""
    layers: list[nn.Module] = []
    for channels, stride in ((into, 2), (out, 1)):
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    stage = nn.Sequential(*layers)
    initialise(stage)
    return stage


class TimmStages(nn.Module):
    """Three maps of a timm backbone; a backbone with a single stride (ViT) is pooled to three strides."""

    def __init__(self, backbone: nn.Module, channels: Sequence[int], pools: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = tuple(channels)
        self.pools = tuple(pools)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for m, channels, pool in zip(self.backbone(x), self.channels, self.pools, strict=True):
            # Some transformers of timm return channels-last maps.
            m = m if m.shape[1] == channels else m.permute(0, 3, 1, 2)
            maps.append(nn.functional.avg_pool2d(m, pool) if pool > 1 else m)
        return maps


def _torchvision(name: str, pretrained: bool) -> Teacher:
    import torchvision

    weights = "IMAGENET1K_V1" if pretrained else None
    net = fetched(name, lambda: torchvision.models.get_model(name, weights=weights), NO_NETWORK_REMEDY)
    stages = SqueezeNetStages(net) if name.startswith("squeezenet") else ResNetStages(net)
    return Teacher(name, stages, (4, 8, 16), InputScaling())


def _tiny(pretrained: bool) -> Teacher:
    if pretrained:
        raise ConfigError(
            "the teacher 'tiny' has no published weights",
            remedy="Use a weights file, or random weights (weights=random)",
        )
    return Teacher("tiny", TinyStages(), (4, 8, 16), PLAIN_SCALING)


def _timm(name: str, pretrained: bool, every_depth: bool) -> Teacher:
    import timm

    options: dict[str, Any] = {"pretrained": pretrained}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    config = timm.get_pretrained_cfg(name)
    scaling = InputScaling(tuple(config.mean), tuple(config.std)) if config else InputScaling()
    return timm_teacher(
        f"timm:{name}", name, scaling, {"dynamic_img_size": True}, every_depth=every_depth, **options
    )


def timm_teacher(
    label: str,
    name: str,
    scaling: InputScaling,
    of_transformer: Mapping[str, Any],
    *,
    every_depth: bool = True,
    **options: Any,
) -> Teacher:
    """A teacher from a network of timm.

    Args:
        label: Name of the teacher.
        name: Name of timm's model.
        scaling: Scaling of its input.
        of_transformer: Arguments that are used only if the network has one stride at every depth.
        every_depth: Choose the maps of such a network among all of its depths. Otherwise those of its first
            three blocks are used, as in earlier bundles of `timm:NAME`.
        **options: Arguments of timm.
    """
    import timm

    options["features_only"] = True
    with torch.device("meta"):
        described = {**options, "pretrained": False}
        info = timm.create_model(name, **described).feature_info
        strides = info.reduction()
        is_transformer = len(set(strides)) == 1  # every depth of a ViT has the same stride
        if is_transformer and every_depth:
            strides = info.reduction(list(range(len(info.info))))
    last = len(strides) - 1
    if is_transformer:
        indices, pools = [last // 3, 2 * last // 3, last], [1, 2, 4]
        options |= of_transformer
    else:
        start = next((k for k, stride in enumerate(strides) if stride >= 4), last)
        indices = list(range(start, min(start + 3, last + 1)))
        pools = [1] * len(indices)
    options["out_indices"] = indices
    from_hub = bool(options.get("pretrained"))
    backbone = fetched(name, lambda: timm.create_model(name, **options), NO_NETWORK_REMEDY, from_hub=from_hub)
    effective = [strides[k] * pool for k, pool in zip(indices, pools, strict=True)]
    stages = TimmStages(backbone, backbone.feature_info.channels(), pools)
    built = Teacher(label, stages, effective, scaling)
    built.every_depth = is_transformer and every_depth
    return built


TEACHERS: dict[str, Callable[[bool], Teacher]] = {
    **{
        name: partial(_torchvision, name)
        for name in ("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "squeezenet1_1")
    },
    "tiny": _tiny,
}
"""Teachers by name, including those of the papers; backbones of timm are available as `timm:NAME`."""


def teacher(name: str = "wide_resnet50_2", *, pretrained: bool = False, every_depth: bool = True) -> Teacher:
    """Build a teacher by name.

    Args:
        name: A name of `TEACHERS`, or `timm:NAME`.
        pretrained: Load the weights that torchvision or timm publish.
        every_depth: For transformers of timm, see `timm_teacher`.
    """
    if name in TEACHERS:
        return TEACHERS[name](pretrained)
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), pretrained, every_depth)
    raise ConfigError(
        "no such teacher",
        subject=name,
        expected=f"{', '.join(TEACHERS)}, or timm:NAME",
        remedy="For a backbone of timm, use the prefix timm:",
    )


def load_teacher_weights(into: Teacher, state: dict[str, Tensor]) -> None:
    """Load the weights of a complete backbone into a teacher, without the layers after the last stage."""
    target = into.stages.backbone if isinstance(into.stages, TimmStages) else into.stages
    expected = target.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    if isinstance(target, ResNetStages):  # ResNet-34 has all tensors of ResNet-18 and more
        stages = {key.split(".")[0] for key in expected}
        surplus = [key for key in state if key not in expected and key.split(".")[0] in stages]
    else:
        surplus = []
    if missing or surplus:
        raise ModelError(
            "the weights belong to another backbone",
            subject=into.name,
            expected=f"{len(expected)} tensors",
            actual=f"{len(missing)} missing, {len(surplus)} surplus, the first is {(missing + surplus)[0]}",
        )
    try:
        target.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)
    except RuntimeError as error:  # same names, other shapes: a wider net
        raise ModelError(
            "the weights belong to another backbone",
            subject=into.name,
            actual=str(error).splitlines()[-1].strip(),
        ) from error
