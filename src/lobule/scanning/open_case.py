"""An opened case as `steps` sees it: its images, its tissue (detected once) and the remaining time budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile

import numpy as np

from lobule.cohort import Case
from lobule.color import Normalisation
from lobule.errors import ConfigError
from lobule.grid import cells_in_box
from lobule.scanning.contract import EngineSettings, ImageSource, Pass, PixelSource, ScanOptions, Tissue
from lobule.slides.cache_size import cache_bytes
from lobule.slides.normalised import normalisation_notes, with_normalisation
from lobule.slides.overview import read_overview
from lobule.slides.slide import Slide, open_slide
from lobule.tissue import TissueConfig, find_tissue

SMALLEST_CACHE = 16 << 20
"""Bytes of decoded tiles that a slide may cache even if it needs fewer."""


class OpenedCase:
    """Implements `OpenCase` for slides, regions, plain images and exams."""

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
        """Return the tissue within the case's region; if detection is switched off, the whole region."""
        with self._lock:
            if image not in self._tissue:
                self._tissue[image] = self._find_tissue(image)
            return self._tissue[image]

    @property
    def why_nothing_scored(self) -> str | None:
        """The reason in the tissue why nothing was scored in this case; None if tissue was not used."""
        if not self._tissue:
            return None
        if any(tissue.mask.any() for tissue in self._tissue.values()):
            return "the tissue is smaller than one cell or tile of the model"
        if self._slide_has_tissue:
            return "the region contains no tissue"
        return "no tissue was found"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the tissue detection, for example about damaged tiles."""
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
            raise ConfigError(f"cannot detect tissue on '{image}': it is not a slide")
        if self.options.tissue is None:
            step = max(1, max(slide.size) // 4096)
            shape = -(-slide.size.height // step), -(-slide.size.width // step)
            tissue = Tissue(np.ones(shape, np.bool_), (float(step), float(step)))
        else:
            tissue = tissue_of(slide, self.options.tissue)
        tissue = replace(tissue, notes=(*tissue.notes, *normalisation_notes(slide)))
        self._slide_has_tissue |= bool(tissue.mask.any())
        if self.case.l0_box is None:
            return tissue
        inside = cells_in_box(tissue.mask.shape, tissue.l0_step, self.case.l0_box)
        return replace(tissue, mask=tissue.mask & inside)

    @property
    def slides(self) -> dict[str, Slide]:
        """The images that are slides."""
        return {name: image for name, image in self.images.items() if isinstance(image, Slide)}

    @property
    def tiles_decoded(self) -> int:
        """The number of tiles of all slides that were decoded."""
        return sum(slide.tiles_decoded for slide in self.slides.values())

    def close(self) -> None:
        for image in self.images.values():
            if isinstance(image, Slide):
                image.close()


def slide_images(case: Case, options: ScanOptions, stains: Normalisation = "none") -> dict[str, ImageSource]:
    """Open the slide of a case, under the name `slide`. Its stains are normalised as `stains` says.

    Raises:
        ConfigError: The case is an exam.
    """
    if case.path is None:
        raise ConfigError(
            "this model scans slides and images", subject=case.id, actual=f"a case of kind {case.kind}"
        )
    return {"slide": with_normalisation(open_slide(case.path, mpp=case.mpp or options.mpp), stains)}


def tissue_of(slide: Slide, config: TissueConfig) -> Tissue:
    """Detect the tissue of a slide on an overview with about the µm/px that the detection uses."""
    overview = read_overview(slide, config.mpp)
    lattice = overview.lattice
    assert lattice.mpp is not None, "a slide without µm/px was refused earlier"
    detected = find_tissue(overview.pixels, lattice.mpp, config)
    # Unreadable areas of the overview may contain tissue, so they are scanned.
    mask = detected.mask | overview.unreadable
    return Tissue(mask, (float(lattice.step_x), float(lattice.step_y)), overview.notes)


def size_caches(
    pass_: Pass, images: Mapping[str, PixelSource], largest_bytes: int, readers: int, batch: int
) -> None:
    """Let each slide cache the tiles that the fields of a pass share, as far as the limit allows.

    Most fields are read row by row, so tiles of earlier rows are not needed again. Each of the
    `readers` threads reads a batch; `batch` is its size if the pass does not set one.
    """
    fields, read_at_once = pass_.fields, readers * (pass_.batch or batch)
    for index, name in enumerate(fields.images):
        image, boxes = images[name], fields.boxes[fields.image == index]
        if isinstance(image, Slide) and len(boxes):
            needed_bytes = cache_bytes(image, fields.lattices[index], boxes, read_at_once)
            image.use_cache(min(max(needed_bytes, SMALLEST_CACHE), largest_bytes))
