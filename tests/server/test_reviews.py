"""Reviews: appended, undone, never lost, and refused where they make no sense."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from lobule.errors import ConfigError, ResultsError
from lobule.reviews import Review, append_review, in_force, read_reviews, review_path
from tests.server.support import Scene, build_scene, case_ids, client_of

WRITING = {"x-lobule": "1", "origin": "http://localhost"}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return build_scene(tmp_path)


def test_entries_are_appended_and_undo_takes_the_last_back(scene: Scene) -> None:
    before = {path: path.read_bytes() for path in (scene.root / "results").rglob("*") if path.is_file()}
    with client_of(scene.results) as client:
        url = f"/api/cases/{case_ids(client)['one']}/reviews"

        def send(**body: object) -> list[dict[str, object]]:
            answer = client.post(url, json={"person": "Dr Who", **body}, headers=WRITING)
            assert answer.status_code == 200, answer.text
            entries = answer.json()["Dr Who"]
            return [
                {name: value for name, value in entry.items() if name not in ("time", "image", "position")}
                for entry in entries
            ]

        send(action="accept", finding=3)
        assert send(action="relabel", finding=3, label="micro")[-1] == {
            "action": "relabel",
            "finding": 3,
            "label": "micro",
        }
        assert send(action="undo") == [{"action": "accept", "finding": 3}]
        outline = send(action="draw", polygon=[[1, 2], [30, 2], [30, 40]])[-1]
        assert outline["polygon"] == [[1, 2], [30, 2], [30, 40]]
        assert client.get(url).json()["Dr Who"][0]["action"] == "accept"
        (row,) = client.get("/api/reviews").json()
    lines = review_path(scene.root / "results", "one", "Dr Who").read_text().splitlines()
    assert row | {"id": ""} == {
        "case": "one", "id": "", "person": "Dr Who", "accept": 1, "reject": 0, "relabel": 0, "note": 0, "draw": 1,
        "last": json.loads(lines[-1])["time"],
    }  # fmt: skip
    finding = scene.findings[3]
    assert json.loads(lines[0])["position"] == [finding.l0_x, finding.l0_y]
    assert [json.loads(line)["action"] for line in lines] == ["accept", "relabel", "undo", "draw"]
    assert all(path.read_bytes() == data for path, data in before.items())  # The model's output is unchanged.


@pytest.mark.parametrize(
    "body",
    [
        {"action": "accept"},
        {"action": "accept", "finding": 40},
        {"action": "accept", "finding": -1},
        {"action": "delete", "finding": 1},
        {"action": "relabel", "finding": 1},
        {"action": "note", "text": "  "},
        {"action": "note", "text": "x" * 5000},
        {"action": "draw", "polygon": [[1, 2], [3, 4]]},
        {"action": "draw", "polygon": [["a", 2], [3, 4], [5, 6]]},
        {"action": "note", "text": "x", "person": "../../evil"},
        {"action": "note", "text": "x", "person": ""},
        {"action": "note", "text": "x", "person": ".."},
        {"action": "note", "text": "x", "person": " x"},
        {"action": "note", "text": "x", "person": "x" * 65},
    ],
)
def test_invalid_entries_are_refused(scene: Scene, body: dict[str, object]) -> None:
    with client_of(scene.results) as client:
        url = f"/api/cases/{case_ids(client)['one']}/reviews"
        assert client.post(url, json={"person": "a", **body}, headers=WRITING).status_code == 422
    assert not (scene.root / "results/reviews").exists()


def test_a_full_disk_leaves_the_file_as_it_was(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    results = scene.root / "results"
    append_review(results, "one", "ann", Review("note", text="first"))
    path = review_path(results, "one", "ann")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsError):
        append_review(results, "one", "ann", Review("note", text="second"))
    assert path.read_bytes() == before
    with client_of(scene.results) as client:
        url = f"/api/cases/{case_ids(client)['one']}/reviews"
        answer = client.post(url, json={"person": "ann", "action": "note", "text": "third"}, headers=WRITING)
        assert answer.status_code == 409 and "error" in answer.json()
    monkeypatch.undo()
    append_review(results, "one", "ann", Review("note", text="fourth"))
    assert [entry.text for entry in read_reviews(results, "one")["ann"]] == ["first", "fourth"]


def test_a_cut_off_line_loses_only_itself(scene: Scene) -> None:
    results = scene.root / "results"
    append_review(results, "one", "ann", Review("note", text="first"))
    with review_path(results, "one", "ann").open("ab") as file:
        file.write(b'{"action": "no')
    append_review(results, "one", "ann", Review("accept", finding=2))
    assert [entry.action for entry in read_reviews(results, "one")["ann"]] == ["note", "accept"]


def test_undo_without_entries_does_nothing() -> None:
    entries = [Review("undo"), Review("accept", finding=1), Review("undo"), Review("reject", finding=2)]
    assert [entry.finding for entry in in_force(entries)] == [2]


def test_names_become_safe_file_names(tmp_path: Path) -> None:
    path = review_path(tmp_path, "a/b", "Zoë 1")
    assert path.parent.parent == tmp_path / "reviews" and path.suffix == ".jsonl"
    with pytest.raises(ConfigError, match="name of the reviewer"):
        review_path(tmp_path, "a", "../x")
