"""The same scan in fresh folders gives the same bytes, whatever a measurement says the second time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from lobule.api import scan as scan_bundle
from lobule.files import read_json
from lobule.fingerprints import cache_folder
from lobule.methods.classifier.convert import convert
from lobule.results.result import Result
from lobule.scanning import choice as placement
from lobule.scanning.contract import EngineSettings, Model, OpenCase, ScanOptions, Steps
from lobule.scanning.form_cache import CachedForm, cache_key, cached_form, store_form
from lobule.scanning.scan import Machine, scan
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)

AUTO: dict[str, Any] = {"device": "cpu", "cells": 3, "batch": 2}
TILE = 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOBULE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "one.tif", pixels_of(420, 330))


def write_resnet(folder: Path) -> Path:
    """A tile classifier with a ResNet-18 of seeded weights."""
    folder.mkdir()
    torch.manual_seed(5)
    torch.save(resnet18(num_classes=2).eval().state_dict(), folder / "model.pt")
    config = {"architecture": "torchvision:resnet18", "class_names": ["no", "yes"], "spacing_um_px": 0.5}
    (folder / "config.json").write_text(json.dumps({**config, "patch_size_pixels": TILE}))
    convert(folder / "model.pt", folder / "config.json", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module", params=["dense net", "ResNet classifier"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    if request.param == "dense net":
        return write_tiny_bundle(folder / "dense", mpp=0.5)
    return write_resnet(folder / "resnet")


def measured_as(faster: bool) -> Callable[..., tuple[float, dict[str, torch.Tensor]]]:
    """A measurement by which the layout with `channels_last == faster` is three times as fast."""
    original = placement._rate

    def rate(model: Model, engine: EngineSettings, options: ScanOptions, seconds: float = 0) -> Any:
        _, outputs = original(model, engine, options, 0.0)
        return (3.0 if engine.channels_last == faster else 1.0), outputs

    return rate


def run_with(
    monkeypatch: pytest.MonkeyPatch, faster: bool, bundle: Path | None, slide: Path, out: Path
) -> None:
    """A scan during which one of the layouts measures faster; without a bundle, by a quick predictor."""
    with monkeypatch.context() as patched:
        patched.setattr(placement, "_rate", measured_as(faster))
        if bundle is None:
            report = scan(MeanPredictor(), BUNDLE, cohort_of(slide), out, EVERYWHERE, Machine(**AUTO))
        else:
            report = scan_bundle(bundle, str(slide), out, tissue=False, device="cpu", batch=2)
    assert dict(report.counts) == {"complete": 1}


@pytest.mark.parametrize("first", [True, False])
def test_opposite_measurements_give_the_same_bytes(
    bundle: Path, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    run_with(monkeypatch, first, bundle, slide, tmp_path / "a")
    run_with(monkeypatch, not first, bundle, slide, tmp_path / "b")
    assert read_json(tmp_path / "a" / "scan.json")["engine"]["channels_last"] is first
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_without_a_cache_the_recorded_layouts_differ(
    slide: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the test above: the measurements really are opposite, and `scan.json` says so."""
    layouts = []
    for faster in (True, False):
        run_with(monkeypatch, faster, None, slide, tmp_path / f"{faster}")
        layouts.append(read_json(tmp_path / f"{faster}" / "scan.json")["engine"]["channels_last"])
        (entry,) = cache.glob("forms/*.json")
        entry.unlink()
    assert layouts == [True, False]


def test_a_resumed_scan_follows_scan_json_rather_than_the_cache(
    slide: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, False, None, slide, tmp_path / "r")
    before = tree(tmp_path / "r")
    (entry,) = cache.glob("forms/*.json")
    entry.unlink()
    shutil.rmtree(tmp_path / "r" / "cases" / "one")
    run_with(monkeypatch, True, None, slide, tmp_path / "r")
    assert tree(tmp_path / "r") == before


def test_a_slightly_faster_layout_does_not_replace_the_default(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = placement._rate

    def nearly_equal(model: Model, engine: EngineSettings, options: ScanOptions) -> Any:
        return (100.0 if engine.channels_last else 105.0), original(model, engine, options, 0.0)[1]

    monkeypatch.setattr(placement, "_rate", nearly_equal)
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, Machine(**AUTO))
    assert read_json(tmp_path / "r" / "scan.json")["engine"]["channels_last"] is True


@pytest.mark.parametrize("content", ["", "{", "[]", '{"precision": "int3", "channels_last": 1}', "null"])
def test_a_damaged_cache_is_ignored_with_a_note_and_replaced(
    slide: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: str,
) -> None:
    run_with(monkeypatch, True, None, slide, tmp_path / "a")
    (entry,) = cache.glob("forms/*.json")
    entry.write_text(content)
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        run_with(monkeypatch, False, None, slide, tmp_path / "b")
    assert "is ignored" in caplog.text and entry.name in caplog.text
    assert read_json(entry)["channels_last"] is False
    run_with(monkeypatch, True, None, slide, tmp_path / "c")
    assert tree(tmp_path / "b") == tree(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        {"measurement": {"fields_per_s": {"float32": 2.0}}},
        {"measurement": {"fields_per_s": {"float32": -2.0}, "difference": None, "chosen": "float32"}},
        {"measurement": {"fields_per_s": {"float32": 2.0}, "difference": "0", "chosen": "float32"}},
        {"precision": "int8"},
        {"key": {}},
    ],
)
def test_a_choice_that_does_not_fit_is_ignored_with_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    """An incomplete measurement stopped the scan; the choice for another scan was followed."""
    key = cache_key(BUNDLE, EngineSettings(), {}, "auto", None)
    measurement = {"fields_per_s": {"float32": 2.0}, "difference": None, "chosen": "float32"}
    store_form(key, CachedForm("float32", False, measurement))
    (entry,) = cache.glob("forms/*.json")
    entry.write_text(json.dumps({**read_json(entry), **change}))
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        assert cached_form(key) is None
    assert "is ignored" in caplog.text and entry.name in caplog.text


def test_an_unwritable_cache_is_ignored_with_a_note(
    slide: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        report = scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, Machine(**AUTO))
    assert dict(report.counts) == {"complete": 1}
    assert "cannot be cached" in caplog.text and "--memory-layout" in caplog.text


RACING = """
    import sys, time
    from pathlib import Path
    from lobule.scanning import choice as placement
    from lobule.api import scan

    bundle, slide, out, mine, other, faster = sys.argv[1:]
    original = placement._rate

    def rate(model, engine, options, seconds=0.0):
        Path(mine).touch()  # both processes have looked into the empty cache before either one stores
        while not Path(other).exists():
            time.sleep(0.01)
        _, outputs = original(model, engine, options, 0.0)
        return (3.0 if str(engine.channels_last) == faster else 1.0), outputs

    placement._rate = rate
    scan(bundle, slide, out, tissue=False, device="cpu", batch=2)
"""


@pytest.mark.parametrize("bundle", ["dense net"], indirect=True)
def test_two_processes_that_start_together_choose_the_same(bundle: Path, slide: Path, tmp_path: Path) -> None:
    code, running = textwrap.dedent(RACING), []
    for mine, other, faster in (("a", "b", "True"), ("b", "a", "False")):
        marks = [str(tmp_path / f"{name}.began") for name in (mine, other)]
        arguments = [str(bundle), str(slide), str(tmp_path / mine), *marks, faster]
        running.append(subprocess.Popen([sys.executable, "-c", code, *arguments]))
    try:
        assert [process.wait(timeout=1800) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_first_stored_form_wins(cache: Path) -> None:
    key = cache_key(BUNDLE, EngineSettings(), {}, "auto", None)
    measurement = {"fields_per_s": {"float32": 2.0}, "difference": None, "chosen": "float32"}
    first = CachedForm("float32", False, measurement)
    assert cached_form(key) is None
    assert store_form(key, first) == first
    assert store_form(key, CachedForm("bfloat16", True, measurement)) == first
    assert cached_form(key) == first


@pytest.mark.parametrize(
    "change", [{"batch": 3}, {"cells": 9}, {"replicas": 7}, {"replica_threads": 2}, {"device": "mps"}]
)
def test_cache_key_contains_everything_the_choice_depends_on(change: dict[str, Any]) -> None:
    key = cache_key(BUNDLE, EngineSettings(), {"stride": 16}, "auto", None)
    assert key != cache_key(BUNDLE, replace(EngineSettings(), **change), {"stride": 16}, "auto", None)
    assert key != cache_key({**BUNDLE, "fingerprint": "1"}, EngineSettings(), {"stride": 16}, "auto", None)
    assert key != cache_key(BUNDLE, EngineSettings(), {"stride": 32}, "auto", None)
    assert key != cache_key(BUNDLE, EngineSettings(), {"stride": 16}, "float32", None)
    assert {"processor", "lobule", "torch"} <= key.keys()


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOBULE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "lobule"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the XDG base directory specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lobule"
    monkeypatch.setenv("LOBULE_CACHE", "~/fast")
    assert cache_folder() == tmp_path / "home" / "fast"


class ThreadCounter(MeanPredictor):
    """Notes the thread count that the sums of `steps` run with."""

    def __init__(self) -> None:
        super().__init__()
        self.thread_counts: list[int] = []

    def steps(self, case: OpenCase) -> Steps[Result]:
        self.thread_counts.append(torch.get_num_threads())
        return super().steps(case)


def test_the_steps_of_a_case_run_with_the_recorded_thread_count(tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"{i}.tif", pixels_of(100, 90, i)) for i in range(3)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        predictor = ThreadCounter()
        scan(predictor, BUNDLE, cohort_of(*slides), tmp_path / "r", EVERYWHERE, SMALL)
    finally:
        torch.set_num_threads(before)
    assert read_json(tmp_path / "r" / "scan.json")["engine"]["replica_threads"] == 1
    assert predictor.thread_counts == [1, 1, 1]


def test_no_time_rate_or_host_is_outside_run_json(slide: Path, tmp_path: Path) -> None:
    scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, Machine(**AUTO))
    run = read_json(tmp_path / "r" / "run.json")
    assert {"measured", "host", "processor", "began"} <= run.keys()
    host = os.uname().nodename.encode()
    for name, content in tree(tmp_path / "r").items():
        if name.endswith(".json"):
            assert not {b"seconds", b"began", b"ended", b"fields_per_s", b"host"} & set(content.split(b'"'))
            assert host not in content.split(b'"')


def test_layout_and_precision_are_recorded(slide: Path, tmp_path: Path, cache: Path) -> None:
    for layout in (True, False):
        machine = Machine(**AUTO, precision="float32", channels_last=layout)
        out = tmp_path / f"{layout}"
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), out, EVERYWHERE, machine)
        for record in (read_json(out / "scan.json"), read_json(out / "cases" / "one" / "result.json")):
            assert record["engine"]["channels_last"] is layout and record["engine"]["precision"] == "float32"
    assert not cache.exists()  # nothing was left to choose


def test_other_layout_on_resume_is_ignored_with_a_warning(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for layout in (False, True):
        machine = Machine(**AUTO, precision="float32", channels_last=layout)
        scan(MeanPredictor(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, machine)
        assert read_json(tmp_path / "r" / "scan.json")["engine"]["channels_last"] is False
    assert "began with channels_last False and continues with it; True is ignored" in caplog.text
