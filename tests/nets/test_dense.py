"""The dense map: equal to its definition and to single patches, in both forms, for every backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.nets.backbones import BACKBONES
from lobule.nets.dense import densify
from lobule.nets.inference import for_inference
from lobule.nets.receptive import geometry_of
from tests.nets.scannet_recipe import golden_image, golden_net
from tests.nets.thin_nets import thin_backbone
from tests.reference.dense import dilated, offset_passes

STRIDE_16 = {"squeezenet1_1"}
ALWAYS = {"scannet_vgg16": 32, "tiny": 32, "squeezenet1_1": 32, "resnet18": 8, "resnet50": 2, "vgg11_bn": 4}
"""Up to which alpha a backbone is tried by default: together they have every part; the rest is a campaign."""
CASES = [
    pytest.param(name, alpha, marks=[pytest.mark.campaign] if alpha > ALWAYS.get(name, 0) else [])
    for name in BACKBONES
    for alpha in (2, 4, 8, 16, 32)
    if not (alpha == 32 and name in STRIDE_16)
]


def relative_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def patch_by_patch(net: nn.Module, x: Tensor, alpha: int, cells: list[tuple[int, int]]) -> Tensor:
    """Cells (row, column) of the dense map, each from its own window cut out of the input: (C, cells)."""
    geometry = geometry_of(net)
    stride, side = geometry.stride // alpha, geometry.extent
    corners = [(row * stride, column * stride) for row, column in cells]
    windows = torch.cat([x[..., r : r + side, c : c + side] for r, c in corners])
    return net(windows)[..., 0, 0].T


@pytest.mark.parametrize(("name", "alpha"), CASES)
def test_dense_map_equals_offset_passes_and_patches(name: str, alpha: int) -> None:
    net = thin_backbone(name)
    geometry = geometry_of(net)
    assert geometry.stride == (16 if name in STRIDE_16 else 32)
    stride = geometry.stride // alpha
    # every offset occurs along one axis, and odd sides fit no whole number of strides
    long = (geometry.extent + geometry.stride) | 1
    short = (geometry.extent + (stride if alpha <= 4 else 0) + stride // 2) | 1
    x = torch.randn(1, 3, *((long, short) if alpha in (2, 8, 32) else (short, long)))
    with torch.inference_mode():
        expected = offset_passes(net, x, alpha)
        assert max(expected.shape) > alpha
        assert expected.std() > 1e-3 * expected.abs().max()
        assert relative_difference(densify(net, alpha)(x), expected) < 1e-4
        if alpha <= 4:
            assert relative_difference(dilated(net, alpha)(x), expected) < 1e-4
        rows, columns = expected.shape[-2:]
        cells = [(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2), (2 * rows // 3, 0)]
        patches = patch_by_patch(net, x, alpha, cells)
        assert relative_difference(patches, expected[0][:, *zip(*cells, strict=True)]) < 1e-4


def test_cells_are_interleaved_with_i_along_rows() -> None:
    net = golden_net("interleave:")
    x = golden_image(244 + 32 + 16, 244 + 16, 5)
    with torch.inference_mode():
        dense = densify(net, 2)(x)
        assert dense.shape == (1, 2, 4, 2)
        for i, j, h, w in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (1, 1, 1, 0)):
            top, left = 32 * h + 16 * i, 32 * w + 16 * j
            window = x[..., top : top + 244, left : left + 244]
            torch.testing.assert_close(dense[0, :, 2 * h + i, 2 * w + j], net(window)[0, :, 0, 0])


def test_batches_stay_apart() -> None:
    net = golden_net("batches:")
    x = torch.cat([golden_image(277, 261, shift) for shift in (0, 90, 170)])
    with torch.inference_mode():
        together = densify(net, 8)(x)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], offset_passes(net, x[i : i + 1], 8))


def test_a_dense_net_follows_the_weights_it_shares() -> None:
    net = golden_net("one:")
    x = golden_image(260, 260, 1)
    with torch.inference_mode():
        dense_nets = [densify(net, 4), dilated(net, 4)]
        before = dense_nets[0](x)
        net.load_state_dict(golden_net("another:").state_dict())
        after = offset_passes(net, x, 4)
        assert (after - before).abs().max() > 1e-3
        for dense in dense_nets:
            torch.testing.assert_close(dense(x), after)


def test_alpha_one_is_the_net_itself() -> None:
    net = golden_net("one:")
    x = golden_image(310, 280, 1)
    with torch.inference_mode():
        assert torch.equal(densify(net, 1)(x), net(x))


@pytest.mark.parametrize("alpha", [0, 3, 64])
def test_other_alphas_are_refused(alpha: int) -> None:
    with pytest.raises(ModelError, match="power of two"):
        densify(golden_net("any:"), alpha)


# ---- ScanNet's golden network ----

VISIBLE_SALT = "scannet-visible:"


def test_published_check_of_the_golden_network() -> None:
    net = golden_net(VISIBLE_SALT)
    first_row = net.conv1_1.weight[0, 0, 0].tolist()
    assert first_row == pytest.approx([0.151616, 0.042168, -0.440011], abs=1e-6)
    with torch.inference_mode():
        tumour = net(golden_image(308, 308, 0)).softmax(1)[0, 1]
    assert tumour.shape == (3, 3)
    corners = [float(tumour[0, 0]), float(tumour[1, 0]), float(tumour[2, 2])]
    assert corners == pytest.approx([0.364010, 0.427331, 0.405844], abs=1e-5)


def test_golden_network(goldens: Path) -> None:
    stored = json.loads((goldens / "scannet" / "goldens.json").read_text())
    network = dict(stored["network"])
    salt, shift = network.pop("salt"), network.pop("S")
    net = golden_net(salt)
    for key, expected in stored["parameter_checks"].items():
        name, _, index = key.partition("[")
        values = net.state_dict()[name]
        if index:
            values = values[tuple(int(i) for i in index.rstrip("]").split(",") if i.strip() != ":")]
        torch.testing.assert_close(values.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)
    assert network
    for key, expected in network.items():
        if key.startswith("alpha"):
            _check_dense(net, int(key.removeprefix("alpha")), shift, expected)
        else:
            height, width = (int(side) for side in key.split("x"))
            _check_map(net(golden_image(height, width, shift)), expected)


def _check_map(logits: Tensor, expected: dict) -> None:
    assert list(logits.shape[-2:]) == expected["out_shape"]
    for channel in (0, 1):
        _close(logits[0, channel], expected[f"logit{channel}"])
    _close(logits.softmax(1)[0, 1], expected["prob1"])


def _check_dense(net: nn.Module, alpha: int, shift: int, expected: dict) -> None:
    assert geometry_of(net).dense(alpha).in_size(alpha * expected["Lp"]) == expected["block"]
    x = golden_image(expected["block"], expected["block"], shift)
    with torch.inference_mode():
        for logits in (
            offset_passes(net, x, alpha),
            densify(net, alpha)(x),
            dilated(net, alpha)(x),
            densify(for_inference(net), alpha)(x),
        ):
            assert list(logits.shape[-2:]) == expected["dense_shape"]
            _close(logits.softmax(1)[0, 1], expected["prob1"])


def _close(actual: Tensor, expected: list) -> None:
    torch.testing.assert_close(
        actual.detach().double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0
    )
