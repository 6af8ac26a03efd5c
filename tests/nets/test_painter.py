"""The patch network for running gives what the patch network gives."""

from __future__ import annotations

import copy

import pytest
import torch

from lobule.nets.four_view import patch_densenet
from lobule.nets.painter import Painter
from tests.methods.four_view.support import seeded


@pytest.fixture
def net():
    return seeded(patch_densenet(growth=4, blocks=(2, 3, 2, 2), first_width=8), "patch")


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("side", [256, 64])
def test_logits_equal_those_of_the_net(net, memory, side) -> None:
    painter = Painter(copy.deepcopy(net)).to(memory_format=memory)
    x = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = net(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(painter(x), expected, atol=2e-5, rtol=0)
        assert expected.std(dim=0).min() > 1e-3
        evidence = painter.evidence(x)
    assert evidence.shape == (3, 4, side // 32, side // 32)
    torch.testing.assert_close(evidence.mean(dim=(2, 3)), expected, atol=2e-5, rtol=0)


def test_evidence_far_from_edges_knows_no_patches(net) -> None:
    """Moved by whole cells, what a wide view shows far from its edges is the same."""
    painter = Painter(copy.deepcopy(net))
    x = torch.randn(1, 1, 1280, 1280, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full_evidence = painter.evidence(x)
        inner_evidence = painter.evidence(x[:, :, 64:-64, 96:-96])
    inner = slice(15, 20)
    torch.testing.assert_close(
        full_evidence[:, :, 17:22, 18:23], inner_evidence[:, :, inner, inner], atol=1e-4, rtol=0
    )
    assert full_evidence.std() > 1e-2


def test_memory_is_foretold_from_the_widest_place() -> None:
    """DenseNet-121: of the first block, its map twice and a half and its input, at a quarter of the size."""
    painter = Painter(patch_densenet())
    assert painter.bytes_per_px() == 4 * (2.5 * 256 + 64) / 16
