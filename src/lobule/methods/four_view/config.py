"""What decides a four-view classifier; the defaults are the published ones but for `compat`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lobule.errors import ConfigError
from lobule.mammograms.dicom import Pixels
from lobule.methods.four_view.centres import window_size
from lobule.methods.four_view.crop import Compat
from lobule.methods.four_view.patches import PATCH, STRIDE
from lobule.methods.four_view.windows import NO_AUGMENTATION, Augmentation
from lobule.nets.four_view import WIDTHS, Pooling
from lobule.settings import as_json, only_known
from lobule.training.fitting import Optimiser, Schedule

Variant = Literal["view_wise", "image_wise", "side_wise", "joint"]
Streams = Literal["nyu", "own"]
Painting = Literal["exact", "fast"]


@dataclass(frozen=True)
class Config:
    """What decides the scores of an exam."""

    variant: Variant = "view_wise"
    """`view_wise` joins both sides of an angle, `side_wise` both angles of a side, `joint` all four views;
    these need all of them. `image_wise` scores each view alone."""
    members: int = 1
    """Classifiers of this variant whose scores are averaged."""
    alone: int = 0
    """Image-wise classifiers that score the exams that lack a view, where `variant` needs all four."""
    patch_of: tuple[int, ...] = ()
    """Which patch network paints for each member, then for each of those alone; empty where one does."""
    heatmaps: bool = False
    """Whether the classifier reads heatmaps, which the patch network of the same bundle paints."""
    painting: Painting = "exact"
    """How heatmaps are painted: `exact` patch by patch as published, `fast` from one look at a whole view."""
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
    pool: Pooling = "mean"
    """What is read from the trunk's map of a view: its `mean` as published, or its `max`, which small lesions
    in a large breast reach sooner."""
    patch_growth: int = 32
    patch_blocks: tuple[int, int, int, int] = (6, 12, 24, 16)
    patch_first_width: int = 64
    shrink: int = 1
    """Pixels of a window, along each axis, that make one of the classifier's input; 1 as published. More
    makes whole views fit a small machine."""

    # how it is trained; rates, steps and batches are ours
    weights: str = ""
    """A four-view bundle to go on from; what its weights fix (variant, widths, window, …) comes with it."""
    patch_weights: str = ""
    """A bundle whose patch network is taken as it is, or DenseNet weights for it to start from."""
    patch_steps: int = 50_000
    patch_batch: int = 32
    patch_rate: float = 1e-4
    patch_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    """Of the patches drawn: malignant, benign, outside the outlines of a view that has some, and of breasts
    without a finding."""
    val_patches: int = 2000
    birads: str = "birads"
    """The column with BI-RADS categories to learn first; `left_birads` and `right_birads` come before it."""
    birads_steps: int = 50_000
    birads_rate: float = 1e-5
    steps: int = 50_000
    batch: int = 4
    """Exams of a step."""
    rate: float = 1e-5
    """Learning rate of what starts from fresh weights."""
    trunk_rate: float = 1e-5
    """Learning rate of trunks that come from other weights or from the BI-RADS stage."""
    positive_share: float = 0.5
    """Of the exams drawn, those with a benign or a malignant breast."""
    malignant_share: float = 0.5
    """Of those, the ones with a malignant breast."""
    swap_sides: bool = False
    """Whether half of the exams are drawn with their breasts exchanged, labels and all: every view points
    right, so it is as good an exam. Not published."""
    positive_weight: float = 1.0
    """How much a positive breast counts in the loss against a negative one."""
    optimiser: Optimiser = "adam"
    schedule: Schedule = "plateau"
    weight_decay: float = 3e-5
    accumulate: int = 1
    evaluate_every: int = 1000
    """Steps between two looks at the validation exams, and between checkpoints."""
    patience: int = 5
    stop_after: int = 15

    def __post_init__(self) -> None:
        for name, choices in (
            ("variant", get_args(Variant)),
            ("painting", get_args(Painting)),
            ("compat", get_args(Streams)),
            ("quirks", get_args(Compat)),
            ("pool", get_args(Pooling)),
            ("pixels", get_args(Pixels)),
            ("optimiser", get_args(Optimiser)),
            ("schedule", get_args(Schedule)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"no {name} '{getattr(self, name)}' in four_view", expected=f"one of {', '.join(choices)}"
                )
        for name in ("heatmaps", "augmentation", "swap_sides"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} of four_view is true or false", actual=str(getattr(self, name)))
        if self.epochs < 1:
            raise ConfigError("four_view needs at least one window a view", actual=f"epochs={self.epochs}")
        if self.window and self.augmentation and 2 * self.resize >= min(self.window):
            raise ConfigError(
                "the edges of a window may move so far that nothing of it is left",
                expected=f"resize below {min(self.window) // 2} for a window of {self.window}",
                actual=f"resize={self.resize}",
            )
        if self.shrink < 1:
            raise ConfigError("shrink is a whole number of pixels, from 1", actual=f"shrink={self.shrink}")

    @property
    def reads_exams(self) -> bool:
        """Whether the variant reads all views of an exam together."""
        return self.variant != "image_wise"

    @property
    def patch_nets(self) -> int:
        """How many patch networks the bundle has."""
        return 1 + max(self.patch_of, default=0) if self.heatmaps else 0

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
        """Height and width of the classifier's window, in pixels of the view."""
        return self.window or window_size(view)

    def input_size(self, view: str) -> tuple[int, int]:
        """Height and width of the classifier's input."""
        height, width = self.size(view)
        return height // self.shrink, width // self.shrink

    def set(self, settings: Mapping[str, Any]) -> Config:
        """With what a scan asks otherwise; what the weights fix cannot be asked."""
        for name in settings:
            if name not in SETTABLE:
                raise ConfigError(
                    f"'{name}' cannot be set for a scan of four_view", expected=", ".join(SETTABLE)
                )
        overrides = dict(settings)
        heatmap_mode = overrides.pop("heatmaps", None)
        if heatmap_mode is None:
            return replace(self, **overrides)
        if heatmap_mode not in (HEATMAPS[1:] if self.heatmaps else HEATMAPS[:1]):
            reads = "reads heatmaps" if self.heatmaps else "reads no heatmaps, and its bundle paints none"
            raise ConfigError(
                f"heatmaps = {heatmap_mode} does not fit a classifier that {reads}",
                expected=", ".join(HEATMAPS[1:] if self.heatmaps else HEATMAPS[:1]),
                remedy="Convert or train the classifier that fits",
            )
        return (
            replace(self, **overrides)
            if heatmap_mode == "none"
            else replace(self, painting=heatmap_mode, **overrides)
        )

    def to_dict(self) -> dict[str, Any]:
        return as_json(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        values = only_known(cls, settings, "four_view")
        return cls(**{name: _typed(name, value) for name, value in values.items()})


def _typed(name: str, value: Any) -> Any:
    """Lists, and text that lists numbers, as the tuples that they are kept as."""
    if name == "window" and isinstance(value, str):
        value = value.replace("x", ",").split(",") if value else None
    if not isinstance(value, list | tuple):
        return value
    kind = float if name == "patch_shares" else int
    try:
        return tuple(kind(number) for number in value)
    except ValueError as error:
        raise ConfigError(f"{name} of four_view lists numbers", actual=str(value)) from error


HEATMAPS = ("none", "exact", "fast")

SETTABLE: dict[str, Any] = {
    "heatmaps": "exact",
    "epochs": 10,
    "augmentation": True,
    "seed": 0,
    "compat": "own",
    "quirks": "reference",
    "pixels": "nyu-raw",
    "finding_threshold": 0.5,
}
"""Settings that a scan may change, with a value of their type; the others belong to the weights."""
