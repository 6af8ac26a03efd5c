"""Commands complete their work even if a standard stream is closed or its reader exits."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lobule.results import open_results

SCAN = "{python} -m lobule scan BUNDLE {slides} --precision float32 --memory-layout channels-last --out {out}"
SCAN += " --max-ram 64MiB"  # gives small fields, which are fast


def shell(
    line: str, workspace: Path, out: Path, slides: str = "slide.tif"
) -> subprocess.CompletedProcess[str]:
    """Run a scan in bash; `line` follows the command, such as `2>&-`."""
    command = SCAN.format(python=shlex.quote(sys.executable), slides=slides, out=shlex.quote(str(out)))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {line}"], cwd=workspace, capture_output=True, text=True
    )


@pytest.mark.parametrize("line", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_scan_with_closed_streams_completes(workspace: Path, tmp_path: Path, line: str) -> None:
    done = shell(line, workspace, tmp_path / "r")
    assert (done.returncode, done.stderr) == (0, "")
    assert open_results(tmp_path / "r").counts()["complete"] == 1
    assert ("1 complete" in done.stdout) == (line == "2>&-")


@pytest.mark.parametrize("reader", ["| true", "--json | head -1"])
def test_closed_output_pipe_does_not_stop_a_scan(workspace: Path, tmp_path: Path, reader: str) -> None:
    done = shell(reader, workspace, tmp_path / "r")
    assert (done.returncode, done.stderr) == (0, "")
    assert open_results(tmp_path / "r").counts()["complete"] == 1


def test_failed_cases_are_status_1_also_without_streams(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    slides = f"slide.tif {shlex.quote(str(tmp_path / 'broken.tif'))}"
    done = shell(">&- 2>&-", workspace, tmp_path / "r", slides)
    assert (done.returncode, done.stderr) == (1, "")
    counts = open_results(tmp_path / "r").counts()
    assert (counts["complete"], counts["failed"]) == (1, 1)


def test_wrong_use_is_status_2_also_without_streams(workspace: Path, tmp_path: Path) -> None:
    assert shell("--shard 3/2 >&- 2>&-", workspace, tmp_path / "r").returncode == 2
    assert not (tmp_path / "r").exists()
