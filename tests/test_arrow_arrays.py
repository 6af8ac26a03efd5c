"""Arrow arrays that are built without pyarrow's conversion have the values and the bytes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lobule.results import arrow_arrays
from lobule.results.arrow_arrays import arrow_array, arrow_numbers
from lobule.results.parquet import write_parquet

COLUMNS: list[tuple[list[Any], Any]] = [
    ([3, -1, 2**62], pa.int64()),
    ([None, 3, None], pa.int64()),
    ([0.5, None, float("nan"), 7], pa.float64()),
    ([1.5] * 9 + [None], pa.float64()),
    (["", "Läsion 🔬", None, "b"], pa.string()),
    ([[1, 2], None, [], [3]], pa.list_(pa.int64())),
    ([None, None], pa.list_(pa.int64())),
    ([None, None], pa.string()),
    ([], pa.int64()),
    ([], pa.float64()),
    ([], pa.string()),
    ([], pa.list_(pa.int64())),
    ([1, None, np.float64(2.0)], pa.int64()),
    ([1, 2.0], pa.int64()),
    ([np.int64(3), np.int32(4)], pa.int64()),
    ([2**63 - 1, -(2**63)], pa.int64()),
    ([True, 2], pa.float64()),
    ([2**53, -(2**53), np.float64(0.5)], pa.float64()),
    (["a", np.str_("ä"), b"c"], pa.string()),
    ([[1, 2.0], (3, None)], pa.list_(pa.int64())),
    ([np.array([1, 2]), None], pa.list_(pa.int64())),
]


def parquet_bytes(array: Any, path: Path) -> bytes:
    pq.write_table(pa.table({"column": array}), path, compression="zstd")
    return path.read_bytes()


@pytest.mark.parametrize(("values", "kind"), COLUMNS)
def test_values_have_the_bytes_of_pyarrow(values: list[Any], kind: Any, tmp_path: Path) -> None:
    array = arrow_array(values, kind)
    array.validate(full=True)
    expected = pa.array(values, kind)
    assert (array.type, array.null_count) == (expected.type, expected.null_count)
    assert parquet_bytes(array, tmp_path / "own") == parquet_bytes(expected, tmp_path / "pyarrow")


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "float32", "float64", "float16", "bool", ">f4"])
def test_numbers_have_the_bytes_of_pyarrow(dtype: str, tmp_path: Path) -> None:
    values = np.array([0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1], dtype)
    for each in (values, values[::2], values[:0]):
        array = arrow_numbers(each)
        array.validate(full=True)
        expected = pa.array(np.ascontiguousarray(each.astype(each.dtype.newbyteorder("="))))
        assert array.type == expected.type
        assert parquet_bytes(array, tmp_path / "own") == parquet_bytes(expected, tmp_path / "pyarrow")


@pytest.mark.parametrize("value", [1.5, np.float64(1.5), float("inf"), float("nan")])
def test_fractions_among_integers_are_refused(value: float) -> None:
    """pyarrow would remove the fraction."""
    for values, kind in (([1, value], pa.int64()), ([[1], [value]], pa.list_(pa.int64()))):
        with pytest.raises(TypeError, match="fraction"):
            arrow_array(values, kind)


REFUSED: list[tuple[list[Any], Any, type[Exception]]] = [
    ([2**63], pa.int64(), OverflowError),
    ([-(2**63) - 1, None], pa.int64(), OverflowError),
    ([True, False], pa.int64(), TypeError),
    ([1, True], pa.int64(), TypeError),
    ([[1], [True]], pa.list_(pa.int64()), TypeError),
    ([5], pa.list_(pa.int64()), TypeError),
    ([{1: 2}], pa.list_(pa.int64()), TypeError),
    ([1, "3"], pa.int64(), ValueError),
    ([1, "3"], pa.float64(), ValueError),
    ([2**53 + 1, 0.5], pa.float64(), ValueError),
    (["a", 1], pa.string(), TypeError),
    (["a", 1.5, None], pa.string(), TypeError),
    (["\udc80"], pa.string(), UnicodeEncodeError),
]


@pytest.mark.parametrize(("values", "kind", "error"), REFUSED)
def test_other_values_raise_the_error_of_pyarrow(
    values: list[Any], kind: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as expected:
        pa.array(values, kind)
    with pytest.raises(type(expected.value)) as raised:
        arrow_array(values, kind)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("values", [["slide"] * 3, ["L-CC", "", "Läsion 🔬"], []])
def test_texts_of_a_table_have_the_bytes_of_pyarrow(values: list[str], tmp_path: Path) -> None:
    texts = np.array(values, np.str_)
    write_parquet(tmp_path / "own", {"column": texts})
    assert (tmp_path / "own").read_bytes() == parquet_bytes(pa.array(texts), tmp_path / "pyarrow")


def test_texts_beyond_one_chunk_are_divided_by_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_arrays, "LARGEST_OFFSET", 3)
    assert arrow_array(["ab", "cd"], pa.string()).to_pylist() == ["ab", "cd"]


def test_findings_and_tables_are_written_without_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from lobule.findings import Finding\n"
        "from lobule.results.parquet import write_parquet\n"
        "from lobule.results.writing import write_findings\n"
        "folder = Path(sys.argv[1])\n"
        "write_findings(folder, [])\nwrite_findings(folder, [Finding(1, 2, 0.5)])\n"
        "columns = {'field': np.arange(3), 'vector': np.zeros((3, 2), np.float32)}\n"
        "columns['image'] = np.array(['slide'] * 3)\n"
        "write_parquet(folder / 't.parquet', columns)\n"
        "assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
