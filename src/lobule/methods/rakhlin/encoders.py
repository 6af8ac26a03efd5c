"""Encoders: networks without their heads, whose feature maps are averaged into one descriptor per crop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lobule.bundles import plain_weights
from lobule.encoders import ENCODERS, EncoderEntry
from lobule.encoders.build import build_network
from lobule.encoders.load import open_encoder
from lobule.errors import ConfigError, ModelError
from lobule.imagenet import imagenet_weights
from lobule.methods.rakhlin.config import Config
from lobule.methods.rakhlin.keras_weights import PUBLISHED, read_keras_weights
from lobule.nets.averaged import plain_layers
from lobule.nets.encoders import fetched
from lobule.nets.inference import for_inference
from lobule.nets.preparation import Preparation
from lobule.nets.scaling import InputScaling
from lobule.nets.tiny import tiny
from lobule.nets.vgg import he_normal
from lobule.nets.vit import VitEncoder

TAPS: dict[str, tuple[str, ...]] = {
    "resnet50": ("layer4",),
    "inception_v3": ("Mixed_7c",),
    "vgg16": ("features.8", "features.15", "features.22", "features.29"),
    "squeezenet1_1": ("features.12",),
}
"""Encoder → the layers whose maps are averaged and concatenated.

Those of VGG-16 are the last convolutions of blocks 2 to 5.
"""

INPUTS: dict[str, tuple[InputScaling, bool]] = {
    "torchvision": (InputScaling(), False),
    "caffe": (InputScaling((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3), True),
    "tf": (InputScaling((0.5,) * 3, (0.5,) * 3), False),
}
"""Name → input scaling, and whether the channels are BGR (the scaling is then in that order)."""

NO_NETWORK_REMEDY = "Pass their files, one per encoder: --set weights=A.safetensors,B.safetensors"
KERAS_POOL = 7
KERAS_EPSILON = 1e-3


@dataclass(frozen=True)
class Plan:
    """Everything that defines an encoder except its weights."""

    name: str
    input: str = "torchvision"
    keras: bool = False

    @classmethod
    def of(cls, config: Config, index: int) -> Plan:
        return cls(config.encoders[index], config.input_of(index), config.keras)

    @property
    def entry(self) -> EncoderEntry | None:
        """The entry in the table of encoders; None for other networks."""
        return ENCODERS.get(self.name.partition("@")[0])

    def input_side(self, crop: int) -> int:
        """Side of the network's input for crops of a size."""
        return crop if self.entry is None or self.entry.any_size else self.entry.input_px


class Encoder(nn.Module):
    """A trunk whose feature maps (one per tap) are averaged over all positions and concatenated."""

    def __init__(self, trunk: nn.Module, plan: Plan, taps: Sequence[str]) -> None:
        super().__init__()
        self.trunk, self.plan, self.taps = trunk, plan, tuple(taps)
        if plan.input not in INPUTS and (plan.input != "encoder" or plan.entry is None):
            raise ConfigError(f"no input '{plan.input}'", expected=", ".join(INPUTS))
        self.first_pool = KERAS_POOL if plan.keras and plan.name.startswith("resnet") else 0

    def forward(self, x: Tensor) -> Tensor:
        """Scaled pixels (N, 3, H, W) to descriptors (N, d)."""
        return torch.cat([self._averaged(maps) for maps in self._maps(x)], dim=1)

    def widths(self) -> tuple[int, ...]:
        """Number of descriptor values of each tap, derived from a small crop."""
        device = next(self.parameters()).device
        side = self.plan.input_side(256)
        with torch.inference_mode():
            maps = self.eval()._maps(torch.zeros(1, 3, side, side, device=device))
        return tuple(int(one.shape[1]) for one in maps)

    def _maps(self, x: Tensor) -> list[Tensor]:
        outputs = self.trunk(x)
        return list(outputs.values()) if isinstance(outputs, Mapping) else [outputs]

    def _averaged(self, maps: Tensor) -> Tensor:
        if maps.ndim == 2:  # this network has its own pooling
            return maps
        if self.first_pool:
            maps = F.avg_pool2d(maps, self.first_pool)
        return maps.mean(dim=(2, 3))


def scale_pixels(pixels: Tensor, plan: Plan, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 RGB (N, H, W, 3) into the input of an encoder: (N, 3, H, W), channels last in memory."""
    entry = plan.entry
    if entry is not None and not entry.any_size:
        pixels = Preparation(entry.resize_px, entry.input_px, entry.interpolation).apply(pixels)
    if plan.input == "encoder" and entry is not None:
        return InputScaling(entry.mean, entry.std).apply(pixels, dtype)
    scaling, bgr = INPUTS[plan.input]
    return scaling.apply(pixels.flip(-1) if bgr else pixels, dtype)


def with_folded_norms(encoder: Encoder) -> Encoder:
    """Return the encoder for inference. If it can be traced, its norms are folded into its convolutions."""
    if isinstance(encoder.trunk, VitEncoder):  # it has no layers that could be folded
        return encoder
    try:
        traceable = encoder.trunk if encoder.plan.entry is None else plain_layers(encoder.trunk)
        trunk: nn.Module = for_inference(traceable)
    except (ModelError, RuntimeError, TypeError):
        trunk = encoder.trunk
    return Encoder(trunk, encoder.plan, encoder.taps).eval()


# -- building -----------------------------------------------------------------------------------------------


def build(plan: Plan, seed: int = 0) -> Encoder:
    """An encoder with fresh weights."""
    torch.manual_seed(seed)
    name, _, named = plan.name.partition("@")
    taps = tuple(named.split("+")) if named else TAPS.get(name, ())
    if plan.entry is not None:
        return Encoder(_of_table(plan.entry, taps), plan, taps).eval()
    if name == "tiny":
        net: nn.Module = nn.Sequential(*list(tiny(2).children())[:-2])
    elif name.startswith("timm:"):
        net = _timm(name.removeprefix("timm:"))
    else:
        with torch.device("meta"):  # most weights of a VGG belong to the head, which is removed
            net = _torchvision(name)
        if not _can_initialise(net):
            net = _torchvision(name)
        taps = (
            taps
            or tuple(module_name for module_name in ("layer4", "features") if hasattr(net, module_name))[:1]
        )
        if not taps:
            raise ConfigError(
                f"the feature layer of {name} is not known", remedy=f"Name it: {name}@LAYER, or {name}@A+B"
            )
    if plan.keras:
        _apply_keras_conventions(net, name)
    trunk = _tapped(net, taps, name) if taps else net
    if plan.keras and name == "inception_v3":
        _exclude_padding_from_pools(trunk)
    if next(trunk.parameters()).is_meta:
        trunk.to_empty(device="cpu")
        for module in trunk.modules():
            initialise: Callable[[], None] | None = getattr(module, "reset_parameters", None)
            if initialise is not None:
                initialise()
    return Encoder(trunk, plan, taps).eval()


def _of_table(entry: EncoderEntry, taps: Sequence[str]) -> nn.Module:
    """The network of an entry, without its weights, or the part of it that computes some layers."""
    net = build_network(entry, meta=False)
    if isinstance(net, VitEncoder):
        if taps:
            raise ConfigError(
                f"the layers of {entry.name} cannot be pooled", remedy=f"Write {entry.name} without @"
            )
        return net
    body = net.get_submodule("body")
    return _tapped(body, taps, entry.name) if taps else body


def _can_initialise(net: nn.Module) -> bool:
    """Whether every module with parameters can initialise itself."""
    return all(
        hasattr(module, "reset_parameters")
        for module in net.modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    )


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ConfigError(f"no encoder '{name}'", expected="a net of torchvision, timm:NAME, or tiny")
    options = {"aux_logits": False, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    net: nn.Module = get_model(name, weights=None, **options)
    return net


def _timm(name: str, *, pretrained: bool = False) -> nn.Module:
    from timm import create_model, is_model

    if not is_model(name):
        raise ConfigError(f"timm has no model '{name}'", remedy="See timm.list_models()")
    net: nn.Module = create_model(name, pretrained=pretrained, num_classes=0)
    return net


def _tapped(net: nn.Module, taps: Sequence[str], name: str) -> nn.Module:
    if name in ENCODERS:  # timm's function knows the layers of its networks that cannot be traced
        from timm.layers import create_feature_extractor
    else:
        from torchvision.models.feature_extraction import create_feature_extractor

    try:
        tapped: nn.Module = create_feature_extractor(net.eval(), {tap: tap for tap in taps})
    except (ValueError, fx.proxy.TraceError) as error:
        raise ConfigError(
            f"{name} does not have the layers {', '.join(taps)}", actual=str(error).splitlines()[0]
        ) from error
    return tapped


def _apply_keras_conventions(net: nn.Module, name: str) -> None:
    """Change a ResNet-50 into that of Keras in 2018. VGG and Inception-v3 need no change here.

    In Keras, layers 2 to 4 have their stride in the first 1 × 1 convolution. The first pool has no padding.
    """
    if name in ("vgg16", "vgg19", "inception_v3"):
        return
    if name != "resnet50":
        raise ConfigError(
            f"the Keras conventions of {name} are not known", expected="resnet50, inception_v3, vgg16, vgg19"
        )
    modules: Any = net
    for stage in (modules.layer2, modules.layer3, modules.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
    modules.maxpool.padding = 0
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def _exclude_padding_from_pools(trunk: nn.Module) -> None:
    """Let average pools not count their zero padding, as in TensorFlow."""
    assert isinstance(trunk, fx.GraphModule)
    for node in trunk.graph.nodes:
        if node.op == "call_function" and node.target is F.avg_pool2d:
            node.kwargs = {**node.kwargs, "count_include_pad": False}
    trunk.recompile()


# -- weights ------------------------------------------------------------------------------------------------


def pretrained(plan: Plan, weights: str, seed: int = 0) -> Encoder:
    """An encoder with the weights that a setting names."""
    encoder = build(plan, seed)
    if weights == "random" or (weights == "imagenet" and plan.name == "tiny"):
        he_normal(encoder)
        return encoder
    if plan.entry is not None:
        source = "pretrained" if weights == "imagenet" else weights
        load_weights(encoder, open_encoder(plan.entry.name, source).net.state_dict(), weights)
        return encoder
    if weights == "imagenet":
        if plan.keras:
            raise ConfigError(
                "the Keras conventions need weights converted from Keras",
                remedy="Download "
                f"{PUBLISHED.get(plan.name, 'its file')} from the releases of "
                "github.com/fchollet/deep-learning-models, and pass it: --set weights=FILE.h5,…",
            )
        name = plan.name.partition("@")[0]
        from_hub = name.startswith("timm:")
        tensors = fetched(plan.name, lambda: _published(name), NO_NETWORK_REMEDY, from_hub=from_hub)
        load_weights(encoder, tensors, plan.name)
    elif weights.endswith((".h5", ".hdf5")):
        load_weights(encoder, read_keras_weights(weights).tensors, weights)
    else:
        load_weights(encoder, plain_weights(weights), weights)
    return encoder


def load_weights(encoder: Encoder, weights: Mapping[str, Tensor], source: object) -> None:
    """Load a checkpoint of the whole network, or of its trunk, into an encoder; the head is not needed."""
    trunk_state = encoder.trunk.state_dict()
    if encoder.plan.entry is not None and not isinstance(encoder.trunk, VitEncoder):
        weights = {name.removeprefix("body."): tensor for name, tensor in weights.items()}
    for name, tensor in trunk_state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in weights or weights[name].shape != tensor.shape:
            actual_shape = tuple(weights[name].shape) if name in weights else "nothing"
            raise ModelError(
                f"these are not the weights of {encoder.plan.name}",
                subject=source,
                expected=f"{name} of shape {tuple(tensor.shape)}",
                actual=str(actual_shape),
            )
    encoder.trunk.load_state_dict({name: weights.get(name, tensor) for name, tensor in trunk_state.items()})


def _published(name: str) -> Mapping[str, Tensor]:
    """ImageNet weights as torchvision and timm publish them; nothing in them is run."""
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), pretrained=True).state_dict()
    return imagenet_weights(name, "--set weights=FILE,…, one per encoder")
