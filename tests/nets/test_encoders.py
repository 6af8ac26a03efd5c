"""Encoders: the features before the classifier, whatever the library; weights and hashes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from lobule.errors import ConfigError, ModelError
from lobule.nets.encoders import canonical, encoder
from lobule.nets.scaling import PLAIN_SCALING, InputScaling
from lobule.nets.tiny import tiny


def features_before(module: nn.Module, of: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a layer of a plain net is given, caught on its way."""
    features = []
    handle = module.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        of.eval()(images)
    handle.remove()
    return features[0]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_features_of_resnet_are_those_before_its_classifier(images: torch.Tensor) -> None:
    torch.manual_seed(1)
    net = models.resnet18(num_classes=5)
    built = encoder("resnet18", net.state_dict())
    assert (built.name, built.dim, built.input_px, built.scaling) == ("resnet18", 512, None, InputScaling())
    expected = features_before(net.fc, net, images)
    np.testing.assert_allclose(built.net(images), expected, atol=1e-5)
    np.testing.assert_allclose(built.for_inference()(images), expected, atol=1e-4)


def test_features_of_squeezenet_are_the_mean_of_its_maps(images: torch.Tensor) -> None:
    torch.manual_seed(2)
    net = models.squeezenet1_1(num_classes=3)
    built = encoder("torchvision:squeezenet1_1", net.state_dict())
    assert (built.name, built.dim) == ("squeezenet1_1", 512)
    with torch.no_grad():
        np.testing.assert_allclose(built.net(images), net.eval().features(images).mean((2, 3)), atol=1e-6)


def test_densenet_is_rectified_before_its_mean(images: torch.Tensor) -> None:
    torch.manual_seed(3)
    net = models.densenet121(num_classes=2)
    built = encoder("densenet121", net.state_dict())
    np.testing.assert_allclose(built.net(images), features_before(net.classifier, net, images), atol=1e-5)


def test_timm_and_its_fixed_sizes() -> None:
    built = encoder("timm:vit_tiny_patch16_224", "random")
    assert (built.name, built.dim, built.input_px) == ("timm:vit_tiny_patch16_224", 192, 224)
    assert built.scaling == PLAIN_SCALING
    again = encoder("timm:vit_tiny_patch16_224", built.weights)
    assert again.hash_at(224) == built.hash_at(224) != encoder("timm:resnet10t", "random").hash_at(224)


def test_lobules_own_nets_give_what_their_head_is_given() -> None:
    torch.manual_seed(4)
    net = tiny(2)
    built = encoder("lobule:tiny", net.state_dict())
    assert (built.name, built.dim, built.scaling) == ("lobule:tiny", 96, PLAIN_SCALING)
    tiles = torch.randn(1, 3, 235, 235)
    expected = features_before(net.get_submodule("head"), net, tiles).mean((2, 3))
    np.testing.assert_allclose(built.net(tiles), expected, atol=1e-5)


def test_the_hash_is_of_weights_scaling_and_size() -> None:
    built = encoder("lobule:tiny", "random")
    assert built.hash_at(224) == encoder("lobule:tiny", "random").hash_at(224)
    assert built.hash_at(224) != built.hash_at(256)
    weights = {name: value.clone() for name, value in built.weights.items()}
    weights["conv1.weight"][0, 0, 0, 0] += 1e-3
    assert encoder("lobule:tiny", weights).hash_at(224) != built.hash_at(224)


def test_random_weights_disturb_nobodys_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder("lobule:tiny", "random")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nonsense", "no encoder or torchvision network 'nonsense'"),
        ("timm:nonsense", "cannot be made"),
        ("lobule:huge", "Lobule has no net"),
        ("elsewhere:net", "no backbone 'elsewhere:net'"),
        ("timm:a b", "no backbone"),
    ],
)
def test_names_that_are_no_backbone(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        encoder(name, "random")


def test_weights_of_another_net_are_refused() -> None:
    with pytest.raises(ModelError, match="belong to another backbone"):
        encoder("resnet18", models.resnet34().state_dict())
    with pytest.raises(ConfigError, match=r"no published weights.*--weights"):
        encoder("lobule:tiny")


def test_without_a_network_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> object:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models.get_model", unreachable)
    with pytest.raises(ConfigError, match=r"cannot be downloaded.*pass it with --weights FILE"):
        encoder("resnet18", "pretrained")


def test_names_have_one_spelling() -> None:
    assert canonical("torchvision:resnet50") == canonical("resnet50") == "resnet50"
    assert canonical("timm:resnet50") == "timm:resnet50"
