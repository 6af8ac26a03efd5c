"""Run the campaign: one fault at a time in a copy of the checkout, the related tests, one line per outcome.

    python -m tests.mutations --count 200 --seed 1 --out outcomes.jsonl

An interrupted campaign continues where it stopped: outcomes that are in the file are not computed again.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest

from tests.mutations.mutants import Mutant

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 900.0
"""Seconds; a mutant whose tests take longer loops forever and counts as caught."""

UNDECIDED = "not caught within the limit of processor time"
"""The evidence of a mutant that the next campaign tries again."""

ALREADY_IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"
"""Some of the large libraries are pytest plugins, too."""

LARGE_LIBRARIES = (
    "torch", "torchvision", "timm", "scipy.stats", "scipy.ndimage", "skimage", "sklearn.linear_model",
    "tifffile", "imagecodecs", "openslide", "wsidicom", "pydicom", "zarr", "h5py", "pyarrow.parquet",
    "shapely", "hypothesis", "PIL.Image", "fsspec", "safetensors.torch",
)  # fmt: skip

RELATED_TESTS: dict[str, str] = {
    "measures": "measures evaluation",
    "measures/camelyon16.py": "measures/test_froc.py evaluation",
    "measures/lesion_masks.py": "measures/test_froc.py evaluation",
    "measures/readers.py": "measures/test_reader_study.py measures evaluation",
    "measures/calibration.py": "measures/test_calibration.py evaluation methods/reverse_distillation",
    "grid.py": "test_grid.py test_stitch.py test_results.py scanning/test_scan.py nets/test_dense.py",
    "stitch.py": "test_stitch.py test_grid.py scanning/test_scan.py",
    "results": "test_results.py scanning/test_scan.py scanning/test_resume.py cli/test_commands.py",
    "findings": "test_findings.py evaluation methods/scannet",
    "findings/heatmap_features.py": "test_findings.py methods/scannet",
    "cohort": "test_cohort.py cli/test_dicom_cohort.py mammograms/test_exam_list.py",
    "tissue.py": "test_tissue.py",
    "slides": "slides/test_slide.py slides/test_tiff.py slides/test_tiff_conformance.py slides",
    "slides/check.py": "slides/test_check.py cli/test_doctor.py slides",
    "slides/tile_codecs.py": "slides/test_tile_codecs.py scanning/test_decoding_memory.py slides",
    "slides/resample.py": "slides/test_resample.py slides",
    "slides/dicom.py": "slides/test_dicom.py",
    "slides/dicom_series.py": "slides/test_dicom.py",
    "slides/flat.py": "slides/test_flat.py",
    "slides/openslide.py": "slides/test_openslide.py",
    "slides/cache.py": "slides/test_cache.py slides/test_tiff.py",
    "slides/libturbojpeg.py": "slides/test_libturbojpeg.py slides/test_tiff.py",
    "slides/overview.py": "scanning/test_damaged_overview.py test_tissue.py slides cli/test_pictures.py",
    "scanning": "scanning",
    "training": "training scanning",
    "training/patch_sampling.py": "training/test_sampling.py methods/scannet methods/reverse_distillation",
    "training/sampling.py": "training/test_sampling.py methods/scannet",
    "training/fitting.py": "training/test_fitting.py training/test_distributed.py training",
    "training/fit_options.py": "training/test_fitting.py cli/test_train.py methods/chowder",
    "training/job.py": "training/test_job.py methods/scannet",
    "training/replicas.py": "training/test_replicas.py training/test_fitting.py",
    "training/distributed.py": "training/test_distributed.py training/test_fitting.py",
    "scanning/calibrated.py": "evaluation/test_calibrate.py",
    "scanning/tile_features.py": "methods/test_extraction.py features",
    "training/training_log.py": "training/test_fitting.py",
    "nets": "nets",
    "nets/mil.py": "nets/test_mil.py methods/chowder",
    "nets/transmil.py": "nets/test_mil.py",
    "nets/squeezed.py": "nets/test_squeezed.py",
    "nets/painter.py": "nets/test_painter.py methods/four_view/test_fast.py",
    "nets/fused.py": "nets/test_fused.py",
    "nets/receptive.py": "nets/test_dense_geometry.py nets/test_dense.py nets/test_dense_unpad.py",
    "nets/dense.py": "nets/test_dense.py nets/test_dense_inference.py nets/test_dense_geometry.py",
    "nets/unpad.py": "nets/test_dense_unpad.py nets/test_dense.py",
    "nets/four_view.py": "nets/test_four_view.py nets/test_four_view_checkpoints.py nets",
    "nets/gmic.py": "nets/test_gmic.py methods/gmic",
    "nets/reverse_distillation.py": "nets/test_reverse_distillation.py methods/reverse_distillation",
    "nets/teachers.py": "nets/test_teachers.py methods/reverse_distillation",
    "nets/anomaly.py": "nets/test_reverse_distillation.py methods/reverse_distillation",
    "nets/encoders.py": "nets/test_encoders.py methods/test_extraction.py methods/rakhlin",
    "nets/scaling.py": "nets/test_encoders.py nets methods/rakhlin",
    "nets/pooling.py": "nets/test_encoders.py methods/rakhlin methods/four_view",
    "nets/birads.py": "nets/test_four_view.py methods/four_view",
    "bundles.py": "methods/classifier cli/test_weights.py",
    "annotations": "test_annotations.py test_annotation_goldens.py test_filling.py training/test_sampling.py",
}
"""For a file or folder of `src/lobule`, the tests to run, below `tests/`, the most likely to notice first."""


@dataclass(frozen=True)
class Outcome:
    """What the tests said to one mutant."""

    name: str
    module: str
    line: int
    text: str
    """The line of the source, without the fault."""
    replacement: str
    caught: bool
    evidence: str
    """The first test that failed, or the reason for the verdict."""
    seconds: float


def related_tests(module: str) -> tuple[str, ...]:
    """The tests of a source file, given relative to `src/lobule`."""
    matching = [name for name in RELATED_TESTS if module == name or module.startswith(f"{name}/")]
    if not matching:
        raise KeyError(f"RELATED_TESTS names no tests for {module}")
    return tuple(f"tests/{name}" for name in RELATED_TESTS[max(matching, key=len)].split())


def run_campaign(
    mutants: Sequence[Mutant], outcomes_path: Path, cpu_seconds: int | None = None
) -> list[Outcome]:
    """Try every mutant that has no verdict yet, and return the outcomes of all of them.

    With `cpu_seconds`, the tests of a mutant end after that much processor time. A mutant that is not caught
    by then is undecided: it counts as not caught, and the next campaign tries it again.
    """
    finished = {
        outcome.name: outcome for outcome in read_outcomes(outcomes_path) if outcome.evidence != UNDECIDED
    }
    import_large_libraries()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with _copy_of_checkout() as copy:
        caught, evidence, _ = _run_tests(("tests/test_grid.py",), copy, None)
        if caught:
            raise RuntimeError(f"the tests fail without any fault, so they prove nothing: {evidence}")
        for number, mutant in enumerate(mutants, start=1):
            if mutant.name in finished:
                continue
            outcome = try_mutant(mutant, copy, cpu_seconds)
            finished[mutant.name] = outcome
            with outcomes_path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(outcome)) + "\n")
            verdict = "caught" if outcome.caught else "SURVIVED"
            verdict = "undecided" if outcome.evidence == UNDECIDED else verdict
            print(f"{number}/{len(mutants)} {verdict} {mutant.name} ({outcome.seconds:.0f} s)", flush=True)
    return [finished[mutant.name] for mutant in mutants]


def read_outcomes(path: Path) -> list[Outcome]:
    """Read a file of outcomes; of several outcomes of one mutant, the last one counts."""
    if not path.exists():
        return []
    outcomes = [Outcome(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return list({outcome.name: outcome for outcome in outcomes}.values())


def try_mutant(mutant: Mutant, copy: Path, cpu_seconds: int | None = None) -> Outcome:
    """Put the fault into the copy, run the related tests until one fails, and take the fault out again."""
    path = copy / "src" / "lobule" / mutant.module
    source = path.read_bytes()
    path.write_bytes(mutant.apply(source))
    try:
        caught, evidence, seconds = _run_tests(related_tests(mutant.module), copy, cpu_seconds)
    finally:
        path.write_bytes(source)
    text = source.decode().splitlines()[mutant.line - 1].strip()
    return Outcome(
        mutant.name, mutant.module, mutant.line, text, mutant.replacement, caught, evidence, seconds
    )


def _run_tests(tests: Sequence[str], copy: Path, cpu_seconds: int | None) -> tuple[bool, str, float]:
    """Run tests in a forked child, which need not import the large libraries again."""
    began = time.monotonic()
    log = copy / "pytest.log"
    process = os.fork()
    if process == 0:
        if cpu_seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        _become_pytest(tests, copy, log)
    status = _wait(process, began + TIME_LIMIT)
    seconds = time.monotonic() - began
    if status is None:
        return True, f"stopped after {TIME_LIMIT:.0f} s", seconds
    if cpu_seconds is not None and status in (-signal.SIGXCPU, -signal.SIGKILL):
        return False, UNDECIDED, seconds
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return status != 0, failures[0] if failures else f"exit status {status}", seconds


def _become_pytest(tests: Sequence[str], copy: Path, log: Path) -> NoReturn:
    """Turn the forked child into a run of pytest over the copy of the checkout."""
    status = 70
    try:
        os.setsid()
        os.chdir(copy)
        stream = log.open("wb")
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        os.environ |= {"PYTHONPATH": str(copy / "src")}
        for name in [name for name in sys.modules if name.partition(".")[0] in ("lobule", "tests")]:
            del sys.modules[name]
        sys.path[:] = [
            str(copy / "src"),
            str(copy),
            *(path for path in sys.path if path not in ("", str(ROOT))),
        ]
        flags = [
            "-x",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            "--tb=no",
            f"--rootdir={copy}",
            "-W",
            ALREADY_IMPORTED,
        ]
        status = int(pytest.main([*flags, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(process: int, deadline: float) -> int | None:
    """The exit status of a child; None where it had to be killed at the deadline."""
    while time.monotonic() < deadline:
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def import_large_libraries() -> None:
    """Import once what every run of the tests needs; it must not start threads."""
    for name in LARGE_LIBRARIES:
        importlib.import_module(name)


@contextmanager
def _copy_of_checkout() -> Iterator[Path]:
    with TemporaryDirectory(prefix="lobule-mutations-") as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("src", "tests", "docs", "benchmarks", "experiments", "runs", "scripts"):
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        yield copy


def report(outcomes: Sequence[Outcome]) -> str:
    """The share of mutants that were caught, and every survivor with its line."""
    caught = sum(outcome.caught for outcome in outcomes)
    lines = [f"{caught} of {len(outcomes)} mutants were caught ({caught / max(len(outcomes), 1):.1%})."]
    for outcome in outcomes:
        if not outcome.caught:
            lines.append(f"survived: {outcome.name}\n    {outcome.text}")
    return "\n".join(lines)
