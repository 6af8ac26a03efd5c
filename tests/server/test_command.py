"""`lobule view`: what it prints, what it serves, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import lobule.server.app
from lobule.cli import COMMANDS
from lobule.cli.base import CommandOutput, LazyGroup, run
from lobule.cli.view import open_library
from lobule.cohort import Case, Cohort
from lobule.cohort.manifest import write_cohort
from lobule.server import details
from lobule.server.app import STATIC, ServerOptions, create_app
from lobule.server.library import Entry, Library
from tests.server.support import PATIENT, build_scene


def command(*arguments: str) -> int:
    return run(LazyGroup("lobule", COMMANDS, help="", version=False), list(arguments))


def view(*arguments: str) -> int:
    return command("view", *arguments)


def test_without_a_build_the_command_that_makes_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lobule.server.app, "is_built", lambda: False)
    assert view(str(tmp_path)) == 2
    assert "make viewer" in capsys.readouterr().err


def test_wrong_paths_and_ports_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lobule.server.app, "is_built", lambda: True)
    assert view(str(tmp_path / "nothing")) == 2
    assert "no such file" in capsys.readouterr().err
    scene = build_scene(tmp_path)
    assert view(str(scene.results.path), "--slides", str(scene.slide)) == 2
    assert "not a folder" in capsys.readouterr().err
    assert view(str(scene.results.path), "--host", "192.0.2.1") == 2  # No machine has this address.
    assert "cannot listen" in capsys.readouterr().err
    assert view(str(scene.results.path), "--port", "70000") == 2
    assert "cannot listen on port 70000" in capsys.readouterr().err


@pytest.mark.parametrize("several", [False, True], ids=["one result", "several results"])
def test_the_demo_ends_with_the_viewer_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], several: bool
) -> None:
    scene = build_scene(tmp_path)
    manifest = tmp_path / "cohort.csv"
    write_cohort(Cohort((Case("one", "p", "slide", path=str(scene.slide), label="tumour"),)), manifest)
    path = str(scene.results.path)
    results = {"first": path, "second": path} if several else path
    output = CommandOutput({"results": results, "cohort": str(manifest)}, "The demo has ended.")
    served: list[list[dict[str, Any]]] = []
    opened: list[str] = []

    def serve(app, listening, server) -> None:
        with TestClient(app, base_url="http://localhost") as client:
            served.append(client.get("/api/cases").json())

    monkeypatch.setattr(lobule.server.app, "is_built", lambda: True)
    monkeypatch.setattr("lobule.cli.demo_exams.demo_exams", lambda *settings: output)
    monkeypatch.setattr("lobule.server.serving.serve", serve)
    monkeypatch.setattr("click.launch", opened.append)
    assert command("demo", "exams", "--out", str(tmp_path / "demo")) == 0
    assert served == opened == []
    assert command("demo", "exams", "--view", "--out", str(tmp_path / "demo")) == 0
    printed = capsys.readouterr()
    assert printed.out.count("The demo has ended.") == 2
    assert opened[0] in printed.err
    rows = [(row["name"], row["source"], row.get("label")) for row in served[0]]
    expected = [("one", 0, "tumour"), ("two", 0, None)]
    assert rows == expected + ([(name, 1, label) for name, _, label in expected] if several else [])


def test_the_demo_names_the_missing_build_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lobule.server.app, "is_built", lambda: False)
    assert command("demo", "--view", "--out", str(tmp_path / "demo")) == 2
    assert "make viewer" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_slides_and_results_are_opened_together(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    library = open_library([str(scene.results.path), str(scene.slide)], None, None)
    assert [(entry.name, entry.source) for entry in library.entries()] == [
        ("one", 0),
        ("two", 0),
        ("slide one", 1),
    ]
    assert library.images(library.entries()[2])["slide"].path == str(scene.slide)


@pytest.mark.skipif(
    not (STATIC / "index.html").is_file(), reason="the pages are not built: run `make viewer`"
)
def test_the_results_of_the_list_are_read_once_and_before_it_is_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = open_library([str(build_scene(tmp_path).results.path)], None, None)
    names_read: list[str] = []
    summary = details.summary

    def count(library: Library, entry: Entry, options: ServerOptions) -> dict[str, Any]:
        names_read.append(entry.name)
        return summary(library, entry, options)

    monkeypatch.setattr(details, "summary", count)
    with TestClient(create_app(library), base_url="http://localhost") as client:
        deadline = time.monotonic() + 60
        while len(names_read) < len(library.entries()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert names_read == [entry.name for entry in library.entries()]
        assert [row["name"] for row in client.get("/api/cases").json()] == names_read[:2]
    assert names_read.count("one") == 1


def test_another_address_needs_the_printed_token(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    command = [
        sys.executable,
        "-m",
        "lobule",
        "view",
        str(scene.results.path),
        "--host",
        "127.0.0.2",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            match = re.search(r"2 cases at (http://127\.0\.0\.2:[0-9]+/)\?token=([\w-]{32})", line)
            assert match is not None, line
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(match[1] + "api/cases", timeout=60)
            assert refused.value.code == 401
            refused.value.close()
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with opener.open(f"{match[1]}?token={match[2]}", timeout=60) as page:
                assert b"<title>Lobule</title>" in page.read()
            with opener.open(match[1] + "api/cases", timeout=60) as answer:
                text = answer.read().decode()
            assert [row["name"] for row in json.loads(text)] == ["one", "two"]
            assert PATIENT not in text
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read() if process.stderr else ""
            process.wait()
    assert match[2] not in rest  # The token is printed once, at the start.


@pytest.mark.skipif(
    not (STATIC / "index.html").is_file(), reason="the pages are not built: run `make viewer`"
)
def test_granian_serves_the_same_answers(tmp_path: Path) -> None:
    pytest.importorskip("granian", reason="granian is not installed")
    scene = build_scene(tmp_path)
    options = ["--port", "0", "--server", "granian"]
    command = [sys.executable, "-m", "lobule", "view", str(scene.results.path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as process:
        try:
            assert process.stderr is not None
            match = re.search(r"2 cases at (http://127\.0\.0\.1:[0-9]+/)", process.stderr.readline())
            assert match is not None
            with _opened(match[1] + "api/cases") as answer:
                case = json.loads(answer.read())[0]["id"]
            with _opened(f"{match[1]}tiles/{case}/0/0/0.jpg") as answer:
                assert answer.read() == _stored_tile(scene.slide)
            with _opened(match[1] + "api/events") as answer:
                assert answer.readline() == b"retry: 1000\n"
            wrong = urllib.request.Request(match[1] + "api/cases", headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(wrong, timeout=60)
            assert refused.value.code == 421
            refused.value.close()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
    assert process.returncode == 0


def _opened(url: str) -> Any:
    """Open a URL of a server that may need a moment to start."""
    for _ in range(200):
        try:
            return urllib.request.urlopen(url, timeout=60)
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no answer from {url}")


def _stored_tile(slide: Path) -> bytes | None:
    with TestClient(
        create_app(open_library([str(slide)], None, None)), base_url="http://localhost"
    ) as client:
        case = client.get("/api/cases").json()[0]["id"]
        return client.get(f"/tiles/{case}/0/0/0.jpg").content
