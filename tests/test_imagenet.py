"""ImageNet weights from the cache, from a file URL, and the message without a network."""

from __future__ import annotations

import hashlib
import urllib.error
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import SqueezeNet1_1_Weights, get_model_weights, squeezenet1_1

from lobule.errors import ConfigError
from lobule.imagenet import imagenet_weights
from lobule.methods.rakhlin.encoders import Plan, pretrained
from lobule.methods.scannet import Config
from lobule.methods.scannet.train import _start_weights
from lobule.nets.encoders import _published


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return squeezenet1_1(weights=None).state_dict()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def serve(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let torchvision's weights point to a local file."""
    value: Any = SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    original = value.url
    monkeypatch.setattr(value, "url", path.as_uri())
    assert SqueezeNet1_1_Weights.IMAGENET1K_V1.url != original


def test_weights_are_downloaded_once_into_the_cache(
    state: dict[str, torch.Tensor], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, tmp_path / "new.pth")
    digest = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()[:8]
    served = (tmp_path / "new.pth").rename(tmp_path / f"squeezenet1_1-{digest}.pth")
    serve(monkeypatch, served)
    first = imagenet_weights("squeezenet1_1")
    assert all(torch.equal(first[name], tensor) for name, tensor in state.items())
    served.unlink()
    again = imagenet_weights("squeezenet1_1")  # from the cache
    assert torch.equal(again["features.0.weight"], state["features.0.weight"])
    net = pretrained(Plan("squeezenet1_1"), "imagenet")
    assert torch.equal(net.trunk.state_dict()["features.0.weight"], state["features.0.weight"])


def test_a_damaged_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"a page of a proxy")
    serve(monkeypatch, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        imagenet_weights("squeezenet1_1")


def test_without_a_network_the_message_names_file_cache_and_option(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(ConfigError) as caught:
        _start_weights(Config())
    message = str(caught.value)
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in message
    assert str(cache) in message
    assert "--set weights=FILE" in message


def test_networks_without_imagenet_weights_are_named() -> None:
    with pytest.raises(ConfigError, match="no ImageNet weights of 'tiny'"):
        imagenet_weights("tiny")
    with pytest.raises(ConfigError, match="weights=random"):
        Config(trunk="tiny").resolved()
    assert Config(trunk="tiny", weights="random").resolved().starts_from == "random"
    assert Config(trunk="tiny", weights="").resolved().starts_from == "random"


def test_scannet_starts_from_imagenets_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def record(name: str) -> dict[str, torch.Tensor]:
        requested.append(name)
        return {}

    monkeypatch.setattr(import_module("lobule.methods.scannet.train"), "imagenet_weights", record)
    assert _start_weights(Config()) == {}
    assert _start_weights(Config(trunk="resnet18")) == {}
    assert requested == ["vgg16", "resnet18"]
    assert _start_weights(Config(weights="random")) is None


def test_the_first_version_of_the_weights_is_used_everywhere() -> None:
    """ResNet-50's default in torchvision is the second version, which has other features."""
    assert get_model_weights("resnet50").DEFAULT.name == "IMAGENET1K_V2"
    assert _published("resnet50").name == "IMAGENET1K_V1"
    assert _published("resnet50").url.endswith("resnet50-0676ba61.pth")
    assert _published("regnet_y_128gf").name.startswith("IMAGENET1K_SWAG")  # it has no first version
