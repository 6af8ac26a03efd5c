"""What decides a GMIC model; the defaults are the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from lobule.errors import ConfigError
from lobule.mammograms.dicom import Pixels
from lobule.methods.four_view.centres import GMIC_WINDOW_SIZE
from lobule.methods.four_view.crop import Compat
from lobule.methods.four_view.windows import NO_AUGMENTATION, Augmentation
from lobule.nets.four_view import WIDTHS
from lobule.nets.gmic import REGION_PX, REGIONS, TOP_SHARES
from lobule.settings import as_json, only_known


@dataclass(frozen=True)
class Config:
    """What decides the scores of a view."""

    top_shares: tuple[float, ...] = TOP_SHARES[:1]
    """For each model whose scores are averaged, the share of saliency cells behind its global score."""
    regions: int = REGIONS
    region_px: int = REGION_PX
    window: tuple[int, int] = GMIC_WINDOW_SIZE
    quirks: Compat = "reference"
    """`fixed` repairs the off-by-one landmarks and centres, and leaves a constant saliency map out."""
    pixels: Pixels = "nyu-raw"
    """Which values of a DICOM file are read."""
    crop_iterations: int = 100
    crop_buffer: int = 50
    map_cell: int = 16
    """Pixels a side of a cell of the saliency as it is laid over the stored image."""
    widths: tuple[int, ...] = WIDTHS

    def __post_init__(self) -> None:
        for name, choices in (("quirks", get_args(Compat)), ("pixels", get_args(Pixels))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"no {name} '{getattr(self, name)}' in gmic", expected=f"one of {', '.join(choices)}"
                )

    @property
    def members(self) -> int:
        return len(self.top_shares)

    # -- how its views are read: each alone, in one window ------------------------------------------------

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
        """With what a scan asks otherwise; what the weights fix cannot be asked."""
        for name in settings:
            if name not in SETTABLE:
                raise ConfigError(f"'{name}' cannot be set for a scan of gmic", expected=", ".join(SETTABLE))
        return replace(self, **settings)

    def to_dict(self) -> dict[str, Any]:
        return as_json(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        values = only_known(cls, settings, "gmic")
        return cls(**values)


SETTABLE = ("quirks", "pixels")
"""Settings that a scan may change; the others belong to the weights."""
