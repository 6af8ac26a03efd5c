"""The folder of a training: creating, locking, resuming and refusing it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lobule.bundles import MODEL
from lobule.cohort import Cohort
from lobule.errors import LobuleError, ResultsError, UsageError
from lobule.files import make_folder, read_json, write_json
from lobule.results.locks import lock_folder
from lobule.training.division import TrainingSplit

if TYPE_CHECKING:
    from lobule.training.distributed import Ranks

SETTINGS = "settings.json"
"""File in the folder of a training with the settings that it began with."""
LOCK = ".lock"


class MethodConfig(Protocol):
    """The settings of a method, all of which have a default."""

    def to_dict(self) -> dict[str, Any]: ...


@contextmanager
def begun_training(
    out: str | Path,
    config: MethodConfig,
    split: TrainingSplit,
    *,
    also: Mapping[str, Any],
    resume: bool,
    fresh: bool,
    ranks: Ranks | None = None,
) -> Iterator[Path]:
    """Create and lock the folder of a training, or check that a resumed training has the same settings.

    Args:
        out: Folder of the bundle; the training uses its subfolder `training`.
        config: Settings of the method.
        split: The training and validation cases.
        also: Further values that must be the same on resume, such as the seed.
        resume: Continue a training that exists in the folder.
        fresh: Delete a training that exists in the folder.
        ranks: The processes of the training. The first one creates the folder; the others wait for it.

    Yields:
        The folder of the training.

    Raises:
        ResultsError: The folder is used by another process, or contains other files or another training.
    """
    folder = Path(out) / "training"
    created = _missing_folders(folder)
    make_folder(folder)
    if ranks is not None and not ranks.first:
        ranks.wait()
        yield folder
        return
    try:
        with lock_folder(folder):
            is_new = not (folder / SETTINGS).exists()
            _check_settings(Path(out) / MODEL, folder, config, split, also, resume, fresh)
            if ranks is not None:
                ranks.wait()
            try:
                yield folder
            except UsageError:
                if is_new or fresh:
                    _forget_refused(folder)
                raise
    except LobuleError:
        _remove_empty(created)
        raise


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folders that `folder` needs and that do not exist yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _forget_refused(folder: Path) -> None:
    """Remove what a training wrote before it was refused, so that the next one may begin in the folder.

    A training that has checkpoints is kept: it can be resumed.
    """
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    if any(path.parent != folder for path in written):
        return
    for path in written:
        path.unlink()
    inner = [path for path in folder.rglob("*") if path.is_dir()]
    _remove_empty(sorted(inner, key=lambda path: -len(path.parts)))


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders, innermost first, as long as they contain nothing but a lock."""
    for folder in folders:
        try:
            if [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            folder.rmdir()
        except OSError:  # The folder is not empty, or another process has removed it.
            return


def _check_settings(
    bundle: Path,
    folder: Path,
    config: MethodConfig,
    split: TrainingSplit,
    also: Mapping[str, Any],
    resume: bool,
    fresh: bool,
) -> None:
    settings_path = folder / SETTINGS
    unknown_file = next((item for item in sorted(folder.iterdir()) if not item.name.startswith(".")), None)
    if unknown_file is not None and not settings_path.exists():
        # Data sets often have a folder named "training", too.
        raise ResultsError(
            "the folder was not created by `lobule train`",
            subject=unknown_file,
            remedy="Write the bundle to another folder",
        )
    if fresh:
        _clear(folder)
        bundle.unlink(missing_ok=True)
    settings = {
        "config": config.to_dict(),
        **also,
        "train": _case_inputs(split.train),
        "val": _case_inputs(split.val),
    }
    if not settings_path.exists():
        if bundle.exists():
            raise ResultsError(
                "the folder already contains a bundle",
                subject=bundle.parent,
                remedy="Write to another folder, or replace it with --fresh",
            )
        write_json(settings_path, {"method": _method_of(config), **settings})
        return
    if not resume:
        raise ResultsError(
            "a training has begun here",
            subject=bundle.parent,
            remedy="Continue it with resume=True, or start over with fresh=True",
        )
    # Settings that did not exist in an earlier version had the effect of today's default.
    before = _with_defaults(read_json(settings_path), {"config": type(config)().to_dict()})
    before.pop("method", None)
    if before != settings:
        key = next(key for key in {**settings, **before} if before.get(key) != settings.get(key))
        raise ResultsError(
            f"the training in this folder began with another {key}",
            subject=bundle.parent,
            actual="; ".join(_differences(before.get(key), settings.get(key))[:5]) or None,
            remedy="Use the same settings, or start over with --fresh",
        )


def _method_of(config: MethodConfig) -> str:
    """Return the method that a config belongs to, for `lobule info`: PACKAGE.NAME.config or PACKAGE.NAME."""
    names = type(config).__module__.split(".")
    return names[-2] if names[-1] == "config" and len(names) > 1 else names[-1]


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with missing entries taken from `defaults`, also in nested objects."""
    completed = {**defaults, **values}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            completed[name] = _with_defaults(value, defaults[name])
    return completed


def _differences(before: Any, now: Any) -> list[str]:
    """Describe the differences of two dictionaries of settings; other values give an empty list."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return []
    lines: list[str] = []
    for name in {**before, **now}:
        pair = before.get(name, "unknown"), now.get(name, "unknown")
        in_group = [f"{name}.{line}" for line in _differences(*pair)]
        if pair[0] != pair[1]:
            lines += in_group or [f"{name} {pair[0]}, now {pair[1]}"]
    return lines


def _clear(folder: Path) -> None:
    """Remove the files of an earlier training, but not the lock."""
    # The settings go last: if the process is killed, the folder is still recognised as a training.
    for item in sorted(folder.iterdir(), key=lambda item: item.name == SETTINGS):
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != LOCK:
            item.unlink()


READING_COLUMNS = ("exhaustive", "mask_tumour", "allow", "horizontal_flip")
"""Columns of a manifest that determine how images and annotations are read."""


def _case_inputs(cohort: Cohort) -> dict[str, list[Any]]:
    """Return everything in the rows of the cases that a training depends on."""
    return {
        case.id: [
            *case.paths,
            case.annotation,
            case.label,
            case.patient,
            case.site,
            case.mpp,
            None if case.l0_box is None else list(astuple(case.l0_box)),
            *(f"{name}={int(value)}" for name, value in case.breast_labels.items()),
            *(f"{name}={case.attributes[name]}" for name in READING_COLUMNS if name in case.attributes),
        ]
        for case in cohort
    }
