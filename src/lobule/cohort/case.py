"""`Case` and `Cohort`: what gets a result, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lobule.errors import ConfigError
from lobule.geometry import Box

Kind = Literal["slide", "region", "image", "exam"]

SPLITS = ("train", "val", "test")

VIEWS = ("l_cc", "r_cc", "l_mlo", "r_mlo")

BREAST_LABELS = ("left_benign", "left_malignant", "right_benign", "right_malignant")


@dataclass(frozen=True)
class Case:
    """A slide, a region of one, a plain image or an exam, with its patient, labels and annotation.

    Paths are absolute or URLs. What a manifest leaves blank is None (or absent from a mapping): unknown.
    """

    id: str
    patient: str
    kind: Kind
    path: str | None = None
    """The slide or image; None for an exam."""
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Files of each view of an exam, by the names of `VIEWS`; a view without files is absent."""
    split: str | None = None
    label: str | None = None
    site: str | None = None
    mpp: float | None = None
    annotation: str | None = None
    l0_box: Box | None = None
    """The region, where the case is one."""
    breast_labels: Mapping[str, bool] = field(default_factory=dict, hash=False)
    """Known labels of an exam's breasts, by the names of `BREAST_LABELS`."""
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Every other column of the manifest, as text; blank cells are absent."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every image file of the case, in a fixed order."""
        if self.path is not None:
            return (self.path,)
        return tuple(file for view in VIEWS for file in self.views.get(view, ()))

    def value(self, column: str) -> str | None:
        """What a column of the manifest says of this case; None where blank or absent."""
        if column in ("split", "label", "site", "patient", "kind"):
            found: str | None = getattr(self, column)
            return found
        if column == "case":
            return self.id
        if column in self.breast_labels:
            return "1" if self.breast_labels[column] else "0"
        return self.attributes.get(column)


@dataclass(frozen=True)
class Cohort:
    """Cases in the order of their manifest."""

    cases: tuple[Case, ...]
    path: str | None = None
    """The manifest; None where the cohort was made in memory."""

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
        """The cases of one split; a name that is no split is an error, a split without cases is not."""
        if name not in SPLITS:
            raise ConfigError(f"no split '{name}'", expected=f"one of {', '.join(SPLITS)}")
        return self.where(lambda case: case.split == name)

    def site(self, name: str) -> Cohort:
        return self.where(lambda case: case.site == name)

    def by(self, column: str) -> dict[str | None, Cohort]:
        """Sub-cohorts by what a column says, in the order first met; None holds the blank ones."""
        found: dict[str | None, list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.value(column), []).append(case)
        return {value: Cohort(tuple(cases), self.path) for value, cases in found.items()}

    def patients(self) -> tuple[str, ...]:
        """Every patient once, sorted."""
        return tuple(sorted({case.patient for case in self.cases}))

    def labels(self) -> tuple[str, ...]:
        """Every label that occurs, sorted."""
        return tuple(sorted({case.label for case in self.cases if case.label is not None}))

    def sites(self) -> tuple[str, ...]:
        """Every site that occurs, sorted."""
        return tuple(sorted({case.site for case in self.cases if case.site is not None}))

    def splits(self) -> tuple[str, ...]:
        """The splits that have cases, in the order train, val, test."""
        present = {case.split for case in self.cases}
        return tuple(name for name in SPLITS if name in present)

    @property
    def kind(self) -> Kind | None:
        """What the cases are, where they are all of one kind."""
        kinds = {case.kind for case in self.cases}
        return next(iter(kinds)) if len(kinds) == 1 else None
