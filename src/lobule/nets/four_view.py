"""The networks of Wu et al. 2019 (arXiv 1903.08297), under the published parameter names.

- `ViewWise` and `ImageWise`: a ResNet-22 for each angle and heads that score each breast or each view;
- `SideWise` and `Joint`: the paper's other two ways to join the views, of which no weights were published;
- `patch_densenet`: the DenseNet-121 that paints heatmaps, its padding as TensorFlow's "SAME".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from lobule.errors import ModelError
from lobule.nets.published import FOUR_VIEW_WIDTHS, PATCH_CLASSES, Pooling

STRIDES = (1, 2, 2, 2, 2)
ANGLES: tuple[Literal["cc", "mlo"], ...] = ("cc", "mlo")
VIEWS = ("L-CC", "R-CC", "L-MLO", "R-MLO")
TARGETS = ("left_benign", "right_benign", "left_malignant", "right_malignant")
"""Rows of the four-view outputs; column 1 is the positive one."""
NOISE = 0.01
"""Spread of the noise added to the standardised input while training."""


class _Thinned(nn.Conv2d):
    """A strided 1×1 convolution that removes unused pixels first: the same result, safe with few channels.

    oneDNN (3.13) writes beyond its memory in the gradient of a strided 1×1 convolution with fewer than 16
    input channels in channels-last layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        step_y, step_x = self.stride
        return F.conv2d(x[:, :, ::step_y, ::step_x], self.weight)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    kind = _Thinned if stride > 1 and inputs < 16 else nn.Conv2d
    return kind(inputs, outputs, 1, stride, bias=False)


class Block(nn.Module):
    """Two pre-activated 3×3 convolutions; a projected shortcut leaves after the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, projected: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.downsample = nn.Sequential(_projection(inputs, outputs, stride)) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(activated)
        z: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return z + shortcut


class ResNet22(nn.Module):
    """The trunk: (N, channels, H, W) to a map (N, 256, h, w) about 64 times smaller."""

    def __init__(
        self,
        channels: int = 1,
        *,
        first_padding: int = 0,
        widths: Sequence[int] = FOUR_VIEW_WIDTHS,
        pool: Pooling = "mean",
    ) -> None:
        super().__init__()
        self.pool = pool
        self.first_conv = nn.Conv2d(channels, widths[0], 7, 2, padding=first_padding, bias=False)
        self.first_pool = nn.MaxPool2d(3, 2)
        inputs = [widths[0], *widths[:-1]]
        self.layer_list = nn.ModuleList(
            nn.Sequential(Block(i, o, stride, projected=True), Block(o, o, 1, projected=False))
            for i, o, stride in zip(inputs, widths, STRIDES, strict=True)
        )
        self.final_bn = nn.BatchNorm2d(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        z = self.first_pool(self.first_conv(x))
        for stage in self.layer_list:
            z = stage(z)
        return F.relu(self.final_bn(z))

    def pooled(self, x: Tensor) -> Tensor:
        """(N, 256): the mean of the map as published, or its maximum."""
        feature_map: Tensor = self(x)
        return feature_map.amax(dim=(2, 3)) if self.pool == "max" else feature_map.mean(dim=(2, 3))


class Trunks(nn.Module):
    """One trunk for both CC views and one for both MLO views."""

    def __init__(self, channels: int, widths: Sequence[int], pool: Pooling) -> None:
        super().__init__()
        self.cc = ResNet22(channels, widths=widths, pool=pool)
        self.mlo = ResNet22(channels, widths=widths, pool=pool)

    def forward(self, view: str, x: Tensor) -> Tensor:
        trunk = self.mlo if view.endswith("MLO") else self.cc
        if self.training:
            x = x + NOISE * torch.randn_like(x)
        return trunk.pooled(x)


class OutputLayer(nn.Module):
    """Two log-probabilities for each target: (N, features) to (N, targets, 2)."""

    def __init__(self, features: int, targets: int = len(TARGETS)) -> None:
        super().__init__()
        self.fc_layer = nn.Linear(features, 2 * targets)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.fc_layer(x).view(len(x), -1, 2), dim=-1)


class ViewWise(nn.Module):
    """Joins left and right of each angle; the best of the published models."""

    def __init__(
        self, channels: int = 1, *, widths: Sequence[int] = FOUR_VIEW_WIDTHS, pool: Pooling = "mean"
    ) -> None:
        super().__init__()
        features = 2 * widths[-1]
        self.four_view_resnet = Trunks(channels, widths, pool)
        self.fc1_cc, self.fc1_mlo = nn.Linear(features, features), nn.Linear(features, features)
        self.output_layer_cc, self.output_layer_mlo = OutputLayer(features), OutputLayer(features)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views by name, each (N, C, H, W), to log-probabilities (N, 4, 2) by angle."""
        pooled = _pooled(self.four_view_resnet, views)
        cc = torch.cat([pooled["L-CC"], pooled["R-CC"]], dim=1)
        mlo = torch.cat([pooled["L-MLO"], pooled["R-MLO"]], dim=1)
        return {
            "CC": self.output_layer_cc(F.relu(self.fc1_cc(cc))),
            "MLO": self.output_layer_mlo(F.relu(self.fc1_mlo(mlo))),
        }

    @staticmethod
    def exam_scores(outputs: Mapping[str, Tensor]) -> Tensor:
        """(N, 4) probabilities of `TARGETS`: the mean of both angles."""
        return (outputs["CC"][..., 1].exp() + outputs["MLO"][..., 1].exp()) / 2


class SideWise(nn.Module):
    """Joins CC and MLO of each side, and scores each breast from its own two views.

    As the paper describes it. Its sizes are those of `ViewWise`. There was no reference to test against.
    """

    def __init__(
        self, channels: int = 1, *, widths: Sequence[int] = FOUR_VIEW_WIDTHS, pool: Pooling = "mean"
    ) -> None:
        super().__init__()
        features = 2 * widths[-1]
        self.four_view_resnet = Trunks(channels, widths, pool)
        self.fc1_left, self.fc1_right = nn.Linear(features, features), nn.Linear(features, features)
        self.output_layer_left, self.output_layer_right = OutputLayer(features, 2), OutputLayer(features, 2)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views by name to log-probabilities (N, 2, 2) by side: row 0 benign, row 1 malignant."""
        pooled = _pooled(self.four_view_resnet, views)
        left = torch.cat([pooled["L-CC"], pooled["L-MLO"]], dim=1)
        right = torch.cat([pooled["R-CC"], pooled["R-MLO"]], dim=1)
        return {
            "left": self.output_layer_left(F.relu(self.fc1_left(left))),
            "right": self.output_layer_right(F.relu(self.fc1_right(right))),
        }

    @staticmethod
    def exam_scores(outputs: Mapping[str, Tensor]) -> Tensor:
        """(N, 4) probabilities of `TARGETS`."""
        sides = torch.stack([outputs["left"], outputs["right"]], dim=2)  # (N, grade, side, 2)
        return sides[..., 1].exp().flatten(1)


class Joint(nn.Module):
    """Joins all four views at once.

    As the paper describes it. Its sizes are ours. There was no reference to test against.
    """

    def __init__(
        self, channels: int = 1, *, widths: Sequence[int] = FOUR_VIEW_WIDTHS, pool: Pooling = "mean"
    ) -> None:
        super().__init__()
        features = len(VIEWS) * widths[-1]
        self.four_view_resnet = Trunks(channels, widths, pool)
        self.fc1_joint = nn.Linear(features, features // 2)
        self.output_layer_joint = OutputLayer(features // 2)

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views by name to log-probabilities (N, 4, 2)."""
        pooled = _pooled(self.four_view_resnet, views)
        together = torch.cat([pooled[view] for view in VIEWS], dim=1)
        return {"joint": self.output_layer_joint(F.relu(self.fc1_joint(together)))}

    @staticmethod
    def exam_scores(outputs: Mapping[str, Tensor]) -> Tensor:
        """(N, 4) probabilities of `TARGETS`."""
        return outputs["joint"][..., 1].exp()


def _pooled(trunks: nn.Module, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features of all four views."""
    missing = [view for view in VIEWS if view not in views]
    if missing:
        raise ModelError(
            "a model that joins views needs all four",
            actual=f"no {', '.join(missing)}",
            remedy="Use the image-wise model for exams that lack a view",
        )
    return {view: trunks(view, views[view]) for view in VIEWS}


class ImageWise(nn.Module):
    """Scores each view by itself, so a view may be missing."""

    def __init__(
        self, channels: int = 1, *, widths: Sequence[int] = FOUR_VIEW_WIDTHS, pool: Pooling = "mean"
    ) -> None:
        super().__init__()
        features = widths[-1]
        self.four_view_resnet = Trunks(channels, widths, pool)
        for view in VIEWS:
            name = _head_name(view)
            self.add_module(f"fc1_{name}", nn.Linear(features, features))
            self.add_module(f"output_layer_{name}", OutputLayer(features))

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log-probabilities (N, 4, 2) of each available view, with rows as in `TARGETS`."""
        return {view: self._one(view, x) for view, x in views.items()}

    def single(self, view: str, x: Tensor) -> Tensor:
        """(N, 2, 2) for one view: row 0 benign, row 1 malignant.

        The published tool for single images has an output layer of half the size, and fills it with the first
        four of the eight rows that the four-view model learnt.
        """
        return self._one(view, x)[:, :2]

    def _one(self, view: str, x: Tensor) -> Tensor:
        name = _head_name(view)
        hidden = F.relu(self.get_submodule(f"fc1_{name}")(self.four_view_resnet(view, x)))
        scored: Tensor = self.get_submodule(f"output_layer_{name}")(hidden)
        return scored


Classifier = ViewWise | SideWise | Joint | ImageWise


def _head_name(view: str) -> str:
    return view.lower().replace("-", "")


class SameConv2d(nn.Conv2d):
    """A convolution padded so that the output is the input's size over the stride, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(same_padded(x, self.kernel_size[0], self.stride[0]))


class SameMaxPool2d(nn.Module):
    """A max-pool padded in the same way, with zeros: it follows a ReLU."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(same_padded(x, self.kernel, self.stride), self.kernel, self.stride)


def same_padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "SAME": the odd pixel goes below and to the right."""
    pads: list[int] = []
    for length in (x.shape[-1], x.shape[-2]):
        total = max(0, kernel - (length % stride or stride))
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def patch_densenet(
    classes: int = len(PATCH_CLASSES),
    *,
    growth: int = 32,
    blocks: tuple[int, int, int, int] = (6, 12, 24, 16),
    first_width: int = 64,
) -> DenseNet:
    """DenseNet-121: (N, 3, 256, 256) to logits (N, 4) of `PATCH_CLASSES`.

    Only its strided layers differ from torchvision's; at stride 1 the padding of both is the same.
    """
    net = DenseNet(growth, blocks, first_width, num_classes=classes)
    net.features.conv0 = SameConv2d(3, first_width, 7, stride=2, bias=False)
    net.features.pool0 = SameMaxPool2d(3, 2)
    nn.init.kaiming_normal_(net.features.conv0.weight)
    return net
