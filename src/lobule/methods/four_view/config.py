"""What decides a four-view classifier; the defaults are the published ones but for `compat`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from lobule.errors import ConfigError
from lobule.mammograms.dicom import Pixels
from lobule.methods.four_view.centres import window_size
from lobule.methods.four_view.crop import Compat
from lobule.methods.four_view.patches import PATCH, STRIDE
from lobule.methods.four_view.windows import NO_AUGMENTATION, Augmentation
from lobule.nets.four_view import WIDTHS

Variant = Literal["view_wise", "image_wise"]
Streams = Literal["nyu", "own"]


@dataclass(frozen=True)
class Config:
    """What decides the scores of an exam."""

    variant: Variant = "view_wise"
    """`view_wise` joins both sides of an angle and needs all four views; `image_wise` scores each alone."""
    heatmaps: bool = False
    """Whether the classifier reads heatmaps, which the patch network of the same bundle paints."""
    epochs: int = 10
    """Windows of each view whose scores are averaged; one without augmentation, where all are the same."""
    augmentation: bool = True
    seed: int = 0
    compat: Streams = "own"
    """`nyu` draws all exams of a cohort from one random stream, as published, so that a score depends on the
    exams before it; `own` begins anew for every exam. The first exam of a cohort is the same in both."""
    quirks: Compat = "reference"
    """`fixed` repairs the off-by-one landmarks and centres, and single right views cut unmirrored."""
    pixels: Pixels = "nyu-raw"
    """Which values of a DICOM file are read."""
    finding_threshold: float = 0.5
    """Regions of a heatmap above it become findings."""
    window: tuple[int, int] | None = None
    """Height and width that the classifier reads; None is the published size of each angle."""
    move: tuple[int, int] = (100, 100)
    """Rows and columns by which augmentation may move a window."""
    resize: int = 100
    """Pixels by which augmentation may move each edge of a window."""
    crop_iterations: int = 100
    crop_buffer: int = 50
    patch: int = PATCH
    patch_stride: int = STRIDE
    heatmap_cell: int = 16
    """Pixels a side of a cell of a heatmap as it is kept with the results; the classifier reads it whole."""
    widths: tuple[int, ...] = WIDTHS
    """Channels of the five stages of the classifier's trunk."""
    patch_growth: int = 32
    patch_blocks: tuple[int, int, int, int] = (6, 12, 24, 16)
    patch_first_width: int = 64

    def __post_init__(self) -> None:
        for name, choices in (
            ("variant", get_args(Variant)),
            ("compat", get_args(Streams)),
            ("quirks", get_args(Compat)),
            ("pixels", get_args(Pixels)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"no {name} '{getattr(self, name)}' in four_view", expected=f"one of {', '.join(choices)}"
                )
        if self.epochs < 1:
            raise ConfigError("four_view needs at least one window a view", found=f"epochs={self.epochs}")

    @property
    def windows(self) -> int:
        """Windows of each view that are really computed."""
        return self.epochs if self.augmentation else 1

    @property
    def variation(self) -> Augmentation:
        return Augmentation(self.move, self.resize) if self.augmentation else NO_AUGMENTATION

    @property
    def channels(self) -> int:
        return 3 if self.heatmaps else 1

    def size(self, view: str) -> tuple[int, int]:
        """Height and width of the classifier's input."""
        return self.window or window_size(view)

    def set(self, settings: Mapping[str, Any]) -> Config:
        """With what a scan asks otherwise; what the weights fix cannot be asked."""
        for name in settings:
            if name not in SETTABLE:
                raise ConfigError(
                    f"'{name}' cannot be set for a scan of four_view", expected=", ".join(SETTABLE)
                )
        return replace(self, **settings)

    def to_dict(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Config:
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(facts) - known)
        if unknown:
            raise ConfigError(f"no setting '{unknown[0]}' in four_view", expected=", ".join(sorted(known)))
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in facts.items()}
        return cls(**values)


SETTABLE = ("epochs", "augmentation", "seed", "compat", "quirks", "pixels", "finding_threshold")
"""Settings that a scan may change; the others belong to the weights."""
