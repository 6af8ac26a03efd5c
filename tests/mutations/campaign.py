"""Run the campaign: one fault at a time in a copy of the checkout, the related tests, one line per outcome.

    python -m tests.mutations --count 200 --seed 1 --out outcomes.jsonl

An interrupted campaign continues where it stopped: outcomes that are in the file are not computed again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutations.mutants import Mutant

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 900.0
"""Seconds; a mutant whose tests take longer loops forever and counts as caught."""

RELATED_TESTS: dict[str, str] = {
    "measures": "measures evaluation",
    "measures/camelyon16.py": "measures/test_froc.py evaluation",
    "measures/readers.py": "measures/test_reader_study.py measures evaluation",
    "measures/calibration.py": "measures/test_calibration.py evaluation methods/reverse_distillation",
    "grid.py": "test_grid.py test_stitch.py test_results.py engines/test_scan.py nets/test_dense.py",
    "stitch.py": "test_stitch.py test_grid.py engines/test_scan.py",
    "results": "test_results.py engines/test_scan.py engines/test_resume.py cli/test_commands.py",
    "findings": "test_findings.py evaluation methods/scannet",
    "findings/heatmap_features.py": "methods/scannet/test_scoring.py methods/scannet",
    "cohort": "test_cohort.py cli/test_dicom_cohort.py mammograms/test_exam_list.py",
    "tissue.py": "test_tissue.py",
    "slides": "slides/test_slide.py slides/test_tiff.py slides/test_tiff_conformance.py slides",
    "slides/check.py": "slides/test_check.py cli/test_doctor.py slides",
    "slides/resample.py": "slides/test_resample.py slides",
    "slides/dicom.py": "slides/test_dicom.py",
    "slides/dicom_series.py": "slides/test_dicom.py",
    "slides/flat.py": "slides/test_flat.py",
    "slides/openslide.py": "slides/test_openslide.py",
    "slides/cache.py": "slides/test_cache.py slides/test_tiff.py",
    "slides/libturbojpeg.py": "slides/test_libturbojpeg.py slides/test_tiff.py",
    "slides/overview.py": "test_tissue.py slides cli/test_pictures.py",
    "engines": "engines",
    "engines/places.py": "engines/test_sample.py methods/scannet methods/reverse_distillation",
    "engines/sample.py": "engines/test_sample.py methods/scannet",
    "engines/train.py": "engines/test_train.py engines/test_ranks.py engines",
    "engines/fit_options.py": "engines/test_train.py cli/test_train.py methods/chowder",
    "engines/parts.py": "engines/test_parts.py methods/scannet",
    "engines/lanes.py": "engines/test_lanes.py engines/test_train.py",
    "engines/ranks.py": "engines/test_ranks.py engines/test_train.py",
    "engines/calibrated.py": "evaluation/test_calibrate.py",
    "engines/tile_features.py": "methods/test_extraction.py features",
    "engines/training_log.py": "engines/test_train.py",
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
    "nets/teachers.py": "nets/test_reverse_distillation.py methods/reverse_distillation",
    "nets/anomaly.py": "nets/test_reverse_distillation.py methods/reverse_distillation",
    "nets/encoders.py": "nets/test_encoders.py methods/test_extraction.py methods/rakhlin",
    "nets/scaling.py": "nets/test_encoders.py nets methods/rakhlin",
    "nets/pooling.py": "nets/test_encoders.py methods/rakhlin methods/four_view",
    "nets/birads.py": "nets/test_four_view.py methods/four_view",
    "bundles.py": "methods/classifier cli/test_weights.py",
    "annotations": "test_annotations.py test_filling.py engines/test_sample.py",
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


def run_campaign(mutants: Sequence[Mutant], outcomes_path: Path) -> list[Outcome]:
    """Try every mutant that has no outcome yet, and return the outcomes of all of them."""
    finished = {outcome.name: outcome for outcome in read_outcomes(outcomes_path)}
    with _copy_of_checkout() as copy:
        for number, mutant in enumerate(mutants, start=1):
            if mutant.name in finished:
                continue
            outcome = try_mutant(mutant, copy)
            finished[mutant.name] = outcome
            with outcomes_path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(outcome)) + "\n")
            verdict = "caught" if outcome.caught else "SURVIVED"
            print(f"{number}/{len(mutants)} {verdict} {mutant.name} ({outcome.seconds:.0f} s)", flush=True)
    return [finished[mutant.name] for mutant in mutants]


def read_outcomes(path: Path) -> list[Outcome]:
    if not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def try_mutant(mutant: Mutant, copy: Path) -> Outcome:
    """Put the fault into the copy, run the related tests until one fails, and take the fault out again."""
    path = copy / "src" / "lobule" / mutant.module
    source = path.read_bytes()
    path.write_bytes(mutant.apply(source))
    try:
        caught, evidence, seconds = _run_tests(related_tests(mutant.module), copy)
    finally:
        path.write_bytes(source)
    text = source.decode().splitlines()[mutant.line - 1].strip()
    return Outcome(
        mutant.name, mutant.module, mutant.line, text, mutant.replacement, caught, evidence, seconds
    )


def _run_tests(tests: Sequence[str], copy: Path) -> tuple[bool, str, float]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--tb=no", *tests]
    environment = os.environ | {
        "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return True, f"stopped after {TIME_LIMIT:.0f} s", time.monotonic() - began
    seconds = time.monotonic() - began
    failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    evidence = failures[0] if failures else f"exit status {process.returncode}"
    return process.returncode != 0, evidence, seconds


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
