"""Arrow arrays of Python values and NumPy arrays, built from their memory.

`pyarrow.array` imports pandas whenever it is installed, even for a list of numbers: 0.4 s and 33 MiB in the
process of a scan. A scan does not use pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LARGEST_OFFSET = 2**31 - 1
"""Bytes of text that one chunk of a column can contain."""
EXACT = 2**53
"""Largest integer up to which every integer can be stored as a float64."""


def arrow_array(values: Sequence[Any], kind: Any) -> Any:
    """Return a column of numbers, texts, or lists of numbers, in which None is a missing value.

    Values of other types, such as bytes among texts, are left to `pyarrow.array`: it converts them, or raises
    a TypeError, ValueError or OverflowError.

    Args:
        values: The values.
        kind: `pa.int64()`, `pa.float64()`, `pa.string()`, or the type of a list of numbers.

    Raises:
        TypeError: A number among integers has a fraction, or is NaN or infinite.
    """
    types = {type(value) for value in values} - {type(None)}
    missing = np.array([value is None for value in values], bool)
    validity = _bits(~missing) if missing.any() else None
    if pa.types.is_string(kind) and types <= {str, np.str_}:
        texts = [b"" if value is None else value.encode() for value in values]
        if sum(map(len, texts)) <= LARGEST_OFFSET:  # pyarrow divides a larger column into chunks.
            buffers = [validity, _offsets(texts), pa.py_buffer(b"".join(texts))]
            return pa.Array.from_buffers(kind, len(values), buffers)
    elif pa.types.is_list(kind) and types <= {list, tuple}:
        lists = [() if value is None else value for value in values]
        items = arrow_array([item for each in lists for item in each], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [validity, _offsets(lists)], children=[items])
    elif _are_exact_numbers(values, types, kind):
        data = np.array([0 if value is None else value for value in values], kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(data)])
    fractions = (value for value in values if isinstance(value, float | np.floating))
    if pa.types.is_integer(kind) and not all(float(value).is_integer() for value in fractions):
        # pyarrow would remove the fraction.
        raise TypeError("a number among integers has a fraction, or is NaN or infinite")
    return pa.array(values, kind)


def _are_exact_numbers(values: Sequence[Any], types: set[type], kind: Any) -> bool:
    """Whether NumPy converts all values to this type of number, and without rounding them."""
    if pa.types.is_int64(kind):
        return types <= {int, np.int64}
    is_exact = (-EXACT <= value <= EXACT for value in values if type(value) is int)
    return pa.types.is_float64(kind) and types <= {int, float, np.float64} and all(is_exact)


def arrow_numbers(values: NDArray[Any]) -> Any:
    """Return a one-dimensional array of numbers as a column without missing values; NaN stays NaN."""
    data = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    buffer = _bits(data) if data.dtype == bool else pa.py_buffer(np.ascontiguousarray(data))
    return pa.Array.from_buffers(pa.from_numpy_dtype(data.dtype), len(data), [None, buffer])


def _bits(flags: NDArray[np.bool_]) -> Any:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _offsets(items: Sequence[Sequence[Any]] | Sequence[bytes]) -> Any:
    ends = list(accumulate((len(item) for item in items), initial=0))
    return pa.py_buffer(np.array(ends, np.int32))
