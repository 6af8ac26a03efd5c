"""Tiles of maps and findings: their values equal what the files contain, read independently."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from starlette.testclient import TestClient

from lobule.errors import DamagedResults
from lobule.findings import Finding
from lobule.results import open_results
from lobule.results.map_check import store_map_check
from lobule.server import finding_columns, finding_tiles
from lobule.server.events import Watcher
from lobule.server.library import Library, Source
from lobule.stitch import State
from tests.server.support import Scene, begin, build_scene, case_ids, client_of, result_of, write_case


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return build_scene(tmp_path_factory.mktemp("scene"))


def map_tile(
    client: TestClient, case: str, level: int, column: int, row: int, name: str = "tumour", layer: int = 1
):
    params = {"name": name, "layer": layer, "level": level, "column": column, "row": row}
    answer = client.get(f"/api/cases/{case}/map", params=params)
    assert answer.status_code == 200, answer.text
    magic, width, height, low, high = struct.unpack_from("<4sHHff", answer.content)
    assert magic == b"LMT1"
    planes = np.frombuffer(answer.content, np.uint8, offset=16).reshape(2, height, width)
    return planes[0], planes[1], low, high


def test_map_tiles_hold_scores_and_states(scene: Scene) -> None:
    with client_of(scene.results) as client:
        scores, states, low, high = map_tile(client, case_ids(client)["one"], 0, 0, 0)
    group = zarr.open_group(scene.root / "results/cases/one/maps/tumour", mode="r")
    stored, stored_states = np.asarray(group["score"])[1], np.asarray(group["state"])
    assert (low, high) == (0.0, 1.0)
    assert scores.shape == (stored.shape[0] + 2, stored.shape[1] + 2)  # One border cell on every side.
    assert np.array_equal(scores[1:-1, 1:-1], np.rint(stored * 255))
    assert np.array_equal(states[1:-1, 1:-1], stored_states)
    border = np.ones(states.shape, bool)
    border[1:-1, 1:-1] = False
    assert set(states[border].tolist()) == {255}


def test_a_map_that_failed_the_orientation_check_is_not_listed(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    with client_of(scene.results) as client:
        case = f"/api/cases/{case_ids(client)['one']}"
        assert [one["name"] for one in client.get(case).json()["maps"]] == ["tumour"]
        store_map_check(scene.results, 0.41, False, 12, None)
        hidden = client.get(case).json()
        assert hidden["maps"] == [] and "failed the orientation check" in hidden["notes"][-1]
        store_map_check(scene.results, 0.8, True, 12, None)
        assert len(client.get(case).json()["maps"]) == 1


def test_tiles_of_large_maps_overlap_by_one_cell_and_reduce_to_the_maximum(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((300, 530)).astype(np.float32)
    states = rng.choice([State.GLASS, State.SCORED, State.FAILED, State.PENDING], (300, 530)).astype(np.uint8)
    results = begin(tmp_path, ["big"])
    write_case(results, "big", None, scores, states, [], chunk=(64, 100))
    with client_of(results) as client:
        case = case_ids(client)["big"]
        assert client.get(f"/api/cases/{case}").json()["maps"][0]["levels"] == 3
        tile, tile_states, *_ = map_tile(client, case, 0, 1, 0)
        expected = np.where(states == State.SCORED, np.rint(scores * 255), 0)
        assert np.array_equal(tile[1:, :], expected[:257, 255:513])
        assert np.array_equal(tile_states[1:, :], states[:257, 255:513])
        half, half_states, *_ = map_tile(client, case, 1, 1, 0)
        assert half.shape == (152, 11)
        blocks = np.where(states == State.SCORED, scores, -1).reshape(150, 2, 265, 2).max(axis=(1, 3))
        inside = np.where(blocks >= 0, np.rint(np.maximum(blocks, 0) * 255), 0)
        assert np.array_equal(half[1:-1, 1:-1], inside[:, 256:])
        assert np.array_equal(half[1:-1, 0], inside[:, 255])
        assert np.array_equal(half_states[1:-1, 1:-1] == State.SCORED, blocks[:, 256:] >= 0)
        top, *_ = map_tile(client, case, 2, 0, 0)
        assert top.max() == np.rint(scores[states == State.SCORED].max() * 255)


def test_scores_outside_0_to_1_keep_their_range(tmp_path: Path) -> None:
    scores = np.linspace(-3, 12, 64, dtype=np.float32).reshape(8, 8)
    results = begin(tmp_path, ["anomaly"])
    write_case(results, "anomaly", None, scores, np.full((8, 8), State.SCORED, np.uint8), [])
    with client_of(results) as client:
        tile, _, low, high = map_tile(client, case_ids(client)["anomaly"], 0, 0, 0)
    assert (low, high) == (-3.0, 12.0)
    decoded = low + tile[1:-1, 1:-1] / 255 * (high - low)
    assert np.abs(decoded - scores).max() <= 15 / 255 / 2 + 1e-6


def test_damaged_maps_are_an_answer_not_a_crash(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    chunk = scene.root / "results/cases/one/maps/tumour/score/c/0/0/0"
    chunk.write_bytes(b"rubbish")
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        params = {"name": "tumour", "layer": 1, "level": 0, "column": 0, "row": 0}
        answer = client.get(f"/api/cases/{case}/map", params=params)
        assert answer.status_code == 409
        assert "damaged" in answer.json()["error"]
        assert client.get(f"/api/cases/{case}").status_code == 200


def read_points(data: bytes) -> tuple[np.ndarray, ...]:
    magic, count = struct.unpack_from("<4sI", data)
    assert magic == b"LFP1"
    at = 8
    columns = []
    for kind in ("<u4", "<i4", "<i4", "<f4", "u1"):
        columns.append(np.frombuffer(data, kind, count, at))
        at += count * np.dtype(kind).itemsize
    assert at == len(data)
    return tuple(columns)


def read_bins(data: bytes) -> tuple[np.ndarray, ...]:
    magic, count = struct.unpack_from("<4sI", data)
    assert magic == b"LFB1"
    at = 8
    columns = []
    for kind in ("<u4", "<f4", "u1", "u1"):
        columns.append(np.frombuffer(data, kind, count, at))
        at += count * np.dtype(kind).itemsize
    assert at == len(data)
    return tuple(columns)


def test_findings_are_listed_by_score(scene: Scene) -> None:
    table = pq.read_table(scene.root / "results/cases/one/findings.parquet").to_pylist()
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        page = client.get(f"/api/cases/{case}/findings", params={"limit": 10, "offset": 5}).json()
        assert page["total"] == 40 and page["labels"] == ["tumour"]
        expected = sorted(range(40), key=lambda number: -table[number]["score"])[5:15]
        assert [finding["number"] for finding in page["findings"]] == expected
        assert page["findings"][0]["l0_x"] == table[expected[0]]["l0_x"]
        fields = client.get(f"/api/cases/{case}/gallery").json()
        assert [field["score"] for field in fields] == sorted((row["score"] for row in table), reverse=True)[
            :10
        ]
        points = read_points(
            client.get(
                f"/api/cases/{case}/finding-tile",
                params={"image": "slide", "level": 0, "column": 0, "row": 0},
            ).content
        )
    for number, x, y, score in zip(*points[:4], strict=True):
        assert (table[number]["l0_x"], table[number]["l0_y"]) == (x, y)
        assert table[number]["score"] == pytest.approx(score, abs=1e-7)
    assert sorted(points[0].tolist()) == list(range(40))


def test_counts_and_maxima_are_exact_at_every_level(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 12_000, 30_000), rng.integers(0, 8_000, 30_000)
    x[:9000], y[:9000] = rng.integers(0, 2000, 9000), rng.integers(0, 2000, 9000)
    scores = rng.random(30_000)
    findings = [Finding(int(a), int(b), float(s)) for a, b, s in zip(x, y, scores, strict=True)]
    results = begin(tmp_path, ["many"])
    write_case(results, "many", None, np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), findings)
    with client_of(results) as client:
        case = case_ids(client)["many"]
        meta = client.get(f"/api/cases/{case}/findings").json()["images"]["slide"]
        assert meta["count"] == 30_000 and meta["levels"] >= 2
        for level in range(meta["levels"]):
            side = meta["tile_side"] << level
            total, highest = 0, 0.0
            for row in range(-(-8_000 // side)):
                for column in range(-(-12_000 // side)):
                    params = {"image": "slide", "level": level, "column": column, "row": row}
                    data = client.get(f"/api/cases/{case}/finding-tile", params=params).content
                    if level == 0:
                        columns = read_points(data)
                        assert len(columns[0]) <= 8192
                        total += len(columns[0])
                        highest = max(highest, columns[3].max(initial=0))
                        continue
                    counts, maxima, bin_x, bin_y = read_bins(data)
                    total += int(counts.sum())
                    highest = max(highest, maxima.max(initial=0))
                    if counts.size:
                        step = side // 64
                        left, top = column * side + int(bin_x[0]) * step, row * side + int(bin_y[0]) * step
                        inside = (x // step == left // step) & (y // step == top // step)
                        assert counts[0] == inside.sum()
                        assert maxima[0] == pytest.approx(scores[inside].max(), abs=1e-7)
            assert total == 30_000
            assert highest == pytest.approx(scores.max(), abs=1e-7)


def test_the_gallery_of_a_map_without_findings_shows_its_highest_cells(tmp_path: Path) -> None:
    scores = np.full((64, 64), 0.1, np.float32)
    scores[9, 17], scores[50, 60], scores[51, 61] = 0.9, 0.8, 0.7
    results = begin(tmp_path, ["a"])
    write_case(results, "a", None, scores, np.full((64, 64), State.SCORED, np.uint8), [])
    with client_of(results) as client:
        fields = client.get(f"/api/cases/{case_ids(client)['a']}/gallery").json()
    assert [(field["x"], field["y"]) for field in fields[:2]] == [
        (17.5 * 16, 9.5 * 16),
        (60.5 * 16, 50.5 * 16),
    ]
    assert [field["score"] for field in fields[:2]] == pytest.approx([0.9, 0.8])
    assert len(fields) == 10


def test_events_name_the_chunks_that_a_running_scan_writes(tmp_path: Path) -> None:
    results = begin(tmp_path, ["live"])
    scores, states = np.full((64, 64), 0.5, np.float32), np.full((64, 64), State.SCORED, np.uint8)
    writer = write_case(results, "live", None, scores, states, [], finished=False)
    library = Library([Source("results", open_results(tmp_path / "results"))])
    watcher = Watcher(library)
    assert watcher.changes(True) == []
    cells = writer.info.chunk_cells((1, 0))
    writer.write_chunk((1, 0), np.stack([scores, scores])[:, *cells], states[cells])
    case = library.entries()[0].id
    assert watcher.changes(False) == [{"kind": "chunks", "case": case, "chunks": ["tumour/1/0"]}]
    assert watcher.changes(False) == []
    with client_of(results) as client:  # The tile has the new chunk, and the others are pending.
        tile, tile_states, *_ = map_tile(client, case_ids(client)["live"], 0, 0, 0)
        assert set(np.unique(tile_states[33:65, 1:33])) == {State.SCORED}
        assert set(np.unique(tile_states[1:33, 1:65])) == {State.PENDING}
        assert set(np.unique(tile[33:65, 1:33])) == {128}
    from lobule.files import write_json
    from lobule.results.preliminary import write_preliminary_scores

    folder = results.case_folder("live")
    write_preliminary_scores(folder, {"tumour": 0.75})
    assert watcher.changes(False) == [{"kind": "preliminary", "case": case, "scores": {"tumour": 0.75}}]
    assert watcher.changes(False) == []
    with client_of(results) as client:
        assert client.get("/api/cases").json()[0]["preliminary_scores"] == {"tumour": 0.75}
    write_json(folder.path / "result.json", result_of(results, "live", [], {}))
    assert watcher.changes(False) == [{"kind": "finished", "case": case}]


def test_tiles_of_a_running_scan_are_computed_once_per_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lobule.server import map_tiles, routes

    results = begin(tmp_path, ["live"])
    scores, states = np.full((64, 64), 0.5, np.float32), np.full((64, 64), State.SCORED, np.uint8)
    writer = write_case(results, "live", None, scores, states, [], finished=False)
    computed: list[int] = []

    def counted(*arguments) -> bytes:
        computed.append(1)
        return map_tiles.map_tile(*arguments)

    monkeypatch.setattr(routes, "map_tile", counted)
    with client_of(results) as client:
        case = case_ids(client)["live"]
        for number, chunk in enumerate([(0, 0), (1, 1), (0, 1)], start=1):
            cells = writer.info.chunk_cells(chunk)
            writer.write_chunk(chunk, np.stack([scores, scores])[:, *cells], states[cells])
            _, at_once, *_ = map_tile(client, case, 0, 0, 0)
            assert (at_once == State.SCORED).sum() == number * 32 * 32
            # Files that were written some time ago.
            for folder in (results.case_folder("live").map_path("tumour")).glob("*/c/**"):
                os.utime(folder, ns=(number * 10**9, number * 10**9))
            before = len(computed)
            tabs = [map_tile(client, case, 0, 0, 0)[1] for _ in range(12)]
            assert len(computed) == before + 1
            assert all(np.array_equal(tab, at_once) for tab in tabs)


@pytest.mark.parametrize("different", [1, 3, 1000])
def test_findings_with_equal_scores_keep_their_order(different: int) -> None:
    scores = np.random.default_rng(different).integers(0, different, 500) / different
    assert np.array_equal(finding_tiles._descending(scores), np.argsort(-scores, kind="stable"))


@pytest.mark.parametrize("extent", [200, 3000, 100_000, 1 << 25])
def test_the_tiling_is_the_coarsest_whose_tiles_are_small_enough(extent: int) -> None:
    x, y = np.random.default_rng(0).integers(0, extent, (2, 30_000))
    y[:10_000] //= 8
    side, levels = finding_tiles._choose_tiling(x, y)
    assert side << (levels - 1) > max(x.max(), y.max())

    def most(tile_side: int) -> int:
        return int(np.unique((y // tile_side) * (1 << 20) + x // tile_side, return_counts=True)[1].max())

    assert side == 256 or most(side) <= finding_tiles.MAX_FINDINGS_PER_TILE
    assert levels == 1 or most(2 * side) > finding_tiles.MAX_FINDINGS_PER_TILE


def test_counting_findings_does_not_sort_or_list_them(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        with_list = client.get(f"/api/cases/{case}/findings").json()
        counted = client.get(f"/api/cases/{case}/findings", params={"limit": 0}).json()
        for image in counted["images"].values():
            params = {"image": "slide", "level": image["levels"] - 1, "column": 0, "row": 0}
            top = client.get(f"/api/cases/{case}/finding-tile", params=params).content
            assert b64decode(image.pop("top")) == top
        assert counted == with_list | {"findings": []}
    monkeypatch.setattr(finding_tiles, "_descending", None)
    monkeypatch.setattr(finding_tiles, "LIST_FIELDS", None)
    loaded = finding_tiles.CaseFindings.read(scene.results.case_folder("one"))
    assert loaded.page(0, 0) == (len(scene.findings), [])
    assert len(loaded.images["slide"].tile(0, 0, 0)) > 8


def test_opening_findings_does_not_import_pandas(scene: Scene) -> None:
    folder = scene.results.case_folder("one").path
    lines = (
        "import sys; from lobule.results import open_results; from lobule.server import finding_tiles",
        f"folder = open_results({str(folder.parents[1])!r}).case_folder('one')",
        "print(len(finding_tiles.CaseFindings.read(folder).page(0, 10)[1]), 'pandas' in sys.modules)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10", "False"]


@pytest.mark.parametrize("names", [["image"], ["label", "image"], []])
def test_columns_are_read_in_batches_with_missing_texts(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding_columns, "BATCH_ROWS", 100)
    rng = np.random.default_rng(0)
    texts = {
        "label": [None if one % 7 == 0 else f"class {one % 300:03}" for one in range(1050)],
        "image": [("L-CC", "R-CC", None)[one] for one in rng.integers(0, 3, 1050)],
    }
    x, y = rng.integers(-5, 1 << 40, (2, 1050))
    scores = [None if one % 11 == 0 else float(one) for one in range(1050)]
    rows = {"l0_x": x, "l0_y": y, "score": scores} | {name: texts[name] for name in names}
    pq.write_table(pa.table(rows), tmp_path / "findings.parquet", row_group_size=333)
    columns = finding_columns.read_columns(tmp_path / "findings.parquet")
    assert np.array_equal(columns.l0_x, np.minimum(x, 2**31 - 1))
    assert np.array_equal(columns.l0_y, np.minimum(y, 2**31 - 1))
    assert np.array_equal(columns.score, np.array(scores, np.float32), equal_nan=True)
    labels = [one or "" for one in texts["label"]] if "label" in names else [""] * 1050
    images = [one or "slide" for one in texts["image"]] if "image" in names else ["slide"] * 1050
    coded_labels = sorted(set(labels))[:255]
    assert columns.labels == tuple(coded_labels)
    decoded = [coded_labels[code] for code in columns.label]
    assert decoded == [label if label in coded_labels else "" for label in labels]
    assert columns.images == tuple(sorted(set(images)))
    assert [columns.images[code] for code in columns.image] == images


def test_findings_without_positions_are_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"score": [0.5], "l0_x": ["left"]}), tmp_path / "findings.parquet")
    with pytest.raises(DamagedResults, match="the findings are damaged"):
        finding_columns.read_columns(tmp_path / "findings.parquet")
