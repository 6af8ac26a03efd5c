"""`Case`, the unit that gets a result, and `Cohort`, a table of cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lobule.errors import AnnotationError, ConfigError
from lobule.geometry import Box

Kind = Literal["slide", "region", "image", "exam"]

SPLITS = ("train", "val", "test")

VIEWS = ("l_cc", "r_cc", "l_mlo", "r_mlo")

BREAST_LABELS = ("left_benign", "left_malignant", "right_benign", "right_malignant")


@dataclass(frozen=True)
class Case:
    """A slide, a region of one, a plain image or an exam, with its patient, labels and annotation.

    Paths are absolute or URLs. A blank cell of the manifest is None, or absent from a mapping: its value is
    unknown.
    """

    id: str
    patient: str
    kind: Kind
    path: str | None = None
    """The slide or image; None for an exam."""
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Files of each view of an exam, keyed by the names in `VIEWS`; a view without files is absent."""
    split: str | None = None
    label: str | None = None
    site: str | None = None
    mpp: float | None = None
    annotation: str | None = None
    l0_box: Box | None = None
    """The region; None if the case is not a region."""
    breast_labels: Mapping[str, bool] = field(default_factory=dict, hash=False)
    """Labels of the breasts of an exam, keyed by the names in `BREAST_LABELS`; unknown ones are absent."""
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Every other column of the manifest, as text; blank cells are absent."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every image file of the case, in a fixed order."""
        if self.path is not None:
            return (self.path,)
        return tuple(file for view in VIEWS for file in self.views.get(view, ()))

    def value(self, column: str) -> str | None:
        """Value of this case in a column of the manifest; None if the cell is blank or missing."""
        if column in ("split", "label", "site", "patient", "kind"):
            field_value: str | None = getattr(self, column)
            return field_value
        if column == "case":
            return self.id
        if column in self.breast_labels:
            return "1" if self.breast_labels[column] else "0"
        return self.attributes.get(column)

    @property
    def mask_tumour(self) -> int | None:
        """The value that means tumour in the mask of this case, from the column `mask_tumour`.

        Raises:
            AnnotationError: The cell does not contain a number from 1 to 255.
        """
        cell = self.attributes.get("mask_tumour")
        if cell is None:
            return None
        number = cell.strip().removesuffix(".0")
        if not number.isdigit() or not 1 <= int(number) <= 255:
            raise AnnotationError(
                "the column mask_tumour does not contain the value of a mask",
                subject=self.id, expected="a number from 1 to 255", actual=cell,
            )  # fmt: skip
        return int(number)


@dataclass(frozen=True)
class Cohort:
    """Cases in the order of their manifest."""

    cases: tuple[Case, ...]
    path: str | None = None
    """The manifest; None if the cohort was created in memory."""

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __getitem__(self, case_id: str) -> Case:
        for case in self.cases:
            if case.id == case_id:
                return case
        raise KeyError(case_id)

    def where(self, keep: Callable[[Case], bool]) -> Cohort:
        return Cohort(tuple(case for case in self.cases if keep(case)), self.path)

    def split(self, name: str) -> Cohort:
        """The cases of one split, which may be empty. Raises `ConfigError` for a name not in `SPLITS`."""
        if name not in SPLITS:
            raise ConfigError(f"there is no split '{name}'", expected=f"one of {', '.join(SPLITS)}")
        return self.where(lambda case: case.split == name)

    def patients(self) -> tuple[str, ...]:
        """Every patient once, sorted."""
        return tuple(sorted({case.patient for case in self.cases}))

    def labels(self) -> tuple[str, ...]:
        """Every label that occurs, sorted."""
        return tuple(sorted({case.label for case in self.cases if case.label is not None}))

    def splits(self) -> tuple[str, ...]:
        """The splits that have cases, in the order train, val, test."""
        present = {case.split for case in self.cases}
        return tuple(name for name in SPLITS if name in present)

    @property
    def kind(self) -> Kind | None:
        """The kind of all cases; None if they are of several kinds."""
        kinds = {case.kind for case in self.cases}
        return next(iter(kinds)) if len(kinds) == 1 else None
