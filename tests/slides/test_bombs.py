"""Small files that declare huge sizes are refused or read, within 10 s of processor time and 2 GiB."""

from __future__ import annotations

from pathlib import Path

from tests.slides.bombs import write_bombs
from tests.slides.trials import report, try_all


def test_bombs_end_well_and_spare_their_neighbours(tmp_path: Path) -> None:
    paths = write_bombs(tmp_path)
    assert all(path.stat().st_blocks * 512 < 8 << 20 for path in paths)
    trials = try_all(paths)
    print(report(trials))
    assert {str(trial.path): trial.failed for trial in trials if trial.failed} == {}
    assert {f"{trial.path.parent.name}/{trial.path.name}": trial.outcome for trial in trials} == {
        "bomb-sparse/a.tif": "read",
        "bomb-sparse-larger/a.tif": "read",
        "bomb-sparse-tables/a.tif": "TooLarge",
        "bomb-sub-ifds/a.tif": "TooLarge",
        "bomb-ome/a.ome.tif": "read",
        "bomb-dicom/bomb.dcm": "UnknownFormat",
        "bomb-dicom/slide_0.dcm": "read",
    }
