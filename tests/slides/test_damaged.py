"""Damaged files: every one must end in success or in a typed error, in time, in memory, without a crash."""

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


def test_every_damaged_file_ends_well(trials: list[Trial]) -> None:
    assert len(trials) >= 600
    failures = {str(trial.path): trial.failed for trial in trials if trial.failed}
    assert not failures


def test_damage_is_noticed(trials: list[Trial]) -> None:
    """A suite whose files all read would show nothing: half of them cannot be used at all."""
    outcomes = Counter(trial.outcome for trial in trials)
    assert outcomes["read"] < len(trials) / 4
    assert outcomes["partly read"] > 100
    assert outcomes["DamagedFile"] > 200
    assert outcomes["TooLarge"] > 20


def test_a_cut_file_never_reads_whole(trials: list[Trial]) -> None:
    """But for an OME-TIFF whose directory of a smaller level is cut away: level 0 is whole."""
    cut = [trial for trial in trials if trial.path.parent.name.startswith("cut-")]
    whole = [trial.path.name for trial in cut if trial.outcome == "read"]
    assert len(cut) > 100 and set(whole) <= {"sub.ome.tif"}


@pytest.mark.campaign
def test_the_kit_damaged(kit: Path, tmp_path: Path) -> None:
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
