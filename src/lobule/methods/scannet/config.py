"""The settings of ScanNet. The defaults are those of the paper if it states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lobule.augment import AugmentConfig
from lobule.color import Normalisation
from lobule.errors import ConfigError
from lobule.settings import Settings
from lobule.training.fit_options import Schedule

FindingsBy = Literal["components", "nms"]
SlideScore = Literal["max", "forest"]

NET_STRIDES: Mapping[str, int] = {"squeezenet1_1": 16}
"""Pixels per output cell of trunks whose stride is not `NET_STRIDE`."""
NET_STRIDE = 32


@dataclass(frozen=True)
class Config(Settings):
    """Settings of a ScanNet model, its training and its scans."""

    trunk: str = "scannet_vgg16"
    """A name in `nets.backbones.BACKBONES`."""
    classes: tuple[str, ...] = ("normal", "tumour")
    """The first class is the background; each other class becomes a map."""
    mpp: float = 0.25
    """µm/px of the training patches; level 0 of Camelyon16 has 0.243."""
    upsample: bool = False
    """Enlarge training slides that are coarser than `mpp`. Scans have their own option for this."""
    stains: Normalisation = "none"
    """"macenko" maps the stains of every slide to those of a reference, in training and in scans."""
    stride: int = 32
    """Pixels per map cell, unless a scan sets another stride."""
    refine_stride: int = 8
    """Finest stride of `--refine`."""
    refine_above: float = 0.1
    """Coarse cells with at least this score, and their neighbours, are refined. With a calibration of the
    cells, it moves with the threshold: its odds stay as many times lower than those of `threshold` here."""
    threshold: float = 0.5
    """Cells with a higher score are findings."""
    cells: int = 83
    """Preferred number of cells along a side of a field (L_p in the paper); fewer on a CPU."""
    findings: FindingsBy = "components"
    """"components": connected cells with outline and size; "nms": maxima, as in NCRF's code."""
    opening: int = 0
    """For components: morphological opening with a square of 2 · opening + 1 cells before they are
    searched."""
    min_cells: int = 1
    """For components: those with fewer cells are dropped."""
    nms_radius: int = 768
    """For maxima: a maximum suppresses others within this distance in level-0 pixels."""
    slide_score: SlideScore = "max"
    """"max": the highest cell; "forest": a random forest on 31 features of the map."""
    mean_cells: int = 1
    """For "max": each cell is first replaced by the mean of a square with this side; 3 is common, 1 is
    off."""
    trees: int = 300
    """Number of trees of the forest."""

    # training; the paper states SGD and its momentum, and leaves most other settings open
    weights: str = "imagenet"
    """Weights that the trunk starts from: "imagenet" (published by torchvision, downloaded once), "random",
    or a file (safetensors or torch). The paper starts from ImageNet's VGG-16."""
    steps: int = 100_000
    batch: int = 64
    rate: float = 1e-3
    """Learning rate of randomly initialised weights: the head, or the whole net with `weights=random`."""
    trunk_rate: float = 1e-4
    """Learning rate of a pretrained trunk."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 0.0
    """Maximum norm of a step's gradient; 0 means no limit. Pretrained nets without batch norm may need a
    limit."""
    accumulate: int = 1
    """Number of batches whose gradients are accumulated for one step."""
    schedule: Schedule = "plateau"
    """"plateau", "step", "cosine" or "constant"."""
    evaluate_every: int = 1000
    """Steps between evaluations on the validation patches, and between checkpoints."""
    patience: int = 5
    """Number of evaluations without a better score before the learning rate is divided by ten."""
    stop_after: int = 12
    """Number of evaluations without a better score before a round ends."""
    val_patches: int = 2000
    rounds: int = 2
    """Maximum number of rounds of hard-negative mining after the first training."""
    round_steps: int = 25_000
    hard_share: float = 0.5
    """Share of the normal patches that are hard negatives."""
    hard_cap: int = 1000
    """Maximum number of hard negatives per slide; those with the highest scores are used."""
    hard_merge: int = 64
    """Minimum distance of hard negatives in pixels."""
    hard_margin: int = 122
    """Minimum distance of hard negatives from tumour outlines in pixels; by default half a window of the
    paper's net, so that the window's centre and its surroundings are clear of the outline."""
    record_batches: bool = False
    """Write slide, class and centre of every patch of every batch to `batches.csv` in each round's folder."""
    by_site: bool = False
    """Sample the site first, then one of its slides."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1, "trees", "nms_radius", "mean_cells")
        self.require(0, "opening", "rounds", "hard_margin")

    def resolved(self) -> Config:
        """Return these settings if a net can be trained with them.

        Raises:
            ConfigError: The trunk does not exist, or a batch or the classes are too few.
        """
        from lobule.nets.backbones import BACKBONES

        if self.trunk not in BACKBONES:
            raise ConfigError(f"unknown trunk '{self.trunk}'", expected=", ".join(BACKBONES))
        if len(self.classes) != 2:
            raise ConfigError(
                "outlines distinguish exactly two classes",
                expected="two classes",
                actual=", ".join(self.classes),
            )
        if self.starts_from == "imagenet" and self.trunk == "tiny":
            raise ConfigError(
                "the trunk 'tiny' has no ImageNet weights",
                remedy="Start from random weights: --set weights=random",
            )
        self.require(2, "batch")
        return self

    @property
    def starts_from(self) -> str:
        """The weights of the trunk; an empty text, as in bundles of earlier versions, means random ones."""
        return self.weights or "random"


def check_scan(config: Config, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a scan cannot have these settings or options."""
    config = replace(config, **settings)
    default = config.refine_stride if options.get("refine") else config.stride
    require_stride(NET_STRIDES.get(config.trunk, NET_STRIDE), options.get("stride") or default)


def require_stride(net_stride: int, stride: int) -> None:
    """Raise `ConfigError` unless the stride of a map is the net's stride divided by a power of two."""
    if stride > net_stride or net_stride % stride or (net_stride // stride) & (net_stride // stride - 1):
        choices = [net_stride >> k for k in range(net_stride.bit_length()) if net_stride % (1 << k) == 0]
        raise ConfigError(
            f"this net does not support stride {stride}",
            expected=f"one of {', '.join(map(str, choices))}",
            remedy="Choose another --stride",
        )
