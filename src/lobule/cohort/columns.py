"""The standard columns of a manifest, and how a misspelt column is distinguished from an attribute."""

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
"""The columns of each kind of manifest, in addition to the common ones."""

STANDARD_COLUMNS = tuple(
    dict.fromkeys([*COMMON, *COLUMNS_OF["slide"], *COLUMNS_OF["image"], *COLUMNS_OF["exam"]])
)

LEAST_ALIKE = 0.6
ALIKE = 0.8
"""Names at least this similar count as misspellings; for the short `mpp`, two matching letters suffice."""


def family_of(columns: Sequence[str]) -> str | None:
    """slide, image or exam, depending on the columns; None if none or several of them match."""
    families = [name for name in ("slide", "image") if name in columns]
    if any(view in columns for view in VIEWS):
        families.append("exam")
    return families[0] if len(families) == 1 else None


def column_problems(columns: Sequence[str]) -> list[str]:
    """One sentence for each column that is missing, duplicated or misspelt."""
    problems = []
    counts = Counter(columns)
    for name in counts:
        if name and counts[name] > 1:
            problems.append(f"column '{name}' is there {counts[name]} times")
        intended = intended_column(name, columns)
        if intended:
            problems.append(f"column '{name}' is not known; '{intended}' is meant? Rename it")
    for name in ("case", "patient"):
        if name not in columns:
            problems.append(f"column '{name}' is missing")
    if not any(name in columns for name in ("slide", "image", *VIEWS)):
        problems.append(
            "no column says what the cases are: slide, image, or the views l_cc, r_cc, l_mlo, r_mlo"
        )
    return problems


def intended_column(name: str, columns: Sequence[str]) -> str | None:
    """The standard column that `name` misspells; None if `name` is a standard column or an attribute.

    A different letter case, hyphens and spaces always count as a misspelling. Otherwise the name must be
    similar to a column that this kind of manifest can have and this one lacks: next to `slide`, `side` is an
    attribute.
    """
    if name in STANDARD_COLUMNS or not name:
        return None
    normalised = _normalised(name)
    if same := [standard for standard in STANDARD_COLUMNS if normalised == _normalised(standard)]:
        return same[0]
    family = family_of(columns)
    possible = [*COMMON, *(COLUMNS_OF[family] if family else STANDARD_COLUMNS)]
    present = set(columns)
    absent = [standard for standard in possible if standard not in present and len(standard) > 2]
    likeness = {standard: _likeness(normalised, _normalised(standard)) for standard in absent}
    best = max(likeness, key=lambda standard: likeness[standard], default=None)
    if best is None:
        return None
    enough = LEAST_ALIKE if len(best) == 3 else ALIKE
    return best if likeness[best] >= enough or _swapped(normalised, _normalised(best)) else None


def _likeness(first: str, second: str) -> float:
    """Similarity of two names. The exact ratio is computed only if it can reach the threshold."""
    matcher = SequenceMatcher(None, first, second)
    bound = min(matcher.real_quick_ratio(), matcher.quick_ratio())
    return matcher.ratio() if bound >= LEAST_ALIKE else bound


def _normalised(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _swapped(first: str, second: str) -> bool:
    """Whether two neighbouring letters are swapped, a common mistake that the similarity underestimates."""
    swaps = (first[:i] + first[i + 1] + first[i] + first[i + 2 :] for i in range(len(first) - 1))
    return first != second and second in swaps
