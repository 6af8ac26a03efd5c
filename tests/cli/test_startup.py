"""What the start of a scan imports. Each test runs in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lobule.methods.classifier.convert import convert
from lobule.nets.resnet import resnet
from tests.methods.scannet.support import write_tiny_bundle
from tests.scanning.support import pixels_of, write_slide

SLOW = (
    "torchvision",
    "timm",
    "torch._dynamo",
    "sympy",
    "pandas",
    "scipy.stats",
    "sklearn",
    "lobule.evaluation",
)
"""Modules that a scan of these networks does not need."""

CHILD = """
    import json, sys
    from lobule.cli import main
    try:
        main(sys.argv[2:])
    except SystemExit as end:
        status = end.code
    loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
    print(json.dumps({"status": status, "loaded": loaded}))
"""


def run(arguments: list[str], names: tuple[str, ...], cache: Path) -> tuple[int, list[str], str]:
    """Run a command; return its status, which of the named modules it loaded, and its error output."""
    environment = {**os.environ, "LOBULE_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), json.dumps(names), *arguments],
        capture_output=True, text=True, check=True, env=environment, timeout=900,
    )  # fmt: skip
    last = json.loads(done.stdout.splitlines()[-1])
    return last["status"], last["loaded"], done.stderr


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "one.tif", pixels_of(420, 330))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(5)
    torch.save(resnet("resnet18", 2).eval().state_dict(), folder / "model.pt")
    config = {"architecture": "torchvision:resnet18", "class_names": ["no", "yes"], "spacing_um_px": 0.5}
    (folder / "config.json").write_text(json.dumps({**config, "patch_size_pixels": 64}))
    convert(folder / "model.pt", folder / "config.json", folder / "tiles")
    return {"dense": write_tiny_bundle(folder / "dense", mpp=0.5), "tiles": folder / "tiles"}


@pytest.mark.parametrize("kind", ["dense", "tiles"])
def test_a_scan_loads_no_library_that_its_network_does_not_need(
    kind: str, bundles: dict[str, Path], slide: Path, tmp_path: Path
) -> None:
    arguments = ["scan", str(bundles[kind]), str(slide), "--out", str(tmp_path / "out"), "--device", "cpu"]
    status, loaded, errors = run([*arguments, "--no-tissue"], SLOW, tmp_path / "cache")
    assert status == 0, errors
    assert loaded == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slide": "no/such/slide.tif"}, "there is no such file"),
        ({"bundle": "no/such/bundle"}, "not a bundle"),
        ({"option": "--precision=int2"}, "--precision"),
        ({"option": "--precision=int8"}, "this bundle has no int8 models"),
        ({"runtime": "onnx"}, "LOBULE_RUNTIME has the unknown value 'onnx'"),
        ({"runtime": "openvino", "option": "--device=cuda:0"}, "OpenVINO computes on a CPU"),
        ({"slide": "bad.csv"}, "column"),
        ({"option": "--set=treshold=0.3"}, "Did you mean 'threshold'"),
        ({"option": "--set=threshold=high"}, "threshold = 'high' is not a number"),
        ({"option": "--set=mean_cells=0"}, "mean_cells must be at least 1"),
        ({"option": "--stride=24"}, "does not support stride 24"),
    ],
)
def test_a_mistake_is_reported_before_torch_is_loaded(
    change: dict[str, str],
    message: str,
    bundles: dict[str, Path],
    slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOBULE_RUNTIME", change.get("runtime", ""))
    (tmp_path / "bad.csv").write_text("case,patent,slyde\na,p,x.tif\n")
    values = {"bundle": str(bundles["dense"]), "slide": str(slide), "option": "--no-tissue", **change}
    if values["slide"] == "bad.csv":
        values["slide"] = str(tmp_path / "bad.csv")
    arguments = ["scan", values["bundle"], values["slide"], "--out", str(tmp_path / "out"), values["option"]]
    status, loaded, errors = run(arguments, ("torch", "scipy", "skimage", "pandas"), tmp_path / "cache")
    assert status == 2
    assert message in errors
    assert loaded == []


def test_settings_of_all_methods_are_checked_before_torch_is_loaded(tmp_path: Path) -> None:
    code = """
        import sys
        from lobule.cli import main
        from lobule.methods import METHODS, find_method
        for name in METHODS:
            find_method(name)
        try:
            main(["train", "rakhlin", "no.csv", "--out", "out", "--set", "crop=3"])
        except SystemExit as end:
            print(end.code, [name for name in ("torch", "scipy", "lightgbm") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=True, cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert done.stdout == "2 []\n"
    assert "Did you mean 'crops'" in done.stderr
