"""Settings of a GMIC model. The defaults are the published values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lobule.errors import ConfigError
from lobule.mammograms.dicom import Pixels
from lobule.methods.four_view.centres import GMIC_WINDOW_SIZE
from lobule.methods.four_view.crop import Compat
from lobule.methods.four_view.windows import NO_AUGMENTATION, Augmentation
from lobule.nets.four_view import WIDTHS
from lobule.nets.gmic import REGION_PX, REGIONS, TOP_SHARES
from lobule.settings import Settings


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the model and its scans."""

    top_shares: tuple[float, ...] = TOP_SHARES[:1]
    """For each model whose scores are averaged, the share of saliency cells that its global score
    averages."""
    regions: int = REGIONS
    region_px: int = REGION_PX
    window: tuple[int, int] = GMIC_WINDOW_SIZE
    quirks: Compat = "reference"
    """`reference` keeps the errors of the published code. `fixed` repairs the off-by-one landmarks and
    centres, and ignores a constant saliency map."""
    pixels: Pixels = "nyu-raw"
    """Which pixel values of a DICOM file are read."""
    crop_iterations: int = 100
    crop_buffer: int = 50
    map_cell: int = 16
    """Side in pixels of a cell of the stored saliency map."""
    widths: tuple[int, ...] = WIDTHS

    @property
    def members(self) -> int:
        return len(self.top_shares)

    # -- how views are read: each alone, in one window ----------------------------------------------------

    @property
    def reads_exams(self) -> bool:
        return False

    @property
    def windows(self) -> int:
        return 1

    @property
    def variation(self) -> Augmentation:
        return NO_AUGMENTATION

    @property
    def seed(self) -> int:
        return 0

    def size(self, view: str) -> tuple[int, int]:
        return self.window

    def input_size(self, view: str) -> tuple[int, int]:
        return self.window

    def set(self, settings: Mapping[str, Any]) -> Config:
        """Return the config changed by the settings of a scan.

        Raises:
            ConfigError: if a scan cannot change one of the settings, because the weights determine it.
        """
        for name in settings:
            if name not in SETTABLE:
                raise ConfigError(
                    f"'{name}' cannot be set for a scan with gmic", expected=", ".join(SETTABLE)
                )
        return replace(self, **settings)


SETTABLE = ("quirks", "pixels")
"""Settings that a scan can change. The weights determine the others."""
