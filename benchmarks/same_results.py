"""Do two versions of Lobule give the same results? Generated data, every method, every command.

    python benchmarks/same_results.py OLD NEW [--quick] [--work DIR]

OLD and NEW are commits or folders of checkouts. Both run the same commands on the same generated
data: scans with every method, about 20 training steps of every method, and the commands with
`--json`. Maps, tables, weights, scores and findings are compared byte for byte, and so are the exit
statuses. Times, dates and hosts are left out. The exit status is 1 when anything differs. `--quick` runs
only ScanNet and the commands, on fewer and smaller slides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.numpy import load_file

from measure import machine

ROOT = Path(__file__).parents[1]
PASSING_KEYS = frozenset({
    "seconds", "date", "created", "host", "machine", "started", "finished", "duration", "versions", "lobule",
    "measured", "rate", "elapsed", "time", "trained_with", "torch",
})  # fmt: skip
"""Keys of JSON files whose values may differ between two runs of the same program."""
PASSING_FILES = ("run.json", "log.jsonl", "checkpoint", ".lock", "events.", "training.log")
"""Names, or beginnings of names, of files that hold only times, progress and locks."""

SETTINGS: Mapping[str, str] = {
    "scannet": "trunk=tiny weights=random mpp=1.0 steps=20 batch=8 rounds=0 val-patches=16",
    "chowder": "features=features members=2 epochs=20",
    "rakhlin": "encoders=resnet50 weights=random augmentations=2 crops=2 sizes=64 boosting.rounds=20 "
    "boosting.folds=2 boosting.seeds=1 stains=none window=128 stride=128",
    "reverse_distillation": "teacher=tiny weights=random mpp=1.0 patch=32 input=32 stride=16 slides=2 "
    "tumour_patches=40 normal_patches=60 epochs=2 batch=20 rate=5e-3 val_patches=60",
    "four_view": "training.steps=20 training.patch_steps=20 training.batch=4 training.patch_batch=8 "
    "training.birads_steps=0 training.val_patches=40 reading.epochs=1 architecture.heatmaps=true "
    "architecture.window=276,172 architecture.move=8,8 architecture.resize=8 "
    "architecture.crop_iterations=6 architecture.crop_buffer=4 architecture.widths=8,8,16,16,32 "
    "architecture.patch=48 architecture.patch_stride=20 architecture.patch_growth=8 "
    "architecture.patch_blocks=2,2,2,2 architecture.patch_first_width=16 architecture.heatmap_cell=4",
}
"""Settings of each training: 20 steps, or as few as its stages allow."""
GROUPS = ("architecture.", "reading.", "training.")
"""Groups of the settings of four_view."""


@dataclass(frozen=True)
class Step:
    """One command of the comparison; later steps use what earlier ones wrote."""

    arguments: Sequence[str]
    output: str | None = None
    """The folder that it writes, relative to the working folder."""
    quick: bool = True
    """Whether `--quick` runs it, too."""

    @property
    def name(self) -> str:
        return " ".join(self.arguments)[:60]


def command(line: str, output: str | None = None, quick: bool = True) -> Step:
    """A step from the words of a command line."""
    return Step(shlex.split(line), output, quick)


def train(method: str, cohort: str) -> Step:
    """A short training of a method, into a folder of its name."""
    settings = " ".join(f"--set {pair}" for pair in SETTINGS[method].split())
    line = f"train {method} {cohort} --out {method} --val none --device cpu {settings}"
    return command(line, output=method, quick=method == "scannet")


def scan(method: str, cohort: str, options: str = "") -> Step:
    """A scan with the bundle of that training."""
    line = (
        f"scan {method} {cohort} --out {method}-results --device cpu --precision float32 "
        f"--runtime torch --memory-layout channels-last {options}"
    )
    return command(line, output=f"{method}-results", quick=method == "scannet")


SLIDES, IMAGES, EXAMS = "slides/cohort.csv", "images/cohort.csv", "exams/cohort.csv"
SLIDES_STEP, QUICK_SLIDES_STEP = (
    command(f"phantom slides slides --count {size} --mpp 1", output="slides")
    for size in ("6 --size 1536x1536", "4 --size 1024x1024")
)
STEPS = (
    SLIDES_STEP,
    command("phantom images images --count 24 --size 384x320", output="images", quick=False),
    command("phantom exams exams --count 8 --size 300x220", output="exams", quick=False),
    command("tissue slides/slides/normal_001.tif --json"),
    train("scannet", SLIDES),
    scan("scannet", SLIDES),
    command(f"evaluate scannet-results {SLIDES} --allow-overlap --json"),
    command("info scannet-results --json"),
    command("info scannet --json"),
    command(
        f"features {SLIDES} --out features --backbone resnet18 --weights random --mpp 2 --tile 64 "
        "--device cpu --precision float32", output="features", quick=False,
    ),
    train("chowder", SLIDES),
    scan("chowder", SLIDES, "--set features=features"),
    train("rakhlin", IMAGES),
    scan("rakhlin", IMAGES),
    train("reverse_distillation", SLIDES),
    scan("reverse_distillation", SLIDES),
    train("four_view", EXAMS),
    scan("four_view", EXAMS),
    command(f"evaluate four_view-results {EXAMS} --allow-overlap --json", quick=False),
    command("info nowhere.svs"),
    command("scan scannet nowhere.svs --out no-results"),
    command(f"scan nowhere {SLIDES} --out no-results"),
    command(f"train scannet {SLIDES} --out refused --set stepz=3"),
    command("info --no-such-option"),
    command(f"train scannet {SLIDES} --out plan --dry-run --json"),
)  # fmt: skip


def checkout_of(version: str, folder: Path) -> Path:
    """The folder of a version; a commit is unpacked below `folder`."""
    if Path(version).is_dir():
        return Path(version).resolve()
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", version, "src"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def run_step(step: Step, checkout: Path, folder: Path) -> tuple[int, str]:
    """Exit status and standard output of a step in the working folder of a version."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "LOBULE_CACHE": str(folder / ".cache"),
        "XDG_CACHE_HOME": str(folder / ".cache"), "COLUMNS": "100",
    }  # fmt: skip
    arguments = arguments_for(step, checkout / "src" / "lobule")
    process = [sys.executable, "-m", "lobule", *arguments]
    ended = subprocess.run(process, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if step.output is not None and ended.returncode:
        print(ended.stderr, file=sys.stderr)
    return ended.returncode, ended.stdout


def arguments_for(step: Step, package: Path) -> list[str]:
    """The arguments of a step in the words of a version, whose options may have older names."""
    arguments = list(step.arguments)
    methods = package / "methods"
    if "four_view" in arguments and "class Architecture" not in (methods / "four_view/config.py").read_text():
        for group in GROUPS:  # In older versions, the settings of four_view have no groups.
            arguments = [argument.removeprefix(group) for argument in arguments]
    if "--memory-layout" in arguments and '"--layout"' in (package / "cli/scan.py").read_text():
        arguments[arguments.index("--memory-layout")] = "--layout"
    if "--runtime" in arguments and '"--runtime"' not in (package / "cli/options.py").read_text():
        position = arguments.index("--runtime")
        del arguments[position : position + 2]
    always_random = '"random"' not in (methods / "scannet/config.py").read_text()
    if always_random and "scannet" in arguments and "weights=random" in arguments:
        position = arguments.index("weights=random")
        del arguments[position - 1 : position + 1]
    return arguments


def differences(
    step: Step, old: Path, new: Path, old_end: tuple[int, str], new_end: tuple[int, str]
) -> list[str]:
    """What a step did differently in the two versions, one line each."""
    lines = []
    if old_end[0] != new_end[0]:
        lines.append(f"exit status {old_end[0]} became {new_end[0]}")
    if "--json" in step.arguments and old_end[1].strip() and new_end[1].strip():
        lines += json_differences(json.loads(old_end[1]), json.loads(new_end[1]), "output")
    if step.output is not None:
        lines += tree_differences(old / step.output, new / step.output)
        if not any((old / step.output).rglob("*")):
            lines.append(f"{step.output}: nothing was written, so nothing was compared")
    return lines


def tree_differences(old: Path, new: Path) -> list[str]:
    """Files of one folder that the other lacks, and files whose lasting content differs."""
    old_files, new_files = dict(lasting_files(old)), dict(lasting_files(new))
    lines = [f"{name}: only in the old results" for name in old_files.keys() - new_files.keys()]
    lines += [f"{name}: only in the new results" for name in new_files.keys() - old_files.keys()]
    for name in sorted(old_files.keys() & new_files.keys()):
        lines += file_differences(name, old_files[name], new_files[name])
    return sorted(lines)


def lasting_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(path.name.startswith(name) for name in PASSING_FILES):
            yield path.relative_to(folder).as_posix(), path


def file_differences(name: str, old: Path, new: Path) -> list[str]:
    if old.suffix == ".json":
        return json_differences(json.loads(old.read_text()), json.loads(new.read_text()), name)
    if old.suffix == ".safetensors":  # the header holds metadata such as versions
        return json_differences(tensor_hashes(old), tensor_hashes(new), name)
    return [] if old.read_bytes() == new.read_bytes() else [f"{name}: other bytes"]


def tensor_hashes(path: Path) -> dict[str, str]:
    return {key: hashlib.sha256(value.tobytes()).hexdigest() for key, value in load_file(path).items()}


def json_differences(old: Any, new: Any, name: str) -> list[str]:
    """Differences of two JSON values without what times and hosts change, and with working folders alike."""
    old, new = lasting_values(old), lasting_values(new)
    if isinstance(old, dict) and isinstance(new, dict):
        lines = [f"{name}: {key} {'is gone' if key in old else 'is new'}" for key in old.keys() ^ new.keys()]
        for key in sorted(old.keys() & new.keys()):
            lines += json_differences(old[key], new[key], f"{name}: {key}")
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in json_differences(*pair, f"{name}[{i}]")
        ]
    return [] if old == new else [f"{name}: {str(old)[:60]} became {str(new)[:60]}"]


def lasting_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {lasting_values(key): entry for key, entry in value.items() if key not in PASSING_KEYS}
    if isinstance(value, str):
        return value.replace(f"{os.sep}old{os.sep}", f"{os.sep}new{os.sep}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument(
        "--quick", action="store_true", help="only ScanNet and the commands, on fewer and smaller slides"
    )
    parser.add_argument("--work", type=Path, help="keep what both versions write in this folder")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="lobule-same-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        old_checkout = checkout_of(options.old, work / "old-version")
        new_checkout = checkout_of(options.new, work / "new-version")
        old, new = work / "old", work / "new"
        old.mkdir(parents=True)
        new.mkdir(parents=True)
        different = 0
        for step in STEPS:
            if options.quick and not step.quick:
                print(f"{'left out':10}{step.name}")
                continue
            if options.quick and step is SLIDES_STEP:
                step = QUICK_SLIDES_STEP
            with ThreadPoolExecutor() as threads:  # Each version has one thread per process.
                versions = (old_checkout, old), (new_checkout, new)
                old_end, new_end = threads.map(lambda version: run_step(step, *version), versions)  # noqa: B023
            lines = differences(step, old, new, old_end, new_end)
            different += bool(lines)
            print(f"{'DIFFERENT' if lines else 'same':10}{step.name} (exit status {new_end[0]})", flush=True)
            for line in lines[:60]:
                print(f"          {line}")
    print(
        json.dumps({"name": "same_results", "ratios": {"different_steps": different}, "machine": machine()})
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
