"""GMIC against recorded runs of the published code, on weights made from names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.nets.four_view_weights import load_published
from lobule.nets.gmic import Gmic, choose_cells, cut_regions, top_mean
from lobule.nets.published import GMIC_TOP_SHARES
from tests.nets.four_view_recipe import hash_of, made_net
from tests.nets.mammogram_inputs import RealExam

LOGIT, PROBABILITY = 2e-5, 1e-5


@pytest.fixture(scope="module")
def golden(goldens):
    return json.loads((goldens / "four_view" / "gmic.json").read_text())


@pytest.fixture(scope="module")
def saliencies(goldens):
    with np.load(goldens / "four_view" / "gmic_saliency.npz") as arrays:
        return {key.removesuffix("_saliency"): torch.from_numpy(arrays[key])[None] for key in arrays}


@pytest.fixture(scope="module")
def recorded():
    return json.loads((Path(__file__).parents[1] / "data" / "four_view" / "weights.json").read_text())


@pytest.fixture(scope="module")
def net(recorded):
    return made_net("gmic", recorded["salt"])


def close(tensor, expected, tolerance):
    assert np.abs(np.asarray(tensor, np.float64) - np.asarray(expected)).max() <= tolerance


def test_names_and_made_weights(net, recorded):
    weights = recorded["weights"]["gmic"]
    assert len(net.state_dict()) == weights["n_keys_total"]
    assert hash_of(net) == weights["sha256_sorted_float_tensors"]
    assert sum(p.numel() for p in net.parameters()) == 14_110_322
    for key, example in weights["examples"].items():
        tensor = net.state_dict()[key]
        assert list(tensor.shape) == example["shape"]
        close(tensor.flatten()[: len(example["first"])], example["first"], 1e-6)
    load_published(Gmic(), net.state_dict() | {"shared_rep_filter.weight": torch.zeros(1)})


def test_regions_and_global_scores_of_stored_saliency(net, golden, saliencies):
    for name, expected in golden["images"].items():
        saliency = saliencies[name]
        corners = net.region_corners(saliency, (2944, 1920))
        assert corners[0].tolist() == expected["patch_locations"]
        for index, share in enumerate(GMIC_TOP_SHARES, start=1):
            of_model = expected["y_global_by_model_index"][str(index)]
            assert round(46 * 30 * share) == of_model["top_t"]
            close(top_mean(saliency, share)[0], of_model["y_global"], 1e-6)


@pytest.mark.parametrize(
    "name",
    ["0_L-CC", *(pytest.param(n, marks=pytest.mark.campaign) for n in ("0_R-CC", "0_L-MLO", "0_R-MLO"))],
)
def test_one_view_from_pixels_to_scores(name, kit, net, golden, saliencies):
    expected = golden["images"][name]
    exam = RealExam(kit)
    assert list(exam.image(expected["view"], (2944, 1920)).centre) == expected["best_center"]
    x = exam.input(expected["view"], gmic=True)
    if np.__version__ == "2.4.6":
        assert hashlib.sha256(x[0, 0].numpy().tobytes()).hexdigest() == expected["input_float32_sha256"]
    with torch.inference_mode():
        output = net(x)
    close(output.saliency, saliencies[name], PROBABILITY)
    assert output.corners[0].tolist() == expected["patch_locations"]
    close(output.attention[0], expected["patch_attention"], PROBABILITY)
    close(output.scores[0], [expected["benign_pred"], expected["malignant_pred"]], PROBABILITY)
    close(output.local_scores[0], expected["y_local"], PROBABILITY)
    close(output.global_scores[0], expected["y_global_by_model_index"]["1"]["y_global"], PROBABILITY)
    regions = cut_regions(x, output.corners, 256)
    close(regions[:, 0].double().mean(dim=(1, 2)), expected["patch_means"], 1e-5)


def slow_cells(saliency, window, count):
    """One window at a time, in plain loops."""
    spread = saliency.max(axis=(1, 2), keepdims=True) - saliency.min(axis=(1, 2), keepdims=True)
    total = ((saliency - saliency.min(axis=(1, 2), keepdims=True)) / spread).sum(axis=0)
    cells = []
    for _ in range(count):
        best = max(
            (total[r : r + window[0], c : c + window[1]].mean(), -r, -c)
            for r in range(total.shape[0] - window[0] + 1)
            for c in range(total.shape[1] - window[1] + 1)
        )
        row, column = -best[1], -best[2]
        total[row : row + window[0], column : column + window[1]] = 0
        cells.append([row, column])
    return cells


def test_cells_equal_a_plain_search():
    rng = np.random.default_rng(0)
    saliency = rng.random((3, 2, 17, 12))
    cells = choose_cells(torch.from_numpy(saliency), (4, 3), 5)
    for view in range(3):
        assert cells[view].tolist() == slow_cells(saliency[view].copy(), (4, 3), 5)


def test_the_first_of_equal_windows_is_taken():
    saliency = torch.zeros(1, 2, 8, 8)
    saliency[0, :, 5, 5] = 1
    assert choose_cells(saliency, (2, 2), 1)[0].tolist() == [[4, 4]]


def test_a_constant_map_is_guarded_only_when_fixed():
    saliency = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = choose_cells(saliency[:, [1, 1]], (2, 2), 3)
    saliency[:, 0] = 0.4
    assert torch.equal(choose_cells(saliency, (2, 2), 3, quirks="fixed"), alone)
    assert choose_cells(saliency, (2, 2), 3).shape == (1, 3, 2)


def test_a_small_net_learns_from_its_regions():
    """Gradients reach every part, and regions of another size lie inside smaller views."""
    torch.manual_seed(0)
    net = Gmic(regions=2, region_px=64, widths=(2, 2, 4, 4, 4)).eval()
    output = net(torch.randn(2, 1, 320, 256))
    assert output.corners.amin() >= 0
    assert (output.corners.amax(dim=(0, 1)) + 64 <= torch.tensor([320, 256])).all()
    close(output.attention.sum(dim=1).detach(), [1, 1], 1e-6)
    (output.scores.sum() + output.global_scores.sum() + output.local_scores.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())
