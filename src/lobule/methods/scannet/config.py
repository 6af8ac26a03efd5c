"""The settings of ScanNet; the defaults are the paper's where it states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lobule.augment import AugmentConfig
from lobule.errors import ConfigError
from lobule.settings import as_json, only_known
from lobule.training.fitting import Schedule

FindingsBy = Literal["components", "nms"]
SlideScore = Literal["max", "forest"]


@dataclass(frozen=True)
class Config:
    """What decides a ScanNet model and how its map is read."""

    trunk: str = "scannet_vgg16"
    """A net of `nets.backbones.BACKBONES`."""
    classes: tuple[str, ...] = ("normal", "tumour")
    """The first is what is not sought; the others become maps."""
    mpp: float = 0.25
    """µm/px of the training patches: Camelyon16's level 0 is 0.243."""
    upsample: bool = False
    """Enlarge training slides that are coarser than `mpp`; a scan of such slides asks for it by itself."""
    stride: int = 32
    """Lattice pixels a map cell, where a scan asks for no other."""
    refine_stride: int = 8
    """The stride that `--refine` goes down to."""
    refine_above: float = 0.1
    """Coarse cells with a score at least this high, and their neighbours, are densified."""
    threshold: float = 0.5
    """Cells above it are findings."""
    cells: int = 83
    """Cells a side of a field, L_p of the paper, where memory allows."""
    findings: FindingsBy = "components"
    """"components": connected cells with outline and size; "nms": the maxima, as NCRF's code has them."""
    opening: int = 0
    """Components: what a square of 2 · opening + 1 cells does not fit into is cleared first."""
    min_cells: int = 1
    """Components of fewer cells are dropped."""
    nms_radius: int = 768
    """Maxima: level-0 pixels to each side within which only the highest counts."""
    slide_score: SlideScore = "max"
    """"max": the highest cell; "forest": a random forest over 31 features of the map, learned last."""
    trees: int = 300
    """Of the forest."""

    # how it is trained; the paper gives SGD and its momentum, and leaves most of the rest open
    weights: str = ""
    """A file of pretrained trunk weights, safetensors or plain torch; without one the net starts fresh."""
    steps: int = 100_000
    batch: int = 64
    rate: float = 1e-3
    """Learning rate of what starts from fresh weights: the head, or the whole net."""
    trunk_rate: float = 1e-4
    """Learning rate of a pretrained trunk."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 0.0
    """The largest norm of a step's gradient; 0 is any. Pretrained nets without batch norms may need one."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    schedule: Schedule = "plateau"
    """"plateau", "step", "cosine" or "constant"."""
    evaluate_every: int = 1000
    """Steps between two looks at the validation patches, and between checkpoints."""
    patience: int = 5
    """Looks without a better score before the rate falls to a tenth."""
    stop_after: int = 12
    """Looks without a better score before a round ends."""
    val_patches: int = 2000
    rounds: int = 2
    """Rounds of hard-negative mining at most, after the first training."""
    round_steps: int = 25_000
    hard_share: float = 0.5
    """Of the normal patches, those from places that fooled the model."""
    hard_cap: int = 1000
    """Hard places kept of a slide, the worst first."""
    hard_merge: int = 64
    """Pixels within which hard places are one."""
    by_site: bool = False
    """Draw the site first, then a slide of it."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name, kinds in (("findings", FindingsBy), ("slide_score", SlideScore)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ConfigError(f"no {name} '{getattr(self, name)}' in scannet", expected=known)
        if self.trees < 1 or self.opening < 0 or self.nms_radius < 1:
            raise ConfigError("trees and nms_radius are at least 1, opening at least 0")

    def to_dict(self) -> dict[str, Any]:
        return as_json(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Config:
        values = only_known(cls, facts, "scannet")
        if isinstance(given := values.get("augment"), Mapping):
            values["augment"] = AugmentConfig().with_strengths(given)
        return cls(**values)
