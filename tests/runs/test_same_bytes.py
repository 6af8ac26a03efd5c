"""Twenty scans of one slide in fresh folders, half of them while the machine is busy, give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import write_slide
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import tree
from tests.scanning.test_reproducible import write_resnet

RUNS = 10
"""Scans with each of the two bundles: twenty in all."""
BUSY_LOOP = "while True: pass"


def write_bundle(name: str, folder: Path) -> Path:
    return write_tiny_bundle(folder / name, mpp=0.5) if name == "dense" else write_resnet(folder / name)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["dense", "resnet"])
def test_the_same_command_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    phantom = SlidePhantom(seed=4, width=1536, height=1024, mpp=0.5, micro=1)
    write_slide(phantom, tmp_path / "slide.tif", threads=1)
    bundle = write_bundle(name, tmp_path)
    environment = {**os.environ, "LOBULE_CACHE": str(tmp_path / "cache")}
    results = []
    for run in range(RUNS):
        out = tmp_path / f"results-{run}"
        loops = os.cpu_count() or 1 if run % 2 else 0
        busy = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(loops)]
        try:
            command = [sys.executable, "-m", "lobule", "scan", str(bundle), "slide.tif", "--out", str(out)]
            subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        results.append(tree(out))
    assert any(path.startswith("cases/slide/maps/") for path in results[0])
    assert [result == results[0] for result in results] == [True] * RUNS
