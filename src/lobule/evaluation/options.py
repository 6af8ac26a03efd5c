"""What an evaluation may be asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from lobule.errors import ConfigError
from lobule.measures.estimate import Resampling


@dataclass(frozen=True)
class Options:
    """Options of `evaluate`; the defaults are the official numbers, each with an interval."""

    by: tuple[str, ...] = ()
    """Columns of the cohort to break every number down by."""
    split: str | None = None
    """Only the cases of this split."""
    positive: tuple[str, ...] = ()
    """Labels that count as positive; by default found by rule."""
    score: str | None = None
    """The score that is judged, where the results have several."""
    thresholds: tuple[float, ...] = ()
    """Operating points that were fixed beforehand."""
    findings: Literal["stored", "nms"] = "stored"
    """Detections: the findings as stored, or NCRF's non-maximum suppression of the map."""
    nms_map: str | None = None
    nms_radius: int | None = None
    nms_threshold: float = 0.5
    masks: str | None = None
    """A folder of ground-truth masks, named as the organisers of Camelyon16 name them."""
    mask_step: float | None = None
    """Level-0 pixels a pixel of the masks, where the size of a slide is not known."""
    lesion_scale: Literal["auto", "official", "um"] = "auto"
    """How the constants meet the slide: 32 pixels a cell, or 7.776 µm; auto takes pixels near 0.243 µm/px."""
    missing_score: float | None = None
    """The score of cases without a result, which then have no findings; None leaves them out."""
    allow_overlap: bool = False
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("findings", ("stored", "nms")), ("lesion_scale", ("auto", "official", "um"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"no {name} '{getattr(self, name)}'", expected=f"one of {', '.join(allowed)}"
                )
        for name in ("by", "positive", "thresholds"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is a list", actual=repr(getattr(self, name)))
        if self.resamples < 2:
            raise ConfigError("an interval needs at least 2 resamples", actual=str(self.resamples))

    @classmethod
    def of(cls, **values: Any) -> Options:
        """From plain values: lists where tuples are kept; a name that does not exist is said."""
        if unknown := sorted(set(values) - {entry.name for entry in fields(cls)}):
            raise ConfigError(
                f"no option {', '.join(unknown)}", expected=", ".join(entry.name for entry in fields(cls))
            )
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**arguments)

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.resamples, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
