"""A case as `steps` sees it: images opened, tissue found once, the budget's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile

import numpy as np

from lobule.cohort import Case
from lobule.errors import ConfigError
from lobule.scanning.contract import EngineSettings, ImageSource, ScanOptions, Tissue
from lobule.slides.overview import read_overview
from lobule.slides.slide import Slide
from lobule.tissue import TissueConfig, find_tissue


class OpenedCase:
    """What `passes.OpenCase` promises, for slides, regions, plain images and exams."""

    def __init__(
        self,
        case: Case,
        images: Mapping[str, ImageSource],
        options: ScanOptions,
        engine: EngineSettings,
        cohort: Iterable[Case] = (),
    ) -> None:
        self.case, self.images, self.options, self.engine = case, images, options, engine
        self._cohort = cohort
        self._tissue: dict[str, Tissue] = {}
        self._slide_has_tissue = False
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def tissue(self, image: str = "slide") -> Tissue:
        """Where tissue is, cut to the case's region; everywhere where the options look everywhere."""
        with self._lock:
            if image not in self._tissue:
                self._tissue[image] = self._find_tissue(image)
            return self._tissue[image]

    @property
    def why_nothing_scored(self) -> str | None:
        """What the tissue says about a case in which nothing was scored; None if no tissue was needed."""
        if not self._tissue:
            return None
        if any(tissue.mask.any() for tissue in self._tissue.values()):
            return "the tissue is smaller than one cell or tile of the model"
        if self._slide_has_tissue:
            return "the region contains no tissue"
        return "no tissue was found"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the tissue detection has to say, such as damaged tiles that it met."""
        return tuple(note for tissue in self._tissue.values() for note in tissue.notes)

    def earlier(self) -> Iterator[Case]:
        return takewhile(lambda other: other.id != self.case.id, self._cohort)

    def seconds_left(self) -> float:
        if self.options.budget is None:
            return float("inf")
        return self.options.budget - (time.monotonic() - self._began)

    def _find_tissue(self, image: str) -> Tissue:
        slide = self.images[image]
        if not isinstance(slide, Slide):
            raise ConfigError(f"tissue is found on slides, and '{image}' is none")
        if self.options.tissue is None:
            step = max(1, max(slide.size) // 4096)
            shape = -(-slide.size.height // step), -(-slide.size.width // step)
            found = Tissue(np.ones(shape, np.bool_), (float(step), float(step)))
        else:
            found = tissue_of(slide, self.options.tissue)
        self._slide_has_tissue |= bool(found.mask.any())
        if self.case.l0_box is None:
            return found
        mask = found.mask.copy()
        step_x, step_y = found.l0_step
        x = (np.arange(mask.shape[1]) + 0.5) * step_x
        y = (np.arange(mask.shape[0]) + 0.5) * step_y
        box = self.case.l0_box
        mask &= ((y >= box.y) & (y < box.bottom))[:, None] & ((x >= box.x) & (x < box.right))[None, :]
        return replace(found, mask=mask)

    def close(self) -> None:
        for image in self.images.values():
            if isinstance(image, Slide):
                image.close()


def tissue_of(slide: Slide, config: TissueConfig) -> Tissue:
    """Find tissue near the µm/px that the finder works in, read from the best small level."""
    whole = read_overview(slide, config.mpp)
    lattice = whole.lattice
    assert lattice.mpp is not None, "an overview of a slide without µm/px is refused before"
    found = find_tissue(whole.pixels, lattice.mpp, config)
    # Nobody knows what lies in unreadable areas, so the scan looks there.
    mask = found.mask | whole.unreadable
    return Tissue(mask, (float(lattice.step_x), float(lattice.step_y)), whole.notes)
