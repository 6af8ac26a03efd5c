"""Training ScanNet on painted slides: accuracy, resuming and hard-negative mining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.bundles import Bundle, patient_hash
from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, ModelError
from lobule.methods.scannet import Config, DensePredictor, load
from lobule.methods.scannet.mining import _spaced_cells, hard_negatives, merge_points
from lobule.methods.scannet.train import train
from lobule.nets.backbones import BACKBONES
from lobule.nets.scaling import PLAIN_SCALING
from lobule.results.folder import open_results
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from lobule.tissue import TissueConfig
from lobule.training.machine import TrainMachine
from lobule.training.patch_sampling import NORMAL, find_positions
from tests.scanning.support import write_slide

MPP = 0.5
WIDTH, HEIGHT, MARGIN = 1100, 800, 60
CONFIG = Config(
    trunk="tiny", weights="random", mpp=MPP, steps=24, batch=8, rate=0.03, evaluate_every=12, val_patches=24,
    rounds=1, round_steps=6, trunk_rate=0.003, hard_cap=5, schedule="constant",
)  # fmt: skip
BRIEF = replace(CONFIG, steps=6, evaluate_every=3, val_patches=4, batch=4, round_steps=3)
MACHINE = TrainMachine(device="cpu", precision="float32", workers=2)
TISSUE = TissueConfig(mpp=8.0)
TUMOUR_COLOUR, LOOKALIKE = (120, 60, 150), (150, 70, 120)


def painted(
    folder: Path, name: str, tumour: tuple[int, int, int] | None, seed: int, split: str, alike: Any = None
) -> Case:
    """A slide with pink tissue, optionally with a square (x, y, side) of tumour and a lookalike."""
    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 244.0)
    pixels[MARGIN:-MARGIN, MARGIN:-MARGIN] = (205, 140, 190)
    for square, colour in ((tumour, TUMOUR_COLOUR), (alike, LOOKALIKE)):
        if square is not None:
            x, y, side = square
            pixels[y : y + side, x : x + side] = colour
    pixels[MARGIN:-MARGIN, MARGIN:-MARGIN] += rng.normal(0, 12, (HEIGHT - 2 * MARGIN, WIDTH - 2 * MARGIN, 3))
    path = write_slide(folder / f"{name}.tif", pixels.clip(0, 255).astype(np.uint8))
    annotation = None
    if tumour is not None:
        x, y, side = tumour
        annotation = folder / f"{name}.xml"
        ring = np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], np.float64)
        write_annotation(annotation, Annotation((Polygon(ring),)))
    return Case(
        name, f"patient {name}", "slide", str(path), mpp=MPP, split=split,
        label="tumor" if tumour else "normal", annotation=None if annotation is None else str(annotation),
    )  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("train")
    return Cohort(
        (
            painted(folder, "a", (200, 200, 360), 1, "train"),
            painted(folder, "b", (600, 300, 300), 2, "train"),
            painted(folder, "c", None, 3, "train", alike=(400, 250, 260)),
            painted(folder, "d", (300, 150, 320), 4, "val"),
            painted(folder, "e", (500, 220, 340), 5, "test"),
        )
    )


@pytest.fixture(scope="module")
def trained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train(CONFIG, cohort, tmp_path_factory.mktemp("bundle"), tissue=TISSUE, machine=MACHINE)


def test_tumour_is_found_on_an_unseen_slide(trained: Bundle, cohort: Cohort, tmp_path: Path) -> None:
    predictor = load(trained)
    metadata = {"method": "scannet", "fingerprint": trained.fingerprint, "classes": list(trained.classes)}
    unseen = cohort.split("test")
    machine = Machine(device="cpu", precision="float32", cells=8, channels_last=True)
    assert not scan(predictor, metadata, unseen, tmp_path, machine=machine).failed
    (reader,) = open_results(tmp_path).case_folder("e").maps.values()
    scores, states = reader.read()
    rows, columns = np.nonzero(states == State.SCORED)
    step_x, step_y = reader.info.l0_stride
    centres = np.stack([(columns + 0.5) * step_x, (rows + 0.5) * step_y], axis=1)
    inside = ((centres >= (500, 220)) & (centres < (840, 560))).all(axis=1)
    assert 80 < inside.sum() < 140
    assert roc_auc_score(inside, scores[0][rows, columns]) > 0.95


def test_the_bundle_records_patients_and_metrics(trained: Bundle) -> None:
    assert trained.patients == tuple(sorted(patient_hash(f"patient {name}") for name in "abcd"))
    assert trained.metrics["val_auc"] > 0.95
    assert [entry["steps"] for entry in trained.metrics["rounds"]] == [24, 6]
    assert [entry["replicas"] for entry in trained.metrics["rounds"]] == [1, 1], (
        "batches of 8 are not divided"
    )
    assert len(trained.metrics["hard_places"]) == 1
    assert 0 < trained.metrics["hard_places"][0] <= 3 * CONFIG.hard_cap
    assert trained.provenance["val_cases"] == ["d"]
    assert Config.from_dict({k: v for k, v in trained.config.items() if k != "scaling"}) == CONFIG


def test_hard_negatives_are_normal_spaced_and_limited(cohort: Cohort, tmp_path: Path) -> None:
    """For a model that scores everything as tumour, every normal cell is a hard negative."""
    net = BACKBONES["tiny"](2)
    head = net[-1]  # type: ignore[index]
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([0.0, 3.0])
    predictor = DensePredictor(replace(CONFIG, hard_cap=9, hard_merge=200), net, PLAIN_SCALING)
    metadata = {"method": "scannet", "fingerprint": "0", "classes": []}
    machine = Machine(device="cpu", precision="float32", cells=8, channels_last=True)
    scan(predictor, metadata, Cohort((cohort["a"],)), tmp_path, machine=machine)
    positions, _ = find_positions(cohort["a"], TISSUE)
    (reader,) = open_results(tmp_path).case_folder("a").maps.values()
    points, scores = hard_negatives(predictor, positions, reader)
    assert (scores > 0.9).all()
    assert len(points) == 9
    assert (positions.classes(points) == NORMAL).all()
    gaps = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) + 1e9 * np.eye(9)
    assert gaps.min() >= 200


def test_close_hard_negatives_are_merged() -> None:
    cells = np.array([[5, 5], [5, 6], [6, 6], [5, 7], [9, 9]])
    assert _spaced_cells(cells, (12, 12), 2.0, 10).tolist() == [[5, 5], [5, 7], [9, 9]]
    assert _spaced_cells(cells, (12, 12), 2.0, 2).tolist() == [[5, 5], [5, 7]]
    old, new = np.array([[0.0, 0.0], [100.0, 0.0]]), np.array([[30.0, 0.0]])
    assert merge_points(new, old, 64).tolist() == [[30, 0], [100, 0]]
    assert merge_points(new, old[:0], 64).tolist() == new.tolist()


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"trunk": "huge"}, "unknown trunk 'huge'"),
        ({"classes": ("a", "b", "c")}, "two classes"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"weights": "nowhere.pt"}, "no such weights file"),
    ],
)
def test_invalid_settings_are_rejected(
    cohort: Cohort, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        train(replace(BRIEF, **change), cohort, tmp_path, tissue=TISSUE, machine=MACHINE)


def test_pretrained_trunks_are_loaded_and_other_weights_rejected(cohort: Cohort, tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None, num_classes=3).state_dict(), tmp_path / "w.pth")
    config = replace(BRIEF, weights=str(tmp_path / "w.pth"))
    with pytest.raises(ModelError):
        train(config, cohort, tmp_path / "tiny", tissue=TISSUE, machine=MACHINE)
    quick = replace(config, trunk="squeezenet1_1", steps=1, batch=2, rounds=0, trunk_rate=0.0, rate=0.0)
    bundle = train(quick, cohort, tmp_path / "out", val=None, tissue=TISSUE, machine=MACHINE)
    before = torch.load(tmp_path / "w.pth", weights_only=True)
    after = bundle.weights()
    first = next(name for name in after if name.endswith("features.0.weight"))
    assert torch.equal(before["features.0.weight"], after[first])
    assert bundle.config["scaling"]["mean"] == [0.485, 0.456, 0.406]


def test_config_is_read_strictly() -> None:
    assert Config.from_dict(Config().to_dict()) == Config()
    with pytest.raises(ConfigError, match=r"no setting 'augment\.hues'"):
        Config.from_dict({"augment": {"hues": 1}})
