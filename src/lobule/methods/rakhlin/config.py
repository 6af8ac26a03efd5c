"""The settings of the method. The defaults are those of the paper; each of its ambiguities is a setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lobule.cohort import Kind
from lobule.encoders import ENCODERS
from lobule.errors import ConfigError
from lobule.methods.rakhlin.boosting import BoostingConfig
from lobule.settings import Settings

Recipe = Literal["full", "quick"]
Stains = Literal["published", "corrected", "none"]
Calibration = Literal["none", "platt", "isotonic"]
Groups = Literal["patient", "site"]

KINDS: tuple[Kind, ...] = ("image", "region", "slide")
"""The kinds of cases that the method learns from and scans."""

BACH = ("normal", "benign", "in situ", "invasive")
"""The classes of the paper, in its order."""

QUICK: Mapping[str, int] = {"augmentations": 4, "crops": 5}
QUICK_BOOSTING: Mapping[str, int] = {"folds": 5, "seeds": 1}
"""Reduced numbers of the quick recipe: 20 crops per image and set instead of 1,000."""


@dataclass(frozen=True)
class DescriptorSet:
    """One set of descriptors: an encoder that sees crops of one size."""

    name: str
    """Name of its column, its models and its scores."""
    encoder: int
    """Its index in `Config.encoders`."""
    size: int
    """Side of its crops in pixels."""
    full: bool
    """Whether its crops are cut at twice the scale. The paper's text counts such crops, its code does not."""

    @property
    def scale_index(self) -> int:
        """Index of the scale of its image in `Config.scales`."""
        return int(self.full)


@dataclass(frozen=True)
class Config(Settings):
    """All settings that determine a model."""

    recipe: Recipe = "full"
    """"quick" uses 4 augmentations, 5 crops, 5 folds and 1 seed where these settings have their defaults."""
    classes: tuple[str, ...] = ()
    """If empty, the cohort's labels: the four of BACH in the order of the paper, others sorted. The first
    class is the normal one: on a slide it gives no findings."""
    carcinoma: tuple[str, ...] = ("in situ", "invasive")
    """Classes that count as carcinoma in the two-class result, if the model has all of them and others."""
    operating_points: tuple[float, ...] = (0.33, 0.5)
    """Thresholds on the carcinoma probability used in the report; the defaults are the two published ones."""

    # images
    mpp: float = 0.42
    """µm/px at which images are read, before `scale`; 0 reads them unscaled, whatever their µm/px."""
    scale: float = 0.5
    """Factor by which images are resized, as with OpenCV's INTER_CUBIC; the paper halves them."""
    stains: Stains = "published"
    """Macenko normalisation. "published" gives the bytes of the published code, which truncates values and
    does not subtract the 1 that it adds; "corrected" rounds and subtracts it; "none" does not normalise."""
    augmentations: int = 50
    stain_range: tuple[float, float] = (0.7, 1.3)
    """Hematoxylin and eosin are multiplied by random numbers from this range; 1,1 switches this off."""
    crops: int = 20
    """Number of crops of each augmentation."""
    sizes: tuple[int, ...] = (400, 650)
    """Sides of the crops, in pixels after `scale`."""
    full_scale: bool = False
    """Also use crops twice as large at twice the scale. These are the 12 sets and 600 models that the paper's
    text counts; its code and its results have the 6 sets and 300 models at half scale."""

    # encoders
    encoders: tuple[str, ...] = ("resnet50", "inception_v3", "vgg16")
    """Encoders of `lobule weights list`, nets of torchvision, `timm:NAME` or `tiny`; `NAME@layer+layer` names
    the layers that are pooled."""
    weights: tuple[str, ...] = ("imagenet",)
    """One per encoder, or one for all: "imagenet" (fetched), "random", or a file (safetensors or torch)."""
    inputs: tuple[str, ...] = ()
    """One per encoder: "torchvision", "caffe" (BGR minus its means), "tf" (-1 to 1) or "encoder" (as the
    table of encoders says). If empty, "encoder" for names of the table, "tf" for inception_v3; for others
    "torchvision", or "caffe" with `keras`."""
    keras: bool = False
    """Build networks as Keras did in 2018, for weights converted from it: resnet50 has other strides, another
    first pool and a 7 × 7 average pool before the global one; inception_v3 pads average pools differently."""
    p_norm: int = 3
    """Descriptors of the crops of an augmentation are pooled by this norm."""

    # models
    boosting: BoostingConfig = field(default_factory=BoostingConfig)
    folds_by: Groups = "patient"
    """The group that is never divided between folds: a patient, or a site with all its patients."""
    folds_file: str = ""
    """Use the folds of a file instead of new ones: `folds.csv` of an earlier training, any table with the
    columns `case` and `fold`, or the authors' `folds-10.pkl`, in which nothing is executed."""
    calibration: Calibration = "none"
    """Calibration of fused probabilities, each class against the rest, fitted on out-of-fold predictions."""
    attributions: int = 1
    """Augmentations per image with predictions attributed to encoder, layer and crop size; 0 for none."""
    features: str = ""
    """Folder of the feature cache; if empty, `features` in the bundle folder."""

    # scanning
    scan_augmentations: int = 0
    """Augmentations of a plain image when it is scanned; 0 is as many as in training."""
    window: int = 1536
    """Side in pixels, at `mpp`, of the square that is classified for one map cell of a slide."""
    stride: int = 768
    """Pixels between map cells."""
    map_augmentations: int = 1
    """Augmentations of each window of a slide."""
    tissue_share: float = 0.1
    """Cells with a smaller share of tissue are not scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1, "augmentations", "crops", "p_norm", "window", "stride", "map_augmentations")
        self.require(0, "scan_augmentations", "attributions")
        if not 0 <= self.tissue_share <= 1:
            raise ConfigError(f"tissue_share must be from 0 to 1, not {self.tissue_share}")
        if self.scale <= 0 or self.mpp < 0 or not self.sizes or min(self.sizes) < 1 or not self.encoders:
            raise ConfigError("scale, sizes and encoders must be positive and mpp not negative")
        for name in ("weights", "inputs"):
            if len(getattr(self, name)) not in (0, 1, len(self.encoders)):
                raise ConfigError(
                    f"{name} for {len(self.encoders)} encoders",
                    expected=f"one, or {len(self.encoders)}",
                    actual=f"{len(getattr(self, name))}",
                )
        if len({set_.name for set_ in self.sets}) < len(self.sets):
            raise ConfigError("two encoders, or two sizes, are the same", actual=", ".join(self.encoders))

    def resolved(self) -> Config:
        """The config with the numbers of its recipe filled in."""
        if self.recipe == "full":
            return self
        plain, plain_boosting = Config(), BoostingConfig()
        quick = {name: n for name, n in QUICK.items() if getattr(self, name) == getattr(plain, name)}
        fewer = {
            name: n
            for name, n in QUICK_BOOSTING.items()
            if getattr(self.boosting, name) == getattr(plain_boosting, name)
        }
        return replace(self, **quick, boosting=replace(self.boosting, **fewer))  # type: ignore[arg-type]

    def with_classes(self, labels: Sequence[str]) -> Config:
        """Return the config with the classes of a cohort, and refuse labels of other classes."""
        classes = self.classes or (BACH if set(labels) == set(BACH) else tuple(labels))
        if strange := sorted(set(labels) - set(classes)):
            raise ConfigError(
                f"the label '{strange[0]}' is not one of the classes", expected=", ".join(classes)
            )
        if len(classes) < 2:
            raise ConfigError(
                "there are fewer than two classes", expected="two classes or more", actual=", ".join(labels)
            )
        return replace(self, classes=classes)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales at which an image is prepared."""
        return (self.scale, 2 * self.scale) if self.full_scale else (self.scale,)

    @property
    def sets(self) -> tuple[DescriptorSet, ...]:
        """The sets of descriptors, encoder by encoder, the smallest crops first."""
        return tuple(
            DescriptorSet(
                f"{plain_name(encoder)}-{size * (1 + full)}{'-full' * full}", index, size * (1 + full), full
            )
            for index, encoder in enumerate(self.encoders)
            for full in ((False, True) if self.full_scale else (False,))
            for size in sorted(self.sizes)
        )

    def weights_of(self, encoder: int) -> str:
        return (self.weights or ("imagenet",))[encoder if len(self.weights) > 1 else 0]

    def input_of(self, encoder: int) -> str:
        if self.inputs:
            return self.inputs[encoder if len(self.inputs) > 1 else 0]
        name = self.encoders[encoder].partition("@")[0]
        if name in ENCODERS:
            return "encoder"
        if name == "inception_v3":
            return "tf"
        return "caffe" if self.keras else "torchvision"


def plain_name(encoder: str) -> str:
    """The name of an encoder in a form that is valid in file and column names."""
    return re.sub(r"[^A-Za-z0-9]+", "_", encoder).strip("_")
