"""Bags: the stored features of each case's tiles, with the label of the case; read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from lobule.features.frame import encoding_to_dict
from lobule.files import is_url
from lobule.fingerprints import fingerprint
from lobule.geometry import Box
from lobule.slides.identity import slide_fingerprint

BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class Bag:
    """The tiles of one case. Only their coordinates are in memory; the features are read from disk."""

    case: Case
    file: FeatureFile
    label: int
    l0_coords: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None
    """Rows of the file that belong to the case if it is a region of a slide; None means all rows."""

    def __len__(self) -> int:
        return len(self.l0_coords)

    def identity(self) -> list[Any]:
        """Values that change when the features change.

        Files of Lobule store the fingerprint of their slide; of other files, the content is fingerprinted.
        """
        content_fingerprint = self.file.source or fingerprint(self.file.path)
        return [self.file.hash, content_fingerprint, len(self)]

    def blocks(self) -> Iterator[Tensor]:
        """Yield the features in the order of the tiles, block by block."""
        if self.rows is None:
            for _, block in self.file.blocks(BLOCK_ROWS):
                yield torch.from_numpy(block)
            return
        for start in range(0, len(self.rows), BLOCK_ROWS):
            yield torch.from_numpy(self.file.take(self.rows[start : start + BLOCK_ROWS]))

    def take(self, tiles: NDArray[np.int64]) -> Tensor:
        """The features of the tiles with these indices, in the order of the indices."""
        return torch.from_numpy(self.file.take(tiles if self.rows is None else self.rows[tiles]))


def encoding_and_tiling(folder: FeatureFolder, bag: Bag) -> dict[str, Any]:
    """The encoder and the tiling of the features, for the bundle and for comparison at resume."""
    manifest = folder.manifest
    if manifest is None:
        return {"encoding": {"name": bag.file.encoder, "hash": None, "dim": bag.file.dim}, "tiling": None}
    names = ("mpp", "tile_px", "input_px", "tissue_share", "stains")
    tiling = {name: getattr(manifest, name) for name in names}
    return {"encoding": encoding_to_dict(manifest.encoding), "tiling": tiling}


@dataclass(frozen=True)
class LabelledBags:
    """Bags with labels, and the reasons why other cases have none."""

    bags: tuple[Bag, ...]
    failures: dict[str, str]
    notes: tuple[str, ...]


def gather(cohort: Cohort, folder: FeatureFolder, positive: Sequence[str] = ()) -> LabelledBags:
    """Return the bag of every labelled case.

    A case whose features are missing, empty, incomplete or not finite is left out and listed in `failures`.

    Raises:
        ConfigError: The features come from several encoders or have different lengths.
    """
    bags, failures, unlabelled = [], {}, 0
    damage_by_path: dict[Path, DamagedFile | None] = {}
    for case in cohort:
        if case.label is None:
            unlabelled += 1
            continue
        label = label_of(case, positive)
        try:
            bag = bag_of(case, folder, label)
            _refuse_unreadable(bag.file, damage_by_path)
        except CaseError as error:
            failures[case.id] = str(error)
            continue
        if len(bag) == 0:
            failures[case.id] = "no tissue: its feature file contains no tile"
            continue
        bags.append(bag)
    refuse_mixed(bags)
    notes = [f"{unlabelled} cases have no label and are not used"] if unlabelled else []
    return LabelledBags(tuple(bags), failures, (*notes, *_both_labels(bags)))


def _refuse_unreadable(file: FeatureFile, damage_by_path: dict[Path, DamagedFile | None]) -> None:
    """Read a whole file once, so that damage is reported before the training and not in its last epoch."""
    if file.path not in damage_by_path:
        damage_by_path[file.path] = None
        try:
            for _ in file.blocks():
                pass
        except DamagedFile as error:
            damage_by_path[file.path] = error
    damage = damage_by_path[file.path]
    if damage is not None:
        raise damage


def bag_of(case: Case, folder: FeatureFolder, label: int = 0) -> Bag:
    """The bag of a case; for a region, the tiles of its slide whose centre lies in the region."""
    file = folder.find(case)
    _refuse_other_slide(case, file)
    coords = file.l0_coords(case.mpp)
    if case.l0_box is None:
        return Bag(case, file, label, coords)
    side = file.l0_side(case.mpp)
    if not folder.is_slide_file(case, file) and _all_touch(case.l0_box, coords, side):
        return Bag(case, file, label, coords)
    if side is None:
        raise DamagedFile(
            "the feature file does not state the size of its tiles, so the tiles of a region are unknown",
            subject=file.path,
            remedy="Keep the folder `patches/` with the coordinates files next to the features",
        )
    centre = coords + side / 2
    box = case.l0_box
    inside = (centre >= (box.x, box.y)).all(axis=1) & (centre < (box.right, box.bottom)).all(axis=1)
    rows = np.flatnonzero(inside)
    return Bag(case, file, label, coords[rows], rows)


def _all_touch(box: Box, coords: NDArray[np.int64], side: float | None) -> bool:
    """Whether all tiles of a file touch the region: if so, the file is of the region, not of a slide."""
    if side is None:
        return True
    return bool(((coords + side > (box.x, box.y)) & (coords < (box.right, box.bottom))).all())


def _refuse_other_slide(case: Case, file: FeatureFile) -> None:
    """Refuse features of another slide with the same name; skipped if the slide is not on this machine."""
    path = case.path
    if file.source is None or path is None or is_url(path) or not Path(path).exists():
        return
    if slide_fingerprint(path) != file.source:
        raise DamagedFile(
            "features of another slide with this name, or of an earlier version of the slide",
            subject=file.path,
            expected=f"features of {path} with fingerprint {slide_fingerprint(path)[:23]}…",
            actual=f"features of a slide with fingerprint {file.source[:23]}…",
            remedy="Extract the features of this slide again, to a separate folder for this cohort",
        )


def label_of(case: Case, positive: Sequence[str] = ()) -> int:
    """1 for a positive case and 0 otherwise, by the list `positive` or else by the meaning of the label."""
    assert case.label is not None
    if positive:
        return int(plain(case.label) in set(map(plain, positive)))
    is_positive = polarity(case.label)
    if is_positive is None:
        raise UsageError(
            f"cannot tell whether the label '{case.label}' is positive",
            subject=case.id,
            remedy="Name the positive labels with --set positive=LABEL,LABEL",
        )
    return int(is_positive)


def refuse_mixed(bags: Sequence[Bag]) -> None:
    """Refuse features of more than one encoder, because their features are not comparable."""
    kinds: dict[tuple[int, str | None, str | None], Bag] = {}
    for bag in bags:
        kinds.setdefault((bag.file.dim, bag.file.encoder, bag.file.hash), bag)
    if len(kinds) > 1:
        (first_kind, first_bag), (second_kind, second_bag) = list(kinds.items())[:2]
        raise ConfigError(
            "the cohort has features of two kinds",
            subject=second_bag.file.path,
            expected=f"{first_kind[0]} numbers of {first_kind[1] or 'an unnamed encoder'}, "
            f"as in {first_bag.file.path.name}",
            actual=f"{second_kind[0]} numbers of {second_kind[1] or 'an unnamed encoder'}",
            remedy="Extract all features with one backbone",
        )


def refuse_one_class(bags: Sequence[Bag], purpose: str, failures: Mapping[str, str] | None = None) -> None:
    """Refuse cases of one label only. `failures` has the reason for each case that was left out."""
    labels = {bag.label for bag in bags}
    if len(labels) < 2:
        actual = "no cases" if not labels else "only positive cases" if 1 in labels else "only normal cases"
        remedy = "Check the cohort's label column"
        if failures:
            case, reason = next(iter(failures.items()))
            actual += f"; {len(failures)} cases are left out, such as {case}: {reason.rstrip('.')}"
            remedy = "Repair the features of the cases that are left out, or check the cohort's label column"
        raise UsageError(f"{purpose} needs cases of both labels", actual=actual, remedy=remedy)


def _both_labels(bags: Sequence[Bag]) -> list[str]:
    labels: dict[str, set[int]] = {}
    for bag in bags:
        labels.setdefault(bag.case.patient, set()).add(bag.label)
    both = sorted(patient for patient, patient_labels in labels.items() if len(patient_labels) > 1)
    if not both:
        return []
    names = ", ".join(both[:5]) + (" …" if len(both) > 5 else "")
    return [
        f"{len(both)} patients have cases of both labels ({names}); all cases of a patient stay in one split"
    ]
