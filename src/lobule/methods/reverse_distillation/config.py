"""The settings of reverse distillation; the defaults are those of FW-RD on Camelyon16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lobule.augment import AugmentConfig
from lobule.color import Normalisation
from lobule.errors import ConfigError
from lobule.settings import Settings

Loss = Literal["focal", "plain"]
Form = Literal["exact", "shared"]
Threshold = Literal["calibrated", "paper"]

PUBLISHED: dict[str, tuple[float, int, int]] = {"focal": (1e-6, 32, 10), "plain": (0.005, 16, 200)}
"""Learning rate, batch size and epochs of FW-RD and of RD4AD, which need very different values."""

STAIN_AUGMENTATION = AugmentConfig(
    flips=True, quarter_turns=True, scale=0.1, hematoxylin=0.25, eosin=0.25, brightness=0.1, saturation=0.15,
    hue=0.02, contrast=0.2,
)  # fmt: skip
"""Rotations, flips and mild changes of stain and colour, after which a patch still looks like tissue. Without
them, a student that sees only a few hundred patches learns the stain of their slides."""

RANDOM = "random"
"""Used instead of a weights file: the teacher is initialised at random from the seed."""


@dataclass(frozen=True)
class Config(Settings):
    """Settings of a reverse distillation model, its training and its scans."""

    teacher: str = "wide_resnet50_2"
    """A name in `nets.teachers.TEACHERS`, an encoder of `lobule weights list`, or timm:NAME."""
    weights: str = ""
    """File with the teacher's weights, or `random`. By default the weights published by torchvision or
    timm."""
    shortcut: Literal[1, 3] = 3
    """Kernel size of the bottleneck's first shortcut: 3 in FW-RD, 1 in RD4AD."""
    classes: tuple[str, ...] = ("normal", "tumour")
    mpp: float = 0.25
    """µm/px of the patches; level 0 of Camelyon16 has 0.243."""
    stains: Normalisation = "none"
    """"macenko" maps the stains of every slide to those of a reference, in training and in scans."""
    patch: int = 256
    """Side of a patch in pixels, at `mpp`."""
    input: int = 256
    """Side of the teacher's input in pixels; patches of another size are resized."""

    # how slides are scanned
    stride: int = 64
    """Pixels per map cell, unless a scan sets another stride."""
    form: Form = "exact"
    """exact: every overlapping patch is computed; shared: adjacent patches are computed and windows averaged
    over their maps."""
    mosaics: int = 2
    """Number of shifted patch grids that the shared form averages. More of them cost more time and bring the
    scores closer to the exact form."""
    score: Literal["mean", "max"] = "mean"
    """Patch score: the mean (FW-RD) or the maximum (RD4AD, exact form only) of the patch's smoothed map."""
    threshold: Threshold = "calibrated"
    """calibrated: probabilities, and a slide score tuned on validation slides; paper: raw scores and the
    threshold 2.01."""
    min_cells: int = 1
    """Findings with fewer cells are dropped."""

    # the label budget
    coords: tuple[str, ...] = ()
    """Files that list the training patches, which are then not chosen at random: the authors' lists of normal
    and of tumour patches, in this order, or one `places.csv` of a bundle. Same as the option --coords."""
    slides: int = 10
    """Number of outlined tumour slides to use."""
    tumour_patches: int = 1001
    normal_patches: int = 5000
    normal_slides: int = 0
    """Number of slides without tumour that provide normal patches in turn with the outlined slides: more
    stains without more outlines. The published value is 0; such slides are then only used for missing normal
    patches."""
    apart: float = 0.5
    """Minimum distance in x or y of two patches of a class, as a share of the patch side."""

    # training; 0 selects the value that was published with the loss
    loss: Loss = "focal"
    safe: bool = True
    """Clamp the focal loss, so that a similarity of exactly 0 or 1 does not give NaN. False is the published
    form."""
    rate: float = 0.0
    """Learning rate. Published: 1e-6 with the focal loss, 0.005 with the plain loss."""
    batch: int = 0
    """Batch size. Published: 32 with the focal loss, 16 with the plain loss."""
    augmentation: bool = True
    """Augment training patches with the strengths in `augment`. The published training has no
    augmentation."""
    augment: AugmentConfig = STAIN_AUGMENTATION
    """Strengths of the augmentation; those of the stains matter most."""
    standardise_teacher: bool = False
    """Standardise each channel of the teacher's maps by its mean and standard deviation over normal training
    patches, so that a few strong channels do not dominate the cosines. False is the published form."""
    epochs: int = 0
    """Epochs. Published: 10 with the focal loss, 200 with the plain loss."""
    val_patches: int = 1000
    """Number of validation patches, used to select the best epoch and to calibrate patch scores."""
    val_slides: int = 40
    """Number of validation slides that are scanned to calibrate the slide score; 0 leaves it uncalibrated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) != 2:
            raise ConfigError("outlines distinguish exactly two classes", actual=", ".join(self.classes))
        self.require(1, "patch", "input", "stride", "mosaics", "slides", "normal_patches")
        not_negative = ("tumour_patches", "normal_slides", "rate", "batch", "epochs", "apart")
        self.require(0, *not_negative, "val_patches", "val_slides")

    def of_loss(self, loss: Loss) -> Config:
        """These settings with a loss, and its published values for settings that are 0."""
        rate, batch, epochs = PUBLISHED[loss]
        return replace(
            self,
            loss=loss,
            rate=self.rate or rate,
            batch=self.batch or batch,
            epochs=self.epochs or epochs,
            tumour_patches=self.tumour_patches if loss == "focal" else 0,
        )
