"""Bags: the tiles of each case as features on disk, with the case's label; read in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lobule.cohort import Case, Cohort
from lobule.cohort.labels import plain, polarity
from lobule.errors import CaseError, ConfigError, DamagedFile, UsageError
from lobule.features import FeatureFile, FeatureFolder
from lobule.files import fingerprint, is_url
from lobule.geometry import Box
from lobule.slides.identity import same_slide, slide_fingerprint

BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Bag:
    """One case's tiles. Nothing of them is held but where they lie."""

    case: Case
    file: FeatureFile
    label: int
    l0_coords: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None
    """Rows of the file that belong to the case, where it is a region of a slide; None is all."""

    def __len__(self) -> int:
        return len(self.l0_coords)

    def identity(self) -> list[Any]:
        """What changes when its features do: what Lobule's files were made of, the bytes of others."""
        made_of = self.file.source or fingerprint(self.file.path)
        return [self.file.hash, made_of, len(self)]

    def blocks(self) -> Iterator[Tensor]:
        """The features in order, some tiles at a time."""
        if self.rows is None:
            for _, block in self.file.blocks(BLOCK_ROWS):
                yield torch.from_numpy(block)
            return
        for start in range(0, len(self.rows), BLOCK_ROWS):
            yield torch.from_numpy(self.file.take(self.rows[start : start + BLOCK_ROWS]))

    def take(self, tiles: NDArray[np.int64]) -> Tensor:
        """The features of some tiles, in their order."""
        return torch.from_numpy(self.file.take(tiles if self.rows is None else self.rows[tiles]))


@dataclass(frozen=True)
class Gathered:
    """Bags that can be trained on, and why the others cannot."""

    bags: tuple[Bag, ...]
    failures: dict[str, str]
    notes: tuple[str, ...]


def gather(cohort: Cohort, folder: FeatureFolder, positive: Sequence[str] = ()) -> Gathered:
    """The bag of every labelled case. What is missing, empty, half-written or no number costs its case alone.

    Features of another backbone, or of another length, are refused altogether.
    """
    bags, lost, unlabelled = [], {}, 0
    read: dict[Path, DamagedFile | None] = {}
    for case in cohort:
        if case.label is None:
            unlabelled += 1
            continue
        label = label_of(case, positive)
        try:
            bag = bag_of(case, folder, label)
            _refuse_unreadable(bag.file, read)
        except CaseError as error:
            lost[case.id] = str(error)
            continue
        if len(bag) == 0:
            lost[case.id] = "no tissue: it has no tile"
            continue
        bags.append(bag)
    refuse_mixed(bags)
    notes = [f"{unlabelled} cases have no label and take no part"] if unlabelled else []
    return Gathered(tuple(bags), lost, (*notes, *_both_labels(bags)))


def _refuse_unreadable(file: FeatureFile, read: dict[Path, DamagedFile | None]) -> None:
    """Read a file through, once: better now than a training that ends in its last epoch."""
    if file.path not in read:
        read[file.path] = None
        try:
            for _ in file.blocks():
                pass
        except DamagedFile as error:
            read[file.path] = error
    damage = read[file.path]
    if damage is not None:
        raise damage


def bag_of(case: Case, folder: FeatureFolder, label: int = 0) -> Bag:
    """The bag of a case; of a region, the tiles of its slide whose centre lies in it."""
    file = folder.find(case)
    _refuse_other_slide(case, file)
    coords = file.l0_coords(case.mpp)
    if case.l0_box is None:
        return Bag(case, file, label, coords)
    side = file.l0_side(case.mpp)
    if not folder.of_slide_file(case, file) and _all_touch(case.l0_box, coords, side):
        return Bag(case, file, label, coords)
    if side is None:
        raise DamagedFile(
            "the file does not say how large its tiles are, so no region can be cut out of it",
            subject=file.path,
            remedy="Keep the file of coordinates (`patches/`) beside it",
        )
    centre = coords + side / 2
    box = case.l0_box
    inside = (centre >= (box.x, box.y)).all(axis=1) & (centre < (box.right, box.bottom)).all(axis=1)
    rows = np.flatnonzero(inside)
    return Bag(case, file, label, coords[rows], rows)


def _all_touch(box: Box, coords: NDArray[np.int64], side: float | None) -> bool:
    """Whether a file under a region's name is the region's own: a slide's may have the same name."""
    if side is None:
        return True
    return bool(((coords + side > (box.x, box.y)) & (coords < (box.right, box.bottom))).all())


def _refuse_other_slide(case: Case, file: FeatureFile) -> None:
    """Refuse features that were made of another slide of that name, where the slide is at hand to ask."""
    path = case.path
    if file.source is None or path is None or is_url(path) or not Path(path).exists():
        return
    if not same_slide(path, file.source):
        raise DamagedFile(
            "features of another slide of that name, or of the slide before it was changed",
            subject=file.path,
            expected=f"those of {path}, {slide_fingerprint(path)[:23]}…",
            actual=f"those of a slide with {file.source[:23]}…",
            remedy="Extract the features of this slide again, to a folder of its cohort",
        )


def label_of(case: Case, positive: Sequence[str] = ()) -> int:
    """1 for a positive case, by the labels that were named or by what its label means."""
    assert case.label is not None
    if positive:
        return int(plain(case.label) in set(map(plain, positive)))
    meant = polarity(case.label)
    if meant is None:
        raise UsageError(
            f"it is not plain whether the label '{case.label}' is positive",
            subject=case.id,
            remedy="Name the positive labels with --set positive=LABEL,LABEL",
        )
    return int(meant)


def refuse_mixed(bags: Sequence[Bag]) -> None:
    """Refuse features of more than one backbone: their numbers mean different things."""
    kinds: dict[tuple[int, str | None, str | None], Bag] = {}
    for bag in bags:
        kinds.setdefault((bag.file.dim, bag.file.encoder, bag.file.hash), bag)
    if len(kinds) > 1:
        (first, one), (second, other) = list(kinds.items())[:2]
        raise ConfigError(
            "features of two kinds in one cohort",
            subject=other.file.path,
            expected=f"{first[0]} numbers of {first[1] or 'an unnamed encoder'}, as in {one.file.path.name}",
            actual=f"{second[0]} numbers of {second[1] or 'an unnamed encoder'}",
            remedy="Extract all features with one backbone",
        )


def refuse_one_class(bags: Sequence[Bag], what: str) -> None:
    labels = {bag.label for bag in bags}
    if len(labels) < 2:
        found = "no cases" if not labels else "positive cases alone" if 1 in labels else "normal cases alone"
        raise UsageError(
            f"{what} needs cases of both labels", actual=found, remedy="Check the cohort's label column"
        )


def _both_labels(bags: Sequence[Bag]) -> list[str]:
    labels: dict[str, set[int]] = {}
    for bag in bags:
        labels.setdefault(bag.case.patient, set()).add(bag.label)
    both = sorted(patient for patient, found in labels.items() if len(found) > 1)
    if not both:
        return []
    named = ", ".join(both[:5]) + (" …" if len(both) > 5 else "")
    return [f"{len(both)} patients have cases of both labels ({named}); each stays on one side of a split"]
