"""Any backbone as a tile encoder, by name; its features are the input of its classifier."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.errors import ConfigError, ModelError
from lobule.nets.averaged import AveragedMaps, plain_layers
from lobule.nets.backbones import BACKBONES
from lobule.nets.hub import offline_if_unreachable
from lobule.nets.inference import for_inference
from lobule.nets.preparation import Preparation
from lobule.nets.receptive import geometry_of
from lobule.nets.resnet import BLOCKS, torchvision_model
from lobule.nets.scaling import PLAIN_SCALING, InputScaling
from lobule.nets.shapes import output_shape
from lobule.nets.unpad import HEADS
from lobule.nets.vit import VitEncoder

SOURCES = ("torchvision", "timm", "lobule")
Weights = Mapping[str, Tensor] | Literal["pretrained", "random"]
RANDOM_SEED = 0
NO_NETWORK_REMEDY = "Fetch the file on a machine with a network and pass it with --weights FILE"
Fetched = TypeVar("Fetched")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A backbone without its classifier, with the scaling of its input and the length of its features."""

    name: str
    net: nn.Module
    """(N, 3, H, W) scaled to (N, dim)."""
    dim: int
    scaling: InputScaling
    input_px: int | None
    """The only input size that it accepts; None if any size works."""
    preparation: Preparation | None = None
    """How its authors resize and cut tiles; None if tiles are used as they are."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Licence, file and hash of published weights, for feature files and bundles."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the backbone, in the form that `encoder(name, weights)` accepts."""
        return {name.removeprefix("body."): value for name, value in self.net.state_dict().items()}

    def hash_at(self, input_px: int) -> str:
        """A hash of everything that determines the features of a tile."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        settings: list[Any] = [self.name, self.scaling.as_dict(), input_px]
        if self.preparation is not None:
            settings.append(self.preparation.as_dict())
        digest.update(json.dumps(settings).encode())
        return f"sha256:{digest.hexdigest()}"

    def for_inference(self) -> nn.Module:
        """The network in its fastest exact form; a network that cannot be traced stays unchanged."""
        if isinstance(self.net, VitEncoder):  # it has no layers that could be folded
            return self.net.eval()
        try:
            return for_inference(plain_layers(self.net) if isinstance(self.net, AveragedMaps) else self.net)
        except Exception:  # torch.fx can raise any exception that the code of a network causes
            return self.net.eval()


def encoder(name: str, weights: Weights = "pretrained") -> Encoder:
    """A backbone by name with its published weights, with given tensors, or with random weights.

    `resnet50` or `torchvision:resnet50`, `timm:NAME` (also `timm:hf-hub:OWNER/MODEL`), or `lobule:NAME` for
    the unpadded nets of `nets.backbones`.
    """
    source, short = split_name(name)
    build = {"torchvision": _of_torchvision, "timm": _of_timm, "lobule": _of_lobule}[source]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        net, scaling, input_px = build(short, weights == "pretrained")
    if not isinstance(weights, str):
        _load(name, net, weights)
    net = net.eval().requires_grad_(False)
    return Encoder(canonical(name), net, _width(name, net, input_px), scaling, input_px)


def split_name(name: str) -> tuple[str, str]:
    """Source and short name; a name without a source belongs to torchvision."""
    source, colon, short = name.partition(":")
    if not colon:
        source, short = "torchvision", name
    if source not in SOURCES or not re.fullmatch(r"[A-Za-z0-9_.:/-]+", short):
        raise ConfigError(
            f"no backbone '{name}'", expected="NAME, torchvision:NAME, timm:NAME or lobule:NAME"
        )
    return source, short


def refuse_unknown(name: str) -> None:
    """Refuse a name that no library has, without building its network.

    Raises:
        ConfigError: There is no network of this name.
    """
    source, short = split_name(name)
    if source == "torchvision" and short not in BLOCKS:
        from torchvision.models import list_models

        if short not in list_models():
            raise _no_torchvision_model(short)
    elif source == "timm" and not short.startswith(("hf-hub:", "hf_hub:")):
        from timm import is_model

        if not is_model(short.partition(".")[0]):
            raise ConfigError(f"timm has no network '{short}'", remedy="`timm.list_models()` lists them")
    elif source == "lobule" and short not in BACKBONES:
        raise ConfigError(f"Lobule has no net '{short}'", expected=", ".join(BACKBONES))


def _no_torchvision_model(name: str) -> ConfigError:
    return ConfigError(
        f"there is no encoder or torchvision network '{name}'",
        remedy="`lobule weights list` shows the encoders; write timm:NAME for a network of timm",
    )


def canonical(name: str) -> str:
    source, short = split_name(name)
    return short if source == "torchvision" else f"{source}:{short}"


class _Body(nn.Module):
    """A net without its classifier; the map of a convolutional net is averaged over positions."""

    def __init__(self, body: nn.Module, pooled: bool = False, rectified: bool = False) -> None:
        super().__init__()
        self.body, self.pooled, self.rectified = body, pooled, rectified

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        if self.rectified:
            features = F.relu(features)
        return features.mean(dim=(2, 3)) if self.pooled else features


def _of_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, InputScaling, int | None]:
    if pretrained or name not in BLOCKS:
        from torchvision.models import get_model, list_models

        if name not in list_models():
            raise _no_torchvision_model(name)
        net = fetched(name, lambda: get_model(name, weights=_published(name) if pretrained else None))
    else:
        net = torchvision_model(name)
    if isinstance(features := getattr(net, "features", None), nn.Module) and not hasattr(net, "head"):
        return _Body(features, pooled=True, rectified=name.startswith("densenet")), InputScaling(), None
    for head in ("fc", "heads", "head"):
        if hasattr(net, head):
            setattr(net, head, nn.Identity())
            fixed = getattr(net, "image_size", None)
            return _Body(net), InputScaling(), int(fixed) if fixed else None
    raise ConfigError(f"'{name}' is not a classifier, so there are no features before one")


def _published(name: str) -> Any:
    """The first ImageNet weights, which the papers used; torchvision's default may be a later version."""
    from torchvision.models import get_model_weights

    versions = get_model_weights(name)
    return versions["IMAGENET1K_V1"] if "IMAGENET1K_V1" in versions.__members__ else versions.DEFAULT


def _of_timm(name: str, pretrained: bool) -> tuple[nn.Module, InputScaling, int | None]:
    import timm

    net: Any = fetched(
        name, lambda: timm.create_model(name, pretrained=pretrained, num_classes=0), from_hub=pretrained
    )
    pretrained_config = net.pretrained_cfg
    scaling = InputScaling(
        tuple(pretrained_config.get("mean", (0.5,) * 3)), tuple(pretrained_config.get("std", (0.5,) * 3))
    )
    fixed = pretrained_config.get("fixed_input_size") or hasattr(net, "pos_embed")
    return _Body(net), scaling, int(pretrained_config["input_size"][-1]) if fixed else None


def _of_lobule(name: str, pretrained: bool) -> tuple[nn.Module, InputScaling, int | None]:
    if name not in BACKBONES:
        raise ConfigError(f"Lobule has no net '{name}'", expected=", ".join(BACKBONES))
    if pretrained:
        raise ConfigError(
            f"there are no published weights of 'lobule:{name}'",
            remedy="Pass those of a bundle with --weights BUNDLE/weights.safetensors, or --weights random",
        )
    net = BACKBONES[name](2)
    body = getattr(net, "trunk", None)
    if not isinstance(body, nn.Module):
        trunk_layers = [(key, layer) for key, layer in net.named_children() if key not in ("drop", "head")]
        if not isinstance(net, nn.Sequential):
            raise ConfigError(f"'lobule:{name}' has no features before its classifier")
        body = nn.Sequential()
        for key, layer in trunk_layers:
            body.add_module(key, layer)
    return _Body(body, pooled=True), PLAIN_SCALING, None


def fetched(
    name: str, build: Callable[[], Fetched], remedy: str = NO_NETWORK_REMEDY, *, from_hub: bool = False
) -> Fetched:
    """Build a network or fetch its weights; if they cannot be downloaded, the error says what to do.

    Args:
        name: Name of the network, for messages.
        build: Builds the network or fetches its weights.
        remedy: What to do without a network.
        from_hub: Whether the weights come from the hub, or from its cache.
    """
    try:
        with offline_if_unreachable() if from_hub else nullcontext():
            return build()
    except ConfigError:
        raise
    except Exception as error:  # both libraries and their download code raise many types
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) or any(word in text.lower() for word in ("connect", "hub", "offline")):
            raise ConfigError(
                f"the weights of '{name}' cannot be downloaded", actual=text, remedy=remedy
            ) from error
        raise ConfigError(f"the backbone '{name}' cannot be made", actual=text) from error


def _load(name: str, net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a checkpoint of the same backbone, strictly except for its classifier."""
    body = net.get_submodule("body")
    body_keys = set(body.state_dict())
    renamed_weights = dict(weights)
    for prefix in ("features.", "trunk.", "module.", "backbone."):
        if not body_keys & set(renamed_weights) and any(key.startswith(prefix) for key in renamed_weights):
            renamed_weights = {
                k.removeprefix(prefix): v for k, v in renamed_weights.items() if k.startswith(prefix)
            }
    body_weights = {
        key: value
        for key, value in renamed_weights.items()
        if key in body_keys or key.split(".")[0] not in HEADS
    }
    try:
        body.load_state_dict(body_weights, strict=True)
    except RuntimeError as error:
        raise ModelError(
            "these weights belong to another backbone",
            expected=f"the names and shapes of '{name}'",
            actual=str(error).splitlines()[-1].strip(),
        ) from error


def _width(name: str, net: nn.Module, input_px: int | None) -> int:
    """The length of the features, derived from the shapes of the network's steps."""
    body = net.get_submodule("body")
    side = input_px or 224
    if split_name(name)[0] == "lobule":
        side = geometry_of(body).extent  # without padding, a smaller input gives no feature
    shape = output_shape(net, (1, 3, side, side))
    if len(shape) != 2:
        raise ConfigError(
            f"'{name}' gives no features", expected="one row of numbers a tile", actual=str(shape)
        )
    return shape[1]
