"""Results on disk: what was written comes back, and what is unfinished says so."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lobule.errors import DamagedResults, ResultsError
from lobule.findings import Finding, components
from lobule.geometry import Lattice, Size
from lobule.grid import MapGrid
from lobule.results.folder import CaseFolder, open_results
from lobule.results.maps import MapInfo, MapReader, MapWriter
from lobule.results.tables import TableInfo, TableReader, TableWriter
from lobule.results.writing import write_findings
from lobule.stitch import State
from lobule.units import Mpp
from tests.scanning.support import tree


def info_of(width: int, height: int, stride: int, cells: int, fields: int = 3) -> MapInfo:
    lattice = Lattice(Fraction(2), Fraction(2), Size(width, height), Mpp.square(0.5), None)
    return MapInfo.of_grid("map", "slide", ("a", "b"), MapGrid(lattice, stride, stride, cells), fields)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 8), st.integers(1, 5))
def test_chunks_tile_the_map(width: int, height: int, cells: int, fields: int) -> None:
    info = info_of(width, height, 16, cells, fields)
    count = np.zeros((info.rows, info.columns), np.int64)
    for chunk in info.chunks:
        count[info.chunk_cells(chunk)] += 1
        rows, columns = info.chunk_cells(chunk)
        assert info.chunk_of(rows.start, columns.start) == chunk
    assert (count == 1).all()


def test_a_map_is_read_while_it_is_written(tmp_path: Path) -> None:
    info = info_of(1000, 700, 16, 4)
    writer = MapWriter(tmp_path / "m", info)
    rng = np.random.default_rng(0)
    scores = rng.random((2, info.rows, info.columns), dtype=np.float32)
    reader = MapReader(tmp_path / "m")
    done = np.zeros((info.rows, info.columns), bool)
    for chunk in info.chunks[::2]:
        block = info.chunk_cells(chunk)
        states = np.full(scores[0][block].shape, State.SCORED, np.uint8)
        writer.write_chunk(chunk, scores[:, block[0], block[1]], states)
        done[block] = True
        got, got_states = reader.read()
        assert ((got_states == State.SCORED) == done).all() and (got_states[~done] == State.PENDING).all()
        assert (got[:, done] == scores[:, done]).all() and (got[:, ~done] == 0).all()
    assert reader.written() == set(info.chunks[::2])
    assert reader.counts() == {
        "pending": int((~done).sum()),
        "glass": 0,
        "scored": int(done.sum()),
        "failed": 0,
    }
    assert (
        reader.info == info and reader.info.um_stride == (8.0, 8.0) and reader.info.l0_stride == (32.0, 32.0)
    )
    # any Zarr reader opens it
    assert zarr.open_group(tmp_path / "m", mode="r")["score"].shape == (2, info.rows, info.columns)


def test_a_block_that_does_not_fit_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 × 20 cells of two classes take 3,600 bytes."""
    reader = MapReader(MapWriter(tmp_path / "m.zarr", info_of(40, 40, 1, 20)).path)
    monkeypatch.setattr("lobule.results.maps.MOST_BYTES", 3600)
    assert reader.read()[1].shape == (20, 20)
    monkeypatch.setattr("lobule.results.maps.MOST_BYTES", 3599)
    with pytest.raises(DamagedResults, match="400 cells are too many"):
        reader.read()


def test_a_chunk_of_nothing_but_zeros_is_written_and_read(tmp_path: Path) -> None:
    """A model that is quite sure of normal tissue says 0, and that is a score like any other."""
    info = info_of(1000, 700, 16, 4)
    writer = MapWriter(tmp_path / "m", info)
    rows, columns = info.chunk_cells((0, 0))
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    zeros = np.zeros((len(info.classes), *shape), np.float32)
    writer.write_chunk((0, 0), zeros, np.full(shape, State.SCORED, np.uint8))
    reader = MapReader(tmp_path / "m")
    assert reader.written() == {(0, 0)}
    scores, states = reader.read(rows, columns)
    assert (states == State.SCORED).all()
    assert not scores.any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.booleans())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_small_maps_have_the_bytes_that_zarr_writes(
    tmp_path: Path, rows: int, columns: int, high: int, wide: int, with_resolution: bool
) -> None:
    um = (8.1, 16.2) if with_resolution else None
    info = MapInfo("Karte ä", "slide", ("a", "b"), rows, columns, (32.0, 16.5), um, (high, wide))
    direct, by_zarr = (Path(tempfile.mkdtemp(dir=tmp_path), "m") for _ in range(2))
    writer, group = MapWriter(direct, info), zarr.create_group(by_zarr, attributes=info.to_attributes())
    blosc = zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")
    common: Any = {"compressors": blosc, "config": {"write_empty_chunks": True}}
    score = group.create_array(
        "score", shape=(2, rows, columns), dtype="float32", chunks=(2, high, wide), fill_value=0.0,
        dimension_names=("class", "y", "x"), **common,
    )  # fmt: skip
    state = group.create_array(
        "state", shape=(rows, columns), dtype="uint8", chunks=(high, wide), fill_value=0,
        dimension_names=("y", "x"), **common,
    )  # fmt: skip
    rng = np.random.default_rng(rows)
    for chunk in info.chunks:
        block = info.chunk_cells(chunk)
        shape = [axis.stop - axis.start for axis in block]
        states = rng.integers(0, 4, shape).astype(np.uint8)
        scores = np.where(states == State.SCORED, rng.random((2, *shape)), 0).astype(np.float32)
        writer.write_chunk(chunk, scores, states)
        score[:, block[0], block[1]], state[block] = scores, states
    assert tree(direct) == tree(by_zarr)
    values, states = MapReader(direct).read()
    assert (values == score[:]).all() and (states == state[:]).all()  # type: ignore[index]


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("state/zarr.json", b'"clevel": 3', b'"clevel": 5'),
        ("zarr.json", b'"zarr_format": 3,', b'"zarr_format":3,'),
    ],
)
def test_small_maps_of_other_programs_are_read(tmp_path: Path, file: str, old: bytes, new: bytes) -> None:
    info = info_of(80, 80, 16, 2)
    writer = MapWriter(tmp_path / "m", info)
    for chunk in info.chunks:
        states = np.full([axis.stop - axis.start for axis in info.chunk_cells(chunk)], State.SCORED, np.uint8)
        writer.write_chunk(chunk, np.full((2, *states.shape), 0.25, np.float32), states)
    content = (tmp_path / "m" / file).read_bytes()
    assert content.count(old) == 1
    (tmp_path / "m" / file).write_bytes(content.replace(old, new))
    scores, states = MapReader(tmp_path / "m").read()
    assert (scores == 0.25).all() and (states == State.SCORED).all()


def test_a_chunk_of_another_size_is_damage(tmp_path: Path) -> None:
    small, large = (
        MapWriter(tmp_path / name, info_of(80, 80, 16, cells)) for cells, name in enumerate("ab", 1)
    )
    for writer in (small, large):
        states = np.full([axis.stop - axis.start for axis in writer.info.chunk_cells((0, 0))], 2, np.uint8)
        writer.write_chunk((0, 0), np.ones((2, *states.shape), np.float32), states)
    chunk = "score/c/0/0/0"
    (small.path / chunk).write_bytes((large.path / chunk).read_bytes())
    with pytest.raises(DamagedResults, match="chunk of the map is damaged"):
        MapReader(small.path).read(slice(0, 1), slice(0, 1))


def test_a_map_of_another_geometry_is_refused(tmp_path: Path) -> None:
    MapWriter(tmp_path / "m", info_of(1000, 700, 16, 4))
    with pytest.raises(ResultsError, match="a different geometry"):
        MapWriter(tmp_path / "m", info_of(1000, 700, 16, 5))


def test_leftover_files_of_a_killed_scan_are_removed(tmp_path: Path) -> None:
    info = info_of(300, 300, 16, 4)
    MapWriter(tmp_path / "m", info)
    leftover = tmp_path / "m" / "score" / "c" / "0" / "0.abc.partial"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"half")
    writer = MapWriter(tmp_path / "m", info)
    assert not leftover.exists() and writer.written() == set()


def test_table_is_written_and_read_by_chunks(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t", TableInfo("t", 7, 3))
    rng = np.random.default_rng(0)
    columns = {
        "index": np.arange(7),
        "vector": rng.random((7, 5), dtype=np.float32),
        "name": np.array(list("abcdefg")),
    }
    for chunk in (2, 0):
        block = writer.info.chunk_slice(chunk)
        writer.write_chunk(chunk, {name: values[block] for name, values in columns.items()})
    reader = TableReader(tmp_path / "t")
    assert reader.written() == {0, 2}
    got = reader.read(["vector", "name"])
    np.testing.assert_array_equal(got["vector"], columns["vector"][[0, 1, 2, 6]])
    assert got["name"].tolist() == list("abcg")


def test_findings_round_trip(tmp_path: Path) -> None:
    scores = np.zeros((20, 30), np.float32)
    scores[3:9, 4:12], scores[5:7, 6:8], scores[15, 20] = 0.9, 0.0, 0.7
    findings = components(scores, (32.0, 16.0), mpp=Mpp(0.25, 0.5))
    write_findings(tmp_path, findings)
    columns = CaseFolder(tmp_path).findings()
    assert columns["score"].tolist() == pytest.approx([0.9, 0.7])
    assert columns["cells"].tolist() == [44, 1]
    # a cell is 32 × 16 level-0 pixels of 0.25 × 0.5 µm: 8 × 8 µm
    assert columns["area_um2"].tolist() == [44 * 64, 64]
    assert columns["l0_x"][1] == round(20.5 * 32) and columns["l0_y"][1] == round(15.5 * 16)
    assert columns["box"][0].tolist() == [4 * 32, 3 * 16, 8 * 32, 6 * 16]
    assert (tmp_path / "findings.csv").read_text().splitlines()[0].startswith("l0_x,l0_y,score,kind")
    assert columns["image"].tolist() == ["slide", "slide"]
    write_findings(tmp_path, [Finding(1, 2, 0.5), Finding(1, 2, 0.5, image="R-MLO")])
    assert CaseFolder(tmp_path).findings()["kind"].tolist() == ["point", "point"]
    assert CaseFolder(tmp_path).findings()["image"].tolist() == ["slide", "R-MLO"]
    assert (tmp_path / "findings.csv").read_text().splitlines()[2].endswith(",R-MLO")


def test_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not a results folder"):
        open_results(tmp_path)


def test_chunk_without_a_scored_row_reads_as_nan(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "t", TableInfo("t", 4, 2))
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.write_chunk(0, {"field": np.arange(2)})
    writer.write_chunk(1, {"field": np.arange(2, 4), "vector": vectors})
    got = TableReader(tmp_path / "t").read()
    assert got["field"].tolist() == [0, 1, 2, 3]
    assert np.isnan(got["vector"][:2]).all()
    np.testing.assert_array_equal(got["vector"][2:], vectors)


@pytest.mark.parametrize(
    ("chunk", "inner"),
    [
        ((512, 1024), (512, 512)),
        ((540, 514), (270, 257)),
        ((521, 521), (521, 521)),
        ((300, 1019), (300, 1019)),
        ((56, 1008), (56, 1008)),
    ],
)
def test_large_chunks_are_divided_but_not_into_tiny_blocks(
    tmp_path: Path, chunk: tuple[int, int], inner: tuple[int, int]
) -> None:
    rows, columns = chunk
    writer = MapWriter(tmp_path / "m", replace(info_of(2 * columns, rows, 1, 1), chunk=chunk))
    states = np.full(chunk, State.SCORED, np.uint8)
    writer.write_chunk((0, 0), np.ones((2, *chunk), np.float32), states)
    array = zarr.open_group(tmp_path / "m", mode="r")["score"]
    assert isinstance(array, zarr.Array) and array.chunks[-2:] == inner
    scores = MapReader(tmp_path / "m").read()[0]
    assert scores[:, :, :columns].all() and not scores[:, :, columns:].any()


def test_a_divided_map_of_an_earlier_version_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = info_of(80, 64, 1, 16, 2)
    with monkeypatch.context() as earlier:
        earlier.setattr("lobule.results.map_creation.INNER", 16)
        MapWriter(tmp_path / "m", info)
    writer = MapWriter(tmp_path / "m", info)
    for chunk in info.chunks:
        states = np.full([axis.stop - axis.start for axis in info.chunk_cells(chunk)], State.SCORED, np.uint8)
        writer.write_chunk(chunk, np.ones((2, *states.shape), np.float32), states)
    array = zarr.open_group(tmp_path / "m", mode="r")["score"]
    assert isinstance(array, zarr.Array) and array.shards == (2, 16, 32) and array.chunks == (2, 16, 16)
    assert MapReader(tmp_path / "m").read()[0].all()


def test_results_of_another_version_are_refused_with_the_command_that_creates_them_again(
    tmp_path: Path,
) -> None:
    for path in (tmp_path / "scan.json", tmp_path / "cases" / "a" / "result.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"format": "lobule-result/1", "status": "complete"}')
    for read in (lambda: open_results(tmp_path), lambda: CaseFolder(tmp_path / "cases" / "a").result):
        with pytest.raises(ResultsError, match=r"lobule-result/1.*lobule scan BUNDLE COHORT"):
            read()
