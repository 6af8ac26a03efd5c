"""Published checkpoints of RD4AD and FW-RD, in their own naming, as bundles with their teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lobule.bundles import Bundle
from lobule.errors import BundleError, ConfigError, ModelError
from lobule.files import fingerprint
from lobule.methods.reverse_distillation.config import RANDOM, Config
from lobule.methods.reverse_distillation.predictor import AnomalyPredictor, save
from lobule.methods.reverse_distillation.train import frozen_teacher
from lobule.nets.reverse_distillation import STUDENT_BLOCKS, StudentShape, student_of_checkpoint

PARTS = ("bn", "decoder")


def convert(
    weights: str | Path, out: str | Path, *, teacher: str = "", teacher_weights: str = "", **settings: Any
) -> Bundle:
    """Make a bundle of a checkpoint `{"bn": …, "decoder": …}`; nothing but tensors is read of the file.

    The teacher is not in such a file. Its name is found by the shapes unless given; its weights are those of
    a file, or those that torchvision publishes. `settings` are those of `Config`. Scores are not calibrated.
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
    wanted = frozen.student_shape(student.shape.shortcut)
    if wanted.channels != student.shape.channels:
        raise ConfigError(
            "the checkpoint is of another teacher",
            subject=name,
            expected=f"maps of {', '.join(map(str, student.shape.channels))} channels",
            actual=", ".join(map(str, wanted.channels)),
            remedy="Say which with --architecture",
        )
    given = teacher_weights not in ("", RANDOM)
    source = {"source": path.name, "source_hash": fingerprint(path, full=True)}
    kind = "FW-RD" if student.shape.shortcut == 3 else "RD4AD"
    provenance = {
        **source,
        "form": kind,
        "notes": ["scores are not calibrated: the paper's threshold is used"],
        "weights": fingerprint(teacher_weights, full=True) if given else teacher_weights or "published",
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
        "no known teacher has a student of this shape",
        expected=", ".join(STUDENT_BLOCKS),
        actual=f"maps of {', '.join(map(str, shape.channels))} channels",
        remedy="Say which with --architecture",
    )


def read_checkpoint(path: Path) -> dict[str, Mapping[str, Tensor]]:
    """The state dicts `bn` and `decoder` of a torch file, or of safetensors whose names begin so."""
    if not path.is_file():
        raise ConfigError("there is no such weights file", subject=path)
    import torch
    from safetensors.torch import load_file

    try:
        loaded: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both libraries raise types of their own
        raise BundleError(
            "the weights cannot be read", subject=path, actual=(str(error) or repr(error)).splitlines()[0]
        ) from error
    if isinstance(loaded, Mapping) and not all(part in loaded for part in PARTS):
        loaded = {part: _under(loaded, part) for part in PARTS}
    if not isinstance(loaded, Mapping) or not all(_is_state(loaded[part]) for part in PARTS):
        raise BundleError(
            "not a checkpoint of reverse distillation",
            subject=path,
            expected="state dicts 'bn' and 'decoder'",
        )
    return {part: _plain(loaded[part]) for part in PARTS}


def _under(state: Mapping[str, Any], part: str) -> dict[str, Any]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that training on several GPUs leaves."""
    return {name.removeprefix("module."): value for name, value in state.items()}
