"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "lobule", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lobule")


def pytest_configure(config: pytest.Config) -> None:
    """Scans of tests, and of the commands that they start, leave the user's cache folder alone.

    They also compute with torch unless they request another runtime: measuring both would take seconds each.
    """
    os.environ["LOBULE_CACHE"] = tempfile.mkdtemp(prefix="lobule-tests-cache-")
    os.environ["LOBULE_RUNTIME"] = "torch"


def pytest_collection_finish() -> None:
    """Ignore the objects of the libraries and of the collected tests when garbage is collected.

    There are millions of them, and every scan and training collects garbage at its end.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()
    shutil.rmtree(os.environ.pop("LOBULE_CACHE", ""), ignore_errors=True)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference numbers and real images; its absence skips the test."""
    folder = os.environ.get("LOBULE_REFERENCE")
    if not folder:
        pytest.skip("LOBULE_REFERENCE is not set: reference numbers and real images are not here")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"LOBULE_REFERENCE={folder} is not a folder")
    return path


@pytest.fixture(scope="session")
def goldens(reference: Path) -> Path:
    return reference / "goldens"


@pytest.fixture(scope="session")
def kit(reference: Path) -> Path:
    return reference / "kit"
