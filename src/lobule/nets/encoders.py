"""Any backbone as a tile encoder, by name: its features are what stands before the classifier."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.errors import ConfigError, ModelError
from lobule.nets.backbones import BACKBONES
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of
from lobule.nets.scaling import PLAIN_SCALING, InputScaling
from lobule.nets.unpad import HEADS

SOURCES = ("torchvision", "timm", "lobule")
Weights = Mapping[str, Tensor] | Literal["pretrained", "random"]
RANDOM_SEED = 0
NO_NETWORK = "Fetch the file on a machine with a network and pass it with --weights FILE"


@dataclass(frozen=True, eq=False)
class Encoder:
    """A backbone without its classifier, what its input must look like, and how long its features are."""

    name: str
    net: nn.Module
    """(N, 3, H, W) scaled to (N, dim)."""
    dim: int
    scaling: InputScaling
    input_px: int | None
    """The one input size it takes, where it takes one alone."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The backbone's own weights, as `encoder(name, weights)` takes them back."""
        return {name.removeprefix("body."): value for name, value in self.net.state_dict().items()}

    def hash_at(self, input_px: int) -> str:
        """A hash of everything that decides the features of a tile."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        digest.update(json.dumps([self.name, self.scaling.as_dict(), input_px]).encode())
        return f"sha256:{digest.hexdigest()}"

    def for_inference(self) -> nn.Module:
        """The net in its fastest exact form; one that cannot be traced stays as it is."""
        try:
            return for_inference(self.net)
        except Exception:  # torch.fx raises whatever the code of a net makes it stumble over
            return self.net.eval()


def encoder(name: str, weights: Weights = "pretrained") -> Encoder:
    """A backbone by name with its published weights, plain tensors of its own layout, or random ones.

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
    """Source and short name; a name without a source is torchvision's."""
    source, colon, short = name.partition(":")
    if not colon:
        source, short = "torchvision", name
    if source not in SOURCES or not re.fullmatch(r"[A-Za-z0-9_.:/-]+", short):
        raise ConfigError(
            f"no backbone '{name}'", expected="NAME, torchvision:NAME, timm:NAME or lobule:NAME"
        )
    return source, short


def canonical(name: str) -> str:
    source, short = split_name(name)
    return short if source == "torchvision" else f"{source}:{short}"


class _Pooled(nn.Module):
    """The convolutional part of a net, averaged over positions."""

    def __init__(self, body: nn.Module, rectified: bool) -> None:
        super().__init__()
        self.body, self.rectified = body, rectified

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return (F.relu(features) if self.rectified else features).mean(dim=(2, 3))


class _Whole(nn.Module):
    """A net whose classifier was replaced by nothing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return features


def _of_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, InputScaling, int | None]:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ConfigError(f"torchvision has no backbone '{name}'", remedy="Write timm:NAME for one of timm's")
    net = _fetched(name, lambda: get_model(name, weights="DEFAULT" if pretrained else None))
    if isinstance(features := getattr(net, "features", None), nn.Module) and not hasattr(net, "head"):
        return _Pooled(features, rectified=name.startswith("densenet")), InputScaling(), None
    for head in ("fc", "heads", "head"):
        if hasattr(net, head):
            setattr(net, head, nn.Identity())
            fixed = getattr(net, "image_size", None)
            return _Whole(net), InputScaling(), int(fixed) if fixed else None
    raise ConfigError(f"'{name}' is no classifier, so it has no features before one")


def _of_timm(name: str, pretrained: bool) -> tuple[nn.Module, InputScaling, int | None]:
    import timm

    net: Any = _fetched(name, lambda: timm.create_model(name, pretrained=pretrained, num_classes=0))
    facts = net.pretrained_cfg
    scaling = InputScaling(tuple(facts.get("mean", (0.5,) * 3)), tuple(facts.get("std", (0.5,) * 3)))
    fixed = facts.get("fixed_input_size") or hasattr(net, "pos_embed")
    return _Whole(net), scaling, int(facts["input_size"][-1]) if fixed else None


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
        kept = [(key, layer) for key, layer in net.named_children() if key not in ("drop", "head")]
        if not isinstance(net, nn.Sequential):
            raise ConfigError(f"'lobule:{name}' has no features before its classifier")
        body = nn.Sequential()
        for key, layer in kept:
            body.add_module(key, layer)
    return _Pooled(body, rectified=False), PLAIN_SCALING, None


def _fetched(name: str, build: Any) -> nn.Module:
    """Build a net; where its weights cannot be downloaded, say what to do."""
    try:
        net: nn.Module = build()
        return net
    except ConfigError:
        raise
    except Exception as error:  # both libraries and what they download with raise many types
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) or any(word in text.lower() for word in ("connect", "hub", "offline")):
            raise ConfigError(
                f"the weights of '{name}' cannot be downloaded", found=text, remedy=NO_NETWORK
            ) from error
        raise ConfigError(f"the backbone '{name}' cannot be made", found=text) from error


def _load(name: str, net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put a checkpoint of the same backbone in, strictly but for its classifier."""
    body = net.get_submodule("body")
    own = set(body.state_dict())
    given = dict(weights)
    for prefix in ("features.", "trunk.", "module.", "backbone."):
        if not own & set(given) and any(key.startswith(prefix) for key in given):
            given = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
    kept = {key: value for key, value in given.items() if key in own or key.split(".")[0] not in HEADS}
    try:
        body.load_state_dict(kept, strict=True)
    except RuntimeError as error:
        raise ModelError(
            "these weights are of another backbone",
            expected=f"the names and shapes of '{name}'",
            found=str(error).splitlines()[-1].strip(),
        ) from error


def _width(name: str, net: nn.Module, input_px: int | None) -> int:
    """The length of the features, found without computing."""
    body = net.get_submodule("body")
    side = input_px or 224
    if split_name(name)[0] == "lobule":
        side = geometry_of(body).extent  # without padding, nothing smaller gives a feature
    with torch.no_grad():
        shape = copy.deepcopy(net).to("meta")(torch.empty(1, 3, side, side, device="meta")).shape
    if len(shape) != 2:
        raise ConfigError(
            f"'{name}' gives no features", expected="one row of numbers a tile", found=str(tuple(shape))
        )
    return int(shape[1])
