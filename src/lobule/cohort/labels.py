"""What labels mean: positive, negative, or for the caller to say.

This is the only list of label words: training, evaluation and every method read labels through `polarity`.
"""

from __future__ import annotations

import re

TRUE_WORDS = frozenset({"1", "true", "yes"})
FALSE_WORDS = frozenset({"0", "false", "no"})
"""How people and spreadsheets write yes and no."""

POSITIVE = TRUE_WORDS | frozenset({
    "positive", "pos", "tumour", "malignant", "cancer", "carcinoma", "metastasis",
    "metastases", "metastatic", "macro", "micro", "insitu", "invasive",
})  # fmt: skip
NEGATIVE = FALSE_WORDS | frozenset({
    "negative", "neg", "normal", "benign", "healthy", "notumour", "nontumour",
    "noncancer", "noncarcinoma", "notcancer", "nocancer",
})  # fmt: skip
"""What labels mean unless the caller says otherwise. Isolated tumour cells (itc) are left to the caller."""


def plain(word: str) -> str:
    """A label or score name without what spelling varies: case, hyphens, `tumor` for `tumour`, 1.0 for 1."""
    try:
        return f"{float(word):g}"
    except ValueError:
        return re.sub(r"[\W_]+", "", word.lower()).replace("tumor", "tumour")


def polarity(label: str) -> bool | None:
    """Positive, negative, or unknown."""
    word = plain(label)
    return True if word in POSITIVE else False if word in NEGATIVE else None


def is_false(word: str) -> bool:
    """Whether a cell of a yes-or-no column, such as `exhaustive` or `froc`, says no."""
    return plain(word) in FALSE_WORDS
