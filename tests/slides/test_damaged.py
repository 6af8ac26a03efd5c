"""Damaged files must be read or raise a typed error, within limits of time and memory, without a crash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.slides.damaged import bits_flipped, cut_short, make_damaged, overwritten
from tests.slides.trials import Trial, report, try_all


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    trials = try_all(make_damaged(tmp_path_factory.mktemp("damaged")))
    print(report(trials))
    return trials


def test_every_damaged_file_is_handled(trials: list[Trial]) -> None:
    assert len(trials) >= 600
    failures = {str(trial.path): trial.failed for trial in trials if trial.failed}
    assert not failures


def test_damage_is_noticed(trials: list[Trial]) -> None:
    """The suite would prove nothing if all files could be read: half of them must be unusable."""
    outcomes = Counter(trial.outcome for trial in trials)
    assert outcomes["read"] < len(trials) / 4
    assert outcomes["partly read"] > 100
    assert outcomes["DamagedFile"] > 200
    assert outcomes["TooLarge"] > 20


def test_truncated_file_is_never_read_completely(trials: list[Trial]) -> None:
    """The exception is an OME-TIFF that lost only the directory of a smaller level."""
    cut = [trial for trial in trials if trial.path.parent.name.startswith("cut-")]
    read_completely = [trial.path.name for trial in cut if trial.outcome == "read"]
    assert len(cut) > 100 and set(read_completely) <= {"sub.ome.tif"}


@pytest.mark.campaign
def test_damaged_real_files(kit: Path, tmp_path: Path) -> None:
    """Real files: cut, flipped and overwritten."""
    paths = []
    for source in sorted((kit / "slides").rglob("*")):
        if source.suffix not in (".svs", ".tif", ".tiff", ".dcm"):
            continue
        data = source.read_bytes()
        damages = [d for damage in (cut_short, bits_flipped, overwritten) for d in damage(data, source.name)]
        for kind, damaged in damages[::4] if len(data) > 1_000_000 else damages:
            path = tmp_path / f"{kind}-{source.stem}" / source.name
            path.parent.mkdir()
            path.write_bytes(damaged)
            paths.append(path)
    trials = try_all(paths)
    print(report(trials))
    assert not {str(trial.path): trial.failed for trial in trials if trial.failed}
