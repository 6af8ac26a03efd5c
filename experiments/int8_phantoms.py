"""int8 against float32 on generated slides: the change of FROC and of the slide AUC, with intervals.

Writes slides of unseen hospitals like those of `experiments/comparison_phantoms.py`, quantises a bundle on a
few other slides of that kind, scans all slides with OpenVINO in both precisions, and compares the results.

    python experiments/int8_phantoms.py OUT BUNDLE

where BUNDLE is a ScanNet at 1 µm/px, such as that of `experiments/comparison_phantoms.py`.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path

import lobule
from lobule.api.quantization import REPORT, quantize
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort, read_cohort, write_cohort
from lobule.errors import ConfigError
from lobule.phantoms.noise import mixed
from lobule.phantoms.phantom import SlidePhantom
from lobule.phantoms.slides import truth_of, write_slide
from lobule.phantoms.truth import write_annotation_files

SIDE, MPP, SEED = 1280, 1.0, 77
TUMOUR, NORMAL, CALIBRATION = 80, 30, 12
MOST_LESIONS = 3


def phantom_of(number: int, most: int) -> SlidePhantom:
    """A slide with at most this number of micrometastases, as many as fit on its tissue."""
    seed, site = mixed(SEED, number, 0x18), f"unseen hospital {number % 5}"
    for micro in range(most, -1, -1):
        phantom = SlidePhantom(seed, SIDE, SIDE, MPP, site, 0.6, micro=micro, itc=int(most > 0), mimics=2)
        with suppress(ConfigError):
            truth_of(phantom)
            break
    return phantom


def cohort_in(folder: Path, first: int, tumour: int, normal: int) -> Cohort:
    """Generated slides with consecutive numbers; they are written only once."""
    manifest = folder / "cohort.csv"
    if manifest.exists():
        return read_cohort(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for number in range(first, first + tumour + normal):
        path = folder / f"{number}.tif"
        truth = write_slide(
            phantom_of(number, MOST_LESIONS if number < first + tumour else 0), path, threads=1
        )
        outlines = path.with_suffix(".xml") if truth.outlines else None
        if outlines is not None:
            write_annotation_files(truth, outlines)
        cases.append(
            Case(
                str(number), f"int8-{number}", "slide", str(path), mpp=MPP, label=truth.label,
                annotation=None if outlines is None else str(outlines), attributes={"exhaustive": "true"},
            )
        )  # fmt: skip
    write_cohort(Cohort(tuple(cases)), manifest)
    return read_cohort(manifest)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("bundle", type=Path)
    options = parser.parse_args()
    out, quantised = options.out, options.out / "int8"
    calibration = cohort_in(out / "calibration", 1000, CALIBRATION // 2, CALIBRATION // 2)
    cohort = cohort_in(out / "slides", 1, TUMOUR, NORMAL)
    if not (quantised / "model.json").exists():
        quantize(options.bundle, calibration, quantised, scans=0)
    print("cells:", read_bundle(quantised).provenance[REPORT]["fields"])
    exact, rounded = out / "float32 results", out / "int8 results"
    lobule.scan(options.bundle, cohort, exact, runtime="openvino", precision="float32")
    lobule.scan(quantised, cohort, rounded, runtime="openvino", precision="int8")
    lobule.evaluate(rounded, cohort, against=exact, out=out / "evaluation", plots=False)
    print(f"the evaluation, with the differences, is in {out / 'evaluation'}")
    (out / "engines.json").write_text(
        json.dumps([json.loads((path / "scan.json").read_text())["engine"] for path in (exact, rounded)])
    )


if __name__ == "__main__":
    main()
