"""Start-up: the time from `lobule scan` to its first computed batch, over the time of `import torch` alone.

Each command runs in a new process, alternating with `python -c "import torch"`, and the medians are compared.
Tissue is detected, as by default. The files are in the page cache, Lobule's modules are compiled, as in an
installed package, and the choice of precision and layout is cached by a first scan that is not counted.
`dense` is the small dense net at stride 32; `tiles` is a ResNet-18 with batches of 8 tiles.

The time of a scan ends when its model has computed the first batch. The time inside the model is printed
separately.

`wrong path`, `wrong setting` and `wrong stride` are the times until a missing slide, an unknown setting and a
stride that the net does not support are reported. They are printed in seconds and must be under 0.5.

`--quick` runs each command once in place of nine times.

    python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import arguments, report

KINDS = ("dense", "tiles")
ROUNDS, QUICK_ROUNDS = 9, 1

CHILD = """
import importlib.abc, importlib.machinery, json, os, sys, time

class Watch(importlib.abc.MetaPathFinder):
    '''Wraps the pipeline when it is imported: the process ends after the first computed batch.'''
    def find_spec(self, name, path=None, target=None):
        if name != "lobule.scanning.pipeline":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            forward = module.Pipeline._forward
            def first(self, *batch):
                began = time.time()
                forward(self, *batch)
                print(json.dumps({"ended": time.time(), "computing": time.time() - began}), flush=True)
                os._exit(0)
            module.Pipeline._forward = first
        spec.loader.exec_module = exec_module
        return spec

if sys.argv.pop(1) == "first":
    sys.meta_path.insert(0, Watch())
from lobule.cli import main
main(sys.argv[1:])
"""


def prepare(root: Path) -> dict[str, list[str]]:
    """Write a slide and two bundles, scan once to fill the caches, and return the arguments of each scan."""
    code = (
        "import json, sys, torch; from pathlib import Path; root = Path(sys.argv[1]); "
        "from lobule.methods.classifier.convert import convert; from lobule.nets.resnet import resnet; "
        "from lobule.methods.scannet import Config, save; from lobule.nets.backbones import BACKBONES; "
        "from lobule.nets.scaling import PLAIN_SCALING; import numpy as np, tifffile; "
        "torch.save(resnet('resnet18', 2).eval().state_dict(), root / 'model.pt'); "
        "config = {'architecture': 'torchvision:resnet18', 'class_names': ['no', 'yes'], "
        "'spacing_um_px': 0.5, 'patch_size_pixels': 224}; "
        "(root / 'config.json').write_text(json.dumps(config)); "
        "convert(root / 'model.pt', root / 'config.json', root / 'tiles'); "
        "save(root / 'dense', Config(trunk='tiny', mpp=0.5), BACKBONES['tiny'](2).eval(), PLAIN_SCALING); "
        "pixels = np.full((2048, 2048, 3), 243, np.uint8); noise = np.random.default_rng(0); "
        "pixels[256:1792, 256:1792] = [190, 110, 170] + noise.integers(-30, 30, (1536, 1536, 3)); "
        "tifffile.imwrite(root / 'slide.tif', pixels, tile=(256, 256), compression='jpeg', "
        "photometric='rgb', resolution=(20000, 20000), resolutionunit='CENTIMETER')"
    )
    install_compiled_copy(root)
    run_python(root, "-c", code, str(root))
    commands = {}
    for kind in KINDS:
        commands[kind] = ["scan", str(root / kind), str(root / "slide.tif"), "--device", "cpu"]
        if kind == "tiles":
            commands[kind] += ["--batch", "8"]
    with ThreadPoolExecutor() as threads:
        first = [
            threads.submit(
                run_python, root, "-c", CHILD, "all", *commands[kind], "--out", str(root / f"{kind} first")
            )
            for kind in KINDS
        ]
    for scan in first:
        scan.result()
    return commands


def install_compiled_copy(root: Path) -> None:
    """Copy the package `lobule` and compile its modules, as an installer does."""
    spec = importlib.util.find_spec("lobule")
    if spec is None or spec.origin is None:
        raise RuntimeError("The package lobule is not installed.")
    copy = root / "installed" / "lobule"
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(copy, quiet=1)


def run_python(root: Path, *command: str, status: int = 0) -> str:
    """Run Python with the compiled copy of Lobule and a separate cache folder, and return its output."""
    environment = {
        **os.environ,
        "LOBULE_CACHE": str(root / "cache"),
        "PYTHONPATH": str(root / "installed"),
    }
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != status:
        raise RuntimeError(f"status {done.returncode}\n{done.stderr}")
    return done.stdout


def seconds_of(root: Path, *command: str, status: int = 0) -> float:
    began = time.perf_counter()
    run_python(root, *command, status=status)
    return time.perf_counter() - began


def main() -> None:
    rounds = QUICK_ROUNDS if arguments(__doc__ or "").quick else ROUNDS
    print(f"rounds: {rounds} of {ROUNDS}")
    wrong = ("wrong path", "wrong setting", "wrong stride")
    times: dict[str, list[float]] = {name: [] for name in ("torch", *wrong, *KINDS)}
    computing: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        commands = prepare(root)
        bundle, slide = commands["dense"][1:3]
        mistakes = {
            "wrong path": [bundle, str(root / "missing.tif")],
            "wrong setting": [bundle, slide, "--set", "treshold=0.3"],
            "wrong stride": [bundle, slide, "--stride", "24"],
        }
        for turn in range(rounds):
            times["torch"].append(seconds_of(root, "-c", "import torch"))
            for kind in KINDS:
                began = time.time()
                out = ["--out", str(root / f"{kind} {turn}")]
                last = json.loads(
                    run_python(root, "-c", CHILD, "first", *commands[kind], *out).splitlines()[-1]
                )
                times[kind].append(last["ended"] - began)
                computing[kind].append(last["computing"])
            for name, mistake in mistakes.items():
                command = ["scan", *mistake, "--out", str(root / "none")]
                times[name].append(seconds_of(root, "-c", CHILD, "all", *command, status=2))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        inside = f", of which {statistics.median(computing[name]):.2f} computing" if name in KINDS else ""
        print(f"{name:<13} {seconds:.2f} s{inside}")
    report("startup", {kind: medians[kind] / medians["torch"] for kind in KINDS})


if __name__ == "__main__":
    main()
