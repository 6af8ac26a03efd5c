"""What the steps of `lobule demo` pass on to later steps, and how they are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lobule.cli.base import CommandOutput, format_fields, note

if TYPE_CHECKING:
    from lobule.cli.demo_lesions import LesionRank
    from lobule.cohort import Cohort
    from lobule.evaluation import Evaluation
    from lobule.phantoms.truth import SlideTruth

FULL_SIDE = 6144
METHODS = {"scannet": "ScanNet, small net", "colour": "colour alone"}
"""The two methods that are compared, with their names on the page."""


def share_of(side: int) -> float:
    """Return the size of the demo as a share of the full one, by the area of a slide."""
    return min(1.0, (side / FULL_SIDE) ** 2)


@dataclass
class Story:
    """What the steps of a demo have computed; each step adds to it."""

    folder: Path
    side: int
    """Width of the slides in pixels, which also determines the number of slides or exams."""
    seed: int
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Names and values that are printed at the end."""
    data: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By step."""
    cohort: Cohort = field(init=False)
    truths: Mapping[str, SlideTruth] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    """By method; that of the first method also has its difference from the second."""
    ranks: list[LesionRank] = field(default_factory=list)

    @property
    def share(self) -> float:
        return share_of(self.side)

    @property
    def unseen(self) -> Cohort:
        """The cases of the test split."""
        return self.cohort.split("test")

    @property
    def page(self) -> Path:
        return self.folder / "demo.html"

    @property
    def picture(self) -> Path:
        return self.folder / "demo.png"

    def bundle(self, method: str) -> Path:
        return self.folder / f"bundle-{method}"

    def results(self, method: str) -> Path:
        return self.folder / f"results-{method}"

    def run(self, steps: Sequence[tuple[str, Callable[[Story], None]]]) -> None:
        """Run the steps, each with its title, and measure their times."""
        for title, step in steps:
            note(f"{title} …")
            began = time.perf_counter()
            step(self)
            self.seconds[title] = time.perf_counter() - began

    def output(self, next_step: str, text: str) -> CommandOutput:
        """Return the output of the command, which ends with `text`."""
        results = self.data["results"]
        shown = results if isinstance(results, str) else results["scannet"]
        view = f"lobule view {shown} --cohort {self.data['cohort']}"
        self.lines += [("results page", str(self.page)), ("viewer", view), ("next step", next_step)]
        seconds = {title: round(duration, 1) for title, duration in self.seconds.items()}
        self.data |= {"seed": self.seed, "page": str(self.page), "seconds": seconds}
        return CommandOutput(self.data, f"{format_fields(self.lines)}\n\n{text}")
