"""What every training begins with: who trains, who validates, and the folder it goes on in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lobule.bundles import MODEL
from lobule.cohort import Cohort
from lobule.errors import ConfigError, Leakage, ResultsError
from lobule.files import make_folder, read_json, write_json
from lobule.results.folder import hold

HELD_OUT = 0.2
"""Of the patients, where the cohort has no validation split."""
HOLDING_OUT = 0x7A1
"""Sets the choice of held-out patients apart from other uses of the seed."""


@dataclass(frozen=True)
class Parts:
    """Who trains, who validates, and what there is to say of it."""

    train: Cohort
    val: Cohort
    notes: tuple[str, ...] = ()


def parts_of(cohort: Cohort, val: str | None, seed: int) -> Parts:
    """The training and the validation part; a patient in two splits is refused."""
    splits: dict[str, set[str | None]] = {}
    for case in cohort:
        splits.setdefault(case.patient, set()).add(case.split)
    torn = sorted(patient for patient, found in splits.items() if len(found) > 1)
    if torn:
        raise Leakage(
            f"{len(torn)} patients are in more than one split",
            subject=cohort.path,
            found=", ".join(torn[:5]),
            remedy="Give all cases of a patient the same split",
        )
    if val == "train":
        raise ConfigError("the training split cannot validate itself", expected="--val val, test or none")
    training = cohort.split("train") if cohort.splits() else cohort
    if not training:
        raise ConfigError("no case is in the split 'train'", subject=cohort.path)
    wrong = next((case for case in training if case.kind not in ("slide", "region")), None)
    if wrong is not None:
        raise ConfigError("outlines are on slides", subject=wrong.id, found=f"a case of kind {wrong.kind}")
    if val is None:
        return Parts(training, Cohort(()), ("nothing is validated: the last weights are kept",))
    validating = cohort.split(val)
    return Parts(training, validating) if validating else _held_out(training, seed)


def _held_out(training: Cohort, seed: int) -> Parts:
    """A fifth of the patients with outlines, and a fifth of those without, leave the training to validate."""
    with_outlines = {case.patient for case in training if case.annotation is not None}
    rng = np.random.default_rng([seed, HOLDING_OUT])
    held: set[str] = set()
    for outlined in (True, False):
        kind = [patient for patient in training.patients() if (patient in with_outlines) == outlined]
        if len(kind) < 2 and outlined:
            note = "too few patients to hold any out: nothing is validated and the last weights are kept"
            return Parts(training, Cohort(()), (note,))
        if len(kind) >= 2:
            chosen = rng.permutation(len(kind))[: max(1, round(HELD_OUT * len(kind)))]
            held |= {kind[number] for number in chosen}
    note = f"the cohort has no validation split: {len(held)} patients are held out for it"
    return Parts(
        training.where(lambda case: case.patient not in held),
        training.where(lambda case: case.patient in held),
        (note,),
    )


@contextmanager
def begun_training(
    out: str | Path, settings: Mapping[str, Any], parts: Parts, *, resume: bool, fresh: bool
) -> Iterator[Path]:
    """The folder of a training, kept from others meanwhile; its settings are new or, on resume, the same."""
    folder = make_folder(Path(out) / "training")
    with hold(folder):
        _begin(Path(out) / MODEL, folder, settings, parts, resume, fresh)
        yield folder


def _begin(
    bundle: Path, folder: Path, settings: Mapping[str, Any], parts: Parts, resume: bool, fresh: bool
) -> None:
    if fresh:
        _clear(folder)
        bundle.unlink(missing_ok=True)
    place = folder / "settings.json"
    wanted = {**settings, "train": _facts(parts.train), "val": _facts(parts.val)}
    if not place.exists():
        if bundle.exists():
            raise ResultsError(
                "there is a bundle already",
                subject=bundle.parent,
                remedy="Write to another folder, or replace it with --fresh",
            )
        write_json(place, wanted)
        return
    if not resume:
        raise ResultsError(
            "a training has begun here",
            subject=bundle.parent,
            remedy="Go on with --resume, or start over with --fresh",
        )
    before = read_json(place)
    if before != wanted:
        key = next(key for key in wanted if before.get(key) != wanted[key])
        raise ResultsError(
            f"the training here began with another {key}",
            subject=bundle.parent,
            remedy="Use the same settings, or start over with --fresh",
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, but not the lock that keeps others out."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != ".lock":
            item.unlink()


def _facts(cohort: Cohort) -> dict[str, list[str | None]]:
    return {case.id: [case.path, case.annotation, case.label] for case in cohort}
