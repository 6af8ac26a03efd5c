"""Conversion of published checkpoints to bundles; invalid checkpoints are rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lobule.errors import ConfigError, LobuleError
from lobule.methods.reverse_distillation import load
from lobule.methods.reverse_distillation.convert import convert
from lobule.nets.reverse_distillation import Student, StudentShape
from lobule.nets.teachers import teacher


@pytest.mark.parametrize("shortcut", [1, 3])
def test_a_published_checkpoint_is_converted_to_a_bundle(tmp_path: Path, shortcut: int) -> None:
    """Checkpoints with original names, either shortcut, an old memory bank and the prefix of several GPUs."""
    torch.manual_seed(0)
    frozen = teacher("squeezenet1_1")
    shape = frozen.student_shape(shortcut)
    student = Student(shape).eval()
    checkpoint = {
        "bn": {f"module.{name}": value for name, value in student.bn.state_dict().items()},
        "decoder": {**student.decoder.state_dict(), "memory.units": torch.zeros(3)},
    }
    torch.save(checkpoint, tmp_path / "wres.pth")
    torch.save(frozen.stages.state_dict(), tmp_path / "teacher.pth")
    out = tmp_path / "bundle"
    bundle = convert(tmp_path / "wres.pth", out, teacher_weights=str(tmp_path / "teacher.pth"))
    assert bundle.config["teacher"] == "squeezenet1_1"
    assert bundle.provenance["form"] == ("FW-RD" if shortcut == 3 else "RD4AD")
    predictor = load(bundle)
    assert (predictor.config.threshold, predictor.config.patch, predictor.config.stride) == ("paper", 256, 64)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        maps = frozen(images)
        for ours, theirs in zip(predictor.net.student(maps), student(maps), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_invalid_checkpoints_are_rejected(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("run",))

    torch.save({"bn": Evil(), "decoder": {}}, tmp_path / "evil.pth")
    torch.save({"bn": {"a": torch.zeros(1)}, "decoder": {}}, tmp_path / "other.pth")
    odd = Student(StudentShape((8, 16, 32)))
    torch.save({"bn": odd.bn.state_dict(), "decoder": odd.decoder.state_dict()}, tmp_path / "odd.pth")
    for name, message in (
        ("evil.pth", "cannot be read"),
        ("other.pth", "not a reverse distillation checkpoint"),
        ("odd.pth", "no known teacher"),
        ("none.pth", "no such weights file"),
    ):
        with pytest.raises(LobuleError, match=message):
            convert(tmp_path / name, tmp_path / "out")
    with pytest.raises(ConfigError, match="another teacher"):
        torch.save(teacher("tiny").stages.state_dict(), tmp_path / "tiny.pth")
        weights = str(tmp_path / "tiny.pth")
        convert(tmp_path / "odd.pth", tmp_path / "out", teacher="tiny", teacher_weights=weights)
