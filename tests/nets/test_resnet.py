"""Lobule's ResNets against those of torchvision."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from lobule.nets.resnet import BLOCKS, resnet, torchvision_model


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_a_seed_gives_the_weights_and_outputs_of_torchvision(name: str) -> None:
    torch.manual_seed(3)
    ours = resnet(name, 5).eval()
    torch.manual_seed(3)
    theirs = get_model(name, weights=None, num_classes=5).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )
    x = torch.rand(2, 3, 70, 65)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_the_deepest_has_the_names_and_shapes_of_torchvision() -> None:
    with torch.device("meta"):
        ours, theirs = resnet("resnet152"), get_model("resnet152", weights=None)
    assert {name: value.shape for name, value in ours.state_dict().items()} == (
        {name: value.shape for name, value in theirs.state_dict().items()}
    )
    assert set(BLOCKS) == {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}


def test_other_names_are_those_of_torchvision() -> None:
    assert type(torchvision_model("alexnet", 3)).__module__.startswith("torchvision")
    with pytest.raises(ValueError, match="no_such_net"):
        torchvision_model("no_such_net")
