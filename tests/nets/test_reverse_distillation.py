"""Student, teachers and anomaly maps compared with recorded values, SciPy and known properties."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.losses import distillation_loss, flat_cosine, focal_distillation_loss
from lobule.nets import anomaly
from lobule.nets.reverse_distillation import (
    STUDENT_BLOCKS,
    Maps,
    Student,
    StudentShape,
    shape_of_checkpoint,
    student_of_checkpoint,
)
from lobule.nets.teachers import (
    teacher,
)
from tests.reference.anomaly import anomaly_map, patch_scores

CASES = [
    pytest.param("resnet18", "rd4ad"),
    pytest.param("resnet18", "fwrd"),
    pytest.param("wide_resnet50_2", "rd4ad", marks=pytest.mark.campaign),
    pytest.param("wide_resnet50_2", "fwrd", marks=pytest.mark.campaign),
]


def shape_of(arch: str, variant: str) -> StudentShape:
    e = 1 if arch in ("resnet18", "resnet34") else 4
    shortcut = 3 if variant == "fwrd" else 1
    return StudentShape((64 * e, 128 * e, 256 * e), shortcut=shortcut, **STUDENT_BLOCKS[arch])


def golden_tensor(salt: str, key: str, like: Tensor) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return like
    rng = np.random.Generator(np.random.PCG64(zlib.crc32((salt + key).encode())))
    u = rng.random(like.numel()).reshape(like.shape)
    if like.ndim == 4:
        u = (2 * u - 1) * np.sqrt(6 / (like.shape[1] * like.shape[2] * like.shape[3]))
    elif key.endswith(("weight", "running_var")):
        u = 0.5 + u
    else:
        u = 0.2 * (2 * u - 1)
    return torch.from_numpy(u.astype(np.float32))


def golden_student(case: dict[str, Any]) -> Student:
    student = Student(shape_of(case["arch"], case["variant"]))
    state = student.state_dict()
    student.load_state_dict({key: golden_tensor(case["salt"], key, value) for key, value in state.items()})
    return student.eval()


def golden_maps(case: dict[str, Any]) -> Maps:
    first, second, third = (
        golden_map(
            case["batch"],
            shape_of(case["arch"], "rd4ad").channels[k],
            case["stage1_side"] // 2**k,
            k,
            case["S"],
        )
        for k in range(3)
    )
    return first, second, third


def golden_map(batch: int, channels: int, side: int, k: int, s: float) -> Tensor:
    b, c, h, w = np.ogrid[:batch, :channels, :side, :side]
    wave = np.sin(0.9 * b + 0.37 * c + 0.53 * h * (1 + b) - 0.29 * w + 0.7 * k + s)
    wave = wave + 0.4 * np.sin(0.011 * c * (h + 1) + 0.5 * w)
    return torch.from_numpy(np.maximum(0, wave).astype(np.float32))


@pytest.fixture(scope="module")
def golden(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "reverse_distillation/goldens.json").read_text())


def case_of(golden: dict[str, Any], arch: str, variant: str) -> dict[str, Any]:
    return next(c for c in golden["cases"] if (c["arch"], c["variant"]) == (arch, variant))


def check_statistics(actual: Tensor, expected: dict[str, Any]) -> None:
    assert list(actual.shape) == expected["shape"]
    values = actual.detach().double().flatten()
    assert values.mean().item() == pytest.approx(expected["mean"], rel=1e-4)
    assert values.std(correction=0).item() == pytest.approx(expected["std"], rel=1e-4)
    assert values.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4)
    assert values.max().item() == pytest.approx(expected["max"], rel=1e-4)
    samples = values[torch.tensor(expected["samples_flat_index"])]
    np.testing.assert_allclose(samples, expected["samples"], rtol=1e-4, atol=1e-4 * expected["std"])


@pytest.mark.parametrize(("arch", "variant"), CASES)
def test_recorded_forward_passes_losses_and_maps(golden: Any, arch: str, variant: str) -> None:
    case = case_of(golden, arch, variant)
    student, maps = golden_student(case), golden_maps(case)
    for actual, expected in zip(maps, case["input_stats"], strict=True):
        check_statistics(actual, expected)
    normal, expected = torch.tensor(case["normal_flags"]), case["eval"]
    with torch.no_grad():
        check_statistics(student.bn(maps), expected["ocbe"])
        rebuilt = student(maps)
    for actual, statistics in zip(rebuilt, expected["decoder"], strict=True):
        check_statistics(actual, statistics)
    for ours, theirs, cosines in zip(maps, rebuilt, expected["flat_cosine"], strict=True):
        np.testing.assert_allclose(flat_cosine(ours, theirs), cosines, rtol=1e-4)
    assert distillation_loss(maps, rebuilt).item() == pytest.approx(expected["loss_plain"], rel=1e-4)
    for floor in (1e-6, None):
        focal = focal_distillation_loss(maps, rebuilt, normal, floor=floor)
        assert focal.item() == pytest.approx(expected["loss_focal"], rel=1e-4)
    check_maps(maps, rebuilt, case)
    student.train()
    with torch.no_grad():
        rebuilt = student(maps)
    batch = case["train_mode"]
    assert distillation_loss(maps, rebuilt).item() == pytest.approx(batch["loss_plain"], rel=1e-4)
    assert focal_distillation_loss(maps, rebuilt, normal).item() == pytest.approx(
        batch["loss_focal"], rel=1e-4
    )


def check_maps(maps: Maps, rebuilt: Maps, case: dict[str, Any]) -> None:
    size = (case["image_side"], case["image_side"])
    raw = anomaly_map(maps, rebuilt, size)
    scores = patch_scores(maps, rebuilt, size)
    for k, expected in enumerate(case["eval"]["anomaly_maps"]):
        for name in ("mean", "max", "min"):
            assert getattr(raw[k], name)().item() == pytest.approx(expected["raw"][name], rel=1e-4)
        smoothed = expected["smoothed"]
        assert scores["mean"][k].item() == pytest.approx(smoothed["mean"], rel=1e-4)
        assert scores["max"][k].item() == pytest.approx(smoothed["max"], rel=1e-4)
        assert scores["anomaly"][k].std(correction=0).item() == pytest.approx(smoothed["std"], rel=1e-3)
        for row, column, value in smoothed["samples_rc"]:
            assert scores["anomaly"][k, row, column].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("variant", ["rd4ad", "fwrd"])
def test_recorded_gradients_and_a_step_of_adam(golden: Any, variant: str) -> None:
    case = case_of(golden, "resnet18", variant)
    student, maps, expected = golden_student(case).train(), golden_maps(case), case["train_mode"]
    optimiser = torch.optim.Adam(student.parameters(), lr=0.005, betas=(0.5, 0.999))
    distillation_loss(maps, student(maps)).backward()

    def norm(module: nn.Module) -> float:
        return sum(p.grad.square().sum().item() for p in module.parameters() if p.grad is not None) ** 0.5

    assert norm(student.bn) == pytest.approx(expected["grad_l2_ocbe"], rel=0.02)
    assert norm(student.decoder) == pytest.approx(expected["grad_l2_decoder"], rel=0.02)
    idle = [name for name, p in student.bn.named_parameters() if p.grad is None]
    assert idle == expected["params_without_grad"]
    optimiser.step()
    with torch.no_grad():
        after = distillation_loss(maps, student(maps)).item()
    assert after == pytest.approx(expected["loss_plain_after_one_adam_step"], rel=0.02)


@pytest.mark.parametrize("arch", ["resnet18", "wide_resnet50_2"])
def test_names_and_shapes_are_those_of_the_public_checkpoints(goldens: Path, golden: Any, arch: str) -> None:
    names = json.loads((goldens / "reverse_distillation/state_dict_keys.json").read_text())[arch]
    for variant in ("rd4ad", "fwrd"):
        with torch.device("meta"):
            student = Student(shape_of(arch, variant))
        expected = dict(names["ocbe_rd4ad"])
        if variant == "fwrd":
            expected |= names["ocbe_fwrd_differs_only_in"]
        assert {key: list(value.shape) for key, value in student.bn.state_dict().items()} == expected
        shapes = {key: list(value.shape) for key, value in student.decoder.state_dict().items()}
        assert shapes == names["decoder"]
        case = case_of(golden, arch, variant)
        assert sum(p.numel() for p in student.bn.parameters()) == case["params_ocbe"]
        assert sum(p.numel() for p in student.decoder.parameters()) == case["params_decoder"]


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2"])
@pytest.mark.parametrize("variant", ["rd4ad", "fwrd"])
def test_the_architecture_is_derived_from_a_checkpoint(arch: str, variant: str) -> None:
    with torch.device("meta"):
        student = Student(shape_of(arch, variant))
    checkpoint = {"bn": student.bn.state_dict(), "decoder": student.decoder.state_dict()}
    shape = shape_of_checkpoint(checkpoint)
    assert shape == student.shape
    assert StudentShape.from_dict(json.loads(json.dumps(shape.as_dict()))) == shape


def test_a_checkpoint_round_trips_and_invalid_ones_are_rejected() -> None:
    shape = StudentShape((4, 8, 16), shortcut=3, signed=True)
    student = Student(shape).eval()
    checkpoint: dict[str, Any] = {"bn": student.bn.state_dict(), "decoder": student.decoder.state_dict()}
    checkpoint["bn"] = {**checkpoint["bn"], "memory0.units": torch.zeros(3)}
    again = student_of_checkpoint(checkpoint)
    maps = (torch.rand(1, 4, 16, 16), torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4))
    for ours, theirs in zip(student(maps), again(maps), strict=True):
        np.testing.assert_array_equal(ours.detach(), theirs.detach())
    with pytest.raises(ModelError, match="not a reverse distillation checkpoint"):
        shape_of_checkpoint({"bn": {}, "decoder": {}})
    del checkpoint["bn"]["conv2.weight"]
    with pytest.raises(ModelError, match=r"(?s)does not fit.*conv2\.weight"):
        student_of_checkpoint(checkpoint)


def test_initial_weights_are_kaiming_over_the_outputs() -> None:
    student = Student(StudentShape((32, 64, 128)))
    weight = student.bn.conv2.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert student.bn.bn_layer[0].get_submodule("bn1").weight.eq(1).all()


def test_upsampling_aligns_corners_and_smoothing_is_scipys(golden: Any) -> None:
    expected = golden["upsample_gaussian"]
    small = torch.from_numpy(0.5 * np.sin(np.arange(16.0) + expected["S"]) + 0.5).view(1, 1, 4, 4)
    large = nn.functional.interpolate(small, (32, 32), mode="bilinear", align_corners=True)[0]
    for row, column, value in expected["upsampled_32_corner_and_samples"]:
        assert large[0, row, column].item() == pytest.approx(value, abs=1e-9)
    for row, column, value in expected["gaussian_sigma4"]:
        assert anomaly.smooth(large)[0, row, column].item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("size", [(256, 256), (64, 40), (16, 17), (5, 3), (1, 9)])
def test_smoothing_equals_scipys_for_every_map_of_a_batch(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(3, *size))
    ours = anomaly.smooth(torch.from_numpy(maps))
    for actual, one in zip(ours, maps, strict=True):
        np.testing.assert_allclose(actual, gaussian_filter(one, 4, mode="reflect"), atol=1e-12)


def test_the_anomaly_is_zero_for_equal_maps_and_six_for_opposite_maps() -> None:
    maps = (torch.rand(2, 3, 8, 8) + 0.1, torch.rand(2, 4, 4, 4) + 0.1, torch.rand(2, 5, 2, 2) + 0.1)
    opposite = (-maps[0], -maps[1], -maps[2])
    np.testing.assert_allclose(anomaly_map(maps, maps, (32, 32)), 0, atol=1e-5)
    np.testing.assert_allclose(anomaly_map(maps, opposite, (32, 32)), 6, atol=1e-5)
    half = anomaly_map(tuple(m.bfloat16() for m in maps), maps, (32, 32))  # type: ignore[arg-type]
    assert half.dtype == torch.float32


def test_slide_score(golden: Any) -> None:
    expected = golden["slide_score"]
    r, c = np.ogrid[:40, :50]
    cells = 3 * np.abs(np.sin(0.37 * r * (1 + 0.01 * c) + golden["cases"][0]["S"]))
    cells[:5] = 0
    assert (cells >= expected["threshold"]).sum() == expected["cells_at_or_above"]
    assert anomaly.slide_score(cells) == pytest.approx(expected["score"], rel=1e-9)
    assert anomaly.slide_score(np.zeros((3, 3))) == 0
    assert anomaly.slide_score(np.array([2.01, 2.0])) == 2.01


@pytest.mark.parametrize(("side", "step"), [(64, 16), (64, 32), (50, 25)])
def test_window_means_are_the_means_of_smoothed_mosaics(side: int, step: int) -> None:
    """Compared with upsampling and smoothing each patch, joining the patches and averaging each window."""
    padded_size, strides, patches = 64, (4, 8, 16), 3
    cells = (patches - 1) * side // step
    torch.manual_seed(0)
    distances = [
        torch.rand(2, patches, patches, padded_size // s, padded_size // s, dtype=torch.float64)
        for s in strides
    ]
    mosaic = np.zeros((2, patches * side, patches * side))
    for row in range(patches):
        for column in range(patches):
            patch = anomaly.summed([d[:, row, column] for d in distances], (padded_size, padded_size))[
                :, :side, :side
            ]
            for b in range(2):
                block = gaussian_filter(patch[b].numpy(), 4, mode="reflect")
                mosaic[b, row * side : (row + 1) * side, column * side : (column + 1) * side] = block
    mosaics = [d.transpose(2, 3).flatten(3).flatten(1, 2) for d in distances]
    means = anomaly.window_means(mosaics, side, padded_size, step, cells, patches)
    assert means.shape == (2, cells, cells)
    for row in range(cells):
        for column in range(cells):
            y, x = row * step, column * step
            expected = mosaic[:, y : y + side, x : x + side].mean(axis=(1, 2))
            np.testing.assert_allclose(means[:, row, column], expected, rtol=1e-12)


@pytest.mark.parametrize("side", [64, 50])
def test_the_combined_net_gives_the_patch_score(side: int) -> None:
    torch.manual_seed(1)
    frozen = teacher("tiny")
    student = Student(frozen.student_shape()).eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        maps = frozen(images)
        expected = patch_scores(maps, student(maps), (side, side), (64, 64))["mean"]
        means = anomaly.window_means(anomaly.Distances(frozen, student)(images), side, 64)
    np.testing.assert_allclose(means[:, 0, 0], expected, rtol=1e-5)
