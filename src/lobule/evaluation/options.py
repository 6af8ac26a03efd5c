"""The options of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from lobule.errors import ConfigError
from lobule.measures.estimate import Resampling

T = TypeVar("T")

SAME_LABEL, ANY_SLIDE = "same", "any"
"""Values of `patient_label` that are not the name of a column."""


def as_tuple(name: str, values: Sequence[T]) -> tuple[T, ...]:
    """Convert the value of an option that is a list. A text, whose letters would be items, is an error."""
    if isinstance(values, str):
        raise ConfigError(f"{name} must be a list", actual=repr(values), remedy=f"Pass {name}=[{values!r}]")
    return tuple(values)


@dataclass(frozen=True)
class Options:
    """Options of `evaluate`; the defaults give the official measures with intervals."""

    by: tuple[str, ...] = ()
    """Columns of the cohort by which every measure is broken down."""
    split: str | None = None
    """Only the cases of this split."""
    positive: tuple[str, ...] = ()
    """Labels that count as positive; by default the rules of `plan_targets` decide."""
    score: str | None = None
    """The score to evaluate, if the results have several."""
    thresholds: tuple[float, ...] = ()
    """Thresholds of operating points that were fixed beforehand."""
    findings: Literal["stored", "nms"] = "stored"
    """Where detections come from: the stored findings, or NCRF's non-maximum suppression of the map."""
    nms_map: str | None = None
    nms_radius: int | None = None
    nms_threshold: float = 0.5
    masks: str | None = None
    """A folder of ground-truth masks, named as the organisers of Camelyon16 name them."""
    mask_step: float | None = None
    """Level-0 pixels per mask pixel, for slides whose size is not known."""
    lesion_scale: Literal["auto", "official", "um"] = "auto"
    """Size of a mask cell: "official" 32 px, "um" 7.776 µm, "auto" 32 px near 0.243 µm/px and else µm."""
    missing_score: float | None = None
    """The score of cases without a result, which then count without findings; None leaves them out."""
    patients: Literal["max", "mean", "learned"] | None = None
    """Also combine the scores of each patient's slides, by this rule; None evaluates slides only."""
    patient_label: str = SAME_LABEL
    """How a patient gets a label: "same" requires equal labels, "any" is positive if any slide is; otherwise
    the name of a column."""
    patient_fit: str = "val"
    """The split that a learned combination is fitted to."""
    maps: bool = False
    """Also judge the cells of stored maps by outlines."""
    map_smooth: float = 0.0
    """Width in cells of the Gaussian that smooths maps before they are judged; 0 for none."""
    map_fit: str = "val"
    """The split on which the threshold of the Dice coefficient of maps is chosen."""
    allow_overlap: bool = False
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("findings", ("stored", "nms")),
            ("lesion_scale", ("auto", "official", "um")),
            ("patients", (None, "max", "mean", "learned")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} cannot be '{getattr(self, name)}'",
                    expected=f"one of {', '.join(filter(None, allowed))}",
                )
        if not 0 <= self.map_smooth < float("inf"):
            raise ConfigError("the smoothing of maps must be 0 or more cells", actual=str(self.map_smooth))
        if self.resamples < 2:
            raise ConfigError("an interval needs at least 2 resamples", actual=str(self.resamples))

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.resamples, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
