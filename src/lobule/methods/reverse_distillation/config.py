"""The settings of reverse distillation; the defaults are those of FW-RD on Camelyon16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lobule.augment import AugmentConfig
from lobule.errors import ConfigError
from lobule.settings import as_json, only_known

Loss = Literal["focal", "plain"]
Form = Literal["exact", "shared"]
Threshold = Literal["calibrated", "paper"]

PUBLISHED: dict[str, tuple[float, int, int]] = {"focal": (1e-6, 32, 10), "plain": (0.005, 16, 200)}
"""Rate, batch and epochs of FW-RD and of RD4AD: a shared default would ruin one of them."""

STAIN_AUGMENTATION = AugmentConfig(
    flips=True, quarter_turns=True, scale=0.1, hematoxylin=0.25, eosin=0.25, brightness=0.1, saturation=0.15,
    hue=0.02, contrast=0.2,
)  # fmt: skip
"""Turns, and changes of stain and colour that are mild enough to keep a patch looking like tissue. Without
them, a student of a few hundred patches learns the stain of the slides that they come from."""

SCAN_SETTINGS = ("form", "mosaics", "threshold")
"""What a scan may ask otherwise than the bundle has it."""

RANDOM = "random"
"""Stands for a file of the teacher's weights: fresh ones, from the seed."""


@dataclass(frozen=True)
class Config:
    """What decides a model of reverse distillation and how its map is read."""

    teacher: str = "wide_resnet50_2"
    """A name of `nets.teachers.TEACHERS`, or timm:NAME."""
    weights: str = ""
    """A file of the teacher's weights; without one, what torchvision or timm publish; or `random`."""
    shortcut: int = 3
    """Kernel of the bottleneck's first shortcut: 3 in FW-RD, 1 in RD4AD."""
    classes: tuple[str, ...] = ("normal", "tumour")
    mpp: float = 0.25
    """µm/px of the patches: Camelyon16's level 0 is 0.243."""
    patch: int = 256
    """Pixels a side of a patch, at `mpp`."""
    input: int = 256
    """Pixels a side that the teacher sees; patches of another size are resized."""

    # how slides are scanned
    stride: int = 64
    """Pixels a map cell, where a scan asks for no other."""
    form: Form = "exact"
    """exact: every patch by itself; shared: patches side by side, and windows over their maps."""
    mosaics: int = 2
    """Layings of patches that the shared form takes the mean of: each costs the same and brings it nearer."""
    score: Literal["mean", "max"] = "mean"
    """Of the patch's smoothed map: the mean (FW-RD), or the highest (RD4AD; the exact form only)."""
    threshold: Threshold = "calibrated"
    """calibrated: probabilities, and a slide score tuned on validation slides; paper: 2.01 on raw scores."""
    min_cells: int = 1
    """Findings of fewer cells are dropped."""

    # the label budget
    slides: int = 10
    """Outlined tumour slides that are drawn from."""
    tumour_patches: int = 1001
    normal_patches: int = 5000
    normal_slides: int = 0
    """Slides without tumour that give normal patches in turn with the outlined ones: normal tissue of more
    stains for no further outline. Published: 0, and then such slides only replace what is missing."""
    apart: float = 0.5
    """Two patches of a class are at least this share of a patch apart in x or y."""

    # how it is trained; 0 is what was published with the loss
    loss: Loss = "focal"
    safe: bool = True
    """Clamp the focal loss, so that a similarity of exactly 0 or 1 is no NaN; false is the published form."""
    rate: float = 0.0
    """1e-6 with the focal loss, 0.005 with the plain one."""
    batch: int = 0
    """32 and 16."""
    augmentation: bool = True
    """Augment training patches by the strengths of `augment`. False is published: no augmentation."""
    augment: AugmentConfig = STAIN_AUGMENTATION
    """Strengths of the augmentation, of which those of the stains are the point."""
    standardise_teacher: bool = False
    """Standardise each channel of the teacher's maps by its mean and standard deviation over normal training
    patches, so that a few strong channels do not decide the cosines. False is published."""
    epochs: int = 0
    """10 and 200."""
    val_patches: int = 1000
    """Patches of validation slides that tell which epoch was best, and calibrate patch scores."""
    val_slides: int = 40
    """Validation slides that are scanned to calibrate the slide score; 0 leaves it uncalibrated."""

    def __post_init__(self) -> None:
        for name, kind in (("loss", Loss), ("form", Form), ("threshold", Threshold)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"no {name} '{getattr(self, name)}'", expected=f"one of {', '.join(get_args(kind))}"
                )
        if self.score not in ("mean", "max"):
            raise ConfigError(f"no score '{self.score}'", expected="mean or max")
        if self.shortcut not in (1, 3):
            raise ConfigError(f"no shortcut of kernel {self.shortcut}", expected="3 (FW-RD) or 1 (RD4AD)")
        if len(self.classes) != 2:
            raise ConfigError("outlines tell two classes", actual=", ".join(self.classes))
        for name in ("patch", "input", "stride", "mosaics", "slides", "normal_patches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("augmentation", "standardise_teacher"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, not {getattr(self, name)!r}")
        not_negative = ("tumour_patches", "normal_slides", "rate", "batch", "epochs", "apart")
        for name in (*not_negative, "val_patches", "val_slides"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")

    def of_loss(self, loss: Loss) -> Config:
        """With a loss, and with what was published with it where nothing was asked for."""
        rate, batch, epochs = PUBLISHED[loss]
        return replace(
            self,
            loss=loss,
            rate=self.rate or rate,
            batch=self.batch or batch,
            epochs=self.epochs or epochs,
            tumour_patches=self.tumour_patches if loss == "focal" else 0,
        )

    def to_dict(self) -> dict[str, Any]:
        return as_json(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Config:
        values = only_known(cls, facts, "reverse_distillation")
        if isinstance(given := values.get("augment"), Mapping):
            values["augment"] = STAIN_AUGMENTATION.with_strengths(given)
        return cls(**values)
