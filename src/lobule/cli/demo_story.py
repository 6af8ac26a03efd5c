"""Results that the steps of `lobule demo` pass on to later steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lobule.cli.demo_lesions import LesionRank
    from lobule.cohort import Case, Cohort
    from lobule.evaluation import Evaluation
    from lobule.phantoms.truth import SlideTruth

METHODS = {"scannet": "ScanNet, small net", "colour": "colour alone"}
"""The two methods that are compared, with their names on the page."""


@dataclass
class Story:
    """Results of the steps of the slide demo; each step adds to them."""

    folder: Path
    side: int
    seed: int
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Names and values that are printed at the end."""
    data: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By step."""
    cohort: Cohort | None = None
    truths: Mapping[str, SlideTruth] = field(default_factory=dict)
    evaluation: Evaluation | None = None

    def bundle(self, method: str) -> Path:
        return self.folder / f"bundle-{method}"

    def results(self, method: str) -> Path:
        return self.folder / f"results-{method}"

    @property
    def unseen(self) -> tuple[Case, ...]:
        """The slides of the test split."""
        assert self.cohort is not None
        return tuple(self.cohort.split("test"))

    @property
    def page(self) -> Path:
        return self.folder / "demo.html"

    @property
    def picture(self) -> Path:
        return self.folder / "demo.png"


@dataclass
class ExamStory:
    """Results of the steps of the exam demo; each step adds to them."""

    folder: Path
    share: float
    """Size of the demo as a share of the full one, which has 1."""
    seed: int
    lines: list[tuple[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By step."""
    cohort: Cohort | None = None
    ranks: list[LesionRank] = field(default_factory=list)

    @property
    def unseen(self) -> Cohort:
        assert self.cohort is not None
        return self.cohort.split("test")

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def page(self) -> Path:
        return self.folder / "demo.html"
