"""Scans with GMIC: scores, saliency and regions equal those computed step by step and the published ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lobule.api import scan
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort, read_cohort
from lobule.errors import BundleError, ConfigError
from lobule.mammograms.exams import read_view
from lobule.mammograms.published.centres import best_centre
from lobule.mammograms.published.crop import crop_of
from lobule.mammograms.published.windows import NO_AUGMENTATION, network_input, plan_image
from lobule.mammograms.views import VIEWS
from lobule.methods import load
from lobule.methods.gmic import Config, convert
from lobule.methods.gmic.bundle import build
from lobule.nets.published import GMIC_TOP_SHARES
from lobule.phantoms.exams import write_exams
from lobule.results import open_results
from lobule.stitch import State
from tests.nets.four_view_recipe import made_net, made_tensor
from tests.reference.mammograms import ViewImage, right_pointing

SMALL = Config(
    regions=3, region_px=64, window=(320, 256), crop_iterations=4, crop_buffer=6, widths=(2, 2, 4, 4, 4)
)
WINDOW, SMALL_SETTINGS = (
    (320, 256),
    {"window": (320, 256), "region_px": 64, "regions": 3, "widths": (2, 2, 4, 4, 4)},
)
CROP = {"crop_iterations": 4, "crop_buffer": 6}
MACHINE = {"device": "cpu", "precision": "float32", "readers": 2, "memory_layout": "channels-last"}
SALT = "four_view-visible-12"


def small_net(tag: str, share: float):
    (net,) = build(Config(**SMALL_SETTINGS, top_shares=(share,)))
    state = net.state_dict()
    for key, tensor in state.items():
        if tensor.ndim:
            state[key] = torch.from_numpy(made_tensor("gmic", tag, key, tuple(tensor.shape)))
    net.load_state_dict(state)
    return net.eval()


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("exams")
    return read_cohort(write_exams(folder, exams=1, size=(400, 300), seed=5))


@pytest.fixture(scope="module")
def nets_and_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    """Two networks, and a bundle converted from their checkpoints in the published form."""
    folder = tmp_path_factory.mktemp("gmic")
    nets, files = [small_net("a", GMIC_TOP_SHARES[0]), small_net("b", GMIC_TOP_SHARES[3])], []
    for number, net in ((1, nets[0]), (4, nets[1])):
        state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
        files.append(folder / f"sample_model_{number}.p")
        torch.save(state | {"shared_rep_filter.weight": torch.zeros(1)}, files[-1])
    convert(files, folder / "bundle", **SMALL_SETTINGS, **CROP)
    return nets, folder / "bundle"


def by_hand(path: str, view: str):
    """Return the network input (1, 1, h, w), the window in the crop, the crop and the mammogram."""
    mammogram = read_view(path, view=view)
    crop = crop_of(mammogram.pixels, mammogram.pointing, iterations=4, buffer=6)
    image = np.ascontiguousarray(
        right_pointing(crop.window.of(mammogram.pixels), view, mammogram.horizontal_flip)
    )
    centre = best_centre(image, view, crop.landmarks, WINDOW)
    (plan,) = plan_image(
        ViewImage(image.shape, centre), view, epochs=1, augmentation=NO_AUGMENTATION, size=WINDOW
    )
    return (
        torch.from_numpy(network_input(image, plan.unpadded, plan.size))[None],
        plan,
        crop.window,
        mammogram,
    )


def test_scores_are_the_mean_of_models_and_views(exams: Cohort, nets_and_bundle, tmp_path: Path) -> None:
    nets, bundle = nets_and_bundle
    case = exams.cases[0]
    scan(bundle, exams, tmp_path / "r", **MACHINE)
    folder = open_results(tmp_path / "r").case_folder(case.id)
    result, of_views = folder.result, {}
    for view in VIEWS:
        x, *_ = by_hand(case.views[view.lower().replace("-", "_")][0], view)
        with torch.inference_mode():
            outputs = [net(x) for net in nets]
        of_views[view] = np.mean([output.scores[0].numpy() for output in outputs], axis=0)
        for grade_index, grade in enumerate(("benign", "malignant")):
            reported = result["views"][view][grade]
            for index, output in enumerate(outputs):
                assert reported["of_models"][index] == pytest.approx(
                    output.scores[0, grade_index].item(), abs=1e-5
                )
                assert reported["global"][index] == pytest.approx(
                    output.global_scores[0, grade_index].item(), abs=1e-5
                )
            assert reported["score"] == pytest.approx(of_views[view][grade_index], abs=1e-5)
    right = (of_views["R-CC"] + of_views["R-MLO"]) / 2
    assert result["scores"]["right_malignant"] == pytest.approx(right[1], abs=1e-5)
    assert result["scores"]["right_benign"] == pytest.approx(right[0], abs=1e-5)
    assert len({round(score, 5) for score in result["scores"].values()}) == 4
    assert_regions_and_saliency(folder, case, nets)


def assert_regions_and_saliency(folder, case: Case, nets) -> None:
    """Check the findings and the saliency map in stored pixels, for a view that is stored pointing left."""
    x, plan, crop, mammogram = by_hand(case.views["r_cc"][0], "R-CC")
    with torch.inference_mode():
        outputs = [net(x) for net in nets]
    findings = folder.findings()
    view_rows = [i for i, image in enumerate(findings["image"]) if image == "R-CC"]
    boxes = {tuple(findings["box"][i]): findings["score"][i] for i in view_rows}
    expected: dict[tuple[int, ...], float] = {}
    height, width = mammogram.pixels.shape
    for output in outputs:
        for (row, column), weight in zip(
            output.corners[0].tolist(), output.attention[0].tolist(), strict=True
        ):
            top = crop.top + plan.window.top - plan.padding.top + row
            right = crop.right - (plan.window.left + column)
            edges = max(0, right - 64), max(0, top), min(width, right), min(height, top + 64)
            if edges[2] > edges[0] and edges[3] > edges[1]:
                region = (edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1])
                expected[region] = expected.get(region, 0) + weight / 2
    assert boxes.keys() == expected.keys() and mammogram.pointing == "left"
    for box, weight in expected.items():
        assert boxes[box] == pytest.approx(weight, abs=1e-5)
    # Check the map of the stored image cell by cell.
    saliency = torch.stack([output.saliency[0] for output in outputs]).mean(dim=0).numpy()
    layer = saliency.repeat(64, axis=1).repeat(64, axis=2)
    scores, states = folder.maps["saliency R-CC"].read()
    top, left = plan.window.top - plan.padding.top, plan.window.left
    checked = 0
    for row, column in np.argwhere(states == State.SCORED):
        y, x0 = np.arange(16 * row, 16 * row + 16) - crop.top - top, np.arange(16 * column, 16 * column + 16)
        columns = crop.right - 1 - x0 - left
        inside = (columns >= 0) & (columns < 256) & (x0 >= crop.left) & (x0 < crop.right)
        rows = y[(y >= 0) & (y < 320) & (y + top >= 0) & (y + top < crop.height)]
        mean = layer[:, rows][:, :, columns[inside]].mean(axis=(1, 2))
        np.testing.assert_allclose(scores[:, row, column], mean, atol=1e-5)
        checked += 1
    assert checked > 100 and np.ptp(scores[1][states == State.SCORED]) > 1e-4


def test_exam_of_one_side_and_exam_with_a_broken_view(exams: Cohort, nets_and_bundle, tmp_path: Path) -> None:
    _, bundle = nets_and_bundle
    complete_exam = exams.cases[0]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    left = {name: files for name, files in complete_exam.views.items() if name.startswith("l_")}
    broken = {**complete_exam.views, "r_cc": (str(tmp_path / "bad.png"),)}
    cohort = Cohort((Case("left", "p", "exam", views=left), Case("broken", "q", "exam", views=broken)))
    report = scan(bundle, cohort, tmp_path / "r", **MACHINE)
    assert dict(report.counts) == {"complete": 1, "partial": 1}
    results = {c: open_results(tmp_path / "r").case_folder(c).result for c in ("left", "broken")}
    assert set(results["left"]["scores"]) == {"left_benign", "left_malignant"}
    assert "without R-CC, R-MLO" in results["left"]["notes"][0]
    assert results["broken"]["scores"]["left_malignant"] == pytest.approx(
        results["left"]["scores"]["left_malignant"]
    )
    shutil.copy(complete_exam.views["r_cc"][0], tmp_path / "bad.png")
    scan(bundle, cohort, tmp_path / "r", **MACHINE, retry_failed=True)
    assert open_results(tmp_path / "r").case_folder("broken").status == "complete"


def test_checkpoints_are_identified_and_their_tensors_checked(nets_and_bundle, tmp_path: Path) -> None:
    nets, path = nets_and_bundle
    bundle = read_bundle(path)
    assert bundle.method == "gmic" and bundle.config["top_shares"] == [GMIC_TOP_SHARES[0], GMIC_TOP_SHARES[3]]
    loaded: Any = load(bundle).model
    for loaded_net, net in zip(loaded.nets, nets, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(loaded_net.parameters(), net.parameters(), strict=True))
    combined = convert([path, path], tmp_path / "four")
    assert len(combined.config["top_shares"]) == 4
    state = dict(nets[0].state_dict())
    torch.save({k: v for k, v in state.items() if k != "fusion_dnn.bias"}, tmp_path / "lacking.p")
    with pytest.raises(BundleError, match=r"missing: fusion_dnn\.bias"):
        convert(tmp_path / "lacking.p", tmp_path / "b", **SMALL_SETTINGS)
    torch.save({**state, "extra": torch.ones(1)}, tmp_path / "more.p")
    with pytest.raises(BundleError, match="not of the network: extra"):
        convert(tmp_path / "more.p", tmp_path / "b", **SMALL_SETTINGS)
    with pytest.raises(ConfigError, match="quirk"):
        Config.from_dict({**SMALL.to_dict(), "quirks": "none"})
    assert Config.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


def real_scan(kit: Path, out: Path) -> dict:
    torch.save(made_net("gmic", SALT).state_dict(), out / "model.p")
    convert(out / "model.p", out / "bundle")
    images = kit / "mammograms" / "nyu" / "images"
    files = {view.lower().replace("-", "_"): (str(images / f"0_{view}.png"),) for view in VIEWS}
    report = scan(out / "bundle", Cohort((Case("0", "p", "exam", views=files),)), out / "r", **MACHINE)
    assert dict(report.counts) == {"complete": 1}, report.failed
    folder = open_results(out / "r").case_folder("0")
    assert folder.result is not None
    return {**folder.result, "found": folder.findings()}


@pytest.mark.campaign
def test_published_scores_of_the_real_exam(kit: Path, goldens: Path, tmp_path: Path) -> None:
    published_images = json.loads((goldens / "four_view" / "gmic.json").read_text())["images"]
    result = real_scan(kit, tmp_path)
    for view in VIEWS:
        expected, reported = published_images[f"0_{view}"], result["views"][view]
        assert reported["benign"]["score"] == pytest.approx(expected["benign_pred"], abs=1e-5)
        assert reported["malignant"]["score"] == pytest.approx(expected["malignant_pred"], abs=1e-5)
        for index, grade in enumerate(("benign", "malignant")):
            assert reported[grade]["local"][0] == pytest.approx(expected["y_local"][index], abs=1e-5)
            y_global = expected["y_global_by_model_index"]["1"]["y_global"][index]
            assert reported[grade]["global"][0] == pytest.approx(y_global, abs=1e-5)
        view_rows = [i for i, image in enumerate(result["found"]["image"]) if image == view]
        attention = sorted(result["found"]["score"][view_rows].tolist())
        published = sorted(expected["patch_attention"])
        # Regions entirely outside the image are not findings. The scores of the others are their attention.
        assert len(attention) >= 4
        for weight in attention:
            assert min(abs(weight - other) for other in published) < 1e-5


def blank_exam(folder: Path, views: tuple[str, ...] = ("l_cc", "r_cc", "l_mlo", "r_mlo")) -> Cohort:
    """Write views without a breast: the first has only zeros, the others have isolated noise pixels."""
    files = {}
    for number, view in enumerate(views):
        pixels = np.zeros((400, 300), np.uint16)
        if number:
            pixels[np.random.default_rng(number).random(pixels.shape) < 0.001] = 40
        Image.fromarray(pixels).save(folder / f"{view}.png")
        files[view] = (str(folder / f"{view}.png"),)
    return Cohort((Case("blank", "p", "exam", views=files),))


@pytest.mark.parametrize("views", [("l_cc", "r_cc", "l_mlo", "r_mlo"), ("l_cc",), ()])
def test_exam_of_blank_views_has_no_score(nets_and_bundle, tmp_path: Path, views: tuple[str, ...]) -> None:
    _, bundle = nets_and_bundle
    report = scan(bundle, blank_exam(tmp_path, views), tmp_path / "r", **MACHINE)
    assert dict(report.counts) == {"unscored": 1}
    result = open_results(tmp_path / "r").case_folder("blank").result
    assert result["scores"] == {}
    assert "Nothing was scored: no view of the exam shows a breast" in result["notes"][0]


def test_exam_with_one_blank_view_is_partial(exams: Cohort, nets_and_bundle, tmp_path: Path) -> None:
    _, bundle = nets_and_bundle
    blank = blank_exam(tmp_path, ("l_cc",)).cases[0]
    case = replace(exams.cases[0], views={**exams.cases[0].views, **blank.views})
    report = scan(bundle, Cohort((case,)), tmp_path / "r", **MACHINE)
    assert dict(report.counts) == {"partial": 1}
