"""Settings of a GMIC model. The defaults are the published values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lobule.mammograms.dicom_pixels import Pixels
from lobule.mammograms.published.centres import GMIC_WINDOW_SIZE
from lobule.mammograms.published.crop import Quirks
from lobule.nets.published import FOUR_VIEW_WIDTHS, GMIC_REGION_PX, GMIC_REGIONS, GMIC_TOP_SHARES
from lobule.settings import Settings, type_hints

if TYPE_CHECKING:
    from lobule.mammograms.exam_views import ViewOptions


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the model and its scans."""

    top_shares: tuple[float, ...] = GMIC_TOP_SHARES[:1]
    """For each model whose scores are averaged, the share of saliency cells that its global score
    averages."""
    regions: int = GMIC_REGIONS
    region_px: int = GMIC_REGION_PX
    window: tuple[int, int] = GMIC_WINDOW_SIZE
    quirks: Quirks = "reference"
    """`reference` keeps the errors of the published code. `fixed` repairs the off-by-one landmarks and
    centres, and ignores a constant saliency map."""
    pixels: Pixels = "nyu-raw"
    """Which pixel values of a DICOM file are read."""
    crop_iterations: int = 100
    crop_buffer: int = 50
    map_cell: int = 16
    """Side in pixels of a cell of the stored saliency map."""
    widths: tuple[int, ...] = FOUR_VIEW_WIDTHS

    @property
    def view_options(self) -> ViewOptions:
        from lobule.mammograms.exam_views import ViewOptions

        return ViewOptions(self.quirks, self.pixels, self.crop_iterations, self.crop_buffer, self.window)


SCAN_SETTINGS = type_hints(Config, "quirks", "pixels")
"""Settings that a scan can change, with their types. The weights determine the others."""
