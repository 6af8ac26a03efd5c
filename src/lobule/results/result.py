"""The result of one case: scores, findings, notes and status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lobule.errors import LobuleError
from lobule.findings import Finding

FORMAT = "lobule-result/2"
RESEARCH_USE = "Research use only: not a medical device, not for diagnosis."

COMPLETE, PARTIAL, FAILED, UNSCORED = "complete", "partial", "failed", "unscored"
"""An unscored case has no score because nothing in it could be scored, such as a slide without tissue."""


@dataclass(frozen=True)
class FailedField:
    """A field that could not be read or scored, with the cause."""

    pass_name: str
    image: str
    l0_box: tuple[int, int, int, int]
    cause: str

    def to_dict(self) -> dict[str, Any]:
        return {"pass": self.pass_name, "image": self.image, "l0_box": list(self.l0_box), "cause": self.cause}


@dataclass(frozen=True)
class Result:
    """The return value of a method's `steps`. Maps and tables are already on disk at that time."""

    scores: Mapping[str, float]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of `result.json`, such as spreads, thresholds or strides."""
    scored: bool | None = None
    """Whether anything was scored. None: the engine looks for scored cells and rows in the maps and tables.
    A method sets it where its scores do not come from the maps and tables of this scan."""


def error_to_dict(error: BaseException) -> dict[str, Any]:
    """Return an error as it is stored in results: type, message, subject and remedy."""
    kind, is_typed = type(error).__name__, isinstance(error, LobuleError)
    details = {name: getattr(error, name) if is_typed else None for name in ("subject", "remedy")}
    return {"type": kind, "message": str(error) or kind, **details}
