"""The known columns of a manifest, and how a misspelt one is told from an attribute."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from lobule.cohort.case import BREAST_LABELS, VIEWS

COMMON = ("case", "patient", "split", "label", "site")
BOX = ("x", "y", "w", "h")
COLUMNS_OF = {
    "slide": ("slide", "mpp", "annotation", *BOX),
    "image": ("image", "mpp", "annotation"),
    "exam": (*VIEWS, "annotation", *BREAST_LABELS),
}
"""The columns of each kind of manifest beside the common ones."""

KNOWN = tuple(dict.fromkeys([*COMMON, *COLUMNS_OF["slide"], *COLUMNS_OF["image"], *COLUMNS_OF["exam"]]))

LEAST_ALIKE = 0.6
ALIKE = 0.8
"""Names at least this similar are one name misspelt; `mpp` is so short that two letters of it are enough."""


def family_of(columns: Sequence[str]) -> str | None:
    """slide, image or exam, by the columns that are there; None where none or several are."""
    found = [name for name in ("slide", "image") if name in columns]
    if any(view in columns for view in VIEWS):
        found.append("exam")
    return found[0] if len(found) == 1 else None


def column_problems(columns: Sequence[str]) -> list[str]:
    """One sentence for each column that is missing, twice there or misspelt."""
    problems = []
    counts = Counter(columns)
    for name in counts:
        if name and counts[name] > 1:
            problems.append(f"column '{name}' is there {counts[name]} times")
        meant = meant_column(name, columns)
        if meant:
            problems.append(f"column '{name}' is not known; '{meant}' is meant? Rename it")
    for name in ("case", "patient"):
        if name not in columns:
            problems.append(f"column '{name}' is missing")
    if not any(name in columns for name in ("slide", "image", *VIEWS)):
        problems.append(
            "no column says what the cases are: slide, image, or the views l_cc, r_cc, l_mlo, r_mlo"
        )
    return problems


def meant_column(name: str, columns: Sequence[str]) -> str | None:
    """The known column that `name` misspells; None where it is known, or an attribute.

    Other case, hyphens and spaces are always a misspelling. Beyond that, only a name that resembles a column
    which this manifest lacks and could have: beside `slide`, `side` is an attribute.
    """
    if name in KNOWN or not name:
        return None
    plain = _plain(name)
    for known in KNOWN:
        if plain == _plain(known):
            return known
    family = family_of(columns)
    could = [*COMMON, *(COLUMNS_OF[family] if family else KNOWN)]
    present = set(columns)
    absent = [known for known in could if known not in present and len(known) > 2]
    likeness = {known: _likeness(plain, _plain(known)) for known in absent}
    best = max(likeness, key=lambda known: likeness[known], default=None)
    if best is None:
        return None
    enough = LEAST_ALIKE if len(best) == 3 else ALIKE
    return best if likeness[best] >= enough or _swapped(plain, _plain(best)) else None


def _likeness(one: str, other: str) -> float:
    """How alike two names are; the exact ratio is computed only where it can matter."""
    matcher = SequenceMatcher(None, one, other)
    bound = min(matcher.real_quick_ratio(), matcher.quick_ratio())
    return matcher.ratio() if bound >= LEAST_ALIKE else bound


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _swapped(one: str, other: str) -> bool:
    """Whether two neighbouring letters are swapped, the commonest slip that likeness undervalues."""
    differ = [index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]]
    return (
        len(one) == len(other)
        and len(differ) == 2
        and differ[1] == differ[0] + 1
        and one[differ[0]] == other[differ[1]]
        and one[differ[1]] == other[differ[0]]
    )
