"""The meaning of labels: positive, negative, or undecided.

This is the only list of label words: training, evaluation and all methods interpret labels with `polarity`.
"""

from __future__ import annotations

import re

TRUE_WORDS = frozenset({"1", "true", "yes"})
FALSE_WORDS = frozenset({"0", "false", "no"})
"""Ways in which people and spreadsheets write yes and no."""

POSITIVE = TRUE_WORDS | frozenset({
    "positive", "pos", "tumour", "malignant", "cancer", "carcinoma", "metastasis",
    "metastases", "metastatic", "macro", "micro", "insitu", "invasive",
})  # fmt: skip
NEGATIVE = FALSE_WORDS | frozenset({
    "negative", "neg", "normal", "benign", "healthy", "notumour", "nontumour",
    "noncancer", "noncarcinoma", "notcancer", "nocancer",
})  # fmt: skip
"""Default meaning of labels, which the caller can override. Isolated tumour cells (itc) are undecided."""


def plain(word: str) -> str:
    """A label or score name in one spelling: lower case, without hyphens, `tumour` for `tumor`, 1 for 1.0."""
    try:
        return f"{float(word):g}"
    except ValueError:
        return re.sub(r"[\W_]+", "", word.lower()).replace("tumor", "tumour")


def polarity(label: str) -> bool | None:
    """True for a positive label, False for a negative one, None if undecided."""
    word = plain(label)
    return True if word in POSITIVE else False if word in NEGATIVE else None


def is_false(word: str) -> bool:
    """Whether a cell of a yes-or-no column, such as `exhaustive` or `froc`, means no."""
    return plain(word) in FALSE_WORDS
