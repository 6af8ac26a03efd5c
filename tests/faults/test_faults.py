"""Full disks, locks, signals: each leaves results that `info` describes and that a rerun completes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lobule.errors import ResultsError
from lobule.results import describe, open_results
from lobule.results.locks import lock_folder
from lobule.results.maps import MapWriter
from lobule.scanning.scan import scan
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    cohort_of,
    mean_map,
    pixels_of,
    write_slide,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "one.tif", pixels_of(700, 451))


def test_a_full_disk_ends_the_scan_and_a_rerun_completes_it(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = MapWriter.write_chunk

    def until_full(self: MapWriter, *arguments: object) -> None:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MapWriter, "write_chunk", until_full)
    with pytest.raises(ResultsError, match="no space is left"):
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    data, text = describe(tmp_path / "r")
    assert data["counts"] == {"unfinished": 1} and "pending" in text
    scored = data["cases"][0]["maps"]["mean"]["scored"]
    assert 0 < scored < 29 * 44
    monkeypatch.setattr(MapWriter, "write_chunk", real)
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    reader = open_results(tmp_path / "r").case_folder("one").maps["mean"]
    np.testing.assert_allclose(reader.scores(), mean_map(pixels_of(700, 451)), atol=1e-5)


def test_second_scan_of_the_same_folder_is_refused(slide: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path / "r"), pytest.raises(ResultsError, match="is writing here"):
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)


def test_shards_share_a_folder_and_exclude_a_full_scan(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "r"):
        pass
    with lock_folder(tmp_path / "r", (1, 2)), lock_folder(tmp_path / "r", (2, 2)):
        with pytest.raises(ResultsError, match="another scan is writing"), lock_folder(tmp_path / "r"):
            pass  # Several processes have the lock, so the message names none of them, and no earlier one.
        with pytest.raises(ResultsError, match="is writing here"), lock_folder(tmp_path / "r"):
            pass
        with pytest.raises(ResultsError, match="is writing here"), lock_folder(tmp_path / "r", (2, 2)):
            pass
        with (
            pytest.raises(ResultsError, match=r"different number of shards.*Expected 2 shards of the cohort"),
            lock_folder(tmp_path / "r", (3, 3)),
        ):
            pass
    with lock_folder(tmp_path / "r", (3, 3)):
        pass


def test_unwritable_folder_is_reported(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="file"):
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "file" / "r", EVERYWHERE, SMALL)


def test_read_only_file_system_is_reported(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResultsError, match="read-only"):
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)


def test_a_damaged_chunk_is_an_error_that_names_it(slide: Path, tmp_path: Path) -> None:
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, SMALL)
    reader = open_results(tmp_path / "r").case_folder("one").maps["mean"]
    chunk = next(path for path in (reader.path / "score" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:7])
    with pytest.raises(ResultsError, match="damaged"):
        reader.scores()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_and_a_rerun_completes_it(sent: signal.Signals, tmp_path: Path) -> None:
    from tests.methods.scannet.support import write_tiny_bundle

    pixels = pixels_of(3000, 2400)
    slide = write_slide(tmp_path / "one.tif", pixels, resolution=(10000, 10000))
    bundle = write_tiny_bundle(tmp_path / "bundle", mpp=1.0)
    out = tmp_path / "r"
    command = [sys.executable, "-m", "lobule", "scan", str(bundle), str(slide), "--out", str(out)]
    command += ["--no-tissue", "--precision", "float32", "--max-ram", "300MB"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )  # fmt: skip
    while not list(out.glob("cases/*/maps/*/state/c/*/*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "Interrupted" in errors
    data, _ = describe(out)
    assert sum(data["counts"].values()) == 1
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert describe(out)[0]["counts"] == {"complete": 1}


def test_a_file_system_without_locks_is_not_reported_as_another_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResultsError, match=r"cannot lock files \(No locks"), lock_folder(tmp_path / "r"):
        pass
