"""All published preprocessing numbers of a real exam: crops, centres, windows, strides, heatmaps."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.errors import NotAMammogram
from lobule.mammograms.published.centres import GMIC_WINDOW_SIZE, WINDOW_SIZES, best_centre
from lobule.mammograms.published.crop import Landmarks, breast_of, crop_of, eroded, largest_component
from lobule.mammograms.published.patches import (
    PatchGrid,
    draw_grid,
    draw_strides,
    heatmap_of,
)
from lobule.mammograms.published.windows import (
    NO_AUGMENTATION,
    Augmentation,
    cut,
    network_input,
    plan_exam,
    plan_image,
    plan_window,
    standardise,
)
from lobule.mammograms.views import VIEWS, stored_pointing
from tests.nets.four_view_recipe import BENIGN, MALIGNANT, patch_pixels
from tests.reference.mammograms import ViewImage, right_pointing

NUMBERS = Path(__file__).parents[2] / "data" / "four_view"
VERSION_BOUND = np.__version__ == "2.4.6"


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def preprocess(goldens):
    return json.loads((goldens / "four_view" / "preprocess.json").read_text())


@pytest.fixture(scope="module")
def cases():
    return json.loads((NUMBERS / "cases.json").read_text())


@pytest.fixture(scope="module")
def masks():
    with np.load(NUMBERS / "masks.npz") as stored:
        shapes, bits, offsets = stored["shapes"], stored["bits"], stored["offsets"]
    masks = []
    for i, shape in enumerate(shapes):
        flat = np.unpackbits(bits[offsets[i] : offsets[i + 1]])[: shape[0] * shape[1]]
        masks.append(flat.reshape(shape).astype(bool))
    return masks


@pytest.fixture(scope="module")
def stored(kit, preprocess):
    images = {}
    for name, image_metadata in preprocess["images"].items():
        with Image.open(kit / "mammograms" / "nyu" / "images" / image_metadata["file"]) as image:
            images[name] = np.array(image).astype(np.uint16)
    return images


@pytest.fixture(scope="module")
def crops(stored, preprocess):
    return {
        name: crop_of(
            stored[name], stored_pointing(image_metadata["view"], image_metadata["horizontal_flip"])
        )
        for name, image_metadata in preprocess["images"].items()
    }


@pytest.fixture(scope="module")
def facing(stored, crops, preprocess):
    return {
        name: np.ascontiguousarray(
            right_pointing(
                crops[name].window.of(stored[name]), image_metadata["view"], image_metadata["horizontal_flip"]
            )
        )
        for name, image_metadata in preprocess["images"].items()
    }


def test_crops_of_the_real_exam(stored, crops, facing, preprocess):
    for name, expected in preprocess["images"].items():
        assert sha(stored[name]) == expected["pixel_sha256"]
        assert stored_pointing(expected["view"], expected["horizontal_flip"]) == expected["mode"]
        crop = crops[name]
        assert list(crop.window.edges()) == expected["window_location"]
        assert_landmarks(crop, expected)
        assert sha(crop.window.of(stored[name])) == expected["cropped_pixel_sha256"]
        assert sha(facing[name]) == expected["right_facing_cropped_pixel_sha256"]


def assert_landmarks(crop, expected):
    marks = crop.landmarks
    assert [list(marks.rightmost_rows), marks.rightmost_x] == expected["rightmost_points"]
    assert [marks.bottommost_y, list(marks.bottommost_columns)] == expected["bottommost_points"]
    assert crop.distance_from_starting_side == expected["distance_from_starting_side"]


def test_erosion_and_dilation_give_the_published_pixel_counts(stored, preprocess):
    for name in ("0_L-CC", "0_R-MLO"):
        expected, mask = preprocess["images"][name], stored[name] > 0
        small = eroded(mask, 100)
        assert small.sum() == expected["eroded_pixels"]
        assert largest_component(small).sum() == expected["largest_component_pixels"]
        assert breast_of(mask).sum() == expected["dilated_pixels"]


def test_crops_of_the_exam_stored_mirrored(stored, preprocess):
    for name, expected_image in preprocess["images"].items():
        expected = expected_image["mirrored_with_horizontal_flip_YES"]
        pointing = stored_pointing(expected_image["view"], "YES")
        assert pointing == expected["mode"]
        crop = crop_of(stored[name][:, ::-1], pointing)
        assert list(crop.window.edges()) == expected["window_location"]
        assert_landmarks(crop, expected)


def test_best_centres_of_the_real_exam(crops, facing, preprocess):
    for name, expected_image in preprocess["images"].items():
        for view, expected in expected_image["best_center"].items():
            size = WINDOW_SIZES[view[2:]]
            assert list(best_centre(facing[name], view, crops[name].landmarks, size)) == expected["nyu"]
            gmic = best_centre(facing[name], view, crops[name].landmarks, GMIC_WINDOW_SIZE)
            assert list(gmic) == expected["gmic"]


def test_random_crops_and_centres(cases, masks):
    for case in cases["crops"]:
        image = masks[case["index"]].astype(np.uint16) * 1000
        options = {"iterations": case["iterations"], "buffer": case["buffer"]}
        if "error" in case:
            with pytest.raises(NotAMammogram):
                crop_of(image, case["mode"], **options)
            continue
        crop = crop_of(image, case["mode"], **options)
        assert list(crop.window.edges()) == case["window_location"]
        assert_landmarks(crop, case)
    for case in cases["centers"]:
        marks = Landmarks((0, 0), case["rightmost_x"], case["bottommost_y"], (0, 0))
        centre = best_centre(masks[case["index"]], case["kind"], marks, tuple(case["window"]))
        assert list(centre) == case["center"]


def assert_plan(plan, expected):
    assert list(plan.padded_shape) == expected["padded_shape"]
    assert list(plan.window.edges()) == expected["borders"]
    if "after_position_noise" in expected:
        assert list(plan.after_position.edges()) == expected["after_position_noise"]
    if "resized" in expected:
        assert (plan.window.shape != plan.size) == expected["resized"]


def test_random_windows(cases):
    for case in cases["random_windows"]:
        view = case["view"]
        augmentation = Augmentation() if case["augmentation"] else NO_AUGMENTATION
        rng = np.random.RandomState(case["seed"])
        size = WINDOW_SIZES["CC" if view.endswith("CC") else "MLO"]
        assert_plan(
            plan_window(tuple(case["shape"]), view, size, tuple(case["center"]), augmentation, rng), case
        )


def test_windows_and_strides_of_the_published_example(cases):
    exam = cases["readme_exam0"]
    images = {
        view: [ViewImage(tuple(exam["published"]["shapes"][view]), tuple(exam["published"]["centers"][view]))]
        for view in VIEWS
    }
    plans = plan_exam(images, np.random.RandomState(0), epochs=10)
    for case in exam["windows_10_epochs_RandomState0"]:
        assert_plan(plans[case["epoch"]][case["view"]][1], case)
    (plain,) = plan_exam(images, np.random.RandomState(0), epochs=1, augmentation=NO_AUGMENTATION)
    for case in exam["windows_no_augmentation"]:
        assert_plan(plain[case["view"]][1], case)
    rng = random.Random(0)
    for case in exam["strides_seed0"]:
        assert draw_strides(case["shape"][0], rng) == case["row_strides"]
        assert draw_strides(case["shape"][1], rng) == case["col_strides"]
        grid = PatchGrid.of_strides(case["row_strides"], case["col_strides"])
        assert len(grid) == case["n_patches"]


def test_published_centres_follow_from_the_published_landmarks(cases):
    """The rows of MLO centres and the columns of all centres follow from the landmarks alone."""
    published = cases["readme_exam0"]["published"]
    for view in VIEWS:
        rows, x = published["rightmost_points"][view]
        y, columns = published["bottommost_points"][view]
        full = np.ones(published["shapes"][view], np.uint8)
        centre = best_centre(full, view, Landmarks(tuple(rows), x, y, tuple(columns)), WINDOW_SIZES[view[2:]])
        assert centre[1] == published["centers"][view][1]
        if view.endswith("MLO"):
            assert centre[0] == published["centers"][view][0]


def test_random_strides(cases):
    for case in cases["strides"]:
        rng = random.Random(case["seed"])
        assert draw_strides(case["n"], rng) == case["first"]
        assert draw_strides(case["n"] + 1, rng) == case["second_call_n_plus_1"]


def views_of(crops, facing, preprocess):
    images = {}
    for name, image_metadata in preprocess["images"].items():
        centre = best_centre(
            facing[name],
            image_metadata["view"],
            crops[name].landmarks,
            WINDOW_SIZES[image_metadata["view"][2:]],
        )
        images[image_metadata["view"]] = [ViewImage(facing[name].shape, centre)]
    return images


def test_every_window_of_the_real_exam(crops, facing, preprocess):
    """Two exams share one stream. Each single image starts a new one."""
    images = views_of(crops, facing, preprocess)
    rng = np.random.RandomState(0)
    plans = {exam: plan_exam(images, rng, epochs=10) for exam in ("exam0", "exam0_again")}
    for case in preprocess["windows"]["exam_level_10_epochs_RandomState0"]:
        plan = plans[case["exam"]][case["epoch"]][case["view"]][1]
        assert_plan(plan, case)
        assert [list(plan.draws.position), list(plan.draws.edges)] == case["rng"]
    for name, expected in preprocess["windows"]["single_image_10_epochs_fresh_RandomState0"].items():
        view = preprocess["images"][name]["view"]
        for plan, case in zip(plan_image(images[view][0], view), expected, strict=True):
            assert_plan(plan, case)
    (plain,) = plan_exam(images, np.random.RandomState(0), epochs=1, augmentation=NO_AUGMENTATION)
    for case in preprocess["windows"]["no_augmentation"].values():
        assert_plan(plain[case["view"]][1], case)


def test_random_numbers_with_several_images_per_view(preprocess):
    counts = dict(zip(VIEWS, (2, 1, 3, 1), strict=True))
    images = {view: [ViewImage((3000, 2200), (1500, 900))] * count for view, count in counts.items()}
    plans = plan_exam(images, np.random.RandomState(0), epochs=3)
    chosen = [epoch[view] for epoch in plans for view in VIEWS]
    for (index, plan), expected in zip(chosen, preprocess["rng_multi_image_lengths_2_1_3_1"], strict=True):
        assert index == expected["index"]
        assert list(plan.draws.position) == expected["crop"]
        assert list(plan.draws.edges) == expected["size"]


def cut_plan(image, plan):
    return cut(image, plan.unpadded, plan.size)


def assert_pixels(raw, case):
    assert raw.mean(dtype=np.float64) == pytest.approx(case["raw_mean"], rel=1e-5)
    assert raw.std(dtype=np.float64) == pytest.approx(case["raw_std"], rel=1e-5)
    standard = standardise(raw)
    assert standard.dtype == np.float32
    for row, column, value in case["samples"]:
        assert standard[row, column] == pytest.approx(value, abs=5e-6)
    if not case["resized"]:
        assert sha(raw) == case["raw_float32_sha256"]
        if VERSION_BOUND:
            assert sha(standard) == case["float32_sha256"]


def test_pixels_of_windows_without_augmentation(crops, facing, preprocess):
    (plans,) = plan_exam(
        views_of(crops, facing, preprocess), np.random.RandomState(0), epochs=1, augmentation=NO_AUGMENTATION
    )
    for case in preprocess["windows"]["no_augmentation"].values():
        assert_pixels(cut_plan(facing[case["image"]], plans[case["view"]][1]), case)


def pixel_cases(preprocess, every):
    exam = [c for c in preprocess["windows"]["exam_level_10_epochs_RandomState0"] if "raw_mean" in c]
    single = [
        (name, epoch, case)
        for name, epoch_cases in preprocess["windows"]["single_image_10_epochs_fresh_RandomState0"].items()
        for epoch, case in enumerate(epoch_cases)
        if "raw_mean" in case
    ]
    return exam[::every], single[::every]


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.campaign)])
def test_pixels_of_augmented_windows(every, crops, facing, preprocess):
    images = views_of(crops, facing, preprocess)
    rng = np.random.RandomState(0)
    plans = {exam: plan_exam(images, rng, epochs=10) for exam in ("exam0", "exam0_again")}
    exam_cases, single_cases = pixel_cases(preprocess, every)
    assert len(exam_cases) + len(single_cases) >= 2
    for case in exam_cases:
        assert_pixels(
            cut_plan(facing[case["image"]], plans[case["exam"]][case["epoch"]][case["view"]][1]), case
        )
    for name, epoch, case in single_cases:
        view = preprocess["images"][name]["view"]
        assert_pixels(cut_plan(facing[name], plan_image(images[view][0], view)[epoch]), case)


def synthetic_heatmaps(shape):
    y, x = np.arange(shape[0])[:, None] // 16, np.arange(shape[1])[None, :] // 16
    benign = (((7 * y + 13 * x) % 101) / 101).astype(np.float32)
    malignant = (((3 * y + 5 * x) % 97) / 97).astype(np.float32)
    return benign, malignant


@pytest.mark.parametrize("epochs", [(0,), pytest.param((0, 1), marks=pytest.mark.campaign)])
def test_heatmaps_are_cut_and_resized_with_their_image(epochs, crops, facing, preprocess):
    plans = plan_exam(views_of(crops, facing, preprocess), np.random.RandomState(0), epochs=10)
    chosen = [c for c in preprocess["windows"]["with_synthetic_heatmaps"] if c["epoch"] in epochs]
    for case in chosen if len(epochs) > 1 else chosen[1:2]:
        plan = plans[case["epoch"]][case["view"]][1]
        assert list(plan.window.edges()) == case["borders"]
        image = facing[case["image"]]
        heatmaps = tuple(right_pointing(h, case["view"], "NO") for h in synthetic_heatmaps(image.shape))
        channels = network_input(image, plan.unpadded, plan.size, heatmaps).astype(np.float64)
        assert channels.mean(axis=(1, 2)) == pytest.approx(case["channel_means"], rel=1e-5, abs=1e-6)
        assert channels.min(axis=(1, 2)) == pytest.approx(case["channel_min"], rel=1e-5, abs=2e-6)
        assert channels.max(axis=(1, 2)) == pytest.approx(case["channel_max"], rel=1e-5, abs=2e-6)


def test_patch_grids_and_pixels_of_the_real_exam(facing, stored, preprocess):
    rng = random.Random(0)
    for case in preprocess["strides"]["exam_level_seed0"]:
        grid = draw_grid(tuple(case["shape"]), rng)
        assert list(grid.row_starts) == case["row_starts"]
        assert list(grid.column_starts) == case["col_starts"]
        assert len(grid) == case["n_patches"]
    for key, case in preprocess["strides"]["per_image_seed0"].items():
        fresh = random.Random(0)
        assert draw_strides(case["shape"][0], fresh) == case["row_strides"]
        assert draw_strides(case["shape"][1], fresh) == case["col_strides"]
        name, _, forgotten_side = key.partition("|")
        if VERSION_BOUND and name.endswith("CC"):
            image = stored[name] if forgotten_side else facing[name]
            pixels = patch_pixels(image)
            assert sha(pixels) == case["standardised_float64_sha256"]
            if "standardised_as_float32_sha256" in case:
                assert sha(pixels.astype(np.float32)) == case["standardised_as_float32_sha256"]


def test_heatmap_of_a_small_example(cases):
    toy = cases["accumulation_toy"]
    grid = PatchGrid.of_strides(toy["row_strides"], toy["col_strides"], toy["patch"])
    assert len(grid) == toy["patches_used"]
    scores = np.asarray(toy["probs_class0"], np.float32)[: len(grid)]
    heatmap = heatmap_of(tuple(toy["image_shape"]), grid, scores)
    assert np.array_equal(heatmap, np.asarray(toy["heatmap"], np.float32))


def assert_heatmap(heatmap, expected):
    assert sha(heatmap) == expected["right_facing_sha256_from_npz_probs"]
    assert heatmap.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-6)
    for row, column, value in expected["samples"]:
        assert heatmap[row, column] == pytest.approx(value, abs=1e-6)


def test_heatmaps_rebuilt_from_stored_patch_scores(goldens, preprocess):
    network = json.loads((goldens / "four_view" / "network.json").read_text())
    with np.load(goldens / "four_view" / "heatmaps.npz") as arrays:
        scores = arrays["exam_probs"]
    rng = random.Random(0)
    for case in preprocess["strides"]["exam_level_seed0"][:4]:
        grid = draw_grid(tuple(case["shape"]), rng)
        expected = network["full_exam_heatmaps"][case["image"]]
        first, end = expected["patch_rows"]
        assert end - first == len(grid)
        for index, name in ((MALIGNANT, "malignant"), (BENIGN, "benign")):
            assert_heatmap(heatmap_of(tuple(case["shape"]), grid, scores[first:end, index]), expected[name])


@pytest.mark.parametrize("region", ["region700x600", "regionR400x500"])
def test_heatmaps_of_regions(goldens, region):
    network = json.loads((goldens / "four_view" / "network.json").read_text())
    expected = network["heatmap_" + {"region700x600": "region_700x600"}.get(region, "region_R_view_400x500")]
    with np.load(goldens / "four_view" / "heatmaps.npz") as arrays:
        shape = arrays[f"{region}_pixels_uint16"].shape
        scores = arrays[f"{region}_probs"]
        stored = {n: arrays[f"{region}_{n}_right_facing"] for n in ("malignant", "benign")}
    rng = random.Random(0)
    grid = draw_grid(shape, rng)
    assert len(grid) == expected["n_patches"]
    for index, name in ((MALIGNANT, "malignant"), (BENIGN, "benign")):
        heatmap = heatmap_of(shape, grid, scores[:, index])
        assert sha(heatmap) == expected[name]["sha256_from_npz_probs"]
        assert np.abs(heatmap - stored[name]).max() < 1e-6
