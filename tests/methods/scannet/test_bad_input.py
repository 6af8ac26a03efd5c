"""What a training does with slides, outlines and splits that are not as they should be: it says so."""

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
from lobule.methods.scannet import train
from lobule.training.fitting import FitProgress
from lobule.training.patch_sampling import NORMAL, TUMOUR, find_positions
from lobule.training.sampling import gather
from tests.methods.scannet.test_train import BRIEF, MACHINE, MPP, TISSUE, painted
from tests.scanning.support import write_slide

QUICK = replace(BRIEF, rounds=0, steps=4, evaluate_every=4)


def outlined(folder: Path, name: str, *rings: Any, split: str = "train") -> Case:
    """A tumour slide whose outlines are these."""
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
    """One slide of each kind to train on, and one of each to validate."""
    folder = tmp_path_factory.mktemp("sound")
    return (
        painted(folder, "t", (200, 200, 360), 1, "train"),
        painted(folder, "n", None, 2, "train"),
        painted(folder, "vt", (300, 150, 320), 3, "val"),
        painted(folder, "vn", None, 4, "val"),
    )


def trained(cases: tuple[Case, ...], out: Path, **more: Any) -> Bundle:
    return train(QUICK, Cohort(cases), out, tissue=TISSUE, machine=MACHINE, **more)


def test_outlines_beyond_the_slide_are_no_licence_to_call_it_normal(tmp_path: Path) -> None:
    """Were they passed over, the whole slide, tumour and all, would be drawn from as normal."""
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


def test_an_outline_that_crosses_itself_is_used_by_the_even_odd_rule_and_said(tmp_path: Path) -> None:
    bow = outlined(tmp_path, "bow", [(200, 200), (600, 600), (600, 200), (200, 600)])
    places, notes = find_positions(bow, TISSUE)
    assert "cross or touch themselves" in notes[0]
    points = np.array([places.draw(TUMOUR, np.random.default_rng(seed)) for seed in range(300)])
    beside = np.abs(points[:, 0] - 400) >= np.abs(points[:, 1] - 400)
    assert beside.all(), "the two triangles left and right of the crossing, and nothing else"
    assert {True, False} == set((points[:, 0] > 400).tolist())


def test_a_slide_of_glass_gives_nothing_and_is_said(tmp_path: Path) -> None:
    places, notes = find_positions(glass(tmp_path, "glass"), TISSUE)
    assert notes == ["no tissue was found"]
    assert places.count(NORMAL) == places.count(TUMOUR) == 0


def test_an_annotation_without_tumour_on_a_tumour_slide_is_left_out(tmp_path: Path) -> None:
    empty = painted(tmp_path, "empty", (200, 200, 300), 5, "train")
    write_annotation(tmp_path / "none.geojson", Annotation(()))
    empty = replace(empty, annotation=str(tmp_path / "none.geojson"))
    other = painted(tmp_path, "other", (200, 200, 300), 6, "train")
    pool = gather(Cohort((empty, other)), TISSUE)
    assert [places.case.id for places in pool.slides] == ["other"]
    assert "it outlines no tumour" in pool.notes[0]


def test_a_training_goes_on_without_what_it_cannot_use_and_says_so(
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
    for told in ("glass: no tissue", "away: left out", "bow: 1 polygons cross", "gone: left out"):
        assert told in notes, notes
    assert bundle.provenance["train_cases"] == ["t", "n", "glass", "bow"]
    assert bundle.metrics["val_auc"] is not None


@pytest.mark.parametrize("kind", ["tumour", "normal"])
def test_a_class_absent_from_validation_is_said_and_the_last_weights_kept(
    sound: tuple[Case, ...], tmp_path: Path, kind: str
) -> None:
    tumour, normal, with_tumour, without = sound
    # an exhaustively outlined slide has normal tissue, too; one that is not has none to give
    held = replace(with_tumour, attributes={"exhaustive": "false"}) if kind == "tumour" else without
    bundle = trained((tumour, normal, held), tmp_path / "b")
    assert any("lacks a class" in note for note in bundle.provenance["notes"])
    assert bundle.metrics["val_auc"] is None
    assert bundle.metrics["rounds"][0]["steps"] == QUICK.steps


def test_a_class_absent_from_training_is_refused(sound: tuple[Case, ...], tmp_path: Path) -> None:
    _, normal, *held = sound
    with pytest.raises(ConfigError, match="no slide has tumour to draw from"):
        trained((normal, *held), tmp_path / "b")


class Losing(FitProgress):
    """Takes a file away once the first round begins, when its places are known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "stage" and value == "round 0":
            self.path.unlink()


def test_a_slide_lost_during_the_training_is_given_up_and_recorded(
    sound: tuple[Case, ...], tmp_path: Path
) -> None:
    lost = painted(tmp_path, "lost", None, 7, "train")
    bundle = trained((*sound, lost), tmp_path / "b", progress=Losing(Path(str(lost.path))))
    assert set(bundle.provenance["lost"]) == {"lost"}
    assert "no such file" in bundle.provenance["lost"]["lost"]
    assert bundle.metrics["rounds"][0]["steps"] == QUICK.steps


def test_a_loss_that_is_not_a_number_ends_the_training_without_a_bundle(
    sound: tuple[Case, ...], tmp_path: Path
) -> None:
    wild = replace(QUICK, rate=1e30, steps=30, evaluate_every=30, weight_decay=1e4)
    with pytest.raises(ModelError, match=r"the loss is (nan|inf)"):
        train(wild, Cohort(sound), tmp_path / "b", val=None, tissue=TISSUE, machine=MACHINE)
    assert not (tmp_path / "b" / "model.json").exists()
