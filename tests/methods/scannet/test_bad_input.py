"""Training with unusable slides, outlines and splits leaves notes or raises errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.bundles import Bundle
from lobule.cohort import Case, Cohort
from lobule.errors import AnnotationError, ConfigError, ModelError
from lobule.methods.scannet.train import train
from lobule.training.fitting import FitProgress
from lobule.training.patch_pools import gather
from lobule.training.patch_sampling import NORMAL, TUMOUR, find_positions
from tests.methods.scannet.test_train import BRIEF, MACHINE, MPP, TISSUE, painted
from tests.scanning.support import write_slide

QUICK = replace(BRIEF, rounds=0, steps=4, evaluate_every=4)


def outlined(folder: Path, name: str, *rings: Any, split: str = "train") -> Case:
    """A tumour slide with the given outlines."""
    case = painted(folder, name, (200, 200, 300), sum(map(ord, name)), split)
    polygons = tuple(Polygon(np.array(ring, np.float64)) for ring in rings)
    write_annotation(folder / f"{name}-own.xml", Annotation(polygons))
    return replace(case, annotation=str(folder / f"{name}-own.xml"))


def square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def glass(folder: Path, name: str, split: str = "train") -> Case:
    path = write_slide(folder / f"{name}.tif", np.full((600, 800, 3), 244, np.uint8))
    return Case(name, f"patient {name}", "slide", str(path), mpp=MPP, split=split, label="normal")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    """One slide with tumour and one without, both for training and for validation."""
    folder = tmp_path_factory.mktemp("sound")
    return (
        painted(folder, "t", (200, 200, 360), 1, "train"),
        painted(folder, "n", None, 2, "train"),
        painted(folder, "vt", (300, 150, 320), 3, "val"),
        painted(folder, "vn", None, 4, "val"),
    )


def trained(cases: tuple[Case, ...], out: Path, **options: Any) -> Bundle:
    return train(QUICK, Cohort(cases), out, tissue=TISSUE, machine=MACHINE, **options)


def test_outlines_outside_the_slide_do_not_make_it_normal(tmp_path: Path) -> None:
    """If the outlines were ignored, the tumour would be sampled as normal tissue."""
    away = outlined(tmp_path, "away", square(5000, 5000, 400))
    with pytest.raises(AnnotationError, match="outside the slide"):
        find_positions(away, TISSUE)
    partly, notes = find_positions(
        outlined(tmp_path, "partly", square(5000, 5000, 400), square(300, 300, 200)), TISSUE
    )
    assert notes == ["1 of 2 outlines lie outside the slide"]
    assert partly.count(TUMOUR) > 0
    hanging, notes = find_positions(outlined(tmp_path, "hanging", square(900, 600, 600)), TISSUE)
    assert not notes
    points = np.array([hanging.draw(TUMOUR, np.random.default_rng(seed)) for seed in range(200)])
    assert (points >= (900, 600)).all()
    assert (points < (1100, 800)).all()


def test_self_intersecting_outlines_use_the_even_odd_rule_with_a_note(tmp_path: Path) -> None:
    bow = outlined(tmp_path, "bow", [(200, 200), (600, 600), (600, 200), (200, 600)])
    positions, notes = find_positions(bow, TISSUE)
    assert "cross or touch themselves" in notes[0]
    points = np.array([positions.draw(TUMOUR, np.random.default_rng(seed)) for seed in range(300)])
    beside = np.abs(points[:, 0] - 400) >= np.abs(points[:, 1] - 400)
    assert beside.all(), "all points are in the triangles left and right of the crossing"
    assert {True, False} == set((points[:, 0] > 400).tolist())


def test_a_blank_slide_yields_no_patches_and_a_note(tmp_path: Path) -> None:
    positions, notes = find_positions(glass(tmp_path, "glass"), TISSUE)
    assert notes == ["no tissue was found"]
    assert positions.count(NORMAL) == positions.count(TUMOUR) == 0


def test_a_tumour_slide_without_tumour_outlines_is_left_out(tmp_path: Path) -> None:
    empty = painted(tmp_path, "empty", (200, 200, 300), 5, "train")
    write_annotation(tmp_path / "none.geojson", Annotation(()))
    empty = replace(empty, annotation=str(tmp_path / "none.geojson"))
    other = painted(tmp_path, "other", (200, 200, 300), 6, "train")
    pool = gather(Cohort((empty, other)), TISSUE)
    assert [slide.case.id for slide in pool.slides] == ["other"]
    assert "contains no tumour outline" in pool.notes[0]


def test_training_continues_without_unusable_slides_and_notes_them(
    sound: tuple[Case, ...], tmp_path: Path
) -> None:
    bad = (
        glass(tmp_path, "glass"),
        outlined(tmp_path, "away", square(5000, 5000, 400)),
        outlined(tmp_path, "bow", [(200, 200), (600, 600), (600, 200), (200, 600)]),
        Case("gone", "patient gone", "slide", str(tmp_path / "gone.tif"), split="train", label="normal"),
    )
    bundle = trained((*sound, *bad), tmp_path / "b")
    notes = " ".join(bundle.provenance["notes"])
    for note in ("glass: no tissue", "away: left out", "bow: 1 polygons cross", "gone: left out"):
        assert note in notes, notes
    assert bundle.provenance["train_cases"] == ["t", "n", "glass", "bow"]
    assert bundle.metrics["val_auc"] is not None


@pytest.mark.parametrize("kind", ["tumour", "normal"])
def test_without_a_validation_class_the_last_weights_are_used_with_a_note(
    sound: tuple[Case, ...], tmp_path: Path, kind: str
) -> None:
    tumour, normal, with_tumour, without = sound
    # An exhaustively outlined slide also provides normal tissue; other outlined slides do not.
    validation = replace(with_tumour, attributes={"exhaustive": "false"}) if kind == "tumour" else without
    bundle = trained((tumour, normal, validation), tmp_path / "b")
    assert any("lacks a class" in note for note in bundle.provenance["notes"])
    assert bundle.metrics["val_auc"] is None
    assert bundle.metrics["rounds"][0]["steps"] == QUICK.steps


def test_training_without_one_class_is_rejected(sound: tuple[Case, ...], tmp_path: Path) -> None:
    _, normal, *validation = sound
    with pytest.raises(ConfigError, match="no slide has tumour to draw from"):
        trained((normal, *validation), tmp_path / "b")


class DeletingProgress(FitProgress):
    """Deletes a file when the first round starts, after its patch positions were chosen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "stage" and value == "round 0":
            self.path.unlink()


def test_a_slide_that_disappears_during_the_training_is_recorded(
    sound: tuple[Case, ...], tmp_path: Path
) -> None:
    deleted = painted(tmp_path, "lost", None, 7, "train")
    bundle = trained((*sound, deleted), tmp_path / "b", progress=DeletingProgress(Path(str(deleted.path))))
    assert set(bundle.provenance["lost"]) == {"lost"}
    assert "no such file" in bundle.provenance["lost"]["lost"]
    assert bundle.metrics["rounds"][0]["steps"] == QUICK.steps


def test_a_nan_loss_ends_the_training_without_a_bundle(sound: tuple[Case, ...], tmp_path: Path) -> None:
    wild = replace(QUICK, rate=1e30, steps=30, evaluate_every=30, weight_decay=1e4)
    with pytest.raises(ModelError, match=r"the loss became (nan|inf)"):
        train(wild, Cohort(sound), tmp_path / "b", val=None, tissue=TISSUE, machine=MACHINE)
    assert not (tmp_path / "b" / "model.json").exists()
