"""Features of Owkin's challenge, written here with NumPy as the challenge describes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lobule.cohort import Case, Cohort
from lobule.errors import DamagedFile
from lobule.features import open_features
from lobule.methods import find_method
from lobule.training.fitting import TrainMachine

TILES, DIM = 40, 2048


def challenge_file(path: Path, seed: int, tumour: bool) -> np.ndarray:
    """(tiles, 3 + 2048) float64: zoom level, x and y of the tile, then the features of ResNet-50."""
    rng = np.random.default_rng(seed)
    table = np.empty((TILES, 3 + DIM))
    table[:, 0] = 15
    table[:, 1:3] = np.stack(np.unravel_index(rng.permutation(400)[:TILES], (20, 20)), axis=1) + 1000 * seed
    table[:, 3:] = rng.exponential(0.4, (TILES, DIM))
    if tumour:
        table[:20, 3:103] += 2
    np.save(path, table)
    return table


def cohort_in(folder: Path, slides: int = 12) -> Cohort:
    cases = []
    for number in range(slides):
        tumour = number % 2 == 1
        path = folder / f"ID_{number:03d}{'_annotated' * (number % 3 == 0)}.npy"
        challenge_file(path, number, tumour)
        # The challenge has no slides: the feature file takes their place in the manifest.
        cases.append(
            Case(f"ID_{number:03d}", f"p{number}", "slide", str(path), label="tumor" if tumour else "normal")
        )
    return Cohort(tuple(cases))


def test_the_three_columns_are_not_features(tmp_path: Path) -> None:
    table = challenge_file(tmp_path / "ID_001.npy", 1, True)
    case = Case("ID_001", "p", "slide", str(tmp_path / "ID_001.npy"), label="tumor")
    file = open_features(tmp_path).find(case)
    assert (file.count, file.dim, file.l0_side()) == (TILES, 2048, None)
    np.testing.assert_array_equal(file.l0_coords(), table[:, 1:3].astype(int))
    rows = np.array([5, 0, 39])
    np.testing.assert_array_equal(file.take(rows), table[rows, 3:].astype(np.float32))
    np.testing.assert_array_equal(file.read(slice(2, 9)), table[2:9, 3:].astype(np.float32))
    blocks = np.concatenate([block for _, block in file.blocks(7)])
    np.testing.assert_array_equal(blocks, table[:, 3:].astype(np.float32))


@pytest.mark.parametrize("problem", ["no metadata", "objects", "cut", "one row of text", "NaN"])
def test_other_tables_are_refused(problem: str, tmp_path: Path) -> None:
    path = tmp_path / "ID_001.npy"
    table = challenge_file(path, 1, False)
    if problem == "no metadata":
        np.save(path, table[:, 3:])
    elif problem == "objects":
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    elif problem == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif problem == "one row of text":
        path.write_text("level,x,y\n")
    else:
        table[7, 9] = np.nan
        np.save(path, table)
    with pytest.raises(DamagedFile, match="ID_001"):
        file = open_features(tmp_path).find(Case("ID_001", "p", "slide", None, label="normal"))
        list(file.blocks())


def test_a_bag_model_is_cross_validated_on_challenge_features(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    cohort = cohort_in(tmp_path / "features")
    settings = {"features": str(tmp_path / "features"), "members": 1, "folds": 2}
    method = find_method("mean_pool")
    bundle = method.trainer()(
        method.configured(settings), cohort, tmp_path / "bundle", val=None, seed=1,
        machine=TrainMachine(device="cpu", precision="float32", workers=1),
    )  # fmt: skip
    assert bundle.config["encoding"]["dim"] == 2048
    cross_validation = bundle.metrics["cross_validation"]
    assert len(cross_validation["auc_of_folds"]) == 2
    # Half of the tiles of a positive slide differ in 100 features. Coordinates as features would hide it.
    assert cross_validation["auc_of_repeats"][0] > 0.8
