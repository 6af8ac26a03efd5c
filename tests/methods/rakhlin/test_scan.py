"""Scanning: images by the mean of their augmentations, slides by windows, and files of every bad kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lobule.bundles import Bundle
from lobule.cohort import Case, Cohort
from lobule.errors import BundleError, ResultsError
from lobule.geometry import Box
from lobule.methods.rakhlin import describe, load, write_bach
from lobule.methods.rakhlin.bach import case_number
from lobule.methods.rakhlin.config import BACH
from lobule.methods.rakhlin.crops import generator_of, p_norm, resize_and_normalise
from lobule.methods.rakhlin.encoders import scale_pixels
from lobule.methods.rakhlin.forests import merged
from lobule.methods.rakhlin.predictor import UNNORMALISED, RakhlinPredictor
from lobule.methods.rakhlin.train import train
from lobule.methods.rakhlin.trees import BoostedTrees
from lobule.results.folder import Results, open_results
from lobule.scanning.contract import EngineSettings, ScanOptions
from lobule.scanning.scan import Machine, scan
from lobule.stitch import State
from tests.methods.rakhlin.support import CONFIG, MACHINE, cohort_in, painted
from tests.reference.rakhlin import CARCINOMA_PAIRS, augmented_crops
from tests.scanning.support import tree, write_slide

SCANNER = Machine(device="cpu", precision="float32", channels_last=True, readers=2, replicas=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("trained")
    return train(CONFIG, cohort_in(folder), folder / "B", machine=MACHINE)


@pytest.fixture(scope="module")
def predictor(trained: Bundle) -> RakhlinPredictor:
    return load(trained)


def scanned(predictor: RakhlinPredictor, bundle: Bundle, out: Path, *cases: Case, **options: Any) -> Results:
    bundle_fields = {"method": "rakhlin", "fingerprint": bundle.fingerprint, "classes": list(bundle.classes)}
    scan(predictor, bundle_fields, Cohort(cases), out, ScanOptions(**options), SCANNER)
    return open_results(out)


def image(path: Path, mpp: float | None = 1.0) -> Case:
    return Case(path.stem, path.stem, "image", path=str(path), mpp=mpp)


def result_of(results: Results, case: str) -> dict[str, Any]:
    result = results.case_folder(case).result
    assert result is not None
    return result


def read_plainly(
    predictor: RakhlinPredictor, pixels: NDArray[np.uint8], keys: list[tuple[str, int]]
) -> NDArray[np.float64]:
    """The probabilities of an image as the paper reads: every crop by itself, every model by itself."""
    import torch

    config, normalised = predictor.config, resize_and_normalise(pixels).rgb
    predictions = []
    for set_ in config.sets:
        encoder = predictor.model.describer.encoders[set_.encoder]
        for key, augmentation in keys:
            rng = generator_of(predictor.seed, key, set_.name, augmentation)
            cut = augmented_crops(normalised, set_.size, rng, count=config.crops)
            with torch.inference_mode():
                features = [
                    encoder(scale_pixels(torch.from_numpy(c.copy())[None], encoder.plan)) for c in cut
                ]
            descriptor = p_norm(torch.cat(features).numpy()).astype(np.float32)[None]
            forests = predictor.model.forests.of_set[set_.name]
            predictions += [np.asarray(forest.predict(descriptor))[0] for forest in forests]
    mean: NDArray[np.float64] = np.mean(predictions, axis=0)
    return mean


def test_an_image_is_scored_as_the_paper_reads(
    trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path
) -> None:
    path = tmp_path / "new.png"
    pixels = painted("in situ", 77)
    Image.fromarray(pixels).save(path)
    case = image(path)
    results = scanned(predictor, trained, tmp_path / "R", case)
    result = result_of(results, "new")
    key = describe.image_key(case)
    expected = read_plainly(predictor, pixels, [(key, n) for n in range(CONFIG.augmentations)])
    scores = [result["scores"][name] for name in BACH]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert result["prediction"] == BACH[int(expected.argmax())]
    assert result["scores"]["carcinoma"] == pytest.approx(merged(expected, CARCINOMA_PAIRS)[1], abs=1e-5)
    np.testing.assert_allclose(np.mean(list(result["sets"].values()), axis=0), scores, atol=1e-6)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Glass, with normal tissue on the left and invasive tissue on the right."""
    folder = tmp_path_factory.mktemp("slide")
    pixels = np.full((640, 960, 3), 245, np.uint8)
    pixels[160:480, 160:480] = painted("normal", 5, 320, 320)
    for x, y in ((480, 160), (640, 160), (480, 320), (640, 320)):
        pixels[y : y + 160, x : x + 160] = painted("invasive", 100 + x + y, 160, 160)
    path = write_slide(folder / "slide.tif", pixels, resolution=(10000, 10000))
    return Case("slide", "someone", "slide", str(path), mpp=1.0)


def test_a_slide_gets_a_map_of_class_probabilities(
    trained: Bundle, predictor: RakhlinPredictor, slide: Case, tmp_path: Path
) -> None:
    results = scanned(predictor, trained, tmp_path / "R", slide, tissue=None)
    folder = results.case_folder("slide")
    reader = folder.maps["map"]
    assert reader.info.classes == BACH
    assert reader.info.l0_stride == (80, 80)
    scores, states = reader.read()
    assert scores.shape == (4, 8, 12)
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-5)
    left, right = scores[:, 3:5, 3:5], scores[:, 3:5, 7:9]  # windows that lie wholly in one tissue
    assert right[2:].sum(axis=0).mean() > left[2:].sum(axis=0).mean() + 0.2
    result = result_of(results, "slide")
    assert result["scores"]["invasive"] == pytest.approx(float(scores[3].max()))
    assert result["scores"]["normal"] == pytest.approx(float(scores[0].min()))
    assert sum(result["shares"]) == pytest.approx(1)
    assert (states == State.SCORED).all()
    # one cell as the paper reads its window
    assert slide.path is not None
    from lobule.slides.slide import open_slide

    with open_slide(slide.path) as opened:
        window = opened.read_level(0, Box(7 * 80 - 40, 3 * 80 - 40, 160, 160))
    expected = read_plainly(predictor, window, [(f"{describe.image_key(slide)} 3,7", 0)])
    np.testing.assert_allclose(scores[:, 3, 7], expected, atol=1e-5)


def test_only_tissue_is_looked_at_and_settings_of_a_scan_hold(
    trained: Bundle, predictor: RakhlinPredictor, slide: Case, tmp_path: Path
) -> None:
    settings = {"stride": 160, "map_augmentations": 2, "tissue_share": 0.6}
    results = scanned(predictor, trained, tmp_path / "R", slide, settings=settings)
    scores, states = results.case_folder("slide").maps["map"].read()
    assert states.shape == (4, 6)
    assert (states[1:3, 1:5] == State.SCORED).all()
    assert (states[0] == State.GLASS).all()
    keys = [(f"{describe.image_key(slide)} 1,3", n) for n in range(2)]
    assert slide.path is not None
    with Image.open(slide.path) as picture:
        window = np.asarray(picture)[160:320, 480:640]
    np.testing.assert_allclose(scores[:, 1, 3], read_plainly(predictor, window, keys), atol=1e-5)


def test_a_slide_of_glass_says_that_nothing_was_classified(
    trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path
) -> None:
    path = write_slide(tmp_path / "glass.tif", np.full((700, 900, 3), 244, np.uint8))
    case = Case("glass", "p", "slide", str(path), mpp=1.0)
    result = result_of(scanned(predictor, trained, tmp_path / "R", case), "glass")
    assert result["status"] == "unscored"
    assert result["scores"] == {}
    assert result["notes"] == ["Nothing was scored: no tissue was found."]


@pytest.mark.parametrize("noise", [0, 2])
@pytest.mark.parametrize("mpp", [None, 1.0])
def test_blank_image_has_no_score(
    trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path, noise: int, mpp: float | None
) -> None:
    pixels = np.random.default_rng(0).normal(244, noise, (160, 200, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "blank.png")
    blank = image(tmp_path / "blank.png", mpp)
    mpp_of_model = predictor.config.mpp
    result = result_of(scanned(predictor, trained, tmp_path / "R", blank), "blank")
    if mpp is None and mpp_of_model is not None:
        assert result["status"] == "failed"
        return
    assert result["status"] == "unscored"
    assert result["scores"] == {}
    assert "no tissue" in result["notes"][0]
    anyway = result_of(scanned(predictor, trained, tmp_path / "A", blank, tissue=None), "blank")
    assert anyway["status"] == "complete"


def test_a_region_of_a_slide_is_scored_as_an_image(
    trained: Bundle, predictor: RakhlinPredictor, slide: Case, tmp_path: Path
) -> None:
    region = replace(slide, id="region", kind="region", l0_box=Box(480, 160, 320, 320))
    result = result_of(scanned(predictor, trained, tmp_path / "R", region), "region")
    assert result["maps"] == []
    assert slide.path is not None
    with Image.open(slide.path) as picture:
        pixels = np.asarray(picture)[160:480, 480:800]
    keys = [(describe.image_key(region), n) for n in range(3)]
    expected = read_plainly(predictor, pixels, keys)
    np.testing.assert_allclose([result["scores"][name] for name in BACH], expected, atol=1e-5)


def test_a_small_slide_is_an_image(trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path) -> None:
    """BACH's own images are TIFFs, which by their name could be slides."""
    path = write_slide(tmp_path / "test3.tif", painted("benign", 8), resolution=(10000, 10000))
    results = scanned(predictor, trained, tmp_path / "R", Case("test3", "test3", "slide", str(path)))
    assert result_of(results, "test3")["maps"] == []


def test_an_interrupted_scan_ends_with_the_same_bytes(
    trained: Bundle, predictor: RakhlinPredictor, slide: Case, tmp_path: Path
) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(painted("benign", 3)).save(path)
    cases = (image(path), slide)
    scanned(predictor, trained, tmp_path / "R", *cases)
    uninterrupted = tree(tmp_path / "R")
    table = tmp_path / "R/cases/one/tables/augmentations/part-000000.parquet"
    table.unlink()
    (tmp_path / "R/cases/one/result.json").unlink()
    (tmp_path / "R/cases/slide/result.json").unlink()
    chunk = next(iter(sorted((tmp_path / "R/cases/slide/maps/map/state/c").rglob("*"))))
    next(item for item in [chunk, *chunk.rglob("*")] if item.is_file()).unlink()
    scanned(predictor, trained, tmp_path / "R", *cases)
    assert tree(tmp_path / "R") == uninterrupted


# -- files of every kind ------------------------------------------------------------------------------------


def test_other_kinds_of_pixels_are_read(trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path) -> None:
    rgb = Image.fromarray(painted("invasive", 4))
    grey = np.asarray(rgb.convert("L"))
    rgb.save(tmp_path / "rgb.png")
    rgb.convert("L").save(tmp_path / "grey.png")
    rgb.convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    names = ["rgb.png", "grey.png", "rgba.png", "deep.png", "cmyk.jpg"]
    results = scanned(predictor, trained, tmp_path / "R", *(image(tmp_path / name) for name in names))
    results_by_name = {name: result_of(results, name.partition(".")[0]) for name in names}
    assert {result["status"] for result in results_by_name.values()} == {"complete"}
    for name in names:
        assert sum(results_by_name[name]["scores"][label] for label in BACH) == pytest.approx(1)
    assert not results_by_name["rgb.png"]["notes"]
    # what is grey is of a single stain: said, and used as it is
    assert results_by_name["grey.png"]["notes"] == [UNNORMALISED]
    assert results_by_name["deep.png"]["notes"] == [UNNORMALISED]


def test_what_cannot_be_scored_fails_by_itself(
    trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path
) -> None:
    Image.fromarray(painted("benign", 1)).save(tmp_path / "good.png")
    Image.fromarray(painted("benign", 1, 110, 90)).save(tmp_path / "small.png")
    png_bytes = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(png_bytes[: len(png_bytes) // 2])
    (tmp_path / "text.png").write_text("not an image")
    names = ["good.png", "small.png", "cut.png", "text.png"]
    cases = [image(tmp_path / name) for name in names]
    cases.append(replace(cases[0], id="unknown", mpp=None))
    results = scanned(predictor, trained, tmp_path / "R", *cases)
    status = {case.id: result_of(results, case.id)["status"] for case in cases}
    assert status == {
        "good": "complete",
        "small": "failed",
        "cut": "failed",
        "text": "failed",
        "unknown": "failed",
    }
    messages = {name: result_of(results, name)["error"]["message"] for name in status if name != "good"}
    assert "too small for crops of 60 px" in messages["small"]
    assert "more than 60 px" in messages["small"]
    assert "cannot be decoded" in messages["cut"]
    assert "not a slide that Lobule can read" in messages["text"]
    assert "--slide-mpp" in messages["unknown"]


def test_an_image_of_almost_no_tissue_is_scored_as_it_is(
    trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path
) -> None:
    pixels = np.full((160, 200, 3), 244, np.uint8)
    pixels[:6, :6] = (120, 60, 140)
    Image.fromarray(pixels).save(tmp_path / "glass.png")
    result = result_of(scanned(predictor, trained, tmp_path / "R", image(tmp_path / "glass.png")), "glass")
    assert result["status"] == "complete"
    assert result["notes"] == [UNNORMALISED]
    assert result["stains_normalised"] is False


def test_a_model_cut_short_is_refused() -> None:
    with pytest.raises(BundleError, match="not a complete LightGBM model"):
        BoostedTrees.of_text("tree\nversion=v4\n", "m.txt")


def test_the_nets_fit_into_the_room_they_are_given(predictor: RakhlinPredictor) -> None:
    wide = predictor.model.choose_batch(EngineSettings(), 1 << 30, ScanOptions())
    narrow = predictor.model.choose_batch(EngineSettings(), 1 << 20, ScanOptions())
    assert narrow.batch < wide.batch
    assert wide.batch * 60**2 <= 1 << 20


# -- the challenge ------------------------------------------------------------------------------------------


def test_predictions_in_the_form_of_the_challenge(
    trained: Bundle, predictor: RakhlinPredictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = []
    for number, label in ((10, "invasive"), (2, "normal")):
        Image.fromarray(painted(label, 60 + number)).save(tmp_path / f"test{number}.png")
        cases.append(image(tmp_path / f"test{number}.png"))
    results = scanned(predictor, trained, tmp_path / "R", *cases)
    assert write_bach(tmp_path / "R", tmp_path / "pred.csv") == 2
    expected = {n: BACH.index(result_of(results, f"test{n}")["prediction"]) for n in (2, 10)}
    assert (tmp_path / "pred.csv").read_text() == f"case,class\n2,{expected[2]}\n10,{expected[10]}\n"
    (tmp_path / "R/cases/test2/result.json").unlink()
    assert write_bach(tmp_path / "R", tmp_path / "pred.csv") == 1
    assert (tmp_path / "pred.csv").read_text() == f"case,class\n10,{expected[10]}\n"
    assert "no prediction for test2" in caplog.text
    (tmp_path / "R/cases/test10/result.json").unlink()
    (tmp_path / "pred.csv").write_text("earlier")
    with pytest.raises(ResultsError, match="no image has a prediction"):
        write_bach(tmp_path / "R", tmp_path / "pred.csv")
    assert (tmp_path / "pred.csv").read_text() == "earlier"


def test_the_case_is_the_number_that_ends_its_name() -> None:
    assert [case_number(name) for name in ("test0", "test07", "b001", "image")] == ["0", "7", "1", "image"]
