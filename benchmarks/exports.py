"""Export findings in growing numbers: time per finding and peak memory of each format.

Each export runs in its own process, so that its peak memory is its own. The reference of the ratios is the
same format with a tenth of the findings: an export whose time is linear has a ratio of at most 1. A process
exports a few findings first, so that the time of imports and of the first use is not counted.

`--quick` exports 50,000 findings in place of a million, in two formats.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from measure import machine

FORMATS = ("qupath", "dicom-ann", "geoparquet", "csv", "coco")
FULL, QUICK = 1_000_000, 50_000
FEW = 100
"""Findings of the export that is not counted."""


def write_findings_of(root: Path, count: int) -> Path:
    """Write a results folder with one case: squares of 16 px as polygons, spread over a slide."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lobule.results.findings_table import COLUMNS
    from lobule.testing.export import write_known_results

    results = write_known_results(root, ["many"], incomplete_cases=False)
    folder = results.case_folder("many").path
    rng = np.random.default_rng(0)
    schema = pa.schema(list(COLUMNS.items()))
    with pq.ParquetWriter(folder / "findings.parquet", schema, compression="zstd") as writer:
        for first in range(0, count, 50_000):
            n = min(50_000, count - first)
            x, y = rng.integers(0, 100_000, n).tolist(), rng.integers(0, 80_000, n).tolist()
            polygons = [
                f"[[[[{a},{b}],[{a + 16},{b}],[{a + 16},{b + 16}],[{a},{b + 16}]]]]"
                for a, b in zip(x, y, strict=True)
            ]
            columns = {
                "l0_x": x, "l0_y": y, "score": rng.random(n).tolist(), "kind": ["polygon"] * n,
                "label": ["tumour"] * n, "size_um": [5.7] * n, "area_um2": [16.0] * n,
                "lesion_class": ["itc"] * n,
                "cells": [1] * n, "box": [None] * n, "polygon": polygons, "image": ["slide"] * n,
            }  # fmt: skip
            writer.write_table(pa.table(columns, schema=schema))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result["findings"] = {"count": count}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return results.path


def measure(results: Path, few: Path, to: str) -> dict[str, float]:
    """Export in a child process; return its processor seconds and its peak memory in MB."""
    with tempfile.TemporaryDirectory(prefix="lobule-exports-") as out:
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(results), str(few), to, out],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def child(results: str, few: str, to: str, out: str) -> None:
    from lobule.exports.run import export_results

    export_results(few, to, f"{out}/few")
    started = time.process_time()
    report = export_results(results, to, f"{out}/all")
    seconds = time.process_time() - started
    assert len(report.exported) == 1, report.records
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(record.files[name] for record in report.records for name in record.files) / 1e6
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "file_mb": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"at most {QUICK:,} findings, two formats")
    parser.add_argument("--format", action="append", choices=FORMATS, help="only this format; repeatable")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    most = QUICK if arguments.quick else FULL
    formats = arguments.format or (FORMATS[:2] if arguments.quick else FORMATS)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="lobule-findings-") as folder:
        paths = {
            count: write_findings_of(Path(folder) / str(count), count) for count in (FEW, most // 10, most)
        }
        few = paths.pop(FEW)
        print(f"{'format':12} {'findings':>10} {'CPU s':>8} {'µs each':>8} {'peak MB':>8} {'file MB':>8}")
        for to in formats:
            each: dict[int, float] = {}
            for count, path in paths.items():
                measured = measure(path, few, to)
                each[count] = measured["seconds"] / count * 1e6
                print(
                    f"{to:12} {count:10,} {measured['seconds']:8.1f} {each[count]:8.1f} "
                    f"{measured['peak_mb']:8.0f} {measured['file_mb']:8.1f}"
                )
            ratios[f"{to} seconds per finding, {most:,} over {most // 10:,}"] = round(
                each[most] / each[most // 10], 3
            )
            ratios[f"{to} peak MB over 500"] = round(measured["peak_mb"] / 500, 3)
    print(json.dumps({"name": "exports", "ratios": ratios, "machine": machine()}))


if __name__ == "__main__":
    main()
