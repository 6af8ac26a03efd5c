"""What holds for the training of every method: resuming, refusing, and the patients that a bundle records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lobule.bundles import Bundle, patient_hash
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, ResultsError
from lobule.methods import chowder, four_view, rakhlin, reverse_distillation, scannet
from lobule.training.machine import TrainMachine
from tests.methods.chowder import support as features
from tests.methods.four_view import made_exams
from tests.methods.four_view import test_train as four_view_tests
from tests.methods.four_view.configs import changed
from tests.methods.rakhlin import support as images
from tests.methods.reverse_distillation import support as slides
from tests.methods.scannet import test_train as scannet_tests
from tests.training.interrupting import InterruptingProgress

MACHINE = TrainMachine(device="cpu", precision="float32", workers=2)


@dataclass(frozen=True)
class Example:
    """A short training of one method."""

    train: Callable[..., Bundle]
    config: Any
    other_config: Any
    """The same settings, except for one."""
    difference: str
    """The setting with its value in both configs, as a message states it."""
    cohort: Cohort
    stops: tuple[tuple[str, int | None], ...]
    """Stages, by the beginning of their names, and steps at which the training is interrupted in turn."""
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, out: Path, **options: Any) -> Bundle:
        return self.train(**{"config": self.config, "cohort": self.cohort, "out": out, "machine": MACHINE,
                             "seed": 4, **self.options, **options})  # fmt: skip


def scannet_example(folder: Path) -> Example:
    paint = scannet_tests.painted
    cohort = Cohort((
        paint(folder, "a", (200, 200, 360), 1, "train"),
        paint(folder, "c", None, 3, "train", alike=(400, 250, 260)),
        paint(folder, "d", (300, 150, 320), 4, "val"),
    ))  # fmt: skip
    config = scannet_tests.BRIEF
    return Example(
        scannet.METHOD.trainer(), config, replace(config, rate=0.5), "rate 0.03, now 0.5", cohort,
        (("round 0", 5), ("round 1", 1)), {"tissue": scannet_tests.TISSUE},
    )  # fmt: skip


def reverse_distillation_example(folder: Path) -> Example:
    cohort = Cohort((
        slides.painted(folder, "a", (200, 200, 300), 1, "train"),
        slides.painted(folder, "c", None, 3, "train"),
        slides.painted(folder, "d", (300, 150, 280), 4, "val"),
        slides.painted(folder, "e", None, 5, "val"),
    ))  # fmt: skip
    config = replace(slides.CONFIG, epochs=3, form="shared")
    return Example(
        reverse_distillation.METHOD.trainer(), config, replace(config, rate=0.5), "rate 0.005, now 0.5",
        cohort,
        (("round 0", 7),), {"tissue": slides.TISSUE},
    )  # fmt: skip


def chowder_example(folder: Path) -> Example:
    cohort, stored = features.make_cohort(folder, 20)
    config = chowder.Config(
        model="modern", members=2, epochs=1, rate=5e-3, standardise=True, folds=2, features=str(stored)
    )
    return Example(
        chowder.METHOD.trainer(), config, replace(config, rate=1.0), "rate 0.005, now 1.0", cohort,
        (("fold 2", None), ("member 2", None)),
    )  # fmt: skip


def rakhlin_example(folder: Path) -> Example:
    config = images.CONFIG
    other = replace(config, boosting=replace(config.boosting, rounds=7))
    return Example(
        rakhlin.METHOD.trainer(), config, other, "boosting.rounds 6", images.cohort_in(folder),
        (("squeezenet1_1@features.3: 5 of", None), ("boosting squeezenet1_1_features_3-60", None)),
    )  # fmt: skip


def four_view_example(folder: Path) -> Example:
    exams = made_exams.cohort(folder, train=16, val=8, test=8)
    cohort = exams.where(lambda case: int(case.id[1:]) % 100 in (3, 6, 8, 13) and case.split != "test")
    config = changed(four_view_tests.BRIEF, heatmaps=True)
    return Example(
        four_view.METHOD.trainer(), config, changed(config, rate=0.5), "rate 0.005, now 0.5", cohort,
        (("patches", 3), ("BI-RADS", 3), ("breasts", 1)),
    )  # fmt: skip


EXAMPLES = {
    "scannet": scannet_example,
    "reverse_distillation": reverse_distillation_example,
    "chowder": chowder_example,
    "rakhlin": rakhlin_example,
    "four_view": four_view_example,
}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    return EXAMPLES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def uninterrupted(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return example.run(tmp_path_factory.mktemp("uninterrupted") / "bundle")


def test_an_interrupted_training_ends_with_the_same_bytes(
    example: Example, uninterrupted: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for stage, step in example.stops:
        with pytest.raises(KeyboardInterrupt):
            example.run(out, resume=True, progress=InterruptingProgress(stage, step))
        assert not (out / "model.json").exists()
    with pytest.raises(ResultsError, match="a training has begun here"):
        example.run(out, resume=False)
    with pytest.raises(ResultsError, match="another config") as refused:
        example.run(out, config=example.other_config, resume=True)
    assert example.difference in str(refused.value)
    resumed = example.run(out, resume=True, machine=replace(MACHINE, workers=1))
    assert resumed.files == uninterrupted.files
    assert uninterrupted.path is not None
    names = [path.relative_to(out) for path in out.rglob("*") if path.name in ("model.json", "log.csv")]
    assert Path("model.json") in names
    for name in names:
        assert (out / name).read_bytes() == (uninterrupted.path / name).read_bytes(), name


def test_a_fresh_training_replaces_an_earlier_one(example: Example, tmp_path: Path) -> None:
    stage, step = example.stops[0]
    with pytest.raises(KeyboardInterrupt):
        example.run(tmp_path, config=example.other_config, progress=InterruptingProgress(stage, step))
    with pytest.raises(KeyboardInterrupt):
        example.run(tmp_path, fresh=True, progress=InterruptingProgress(stage, step))
    with pytest.raises(KeyboardInterrupt):
        example.run(tmp_path, resume=True, progress=InterruptingProgress(*example.stops[-1]))


def test_a_refused_training_leaves_nothing(example: Example, tmp_path: Path) -> None:
    kind: Any = "image" if example.train is four_view.METHOD.trainer() else "exam"
    other_kind = Cohort((Case("x", "x", kind, path="/x.png", label="normal"),))
    with pytest.raises(ConfigError, match="learns from cases of kind"):
        example.run(tmp_path / "kind", cohort=other_kind)
    nobody = Cohort(tuple(replace(case, split="test") for case in example.cohort))
    with pytest.raises(ConfigError, match="no case is in the split 'train'"):
        example.run(tmp_path / "split", cohort=nobody)
    with pytest.raises(ConfigError, match="unknown precision"):
        example.run(tmp_path / "machine", machine=replace(MACHINE, precision="float7"))
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_records_the_patients_that_influenced_it(example: Example, uninterrupted: Bundle) -> None:
    """Validation patients count: weights, thresholds or calibrations were chosen on them."""
    provenance, cohort = uninterrupted.provenance, example.cohort
    val_cases = provenance["val_cases"]
    if cohort.split("val"):
        assert val_cases == [case.id for case in cohort.split("val")]
    else:
        assert bool(val_cases) == (example.train is not rakhlin.METHOD.trainer()), (
            "rakhlin validates by its folds"
        )
    used = [*provenance["train_cases"], *val_cases]
    assert len(used) == len(set(used)) >= 3
    assert set(uninterrupted.patients) == {patient_hash(cohort[name].patient) for name in used}
    assert provenance["seed"] == 4
    assert provenance["lost"] == {}
    assert provenance["notes"] is not None
