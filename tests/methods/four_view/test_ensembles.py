"""Bundles of several classifiers: averaged scores, and image-wise members for exams that lack a view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.bundles import read_bundle, write_bundle
from lobule.cohort import Case, Cohort, read_cohort
from lobule.errors import ConfigError
from lobule.methods.four_view import Config, convert, load, save
from lobule.methods.four_view.model import build
from lobule.nets.four_view import TARGETS, VIEWS, Joint, SideWise
from lobule.phantoms.exams import write_exams
from lobule.results import open_results
from tests.methods.four_view.configs import changed
from tests.methods.four_view.support import SMALL, bundle_of, run, seeded


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """A complete exam, one with only the left side, and one without L-MLO."""
    folder = tmp_path_factory.mktemp("exams")
    (complete_exam,) = read_cohort(write_exams(folder, exams=1, size=(300, 220), seed=5)).cases
    left = {name: files for name, files in complete_exam.views.items() if name.startswith("l_")}
    without = {name: files for name, files in complete_exam.views.items() if name != "l_mlo"}
    return Cohort(
        (complete_exam, Case("left", "p1", "exam", views=left), Case("without", "p2", "exam", views=without))
    )


def member(path: Path, tag: str, **settings: object) -> Path:
    """Write a bundle with weights derived from `tag`, and a patch network derived from `patch_tag`."""
    patch_tag = str(settings.pop("patch_tag", "patch"))
    config = changed(SMALL, **settings)
    networks = build(config)
    net, patch_net = networks.members[0], next(iter(networks.patch_nets), None)
    patch_net = None if patch_net is None else seeded(patch_net, patch_tag)
    save(path, config, seeded(net, tag), patch_net, patients=[tag])
    return path


def scores_of(results: Path, case: str = "exam0000") -> np.ndarray:
    result = open_results(results).case_folder(case).result
    return np.array([result["scores"][name] for name in TARGETS if name in result["scores"]])


def scanned(bundle: Path, cohort: Cohort, out: Path) -> Path:
    run(bundle, cohort, out)
    return out


@pytest.mark.parametrize("patch_tags", [("patch", "patch"), ("patch", "other")])
def test_scores_are_the_mean_of_the_members(cohort: Cohort, tmp_path: Path, patch_tags) -> None:
    complete_exam = cohort.where(lambda case: case.id == "exam0000")
    paths = [
        member(tmp_path / tag, tag, heatmaps=True, patch_tag=patch)
        for tag, patch in zip(("one", "two"), patch_tags, strict=True)
    ]
    alone = [scores_of(scanned(path, complete_exam, tmp_path / f"r{i}")) for i, path in enumerate(paths)]
    assert np.abs(alone[0] - alone[1]).min() > 1e-4
    bundle = convert(paths, tmp_path / "both")
    assert bundle.config["architecture"]["members"] == 2 and len(bundle.patients) == 2
    assert bundle.config["architecture"]["patch_of"] == ([] if patch_tags[0] == patch_tags[1] else [0, 1])
    assert len(load(read_bundle(tmp_path / "both")).nets.patch_nets) == len(set(patch_tags))
    results = scanned(tmp_path / "both", complete_exam, tmp_path / "r")
    np.testing.assert_allclose(scores_of(results), np.mean(alone, axis=0), atol=1e-5)
    result = open_results(results).case_folder("exam0000").result
    for member_scores, reported in zip(alone, result["members"], strict=True):
        np.testing.assert_allclose([reported[name] for name in TARGETS], member_scores, atol=1e-5)


def test_exams_that_lack_a_view_are_scored_by_image_wise_members(cohort: Cohort, tmp_path: Path) -> None:
    view_wise = member(tmp_path / "whole", "one")
    singles = [member(tmp_path / tag, tag, variant="image_wise") for tag in ("two", "three")]
    bundle = convert([singles[0], view_wise, singles[1]], tmp_path / "both")
    architecture = bundle.config["architecture"]
    assert [architecture[name] for name in ("variant", "members", "alone")] == ["view_wise", 1, 2]
    results = scanned(tmp_path / "both", cohort, tmp_path / "r")
    plain = scanned(view_wise, cohort.where(lambda case: case.id == "exam0000"), tmp_path / "r1")
    np.testing.assert_array_equal(scores_of(results), scores_of(plain))
    each = [scanned(single, cohort, tmp_path / f"s{i}") for i, single in enumerate(singles)]
    for case in ("left", "without"):
        expected = np.mean([scores_of(folder, case) for folder in each], axis=0)
        np.testing.assert_allclose(scores_of(results, case), expected, atol=1e-6)
    results_by_case = {
        c: open_results(results).case_folder(c).result for c in ("exam0000", "left", "without")
    }
    assert [case_result["model"] for case_result in results_by_case.values()] == [
        "view_wise",
        "image_wise",
        "image_wise",
    ]
    assert (
        set(results_by_case["left"]["scores"])
        == {"left_benign", "left_malignant"}
        == set(results_by_case["left"]["spread"])
    )
    assert "without R-CC, R-MLO" in results_by_case["left"]["notes"][0]
    assert not results_by_case["exam0000"]["notes"]


def test_spread_of_a_breast_is_computed_over_its_windows(cohort: Cohort, tmp_path: Path) -> None:
    results = scanned(bundle_of(tmp_path / "b", variant="image_wise"), cohort, tmp_path / "r")
    folder = open_results(results).case_folder("without")
    spread, views = folder.result["spread"], folder.result["views"]
    # The left breast has one view, so both spreads are equal. The right breast averages two views, so its
    # spread is at most the larger one.
    for name in ("std", "least", "greatest"):
        assert spread["left_malignant"][name] == pytest.approx(views["L-CC"]["malignant"][name])
    widest = max(views[view]["benign"]["std"] for view in ("R-CC", "R-MLO"))
    assert 0 < spread["right_benign"]["std"] <= widest


def test_settings_with_wrong_values_are_errors() -> None:
    wrong = {"architecture.pool": "median", "training.swap_sides": "maybe", "architecture.heatmaps": 1}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=name):
            Config.from_dict({name: value})


def test_scores_that_are_not_finite_fail_the_case(cohort: Cohort, tmp_path: Path) -> None:
    config = changed(SMALL, heatmaps=False)
    (net,) = build(config).members
    seeded(net, "one").fc1_cc.weight.data.fill_(float("nan"))
    save(tmp_path / "b", config, net)
    report = run(tmp_path / "b", cohort.where(lambda case: case.id == "exam0000"), tmp_path / "r")
    assert "the classifier's scores are not finite" in report.failed["exam0000"]


def test_bundles_that_do_not_fit_together_are_errors(tmp_path: Path) -> None:
    first = member(tmp_path / "one", "one")
    with pytest.raises(ConfigError, match="agree in window"):
        convert([first, member(tmp_path / "two", "two", window=(160, 128))], tmp_path / "b")
    with pytest.raises(ConfigError, match="agree in pool"):
        convert([first, member(tmp_path / "maxima", "two", pool="max")], tmp_path / "b")
    with pytest.raises(ConfigError, match="several variants"):
        convert([first, member(tmp_path / "three", "three", variant="joint")], tmp_path / "b")
    first_bundle = read_bundle(first)
    write_bundle(tmp_path / "four", replace(first_bundle, method="scannet"), first_bundle.weights())
    with pytest.raises(ConfigError, match="another method"):
        convert([first, tmp_path / "four"], tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("variant", ["side_wise", "joint"])
def test_the_other_variants_of_the_paper_scan(cohort: Cohort, tmp_path: Path, variant: str) -> None:
    results = scanned(bundle_of(tmp_path / "b", variant=variant), cohort, tmp_path / "r")
    assert scores_of(results).std() > 1e-4
    error = open_results(results).case_folder("left").result["error"]
    assert "R-CC" in error["message"]


def test_side_wise_reads_one_side_and_joint_reads_all_views() -> None:
    views = {
        v: torch.randn(1, 1, 200, 160, generator=torch.Generator().manual_seed(i))
        for i, v in enumerate(VIEWS)
    }
    changed = {**views, "R-CC": views["R-CC"] + 1}
    for kind, moved in ((SideWise, [1, 3]), (Joint, [0, 1, 2, 3])):
        net: Any = seeded(kind(widths=(4,) * 5), "view-image")
        with torch.inference_mode():
            before, after = (net.exam_scores(net(x))[0] for x in (views, changed))
        assert (before != after).nonzero().flatten().tolist() == moved
        assert ((before > 0) & (before < 1)).all()


def test_config_with_members_survives_json() -> None:
    config = changed(members=2, alone=1, patch_of=(0, 1, 0), heatmaps=True)
    assert Config.from_dict(config.to_dict()) == config and config.architecture.patch_nets == 2
