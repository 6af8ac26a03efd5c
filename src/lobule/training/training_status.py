"""Reads from the files of a training folder how far the training has progressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobule.bundles import MODEL
from lobule.errors import ResultsError
from lobule.files import read_json
from lobule.results.locks import lock_folder
from lobule.training.training_folder import SETTINGS
from lobule.training.training_log import LOG


@dataclass(frozen=True)
class StageStatus:
    """The last line in the log of one stage, such as a round or a member; None without a log."""

    name: str
    step: int | None
    loss: float | None
    score: float | None


@dataclass(frozen=True)
class TrainingStatus:
    """The status of a training, read without running it."""

    path: str
    method: str | None
    config: dict[str, Any]
    train_cases: int
    val_cases: int
    is_running: bool
    is_finished: bool
    stages: tuple[StageStatus, ...]


def training_folder(path: str | Path) -> Path | None:
    """Return the folder of a training's own files for a bundle's folder or that folder itself, else None."""
    for folder in (Path(path) / "training", Path(path)):
        if (folder / SETTINGS).is_file() and _is_training(folder / SETTINGS):
            return folder
    return None


def _is_training(settings: Path) -> bool:
    try:
        values = read_json(settings)
    except (ValueError, OSError, ResultsError):
        return False
    return isinstance(values, dict) and isinstance(values.get("config"), dict) and "train" in values


def training_status(folder: Path) -> TrainingStatus:
    """Read the status of the training in `folder`, which `training_folder` returned."""
    settings = read_json(folder / SETTINGS)
    is_finished = (folder.parent / MODEL).is_file()
    return TrainingStatus(
        str(folder.parent),
        settings.get("method"),
        settings["config"],
        len(settings["train"]),
        len(settings.get("val", ())),
        not is_finished and _is_locked(folder),
        is_finished,
        tuple(_stages(folder)),
    )


def _is_locked(folder: Path) -> bool:
    try:
        with lock_folder(folder):
            return False
    except ResultsError:
        return True


def _stages(folder: Path) -> Iterator[StageStatus]:
    for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
        log = stage / LOG
        lines = log.read_text("utf-8").splitlines()[1:] if log.is_file() else []
        if not lines:
            yield StageStatus(stage.name, None, None, None)
            continue
        step, loss, _, score = lines[-1].split(",")
        yield StageStatus(stage.name, int(step), float(loss), float(score) if score else None)
