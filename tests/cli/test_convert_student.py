"""`weights convert` of students with the names and shapes of RD4AD and FW-RD, and a scan with the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from lobule.bundles import read_bundle
from lobule.results import open_results
from lobule.stitch import State
from tests.cli.conftest import Lobule
from tests.scanning.support import write_slide

Tensors = dict[str, Tensor]
PUBLISHED_NUMBERS = {1: 12_205_312, 3: 15_351_040}
"""Parameters of the bottleneck by the kernel size of its first shortcut: 1 for RD4AD, 3 for FW-RD."""


def tensor(*shape: int) -> Tensor:
    weights: Tensor = torch.randn(shape) * (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
    return weights


def norm(name: str, width: int) -> Tensors:
    return {
        f"{name}.weight": torch.ones(width),
        f"{name}.bias": torch.zeros(width),
        f"{name}.running_mean": torch.zeros(width),
        f"{name}.running_var": torch.ones(width),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def block(name: str, into: int, out: int) -> Tensors:
    """Return the two convolutions of a basic block and their norms."""
    convolutions = {
        f"{name}.conv1.weight": tensor(out, into, 3, 3),
        f"{name}.conv2.weight": tensor(out, out, 3, 3),
    }
    return convolutions | norm(f"{name}.bn1", out) | norm(f"{name}.bn2", out)


def published(kernel: int) -> dict[str, Tensors]:
    """Build a student checkpoint of a ResNet-18 from the published names, without Lobule's networks."""
    torch.manual_seed(5)
    bn: Tensors = {}
    for number, (into, out, side) in enumerate(
        ((64, 128, 3), (128, 256, 3), (128, 256, 3), (1024, 512, 1)), start=1
    ):
        bn |= {f"conv{number}.weight": tensor(out, into, side, side)} | norm(f"bn{number}", out)
    bn |= block("bn_layer.0", 768, 512) | block("bn_layer.1", 512, 512)
    bn |= {"bn_layer.0.downsample.0.weight": tensor(512, 768, kernel, kernel)}
    bn |= norm("bn_layer.0.downsample.1", 512)
    decoder: Tensors = {}
    for number, (into, out) in enumerate(((512, 256), (256, 128), (128, 64)), start=1):
        decoder |= block(f"layer{number}.0", out, out) | block(f"layer{number}.1", out, out)
        # transposed convolutions are [in, out, 2, 2]
        decoder |= {f"layer{number}.0.conv1.weight": tensor(into, out, 2, 2)}
        decoder |= {f"layer{number}.0.upsample.0.weight": tensor(into, out, 2, 2)}
        decoder |= norm(f"layer{number}.0.upsample.1", out)
    return {"bn": bn, "decoder": decoder}


@pytest.mark.parametrize(("kernel", "form"), [(1, "RD4AD"), (3, "FW-RD")])
def test_published_student_is_converted_and_scans(
    lobule: Lobule, tmp_path: Path, kernel: int, form: str
) -> None:
    checkpoint = published(kernel)
    counted = [t for name, t in checkpoint["bn"].items() if t.is_floating_point() and "running" not in name]
    assert sum(t.numel() for t in counted) == PUBLISHED_NUMBERS[kernel]
    teacher = resnet18(weights=None).state_dict()
    torch.save(checkpoint, tmp_path / "res18.pth")
    torch.save(teacher, tmp_path / "teacher.pth")
    command = ["weights", "convert", str(tmp_path / "res18.pth"), "--method", "reverse-distillation"]
    command += ["--teacher", str(tmp_path / "teacher.pth"), "--out", str(tmp_path / "B")]
    done = lobule(*command, "--json")
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert (answer["form"], answer["teacher"], answer["mpp"]) == (form, "resnet18", 0.25)

    weights = read_bundle(tmp_path / "B").weights()
    student_weights = {name: tensors for name, tensors in weights.items() if name.startswith("student.")}
    expected = {
        f"student.{component}.{name}": t
        for component, state in checkpoint.items()
        for name, t in state.items()
    }
    assert set(student_weights) == set(expected)
    assert all(torch.equal(student_weights[name], expected[name]) for name in expected)
    frozen = {name for name in weights if name.startswith("teacher.stages.")}
    assert all(torch.equal(weights[name], teacher[name.removeprefix("teacher.stages.")]) for name in frozen)
    assert not any("layer4" in name or "fc." in name for name in frozen), "these tensors are not used"

    pixels = np.random.default_rng(0).integers(120, 220, (320, 384, 3), np.uint8)
    slide = write_slide(tmp_path / "slide.tif", pixels)
    scan = ["scan", str(tmp_path / "B"), str(slide), "--slide-mpp", "0.25", "--no-tissue", "--device", "cpu"]
    done = lobule(*scan, "--out", str(tmp_path / "R"))
    assert done.status == 0, done.err
    case = open_results(tmp_path / "R").case_folder("slide")
    scores, states = case.maps["map-s64"].read()
    cells = scores[0][states == State.SCORED]
    assert len(cells) == 30
    assert np.isfinite(cells).all()
    assert 0 < cells.min() <= cells.max() <= 3
    high = cells[cells >= 2.01]  # threshold of the slide score in the paper
    assert case.result is not None
    assert case.result["scores"]["tumour"] == pytest.approx(high.mean() if len(high) else 0.0)


def test_invalid_students_and_other_teachers_are_refused(lobule: Lobule, tmp_path: Path) -> None:
    checkpoint = published(1)
    cut = {"bn": checkpoint["bn"], "decoder": {**checkpoint["decoder"]}}
    del cut["decoder"]["layer3.1.bn2.weight"]
    flat = {**checkpoint, "bn": {**checkpoint["bn"], "conv1.weight": torch.zeros(3)}}
    files = {"cut": cut, "half": {"bn": checkpoint["bn"]}, "none": {"model": 3}, "flat": flat}
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "teacher.pth")
    common_arguments = ["--method", "reverse_distillation", "--out", str(tmp_path / "B")]
    common_arguments += ["--teacher", str(tmp_path / "teacher.pth")]
    for name, message in (
        ("cut", "layer3.1.bn2.weight"), ("half", "not a reverse distillation checkpoint"),
        ("none", "not a reverse distillation checkpoint"), ("flat", "not a reverse distillation checkpoint"),
    ):  # fmt: skip
        done = lobule("weights", "convert", str(tmp_path / f"{name}.pth"), *common_arguments)
        assert done.status == 1, name
        assert message in done.err, done.err
    torch.save(checkpoint, tmp_path / "whole.pth")
    student_path = str(tmp_path / "whole.pth")
    done = lobule("weights", "convert", student_path, *common_arguments, "--architecture", "wide_resnet50_2")
    assert (done.status, "another backbone" in done.err) == (1, True), done.err
    for extra_arguments, message in (
        (["--trust"], "does not support --trust"),
        ([student_path], "one file of weights"),
    ):
        done = lobule("weights", "convert", student_path, *extra_arguments, *common_arguments)
        assert (done.status, message in done.err) == (2, True), done.err
    assert not (tmp_path / "B").exists()


def test_random_teacher_needs_no_file(lobule: Lobule, tmp_path: Path) -> None:
    torch.save(published(1), tmp_path / "student.pth")
    done = lobule(
        "weights", "convert", str(tmp_path / "student.pth"), "--method", "reverse_distillation",
        "--teacher", "random", "--out", str(tmp_path / "B"),
    )  # fmt: skip
    assert done.status == 0, done.err
    assert read_bundle(tmp_path / "B").provenance["weights"] == "random"


def test_existing_bundle_is_replaced_only_with_fresh(lobule: Lobule, tmp_path: Path) -> None:
    torch.save(published(1), tmp_path / "one.pth")
    torch.save(published(3), tmp_path / "three.pth")
    arguments = ["--method", "reverse_distillation", "--teacher", "random", "--out", str(tmp_path / "B")]
    assert lobule("weights", "convert", str(tmp_path / "one.pth"), *arguments).status == 0
    before = (tmp_path / "B" / "model.json").read_bytes()
    done = lobule("weights", "convert", str(tmp_path / "three.pth"), *arguments)
    assert (done.status, "a bundle already" in done.err, "--fresh" in done.err) == (2, True, True), done.err
    assert (tmp_path / "B" / "model.json").read_bytes() == before
    assert lobule("weights", "convert", str(tmp_path / "three.pth"), *arguments, "--fresh").status == 0
    assert read_bundle(tmp_path / "B").provenance["form"] != json.loads(before)["provenance"]["form"]
