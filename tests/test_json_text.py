"""Indented JSON has the text of the standard library."""

from __future__ import annotations

import json
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.json_text import indented_json


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    LINE = "a\nline"


NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
KEYS = st.one_of(st.text(), NUMBERS, st.booleans(), st.none())
SCALARS = st.one_of(KEYS, st.sampled_from([Number.ONE, Word.LINE, np.float64(0.1)]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(KEYS, st.sampled_from([Number.ONE, Word.LINE])), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(value=VALUES, indent=st.sampled_from([1, 2]), ensure_ascii=st.booleans())
def test_the_text_is_that_of_the_standard_library(value: Any, indent: int, ensure_ascii: bool) -> None:
    expected = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    assert indented_json(value, indent, ensure_ascii=ensure_ascii) == expected


@pytest.mark.parametrize(
    "value", [float("nan"), {"a": [float("-inf")]}, {float("nan"): 1}, np.float64("nan")]
)
def test_numbers_that_are_not_valid_json_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        indented_json(value)


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, [b"x"], {"a": np.float32(1)}, {"a": {1, 2}}])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        indented_json(value)
