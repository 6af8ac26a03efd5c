"""Slides whose stains are normalised while they are read, so that every slide has nearly the same colours.

Stains differ between laboratories, and a model that learned from a few slides mistakes them for tissue.
Macenko's method estimates the directions and amounts of hematoxylin and eosin once per slide, from its
tissue, and maps them to those of a reference. Every patch of the slide is changed in the same way.
"""

from __future__ import annotations

from typing import Any, get_args

from lobule.color import Normalisation, StainFit, fit_macenko, macenko
from lobule.errors import ConfigError
from lobule.geometry import Box, Lattice
from lobule.slides.backend import RGB
from lobule.slides.overview import read_overview
from lobule.slides.slide import Slide
from lobule.tissue import find_tissue

FIT_MPP = 4.0
"""µm/px of the overview from which the stains are estimated."""
FIT_PIXELS = 1_000_000
"""At most this many pixels of tissue, evenly spaced, are used for the estimate."""


def with_normalisation(slide: Slide, normalisation: Normalisation) -> Slide:
    """Return the slide itself for "none", otherwise the same slide with normalised stains.

    Raises:
        ConfigError: The normalisation is unknown.
    """
    if normalisation not in get_args(Normalisation):
        choices = ", ".join(get_args(Normalisation))
        raise ConfigError(f"unknown normalisation of stains '{normalisation}'", expected=choices)
    return slide if normalisation == "none" else StainNormalisedSlide(slide)


class StainNormalisedSlide(Slide):
    """A slide that is read with normalised stains. Tissue is still detected on the colours of the file."""

    def __init__(self, slide: Slide) -> None:
        Slide.__setstate__(self, slide.__getstate__())
        self._estimated = False
        self._fit: StainFit | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "estimated": self._estimated, "fit": self._fit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._estimated, self._fit = state["estimated"], state["fit"]

    @property
    def as_scanned(self) -> Slide:
        """The same slide with the colours of the file. It shares the opened file."""
        slide = Slide(self.path)
        slide.__setstate__(Slide.__getstate__(self))
        slide._backend = self.backend
        return slide

    @property
    def stains(self) -> StainFit | None:
        """The stains of the slide's tissue; None if they cannot be estimated, and the colours stay."""
        if not self._estimated:
            self._fit, self._estimated = estimate_stains(self.as_scanned), True
        return self._fit

    def read_lattice(self, lattice: Lattice, box: Box) -> RGB:
        pixels = super().read_lattice(lattice, box)
        return pixels if self.stains is None else macenko(pixels, self.stains).rgb


def normalisation_notes(slide: Slide) -> tuple[str, ...]:
    """Estimate the stains of a slide that is read with normalised stains, and say if that is impossible."""
    if not isinstance(slide, StainNormalisedSlide) or slide.stains is not None:
        return ()
    return ("its stains could not be estimated, so its colours are not normalised",)


def estimate_stains(slide: Slide) -> StainFit | None:
    """Estimate the stains of a slide from the tissue of an overview; None if there is too little of it."""
    overview = read_overview(slide, FIT_MPP)
    mask = find_tissue(overview.pixels, overview.lattice.mpp or FIT_MPP).mask & ~overview.unreadable
    tissue = overview.pixels[mask]
    if not len(tissue):
        return None
    return fit_macenko(tissue[:: -(-len(tissue) // FIT_PIXELS)][None])
