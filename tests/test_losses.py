"""The losses of reverse distillation against worked numbers and closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.losses import distillation_loss, flat_cosine, focal_distillation_loss, focal_terms


@pytest.mark.parametrize(
    ("cosine", "normal", "loss"),
    [
        (0.9, True, 0.000105),
        (0.5, True, 0.017329),
        (0.99, False, 4.062175),
        (0.1, False, 0.000948),
        (0.75, True, 0.001798),
        (0.75, False, 0.701812),
    ],
)
def test_worked_focal_terms(cosine: float, normal: bool, loss: float) -> None:
    for floor in (1e-6, None):
        term = focal_terms(torch.tensor([cosine], dtype=torch.float64), torch.tensor([normal]), floor=floor)
        assert term.item() == pytest.approx(loss, abs=1e-6)


def test_recorded_focal_tables(goldens: Path) -> None:
    golden = json.loads((goldens / "reverse_distillation/goldens.json").read_text())
    for case in golden["focal_table"] + golden["focal_clamped_project_rule"]:
        term = focal_terms(
            torch.tensor([case["cosine"]], dtype=torch.float64), torch.tensor([case["normal"]])
        )
        assert term.item() == pytest.approx(case["loss"], rel=1e-9)


def test_the_clamp_keeps_loss_and_gradient_finite_where_the_published_form_breaks() -> None:
    cosine = torch.tensor([0.0, -0.2, 1.0, 1.0000001, 1.0], dtype=torch.float64, requires_grad=True)
    normal = torch.tensor([1, 1, 0, 0, 1])
    assert not focal_terms(cosine, normal, floor=None).isfinite().all()
    terms = focal_terms(cosine, normal)
    terms.sum().backward()
    assert terms.isfinite().all()
    assert cosine.grad is not None
    assert cosine.grad.isfinite().all()


def test_the_cosine_is_of_the_flattened_map_not_of_positions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 5, 5))
    expected = [(x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(flat_cosine(torch.from_numpy(a), torch.from_numpy(b)), expected)
    plain = distillation_loss([torch.from_numpy(a)], [torch.from_numpy(b)])
    assert plain.item() == pytest.approx(1 - np.mean(expected))


def test_stages_add_up_and_images_are_averaged() -> None:
    a = [torch.rand(4, 3, 2, 2), torch.rand(4, 5, 1, 1)]
    b = [torch.rand(4, 3, 2, 2), torch.rand(4, 5, 1, 1)]
    normal = torch.tensor([1, 0, 1, 1])
    one_by_one = sum(focal_terms(flat_cosine(x, y), normal).mean().item() for x, y in zip(a, b, strict=True))
    assert focal_distillation_loss(a, b, normal).item() == pytest.approx(one_by_one)
    assert distillation_loss(a, a).item() == pytest.approx(0, abs=1e-6)


def test_the_focal_loss_pulls_on_normal_patches_and_pushes_on_tumour() -> None:
    for normal, sign in ((1, -1), (0, 1)):
        cosine = torch.tensor([0.6], requires_grad=True)
        focal_terms(cosine, torch.tensor([normal])).sum().backward()
        assert cosine.grad is not None
        assert np.sign(cosine.grad.item()) == sign


def test_half_precision_maps_are_compared_in_float32() -> None:
    maps = torch.rand(2, 64, 8, 8)
    assert flat_cosine(maps.bfloat16(), maps.bfloat16()).dtype == torch.float32
    assert flat_cosine(maps.double(), maps.double()).dtype == torch.float64
