"""Python environments of programs that read our files and whose pins conflict with ours.

Each is created once with uv, and kept in the folder LOBULE_TEST_ENVIRONMENTS, by default in the user's cache.
Tests that need one are skipped where it cannot be created, such as without a package registry.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGES: dict[str, tuple[str, ...]] = {
    "ome-zarr": ("ome-zarr==0.16.0",),
    "ngff-zarr": ("ngff-zarr[validate]==0.50.0",),
    "spatialdata": (
        "spatialdata==0.7.3", "wsidata==0.12.0", "pytest", "scikit-image", "imagecodecs", "simplejpeg",
        "openslide-bin", "tifffile",
    ),
    "dsa": ("girder-large-image-annotation==1.35.6",),
    "dcmqi": ("dcmqi==1.5.7",),
}  # fmt: skip
"""The programs under test with exact versions; what they need follows from their own pins."""
LONGEST_SECONDS = 420


@cache
def interpreter(name: str) -> Path:
    """Return the Python of an environment; skip the test where it cannot be created."""
    problem = _created(name)
    if problem is not None:
        pytest.skip(problem)
    return _folder(name) / "bin" / "python"


def run_python(name: str, code: str, *arguments: object, timeout: float = 120) -> str:
    """Run code in an environment and return what it printed. A failure shows what it printed, too."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [interpreter(name), "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=timeout, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _folder(name: str) -> Path:
    top = os.environ.get("LOBULE_TEST_ENVIRONMENTS") or Path.home() / ".cache" / "lobule-test-environments"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(repr((version, PACKAGES[name])).encode()).hexdigest()[:12]
    return Path(top) / f"{name}-{digest}"


@cache
def _created(name: str) -> str | None:
    """Create an environment if it is missing. Return why it cannot be used, or None."""
    folder = _folder(name)
    complete = folder / "complete"
    if complete.exists():
        return None
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        return f"the environment of {name} needs uv"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be creating it
        if complete.exists():
            return None
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *PACKAGES[name]],
        ):
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS
                )
            except subprocess.TimeoutExpired:
                return f"the environment of {name} took more than {LONGEST_SECONDS} s"
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return f"the environment of {name} cannot be created: {last}"
        complete.touch()
    return None
