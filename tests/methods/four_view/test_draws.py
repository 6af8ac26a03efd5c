"""The samplers of the training: shares, labels, patch positions and losses; and heatmaps stored as scores."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lobule.bundles import read_bundle
from lobule.cohort import Cohort
from lobule.mammograms.published.patches import draw_grid, heatmap_of
from lobule.mammograms.published.windows import shrunk
from lobule.methods.four_view import Config
from lobule.methods.four_view.heatmaps import score_patches
from lobule.methods.four_view.model import build
from lobule.methods.four_view.objectives import areas, breast_loss, classifier_loss, exam_probabilities
from lobule.methods.four_view.predictor import FourViewPredictor
from lobule.methods.four_view.samples import (
    NEGATIVE,
    OUTSIDE,
    ExamSampler,
    PatchSampler,
    choose_stratum,
    collate_exams,
    swap_breasts,
)
from lobule.methods.four_view.training_exams import UNKNOWN, ExamPool, gather_exams
from lobule.nets.four_view import TARGETS
from lobule.results import open_results
from lobule.scanning.scan import Machine
from lobule.slides.cache import TileCache
from lobule.training.batch_stream import DrawnBatches
from tests.methods.four_view.configs import changed
from tests.methods.four_view.made_exams import exams
from tests.methods.four_view.support import as_nets, bundle_of, nets, run
from tests.methods.four_view.test_train import CONFIG


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort(tuple(exams(tmp_path_factory.mktemp("drawn"), 16, None)))


@pytest.fixture(scope="module")
def pool(cohort: Cohort) -> ExamPool:
    return gather_exams(cohort, CONFIG, TileCache(1 << 28), workers=2)


# -- shares -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=5), st.integers(0, 10_000))
def test_any_run_of_samples_has_the_given_shares(weights: list[float], first: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    counts = Counter(choose_stratum(index, shares) for index in range(first, first + 200))
    for number, share in enumerate(shares):
        assert abs(counts[number] - 200 * share) < 8


def test_swap_breasts_exchanges_inputs_and_labels(pool: ExamPool) -> None:
    """Inputs, labels and grades are exchanged, and a second exchange restores the sample."""
    sample = ExamSampler(pool).sample(pool.exams[0], None)
    swapped = swap_breasts(sample)
    assert np.array_equal(swapped.inputs["R-CC"], sample.inputs["L-CC"])
    assert np.array_equal(swapped.inputs["L-MLO"], sample.inputs["R-MLO"])
    left_benign, right_benign, left_malignant, right_malignant = sample.labels
    assert swapped.labels.tolist() == [right_benign, left_benign, right_malignant, left_malignant]
    assert swapped.grades.tolist() == sample.grades[::-1].tolist()
    swapped_twice = swap_breasts(swapped)
    assert (
        np.array_equal(swapped_twice.labels, sample.labels)
        and swapped_twice.inputs.keys() == sample.inputs.keys()
    )


def test_swap_sides_exchanges_half_of_the_sampled_exams(cohort: Cohort) -> None:
    """From an exam with findings on the left, about half of the samples have them on the right."""
    left = {name: name.startswith("left") for name in TARGETS}
    config = changed(CONFIG, swap_sides=True)
    sampler = ExamSampler(
        gather_exams(Cohort((replace(cohort.cases[0], breast_labels=left),)), config, TileCache(1 << 28))
    )
    rng = np.random.default_rng(0)
    sides = [int(sampler.draw(index, rng).labels[2]) for index in range(60)]
    assert 18 <= sum(sides) <= 42


def test_rare_exams_with_findings_are_sampled_with_their_share(cohort: Cohort) -> None:
    """One malignant exam of sixteen is still a quarter of the samples."""
    healthy = dict.fromkeys(TARGETS, False)
    rare = tuple(
        replace(case, breast_labels={**healthy, "left_malignant": number == 5, "right_benign": number == 7})
        for number, case in enumerate(cohort)
    )
    sampler = ExamSampler(gather_exams(Cohort(rare), CONFIG, TileCache(1 << 28)))
    labels = [sampler.draw(index, np.random.default_rng(index)).labels for index in range(80)]
    malignant = sum(label[2] == 1 for label in labels)
    benign = sum(label[1] == 1 for label in labels)
    assert (malignant, benign) == (pytest.approx(20, abs=1), pytest.approx(20, abs=1))


# -- patches ------------------------------------------------------------------------------------------------


def test_patches_show_their_class(pool: ExamPool) -> None:
    """Squares and rings have values of about 2300; the rest of the breast is below 1200."""
    sampler = PatchSampler(pool, augmented=False)
    assert sampler.missing == ()
    counts: Counter[int] = Counter()
    for index in range(60):
        pixels, label = sampler.draw(index, np.random.default_rng(index))
        counts[label] += 1
        bright = (pixels[0] > 3).sum()
        assert pixels.shape == (1, 32, 32)
        if label in (OUTSIDE, NEGATIVE):
            assert bright < 12, "the patch contains a lesion"
        else:
            assert bright > 12
    assert all(count == pytest.approx(15, abs=2) for count in counts.values())


def test_outlines_are_converted_to_the_right_pointing_view(pool: ExamPool) -> None:
    """The centre of each malignant outline is on the bright square, for left and right breasts."""
    views_with_lesions = set()
    for exam in pool.exams:
        for image in exam.images.values():
            pixels = pool.pixels(image)
            for grade, polygon in image.outlines:
                column, row = polygon.points.mean(axis=0)
                if grade == 0:
                    assert pixels[int(row), int(column)] > 1800
                    views_with_lesions.add(image.view)
    assert views_with_lesions == {"L-CC", "R-CC", "L-MLO", "R-MLO"}


# -- losses -------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_mean_over_known_labels() -> None:
    p = torch.tensor([[0.9, 0.2, 0.5, 0.7]])
    log_probabilities = torch.stack([(1 - p).log(), p.log()], dim=-1)
    labels = torch.tensor([[1, 0, UNKNOWN, 0]])
    plain = -(np.log(0.9) + np.log(0.8) + np.log(0.3)) / 3
    weighted = -(3 * np.log(0.9) + np.log(0.8) + np.log(0.3)) / 5
    assert float(breast_loss(log_probabilities, labels)) == pytest.approx(plain, rel=1e-5)
    assert float(breast_loss(log_probabilities, labels, 3.0)) == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("variant", ["view_wise", "image_wise", "side_wise", "joint"])
def test_a_training_step_moves_scores_towards_their_labels(pool: ExamPool, variant: str) -> None:
    """A step on the loss of any variant moves the exam's scores towards its labels."""
    torch.manual_seed(0)
    (net,) = build(changed(CONFIG, variant=variant)).members
    net.eval()
    batch = collate_exams([ExamSampler(pool).sample(exam, None) for exam in pool.exams[5:7]])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    with torch.no_grad():
        before = exam_probabilities(net, batch)
    loss = classifier_loss(net, batch, 1.0)
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        after = exam_probabilities(net, batch)
        assert float(classifier_loss(net, batch, 1.0)) < float(loss)
    labels = batch.labels.numpy()
    assert (np.sign(after.mean(axis=0) - before.mean(axis=0))[labels.min(axis=0) == 1] > 0).all()
    assert (np.sign(after.mean(axis=0) - before.mean(axis=0))[labels.max(axis=0) == 0] < 0).all()


def test_areas_ignore_unknown_labels() -> None:
    labels = np.array([[0, 0, 1, 0], [0, 0, UNKNOWN, 1]])
    scores = np.array([[0.1, 0.1, 0.8, 0.3], [0.1, 0.1, 0.0, 0.2]])
    assert areas(labels, scores) == {"malignant": 0.5}


# -- the stream ---------------------------------------------------------------------------------------------


def test_batch_stream_is_independent_of_workers_and_can_be_restored(tmp_path: Path) -> None:
    def draw(index: int, rng: np.random.Generator) -> tuple[int, float]:
        if index == 5 and rng.random() < 2:  # always true: every attempt for this sample fails
            raise OSError("gone")
        return index, float(rng.random())

    def stream(workers: int) -> DrawnBatches[tuple[int, float], list[tuple[int, float]]]:
        return DrawnBatches(draw, list, 2, seed=3, stage=1, workers=workers)

    with stream(1) as single_worker, stream(3) as three_workers:
        first = [next(single_worker) for _ in range(2)]
        assert first == [next(three_workers) for _ in range(2)]
        state = single_worker.state()
        with pytest.raises(Exception, match="20 draws in a row could not be read"):
            next(single_worker)
    with stream(2) as restored:
        restored.restore({**state, "next": 1})
        assert next(restored) == first[1]
        with pytest.raises(Exception, match="samples of another training"):
            restored.restore({**state, "seed": 4})


# -- heatmaps -----------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(70, 150), st.integers(70, 130))
def test_heatmaps_of_several_classes_equal_those_by_cumulative_sums(
    seed: int, height: int, width: int
) -> None:
    grid = draw_grid((height, width), random.Random(seed), patch=64, stride=30)
    scores = np.random.default_rng(seed).random((len(grid), 2)).astype(np.float32)
    change = np.zeros((3, height + 1, width + 1))
    with_counts = np.pad(scores, ((0, 0), (0, 1)), constant_values=1)
    for (row, column), values in zip(grid.corners(), with_counts, strict=True):
        change[:, [row, row + 64], [column, column + 64]] += values[:, None]
        change[:, [row, row + 64], [column + 64, column]] -= values[:, None]
    sums = change.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]
    heatmaps = heatmap_of((height, width), grid, scores)
    np.testing.assert_allclose(heatmaps, sums[:2] / np.rint(sums[2]), atol=1e-6)


@pytest.mark.parametrize("variant", ["view_wise", "image_wise"])
def test_training_heatmaps_equal_those_of_a_scan(cohort: Cohort, tmp_path: Path, variant: str) -> None:
    """This includes single right views, which a scan cuts into patches without mirroring, as published."""
    settings = {"heatmaps": True, "variant": variant, "window": (96, 56), "patch": 32, "patch_stride": 20}
    bundle = bundle_of(tmp_path / "bundle", epochs=1, augmentation=False, **settings)
    one_exam = Cohort(cohort.cases[9:10])
    run(bundle, one_exam, tmp_path / "results")
    config = Config.from_dict(read_bundle(bundle).config)
    predictor = FourViewPredictor(config, as_nets(*nets(config)))
    machine = Machine(device="cpu", precision="float32", channels_last=True)
    patch_scores, failed = score_patches(predictor, config, "f", one_exam, tmp_path / "heatmaps", machine)
    assert not failed
    pool = gather_exams(one_exam, config, TileCache(1 << 28)).without((), patch_scores)
    maps = open_results(tmp_path / "results").case_folder(one_exam.cases[0].id).maps
    (exam,) = pool.exams
    for name, image in exam.images.items():
        heatmaps = pool.heatmaps(exam, image)
        assert heatmaps is not None
        window, cell = image.frame.crop, config.architecture.heatmap_cell
        stored = np.zeros((3, *(np.array(maps[f"heatmap {name}"].read()[0].shape[1:]) * cell)))
        turned = heatmaps[:, :, ::-1] if image.frame.mirrored else heatmaps
        stored[:2, window.top : window.bottom, window.left : window.right] = turned
        stored[2, window.top : window.bottom, window.left : window.right] = 1
        squares = stored.reshape(3, stored.shape[1] // cell, cell, stored.shape[2] // cell, cell).mean((2, 4))
        expected = squares[:2] / np.maximum(squares[2], 1e-6)
        scores, _ = maps[f"heatmap {name}"].read()
        inside = squares[2] > 0
        np.testing.assert_allclose(scores[:, inside], expected[:, inside], atol=1e-5)


# -- smaller inputs -----------------------------------------------------------------------------------------


def test_shrinking_averages_squares(tmp_path: Path) -> None:
    channels = np.arange(2 * 7 * 9, dtype=np.float32).reshape(2, 7, 9)
    small = shrunk(channels, 2)
    assert small.shape == (2, 3, 4)
    assert small[1, 2, 3] == channels[1, 4:6, 6:8].mean()
    assert shrunk(channels, 1) is channels


def test_scan_and_training_shrink_views_alike(cohort: Cohort, tmp_path: Path) -> None:
    one_exam = Cohort(cohort.cases[:1])
    settings = {"epochs": 1, "augmentation": False, "window": (96, 56), "shrink": 2}
    run(bundle_of(tmp_path / "bundle", **settings), one_exam, tmp_path / "results")
    config = changed(CONFIG, shrink=2, crop_iterations=4, crop_buffer=6)
    sampler = ExamSampler(gather_exams(one_exam, config, TileCache(1 << 28)))
    batch = collate_exams([sampler.sample(sampler.pool.exams[0], None)])
    assert batch.views["L-CC"].shape == (1, 1, 48, 28)
    net, _ = nets(changed(config, widths=(4, 4, 8, 8, 16)))
    with torch.no_grad():
        expected = exam_probabilities(net, batch)[0]
    scores = open_results(tmp_path / "results").case_folder(one_exam.cases[0].id).result["scores"]
    np.testing.assert_allclose([scores[name] for name in TARGETS], expected, atol=1e-5)
