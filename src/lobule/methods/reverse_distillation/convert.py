"""Conversion of published RD4AD and FW-RD checkpoints to bundles that include the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lobule.bundles import Bundle, read_weights
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.fingerprints import fingerprint
from lobule.methods.reverse_distillation.config import RANDOM, Config
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, save
from lobule.methods.reverse_distillation.train import frozen_teacher
from lobule.nets.reverse_distillation import STUDENT_BLOCKS, StudentShape, student_of_checkpoint

COMPONENTS = ("bn", "decoder")


def convert(
    weights: str | Path, out: str | Path, *, teacher: str = "", teacher_weights: str = "", **settings: Any
) -> Bundle:
    """Convert a checkpoint `{"bn": …, "decoder": …}` to a bundle. Only tensors are read from the file.

    The checkpoint does not contain the teacher. The scores of the bundle are not calibrated.

    Args:
        weights: The checkpoint, a torch file or safetensors.
        out: The folder of the new bundle.
        teacher: Name of the teacher; by default it is derived from the shapes in the checkpoint.
        teacher_weights: File with the teacher's weights; by default those published by torchvision.
        settings: Fields of `Config`.
    """
    path = Path(weights)
    try:
        student = student_of_checkpoint(read_checkpoint(path))
    except ModelError as error:
        raise BundleError(
            error.problem, subject=path, expected=error.expected, actual=error.actual
        ) from error
    name = teacher or teacher_of(student.shape)
    config = replace(
        Config(**settings), teacher=name, shortcut=student.shape.shortcut, threshold="paper", weights=""
    )
    frozen = frozen_teacher(name, teacher_weights)
    teacher_shape = frozen.student_shape(student.shape.shortcut)
    if teacher_shape.channels != student.shape.channels:
        raise ConfigError(
            "the checkpoint was trained with another teacher",
            subject=name,
            expected=f"maps of {', '.join(map(str, student.shape.channels))} channels",
            actual=", ".join(map(str, teacher_shape.channels)),
            remedy="Name the teacher with --architecture",
        )
    from_file = teacher_weights not in ("", RANDOM)
    source = {"source": path.name, "source_hash": fingerprint(path, full=True)}
    kind = "FW-RD" if student.shape.shortcut == 3 else "RD4AD"
    provenance = {
        **source,
        "form": kind,
        "notes": ["The scores are not calibrated; the paper's threshold is used."],
        "weights": fingerprint(teacher_weights, full=True) if from_file else teacher_weights or "published",
    }
    return save(out, AnomalyPredictor(config, frozen, student), provenance=provenance)


def teacher_of(shape: StudentShape) -> str:
    """The teacher whose published student has this shape."""
    for name, blocks in STUDENT_BLOCKS.items():
        channels = (256, 512, 1024) if blocks.get("block") == "bottleneck" else (64, 128, 256)
        channels = (128, 256, 512) if name.startswith("squeezenet") else channels
        same = StudentShape(channels, shortcut=shape.shortcut, signed=shape.signed, **blocks)
        if same == shape:
            return name
    raise ConfigError(
        "cannot derive the teacher: no known teacher has a student of this shape",
        expected=", ".join(STUDENT_BLOCKS),
        actual=f"maps of {', '.join(map(str, shape.channels))} channels",
        remedy="Name the teacher with --architecture",
    )


def read_checkpoint(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """Read the state dicts `bn` and `decoder` of a torch file, or of safetensors with these prefixes."""
    loaded = read_weights(path, BundleError)
    if isinstance(loaded, Mapping) and not all(component in loaded for component in COMPONENTS):
        loaded = {component: _with_prefix(loaded, component) for component in COMPONENTS}
    if not isinstance(loaded, Mapping) or not all(_is_state(loaded[component]) for component in COMPONENTS):
        raise BundleError(
            "the file is not a reverse distillation checkpoint",
            subject=path,
            expected="state dicts 'bn' and 'decoder'",
        )
    return {component: _without_module_prefix(loaded[component]) for component in COMPONENTS}


def _with_prefix(state: Mapping[str, Any], component: str) -> dict[str, Any]:
    prefix = f"{component}."
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())


def _without_module_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefix that training on several GPUs adds."""
    return {name.removeprefix("module."): value for name, value in state.items()}
