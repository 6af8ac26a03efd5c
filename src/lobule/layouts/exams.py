"""Build exams from rows that each describe one mammogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lobule.cohort import VIEWS, Case

STATED_BY_TABLES = "unstated class; unstated view"
"""The attribute `allow` of data sets whose tables or file names state the view, for headers without it."""
SIDES = {"l": "left", "left": "left", "r": "right", "right": "right"}
"""Ways in which tables write the side of a breast."""


@dataclass
class ExamRecord:
    """What the rows of one exam say, collected row by row."""

    patient: str
    views: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, bool] = field(default_factory=dict)
    split: str | None = None
    site: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    def add_image(self, side: str, view: str, file: Path) -> None:
        """Add a file that exists to its view. Files of other views than CC and MLO are left out."""
        name = f"{side.strip().lower()[:1]}_{view.strip().lower()}"
        if name in VIEWS and file.exists() and str(file) not in self.views.get(name, ()):
            self.views.setdefault(name, []).append(str(file))

    def add_finding(self, side: str, *, malignant: bool) -> None:
        """Label a breast: it is malignant if any finding is, and benign if any finding is."""
        name = f"{side}_malignant"
        self.labels[name] = self.labels.get(name, False) or malignant
        if not malignant:
            self.labels[f"{side}_benign"] = True

    def set_attributes(self, **values: str) -> None:
        """Set the attributes that are not blank; the first value of an attribute remains."""
        for name, value in values.items():
            if value.strip():
                self.attributes.setdefault(name, value.strip())

    def case(self, name: str) -> Case:
        return Case(
            name,
            self.patient,
            "exam",
            views={view: tuple(self.views[view]) for view in VIEWS if view in self.views},
            split=self.split,
            site=self.site,
            breast_labels=self.labels,
            attributes=self.attributes,
        )


def exam_cases(records: Mapping[str, ExamRecord]) -> list[Case]:
    """A case for each exam of which at least one file exists."""
    return [record.case(name) for name, record in sorted(records.items()) if record.views]


def worst_birads(old: str, new: str) -> str:
    """The higher of two BI-RADS categories, such as 4a and 4b; a blank one is lower than any other."""
    return max(old.lower(), new.lower())
