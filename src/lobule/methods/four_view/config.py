"""Settings of the four-view classifier. The defaults are the published values, except `compat`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lobule.errors import ConfigError
from lobule.mammograms.dicom import Pixels
from lobule.methods.four_view.centres import window_size
from lobule.methods.four_view.crop import Compat
from lobule.methods.four_view.patches import PATCH, STRIDE
from lobule.methods.four_view.windows import NO_AUGMENTATION, Augmentation
from lobule.nets.four_view import WIDTHS, Pooling
from lobule.settings import Settings, type_hints
from lobule.training.fitting import Optimiser, Schedule

Variant = Literal["view_wise", "image_wise", "side_wise", "joint"]
Streams = Literal["nyu", "own"]
Painting = Literal["exact", "fast"]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the classifier, its scans and its training."""

    variant: Variant = "view_wise"
    """`view_wise` joins both sides of an angle, `side_wise` both angles of a side, `joint` all four views.
    These three need all four views. `image_wise` scores each view alone."""
    members: int = 1
    """Number of classifiers of this variant whose scores are averaged."""
    alone: int = 0
    """Number of image-wise classifiers for exams that lack a view, where `variant` needs all four."""
    patch_of: tuple[int, ...] = ()
    """Index of the patch network of each member, then of each classifier in `alone`; empty if there is only
    one."""
    heatmaps: bool = False
    """Whether the classifier reads heatmaps. The patch network of the same bundle computes them."""
    painting: Painting = "exact"
    """How heatmaps are computed: `exact` patch by patch as published, `fast` from one run over a whole
    view."""
    epochs: int = 10
    """Number of windows of each view whose scores are averaged. Without augmentation all windows are equal,
    so only one is computed."""
    augmentation: bool = True
    seed: int = 0
    compat: Streams = "own"
    """`nyu` uses one random stream for all exams of a cohort, as published, so a score depends on the exams
    before it. `own` starts a new stream for every exam. The first exam of a cohort is the same in both."""
    quirks: Compat = "reference"
    """`reference` keeps the errors of the published code. `fixed` repairs the off-by-one landmarks and
    centres, and the missing mirroring of single right views."""
    pixels: Pixels = "nyu-raw"
    """Which pixel values of a DICOM file are read."""
    finding_threshold: float = 0.5
    """Regions of a heatmap above this score become findings."""
    window: tuple[int, int] | None = None
    """Height and width of the classifier's window; None means the published size of each angle."""
    move: tuple[int, int] = (100, 100)
    """Largest shift of a window by augmentation, in rows and columns."""
    resize: int = 100
    """Largest shift of each edge of a window by augmentation, in pixels."""
    crop_iterations: int = 100
    crop_buffer: int = 50
    patch: int = PATCH
    patch_stride: int = STRIDE
    heatmap_cell: int = 16
    """Side in pixels of a cell of the heatmap stored with the results. The classifier reads the heatmap at
    full resolution."""
    widths: tuple[int, ...] = WIDTHS
    """Channels of the five stages of the classifier's trunk."""
    pool: Pooling = "mean"
    """How the trunk's feature map of a view is pooled: by its `mean`, as published, or by its `max`, which is
    more sensitive to a small lesion in a large breast."""
    patch_growth: int = 32
    patch_blocks: tuple[int, int, int, int] = (6, 12, 24, 16)
    patch_first_width: int = 64
    shrink: int = 1
    """Factor by which a window is reduced along each axis before the classifier reads it; 1 as published. A
    larger factor lets whole views fit on a small machine."""

    # Training. Learning rates, steps and batch sizes are not published; these are ours.
    weights: str = ""
    """A four-view bundle whose weights training starts from. Settings that the weights determine (variant,
    widths, window, …) are read from the bundle."""
    patch_weights: str = ""
    """A bundle whose patch network is used without further training, or DenseNet weights from which the patch
    network is trained."""
    patch_steps: int = 50_000
    patch_batch: int = 32
    patch_rate: float = 1e-4
    patch_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    """Shares of the sampled patches: malignant, benign, outside the outlines of a view that has outlines, and
    from breasts without a finding."""
    val_patches: int = 2000
    birads: str = "birads"
    """Column with the BI-RADS categories that are learned first. `left_birads` and `right_birads` are
    preferred where the cohort has them."""
    birads_steps: int = 50_000
    birads_rate: float = 1e-5
    steps: int = 50_000
    batch: int = 4
    """Number of exams per step."""
    rate: float = 1e-5
    """Learning rate of layers that start from random weights."""
    trunk_rate: float = 1e-5
    """Learning rate of trunks that come from other weights or from the BI-RADS stage."""
    positive_share: float = 0.5
    """Share of the sampled exams that have a benign or a malignant breast."""
    malignant_share: float = 0.5
    """Share of those positive exams that have a malignant breast."""
    swap_sides: bool = False
    """Whether half of the exams are sampled with left and right breast exchanged, including the labels. This
    gives a valid exam, because every view is mirrored to point right. Not published."""
    positive_weight: float = 1.0
    """Weight of a positive breast in the loss, relative to a negative one."""
    optimiser: Optimiser = "adam"
    schedule: Schedule = "plateau"
    weight_decay: float = 3e-5
    accumulate: int = 1
    evaluate_every: int = 1000
    """Steps between two evaluations of the validation exams, and between checkpoints."""
    patience: int = 5
    stop_after: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise ConfigError("four_view needs at least one window per view", actual=f"epochs={self.epochs}")
        if self.window and self.augmentation and 2 * self.resize >= min(self.window):
            raise ConfigError(
                "augmentation can shrink a window to nothing",
                expected=f"resize below {min(self.window) // 2} for a window of {self.window}",
                actual=f"resize={self.resize}",
            )
        if self.shrink < 1:
            raise ConfigError("shrink must be a whole number of at least 1", actual=f"shrink={self.shrink}")

    @property
    def reads_exams(self) -> bool:
        """Whether the variant reads all views of an exam together."""
        return self.variant != "image_wise"

    @property
    def patch_nets(self) -> int:
        """Number of patch networks in the bundle."""
        return 1 + max(self.patch_of, default=0) if self.heatmaps else 0

    @property
    def windows(self) -> int:
        """Number of windows of each view that are computed."""
        return self.epochs if self.augmentation else 1

    @property
    def variation(self) -> Augmentation:
        return Augmentation(self.move, self.resize) if self.augmentation else NO_AUGMENTATION

    @property
    def channels(self) -> int:
        return 3 if self.heatmaps else 1

    def size(self, view: str) -> tuple[int, int]:
        """Height and width of the classifier's window, in pixels of the view."""
        return self.window or window_size(view)

    def input_size(self, view: str) -> tuple[int, int]:
        """Height and width of the classifier's input."""
        height, width = self.size(view)
        return height // self.shrink, width // self.shrink

    def set(self, settings: Mapping[str, Any]) -> Config:
        """Return the config changed by the settings of a scan.

        Raises:
            ConfigError: if a scan cannot change one of the settings, because the weights determine it.
        """
        for name in settings:
            if name not in SETTABLE:
                raise ConfigError(
                    f"'{name}' cannot be set for a scan with four_view", expected=", ".join(SETTABLE)
                )
        overrides = dict(settings)
        heatmap_mode = overrides.pop("heatmaps", None)
        if heatmap_mode is None:
            return replace(self, **overrides)
        if heatmap_mode not in (HEATMAPS[1:] if self.heatmaps else HEATMAPS[:1]):
            description = (
                "reads heatmaps"
                if self.heatmaps
                else "reads no heatmaps, and its bundle has no patch network"
            )
            raise ConfigError(
                f"heatmaps = {heatmap_mode} does not fit a classifier that {description}",
                expected=", ".join(HEATMAPS[1:] if self.heatmaps else HEATMAPS[:1]),
                remedy="Set heatmaps to an expected value, or use another bundle",
            )
        return (
            replace(self, **overrides)
            if heatmap_mode == "none"
            else replace(self, painting=heatmap_mode, **overrides)
        )


HEATMAPS = ("none", "exact", "fast")

SETTABLE = {"heatmaps": Literal["none", "exact", "fast"]} | type_hints(
    Config, "epochs", "augmentation", "seed", "compat", "quirks", "pixels", "finding_threshold"
)
"""Settings that a scan can change, with their types. The weights determine the others."""
