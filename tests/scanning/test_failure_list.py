"""The list of failed fields is on disk only while something failed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lobule.scanning.stores import _FailureList


def test_list_is_removed_when_a_retry_computed_everything(tmp_path: Path) -> None:
    path = tmp_path / "failed" / "map.json"
    path.parent.mkdir()
    path.write_text('{"0": "damaged", "2": "damaged"}')
    failures = _FailureList(path, None)  # type: ignore[arg-type]
    failures.keep(np.array([False, True, True]))
    failures.save()
    assert json.loads(path.read_text()) == {"2": "damaged"}
    failures.keep(np.array([False, True, False]))
    failures.save()
    assert not path.exists()
    failures.causes[1] = "damaged again"
    failures.save()
    assert json.loads(path.read_text()) == {"1": "damaged again"}
