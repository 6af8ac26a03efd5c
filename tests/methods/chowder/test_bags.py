"""Tests of bags: tiles of a case, cases without usable features, cohorts that are refused, and splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, DamagedFile, UsageError
from lobule.features import open_features
from lobule.fingerprints import fingerprint
from lobule.geometry import Box
from lobule.methods.chowder.bags import Bag, bag_of, gather, label_of, refuse_one_class
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.fit import SampledTiles, collate, moments_of, split_batch
from lobule.methods.chowder.splits import folds_of, hold_out, training_bags
from tests.features.foreign import FEATURES, write_clam, write_stamp, write_trident
from tests.methods.chowder.support import ENCODING, SIDE, SlideTiles, make_cohort, make_slide, write_tiles


@pytest.fixture(scope="module")
def stored_cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    return make_cohort(tmp_path_factory.mktemp("bags"), 10)


def test_a_bag_holds_the_tiles_of_its_case(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    labelled_bags = gather(cohort, open_features(features))
    assert [bag.label for bag in labelled_bags.bags] == [0, 1] * 5
    assert not labelled_bags.failures
    slide = make_slide(3, True)
    bag = labelled_bags.bags[3]
    np.testing.assert_array_equal(torch.cat(list(bag.blocks())), slide.features)
    np.testing.assert_array_equal(bag.l0_coords, slide.coords)
    picked = np.array([5, 2, 90])
    np.testing.assert_array_equal(bag.take(picked), slide.features[picked])


def test_a_region_holds_the_tiles_whose_centre_is_in_it(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    box = Box(SIDE, SIDE, 3 * SIDE, 2 * SIDE)
    case = replace(cohort["tumor_003"], id="block", kind="region", l0_box=box)
    bag = bag_of(case, open_features(features))
    slide = make_slide(3, True)
    x, y = slide.coords.T
    rows = np.flatnonzero((x >= SIDE) & (x < 4 * SIDE) & (y >= SIDE) & (y < 3 * SIDE))
    assert len(rows) == len(bag) == 6
    np.testing.assert_array_equal(torch.cat(list(bag.blocks())), slide.features[rows])
    np.testing.assert_array_equal(bag.take(np.array([4, 1])), slide.features[rows[[4, 1]]])


@pytest.mark.parametrize("write", [write_trident, write_clam, write_stamp])
def test_bags_of_feature_files_from_other_tools(tmp_path: Path, write: object) -> None:
    for name in ("a", "b"):
        write(tmp_path, name)  # type: ignore[operator]
    cases = [Case(n, n, "slide", f"/{n}.svs", mpp=0.25, label=str(k)) for k, n in enumerate("ab")]
    labelled_bags = gather(Cohort(tuple(cases)), open_features(tmp_path))
    assert [len(bag) for bag in labelled_bags.bags] == [4, 4]
    np.testing.assert_allclose(torch.cat(list(labelled_bags.bags[1].blocks())), FEATURES, atol=2e-3)


def test_case_without_usable_features_is_left_out_with_a_reason(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 8)
    features_folder = next(features.rglob("features_*"))
    (features_folder / "normal_000.h5").unlink()
    content = (features_folder / "tumor_001.h5").read_bytes()
    (features_folder / "tumor_001.h5").write_bytes(content[:700])
    with h5py.File(features_folder / "normal_002.h5", "a") as file:
        file["coords"].resize(3, axis=0)
    write_tiles(
        features,
        "tumor_003",
        SlideTiles(np.empty((0, 2), np.int64), np.empty((0, 12), np.float32), np.empty(0)),
    )
    labelled_bags = gather(cohort, open_features(features))
    assert {bag.case.id for bag in labelled_bags.bags} == {
        "normal_004",
        "tumor_005",
        "normal_006",
        "tumor_007",
    }
    assert "no features" in labelled_bags.failures["normal_000"]
    assert "half-written" in labelled_bags.failures["tumor_001"]
    assert "half-written" in labelled_bags.failures["normal_002"]
    assert "no tissue" in labelled_bags.failures["tumor_003"]


def test_features_of_another_length_or_encoder_are_refused(tmp_path: Path) -> None:
    cases = [Case(n, n, "slide", f"/{n}.svs", mpp=0.25, label=str(k)) for k, n in enumerate("ab")]
    write_stamp(tmp_path, "a")
    with h5py.File(write_stamp(tmp_path, "b"), "a") as file:
        del file["feats"]
        file["feats"] = np.zeros((4, 9), np.float16)
    with pytest.raises(ConfigError, match=r"two kinds.*Expected 6 numbers.*Found 9"):
        gather(Cohort(tuple(cases)), open_features(tmp_path))
    with h5py.File(write_stamp(tmp_path, "b"), "a") as file:
        file.attrs["extractor"] = "uni"
    with pytest.raises(ConfigError, match=r"two kinds.*ctp.*uni"):
        gather(Cohort(tuple(cases)), open_features(tmp_path))
    write_tiles(tmp_path / "own", "a", make_slide(0, False))
    write_tiles(tmp_path / "own", "b", make_slide(1, True), replace(ENCODING, hash="sha256:other"))
    features_folder = next((tmp_path / "own").rglob("features_*"))
    with pytest.raises(ConfigError, match="two kinds"):
        gather(Cohort(tuple(cases)), open_features(features_folder))


def test_features_of_another_slide_with_the_same_name_are_refused(tmp_path: Path) -> None:
    cohort, features = make_cohort(tmp_path, 2)
    case = cohort.cases[0]
    assert case.path is not None
    write_tiles(features, case.id, make_slide(1, False), source=fingerprint(case.path))
    assert len(bag_of(case, open_features(features))) == len(make_slide(1, False).coords)
    with Path(case.path).open("ab") as slide:
        slide.write(b"another")
    with pytest.raises(DamagedFile, match="features of another slide with this name"):
        bag_of(case, open_features(features))
    Path(case.path).unlink()  # without the slide on this machine, the check is skipped
    assert len(bag_of(case, open_features(features)))


def test_region_named_like_its_slide_gets_only_its_tiles(
    stored_cohort: tuple[Cohort, Path],
) -> None:
    cohort, features = stored_cohort
    case = replace(cohort.cases[0], kind="region", l0_box=Box(0, 0, 2 * SIDE, 3 * SIDE))
    assert len(bag_of(case, open_features(features))) == 6


def test_positive_labels_by_meaning_or_by_list() -> None:
    def case(label: str) -> Case:
        return Case("a", "a", "slide", "/a.svs", label=label)

    assert [label_of(case(label)) for label in ("tumor", "0", "Normal", "malignant")] == [1, 0, 0, 1]
    assert [label_of(case(label), ["LUAD"]) for label in ("LUAD", "LUSC", "luad")] == [1, 0, 1]
    with pytest.raises(UsageError, match=r"label 'LUAD' is positive.*positive=LABEL"):
        label_of(case("LUAD"))


def test_cohort_with_one_label_is_refused(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    normal = gather(cohort.where(lambda case: case.label == "normal"), open_features(features)).bags
    with pytest.raises(UsageError, match="only normal cases"):
        refuse_one_class(normal, "training")
    with pytest.raises(UsageError, match="no cases"):
        refuse_one_class([], "training")


def test_damaged_features_are_named_if_only_one_label_is_left(tmp_path: Path) -> None:
    """The message used to send the user to the label column, which was right."""
    cohort, features = make_cohort(tmp_path, 4)
    for path in features.rglob("normal_*.h5"):
        if "features_" in path.parent.name:
            path.write_bytes(path.read_bytes()[:700])
    expected = r"only positive cases; 2 cases are left out, such as normal_000: .*half-written"
    with pytest.raises(UsageError, match=expected):
        training_bags(cohort, None, 0, open_features(features), Config())


def test_patient_with_both_labels_stays_in_one_fold_and_is_noted(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    joined = Cohort(tuple(replace(case, patient=f"p{index // 2}") for index, case in enumerate(cohort)))
    labelled_bags = gather(joined, open_features(features))
    assert labelled_bags.notes[0].startswith("5 patients have cases of both labels (p0, p1")
    folds = folds_of(labelled_bags.bags, 5, seed=1)
    assert all(folds[2 * n] == folds[2 * n + 1] for n in range(5))
    assert sorted(np.bincount(folds)) == [2] * 5


def bags_of(patients: list[str], labels: list[int], sites: list[str] | None = None) -> list[Bag]:
    bags = []
    for number, (patient, label) in enumerate(zip(patients, labels, strict=True)):
        case = Case(f"c{number}", patient, "slide", "/a", site=sites[number] if sites else None)
        bags.append(Bag(case, None, label, np.zeros((5, 2), np.int64)))  # type: ignore[arg-type]
    return bags


def test_folds_keep_patients_whole_and_labels_even() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{rng.integers(0, 40)}" for _ in range(100)]
    labels = [int(patient[-1] in "0369") for patient in patients]
    bags = bags_of(patients, labels)
    folds = folds_of(bags, 5, seed=3)
    for patient in set(patients):
        assert len({int(fold) for fold, name in zip(folds, patients, strict=True) if name == patient}) == 1
    counts = np.array([np.bincount(np.array(labels)[folds == fold], minlength=2) for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 3).all(), counts
    assert (folds_of(bags, 5, seed=3) == folds).all()
    assert (folds_of(bags, 5, seed=4) != folds).any()
    with pytest.raises(ConfigError, match="5 folds need as many patients"):
        folds_of(bags_of(["a", "b"], [0, 1]), 5, 0)


def test_whole_sites_can_be_held_out() -> None:
    sites = ["x", "y", "z"] * 8
    bags = bags_of([f"p{n}" for n in range(24)], [n % 2 for n in range(24)], sites)
    folds = folds_of(bags, 3, seed=0, by_site=True)
    assert all(len(set(folds[[s == site for s in sites]])) == 1 for site in "xyz")
    assert set(folds) == {0, 1, 2}
    with pytest.raises(ConfigError, match="has no site"):
        folds_of(bags_of(["a", "b"], [0, 1]), 2, 0, by_site=True)


@pytest.mark.parametrize("seed", range(6))
def test_sites_that_share_a_patient_are_in_one_fold(seed: int) -> None:
    sites = ["x", "y", "z", "v", "w"] * 4
    patients = [f"p{n}" for n in range(20)]
    patients[1] = patients[0]  # seen at x and at y
    patients[7] = patients[3]  # at z and at v
    folds = folds_of(bags_of(patients, [n % 2 for n in range(20)], sites), 3, seed, by_site=True)
    assert folds[0] == folds[1]
    assert folds[7] == folds[3]
    assert all(len(set(folds[[s == site for s in sites]])) == 1 for site in "xyzvw")
    with pytest.raises(ConfigError, match=r"sites that share no patient. Found 3"):
        folds_of(bags_of(patients, [n % 2 for n in range(20)], sites), 4, seed, by_site=True)


def test_folds_that_would_train_on_one_label_are_refused() -> None:
    patients = [f"p{n // 2}" for n in range(12)]
    labels = [1, 1] + [0] * 10  # a single positive patient
    bags = bags_of(patients, labels)
    with pytest.raises(ConfigError, match="all cases of the class 'positive' are in one fold"):
        folds_of(bags, 3, 0)
    even = bags_of(patients, [n // 2 % 2 for n in range(12)])
    assert set(folds_of(even, 3, 0)) == {0, 1, 2}


def test_a_fifth_of_the_patients_is_held_out_if_possible() -> None:
    train, val, note = hold_out(bags_of([f"p{n}" for n in range(20)], [n % 2 for n in range(20)]), 0)
    assert (len(train), len(val)) == (16, 4)
    assert [bag.label for bag in val].count(1) == 2
    assert "4 patients are held out" in note
    train, val, note = hold_out(bags_of(["a", "b"], [0, 1]), 0)
    assert (len(train), val) == (2, [])
    assert "too few patients" in note


# -- sampling and memory -------------------------------------------------------------------------------------


def test_sampled_tiles_differ_between_seeds_and_are_repeatable(
    stored_cohort: tuple[Cohort, Path],
) -> None:
    cohort, features = stored_cohort
    bags = gather(cohort, open_features(features)).bags
    first_sample, second_sample = (SampledTiles(bags, 20, seed, 10**9) for seed in (1, 2))
    streamed = SampledTiles(bags, 20, 1, cache_bytes=0)
    assert first_sample[3].shape == (20, 12)
    assert torch.equal(first_sample[3], first_sample[3])
    assert torch.equal(first_sample[3], streamed[3])
    assert not torch.equal(first_sample[3], second_sample[3])
    all_features = make_slide(3, True).features
    assert all((all_features == row.numpy()).all(axis=1).any() for row in first_sample[3])
    assert torch.equal(SampledTiles(bags, 0, 1, 0)[3], torch.from_numpy(all_features))
    assert streamed._cache is None, "tiles are not cached if they do not fit"


def test_batch_is_split_if_padded_tiles_do_not_fit() -> None:
    numbers = np.arange(6)
    sizes = [9_000, 9_000, 100, 30_000, 10, 10]
    assert [list(chunk) for chunk in split_batch(numbers, sizes, 0)] == [[0, 1], [2], [3], [4, 5]]
    assert [list(chunk) for chunk in split_batch(numbers, sizes, 1000)] == [[0, 1, 2, 3, 4, 5]]


def test_collate_masks_padding() -> None:
    features, mask = collate([torch.ones(2, 3).half(), torch.ones(1, 3).half()])
    assert features.dtype == torch.float32
    assert mask.tolist() == [[False, False], [False, True]]
    assert features.sum() == 9


def test_moments_are_those_of_all_training_tiles(stored_cohort: tuple[Cohort, Path]) -> None:
    cohort, features = stored_cohort
    bags = gather(cohort, open_features(features)).bags
    all_features = np.concatenate([make_slide(n, n % 2 == 1).features for n in range(10)])
    moments = moments_of(bags)
    np.testing.assert_allclose(moments.mean, all_features.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(moments.std, all_features.std(axis=0), atol=1e-5)
