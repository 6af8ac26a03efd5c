"""int8 against float32 on the two real slides of the reference kit: the change of the tile AUC.

The bundles are those of `experiments/scannet_kit.py`: a dense net is trained on one slide and scans the
other. Here each bundle is quantised on its own training slide, and the other slide is scanned by OpenVINO in
float32 and in int8, at the net's own stride. The score of a tile is the mean of the map's cells in it.
Intervals of the difference resample blocks of 5 × 5 tiles. Research use only.

    LOBULE_REFERENCE=… python experiments/int8_kit.py OUT [--attempt NAME]

where OUT is the folder of `experiments/scannet_kit.py`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal

from scannet_kit import ATTEMPTS, BLOCK, SLIDES, enlarged_case, tile_scores, tiles_of

import lobule
from lobule.api.quantization import REPORT, quantize
from lobule.bundles import read_bundle
from lobule.cohort import Cohort
from lobule.measures.compare import compare_scores


def compare(kit: Path, folder: Path, attempt: str, train: str, test: str) -> dict[str, Any]:
    """Quantise a bundle on its training slide and compare the tile AUC on the other slide."""
    times = ATTEMPTS[attempt]["enlarged"]
    bundle = folder / f"{attempt}-{train}-0"
    quantised = folder / f"{attempt}-{train}-0-int8"
    if not (quantised / "model.json").exists():
        calibration = Cohort((enlarged_case(kit, train, times, folder / "slides"),))
        quantize(bundle, calibration, quantised, scans=0)
    report = read_bundle(quantised).provenance[REPORT]["fields"]
    corners, labels = tiles_of(kit, test)
    scanned = Cohort((enlarged_case(kit, test, times, folder / "slides"),))
    scores = []
    forms: tuple[tuple[Path, Literal["float32", "int8"]], ...] = ((bundle, "float32"), (quantised, "int8"))
    for model, precision in forms:
        results = folder / f"{attempt}-{train}-0-{precision}"
        lobule.scan(model, scanned, results, runtime="openvino", precision=precision, tissue=False)
        scores.append(tile_scores(results, test, corners, times))
    blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in corners]
    comparison = compare_scores(labels, scores[1], scores[0], blocks)
    print(
        f"{test}: AUC in float32 {comparison.b:.4f}, in int8 {comparison.a:.4f}, difference "
        f"{comparison.difference}; cells: {report}",
        flush=True,
    )
    return {"test": test, "float32": comparison.b, "int8": comparison.a,
            "difference": comparison.difference.to_dict(), "cells": report}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--attempt", default="tiny-2x-short", choices=list(ATTEMPTS))
    options = parser.parse_args()
    kit = Path(os.environ["LOBULE_REFERENCE"]) / "kit"
    pairs = (SLIDES, SLIDES[::-1])
    rows = [compare(kit, options.out, options.attempt, train, test) for train, test in pairs]
    (options.out / "int8.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
