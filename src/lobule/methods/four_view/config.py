"""Settings of the four-view classifier. The defaults are the published values, except `reading.compat`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from lobule.cohort import Kind
from lobule.errors import ConfigError
from lobule.mammograms.dicom_pixels import Pixels
from lobule.mammograms.published.crop import Quirks
from lobule.mammograms.published.patches import PATCH, STRIDE
from lobule.nets.published import FOUR_VIEW_WIDTHS, PATCH_CLASSES, Pooling
from lobule.settings import Settings
from lobule.training.fit_options import Optimiser, Schedule

if TYPE_CHECKING:
    from lobule.mammograms.exam_views import ViewOptions
    from lobule.mammograms.published.windows import Augmentation

Variant = Literal["view_wise", "image_wise", "side_wise", "joint"]
Compat = Literal["nyu", "own"]
Painting = Literal["exact", "fast"]

KINDS: tuple[Kind, ...] = ("exam",)
"""The kinds of cases that the method learns from and scans."""


@dataclass(frozen=True)
class Architecture(Settings):
    """The networks and the form of their inputs. The weights determine these settings."""

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
    window: tuple[int, int] | None = None
    """Height and width of the classifier's window; None means the published size of each angle."""
    move: tuple[int, int] = (100, 100)
    """Largest shift of a window by augmentation, in rows and columns."""
    resize: int = 100
    """Largest shift of each edge of a window by augmentation, in pixels."""
    shrink: int = 1
    """Factor by which a window is reduced along each axis before the classifier reads it; 1 as published. A
    larger factor lets whole views fit on a small machine."""
    crop_iterations: int = 100
    """Erosions that separate the breast from letters in the view; fewer for small images."""
    crop_buffer: int = 50
    """Pixels that are kept around the breast."""
    widths: tuple[int, ...] = FOUR_VIEW_WIDTHS
    """Channels of the five stages of the classifier's trunk."""
    pool: Pooling | None = None
    """How the trunk's feature map of a view is pooled: by its `mean`, as published, or by its `max`, which is
    more sensitive to a small lesion in a large breast. None means that of `training.weights`, or else the
    mean."""
    patch: int = PATCH
    """Side of a patch in pixels."""
    patch_stride: int = STRIDE
    """Pixels between neighbouring patches of a heatmap."""
    patch_growth: int = 32
    """Channels that each layer of the patch network (a DenseNet) adds."""
    patch_blocks: tuple[int, int, int, int] = (6, 12, 24, 16)
    """Layers in each of the four blocks of the patch network."""
    patch_first_width: int = 64
    """Channels of the patch network's first layer."""
    heatmap_cell: int = 16
    """Side in pixels of a cell of the heatmap stored with the results. The classifier reads the heatmap at
    full resolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1, "shrink")

    @property
    def joins_views(self) -> bool:
        """Whether the variant reads all views of an exam together."""
        return self.variant != "image_wise"

    @property
    def patch_net_of(self) -> tuple[int, ...]:
        """Index of the patch network of each member, then of each classifier in `alone`."""
        return self.patch_of or (0,) * (self.members + self.alone)

    @property
    def patch_nets(self) -> int:
        """Number of patch networks in the bundle."""
        return 1 + max(self.patch_of, default=0) if self.heatmaps else 0

    @property
    def channels(self) -> int:
        return 3 if self.heatmaps else 1


@dataclass(frozen=True)
class Reading(Settings):
    """How exams are read and scored. A scan can change these settings."""

    painting: Painting = "exact"
    """How heatmaps are computed: `exact` patch by patch as published, `fast` from one run over a whole
    view."""
    epochs: int = 10
    """Number of windows of each view whose scores are averaged. Without augmentation all windows are equal,
    so only one is computed."""
    augmentation: bool = True
    """Move and resize windows at random; the scores of several epochs are averaged."""
    seed: int = 0
    """Seed of the random windows and patches of a scan."""
    compat: Compat = "own"
    """`nyu` uses one random stream for all exams of a cohort, as published, so a score depends on the exams
    before it. `own` starts a new stream for every exam. The first exam of a cohort is the same in both."""
    quirks: Quirks = "reference"
    """`reference` keeps the errors of the published code. `fixed` repairs the off-by-one landmarks and
    centres, and the missing mirroring of single right views."""
    pixels: Pixels = "nyu-raw"
    """Which pixel values of a DICOM file are read."""
    heatmap_files: str = ""
    """Folder of heatmaps in the published layout, as `lobule heatmaps` writes them. They are read instead of
    computed."""
    finding_threshold: float = 0.5
    """Regions of a heatmap above this score become findings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1, "epochs")

    @property
    def windows(self) -> int:
        """Number of windows of each view that are computed."""
        return self.epochs if self.augmentation else 1


@dataclass(frozen=True)
class Training(Settings):
    """How the networks are trained. Rates, steps and batch sizes are not published; these are ours."""

    weights: str = ""
    """A four-view bundle whose weights training starts from. Settings of `architecture` are read from the
    bundle."""
    patch_weights: str = ""
    """A bundle whose patch network is used without further training, or DenseNet weights from which the patch
    network is trained: a file, or "imagenet" for those of torchvision, which the paper starts from. By
    default it starts from random weights, because a smaller network has no published ones."""
    patch_steps: int = 50_000
    """Training steps of the patch network."""
    patch_batch: int = 32
    """Patches per step."""
    patch_rate: float = 1e-4
    """Learning rate of the patch network."""
    patch_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    """Shares of the sampled patches: malignant, benign, outside the outlines of a view that has outlines, and
    from breasts without a finding."""
    patch_rotation: float = 0.0
    """Largest rotation of a training patch in degrees, besides quarter turns and flips; 0 leaves it out."""
    patch_resize: float = 0.0
    """Largest change of the size of a training patch, such as 0.2 for 1/1.2 to 1.2; 0 leaves it out."""
    val_patches: int = 2000
    birads: str = "birads"
    """Column with the BI-RADS categories that are learned first. `left_birads` and `right_birads` are
    preferred where the cohort has them."""
    birads_classes: Literal["cohort", "published"] = "cohort"
    """"published": the three classes of the paper, 0 incomplete, 1 negative and 2 benign, from values such as
    "2" or "BI-RADS 2"; exams with other categories are left out. "cohort": every category of the cohort."""
    birads_steps: int = 50_000
    """Steps of the first training, on BI-RADS labels; 0 leaves it out."""
    birads_rate: float = 1e-5
    """Learning rate of the training on BI-RADS labels."""
    steps: int = 50_000
    """Training steps of the classifier."""
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
    select_by: Literal["malignant", "mean of four"] = "malignant"
    """Area under the ROC curve that chooses the weights: that of malignancy over all breasts, or the mean of
    the four areas of left and right breast, benign and malignant, as in the paper."""
    positive_weight: float = 1.0
    """Weight of a positive breast in the loss, relative to a negative one."""
    optimiser: Optimiser = "adam"
    """"adam" or "sgd"."""
    schedule: Schedule = "plateau"
    """"plateau", "step", "cosine" or "constant"."""
    weight_decay: float = 3e-5
    """Weight decay of all trainings."""
    accumulate: int = 1
    """Number of batches whose gradients are accumulated for one step."""
    evaluate_every: int = 1000
    """Steps between two evaluations of the validation exams, and between checkpoints."""
    patience: int = 5
    """Number of evaluations without a better score before the learning rate is divided by ten."""
    stop_after: int = 15
    """Number of evaluations without a better score before the training ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1, "batch")
        self.require(2, "patch_batch")
        if len(self.patch_shares) != len(PATCH_CLASSES):
            raise ConfigError("patch_shares has the wrong length", expected=", ".join(PATCH_CLASSES))


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the classifier, its scans and its training."""

    architecture: Architecture = Architecture()
    reading: Reading = Reading()
    training: Training = Training()

    def __post_init__(self) -> None:
        super().__post_init__()
        window, resize = self.architecture.window, self.architecture.resize
        if window and self.reading.augmentation and 2 * resize >= min(window):
            raise ConfigError(
                "augmentation can shrink a window to nothing",
                expected=f"architecture.resize below {min(window) // 2} for a window of {window}",
                actual=f"architecture.resize={resize}",
            )

    @property
    def variation(self) -> Augmentation:
        from lobule.mammograms.published.windows import NO_AUGMENTATION, Augmentation

        architecture = self.architecture
        augmented = self.reading.augmentation
        return Augmentation(architecture.move, architecture.resize) if augmented else NO_AUGMENTATION

    @property
    def view_options(self) -> ViewOptions:
        from lobule.mammograms.exam_views import ViewOptions

        reading, architecture = self.reading, self.architecture
        crop = (architecture.crop_iterations, architecture.crop_buffer)
        return ViewOptions(reading.quirks, reading.pixels, *crop, architecture.window)

    def input_size(self, view: str) -> tuple[int, int]:
        """Height and width of the classifier's input."""
        height, width = self.view_options.size(view)
        return height // self.architecture.shrink, width // self.architecture.shrink

    def set(self, settings: Mapping[str, Any]) -> Config:
        """Return the config changed by the settings of a scan, which are all of `reading`.

        Raises:
            ConfigError: if `painting` or `heatmaps` is set for a classifier that reads no heatmaps.
        """
        for name in ("reading.painting", "reading.heatmap_files"):
            if name in settings and not self.architecture.heatmaps:
                raise ConfigError(
                    f"{name} does not fit a classifier that reads no heatmaps",
                    remedy="Leave it out, or use a bundle with a patch network",
                )
        changes = {name.removeprefix("reading."): value for name, value in settings.items()}
        return replace(self, reading=replace(self.reading, **changes))


SCAN_SETTINGS: dict[str, Any] = {f"reading.{name}": kind for name, kind in get_type_hints(Reading).items()}
"""Settings that a scan can change, with their types."""
