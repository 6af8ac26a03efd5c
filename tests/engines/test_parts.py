"""The folder that a training goes on in: its own, and nobody else's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lobule.cohort import Cohort
from lobule.engines.parts import Parts, begun_training
from lobule.errors import ResultsError

NOBODY = Parts(Cohort(()), Cohort(()))


def begin(out: Path, *, resume: bool = False, fresh: bool = False) -> Path:
    with begun_training(out, {"seed": 0}, NOBODY, resume=resume, fresh=fresh) as folder:
        return folder


@pytest.mark.parametrize("fresh", [False, True])
def test_a_data_set_s_own_folder_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    slide = tmp_path / "CAMELYON16" / "training" / "normal" / "normal_001.tif"
    slide.parent.mkdir(parents=True)
    slide.write_bytes(b"a slide")
    with pytest.raises(ResultsError, match=r"normal.*no training of Lobule's"):
        begin(tmp_path / "CAMELYON16", fresh=fresh)
    assert slide.exists() and not (tmp_path / "CAMELYON16" / "training" / "settings.json").exists()


def test_a_training_that_was_killed_while_it_was_forgotten_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path)
    (folder / "round-0").mkdir()
    (folder / "z.csv").write_text("step\n")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        begin(tmp_path, fresh=True)
    begin(tmp_path, fresh=True)
    assert sorted(item.name for item in folder.iterdir()) == [".lock", "settings.json"]
