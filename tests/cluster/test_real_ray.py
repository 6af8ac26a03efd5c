"""The commands on a real Ray of this machine: the bytes and numbers of the local commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from lobule.api import export
from lobule.testing.export import write_known_results
from tests.cluster.test_case_map import RAY, compare_evaluations, compare_features, files_of
from tests.cluster.test_ray import results_in
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import pixels_of, write_slide

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra 'ray')"),
    pytest.mark.filterwarnings("ignore"),
]


def test_an_export(tmp_path: Path) -> None:
    results = write_known_results(tmp_path / "known").path
    local = export(results, "qupath", tmp_path / "local")
    on_ray = export(results, "qupath", tmp_path / "ray", **RAY)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
    assert on_ray.to_dict() == local.to_dict()


def test_an_evaluation(tmp_path: Path) -> None:
    compare_evaluations(tmp_path)


def test_features(tmp_path: Path) -> None:
    compare_features(tmp_path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a cluster as its user does, with `ray start --head`, and yield its address."""
    address = f"127.0.0.1:{free_port()}"
    port = address.partition(":")[2]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false"]
    command += ["--disable-usage-stats", f"--object-store-memory={100 << 20}"]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    with (
        (folder / "ray.log").open("w") as log,
        subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            while "Ray runtime started" not in (folder / "ray.log").read_text():
                assert process.poll() is None, (folder / "ray.log").read_text()
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):  # Usually all processes of the cluster have ended.
                os.killpg(process.pid, signal.SIGKILL)


def lobule(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lobule", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_scan_by_the_command_on_a_running_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise Ray asks for a token if an earlier Ray of this user has stored one.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    slides = [write_slide(tmp_path / f"s{n}.tif", pixels_of(500, 400, n)) for n in range(4)]
    bundle = write_tiny_bundle(tmp_path / "bundle", mpp=1.0)
    options = ["--no-tissue", "--precision", "float32", "--runtime", "torch", "--slide-mpp", "1"]
    local = lobule("scan", bundle, *slides, "--out", tmp_path / "local", *options)
    assert local.returncode == 0, local.stderr
    like = next((tmp_path / "local").glob("runs/*/run.json"))
    with cluster(tmp_path) as address:
        ray = ["--runner", "ray", "--address", address, "--workers", "2"]
        on_ray = lobule("scan", bundle, *slides, "--out", tmp_path / "ray", "--like", like, *ray)
        assert on_ray.returncode == 0, on_ray.stderr
        again = lobule("scan", bundle, *slides, "--out", tmp_path / "ray", *options, *ray)
        assert again.returncode == 0, again.stderr
    assert results_in(tmp_path / "ray") == results_in(tmp_path / "local")
