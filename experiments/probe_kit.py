"""The probe on the two real slides of the reference kit, compared with colour and with frozen features.

A linear head on tokens of EfficientNet-Lite 0, or of SqueezeNet, is fitted to one slide and to the kit's
patches of other patients (never the other slide's), or to the slide alone, and then scans the other slide.
The score of a 50-px tile is the mean of the map's cells in it. Slides and patches are enlarged, because their
4 µm/px are far coarser than the images of the encoders. Cohort, baselines and intervals are those of
experiments/scannet_kit.py. With folders of experiments/encoders_kit.py and experiments/scannet_kit.py, the
probe is also compared with the tile scores of `rakhlin` and of ScanNet in them. EfficientNet-Lite comes from
the extra `lobule[starter]`. Research use only.

    LOBULE_REFERENCE=… python experiments/probe_kit.py OUT [--encoder squeezenet1_1] [--attempt patches-2x]
        [--encoders-kit DIR] [--scannet-kit DIR]

prints a table and writes OUT/ATTEMPT-ENCODER.json. A finished direction is not repeated.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kit_before_after import WEIGHTS
from numpy.typing import NDArray
from scannet_kit import BLOCK, MPP, PATCHES, SLIDES, baselines, enlarged_case, tile_scores, tiles_of

import lobule
from lobule.cohort import Cohort
from lobule.files import make_folder, write_json
from lobule.measures.compare import compare_scores

ENCODERS = ("efficientnet-lite0", "squeezenet1_1")
ATTEMPTS: dict[str, dict[str, Any]] = {
    "patches-2x": {"enlarged": 2, "patches": PATCHES},
    "slide-2x": {"enlarged": 2, "patches": ()},
    "patches-4x": {"enlarged": 4, "patches": PATCHES},
    "patches-2x-two-maps": {"enlarged": 2, "patches": PATCHES, "strides": (8, 16)},
    "patches-2x-knn": {"enlarged": 2, "patches": PATCHES, "head": "knn"},
}
"""Settings of the probe. "enlarged" is the factor by which slides and patches are enlarged first, and
"patches" are the patients whose patches are used for training in addition to the slide."""


def scores_of(kit: Path, out: Path, encoder: str, slide: str, attempt: str) -> NDArray[np.float64]:
    """Train without the patient of a slide, scan the slide and return the scores of its tiles."""
    path = out / f"tiles-{attempt}-{encoder}-{slide}.npy"
    if path.exists():
        stored: NDArray[np.float64] = np.load(path)
        return stored
    settings = dict(ATTEMPTS[attempt])
    times, patches = settings.pop("enlarged"), settings.pop("patches")
    (other,) = set(SLIDES) - {slide}
    pictures = make_folder(out / "pictures")
    cases = [replace(enlarged_case(kit, name, times, pictures), split="train") for name in (other, *patches)]
    weights = str(kit / WEIGHTS) if encoder == "squeezenet1_1" else "pretrained"
    settings |= {"encoder": encoder, "weights": weights, "mpp": MPP / times}
    bundle, results = (out / f"{kind}-{attempt}-{encoder}-{slide}" for kind in ("bundle", "scan"))
    lobule.train(
        "probe", Cohort(tuple(cases)), bundle, settings=settings, val=None, device="cpu", precision="float32"
    )
    case = enlarged_case(kit, slide, times, pictures)
    report = lobule.scan(bundle, Cohort((case,)), results, tissue=False, device="cpu", precision="float32")
    assert not report.failed, report.failed
    scores = tile_scores(results, slide, tiles_of(kit, slide)[0], times)
    np.save(path, scores)
    return scores


def rivals_of(
    slide: str, encoders_kit: Path | None, scannet_kit: Path | None
) -> dict[str, NDArray[np.float64]]:
    """The tile scores of other methods that were trained without the patient of a slide, by name."""
    (other,) = set(SLIDES) - {slide}
    rivals: dict[str, NDArray[np.float64]] = {}
    if encoders_kit is not None:
        for path in sorted(encoders_kit.glob(f"rakhlin/*/tiles-{slide}.npy")):
            rivals[f"rakhlin, {path.parent.name}"] = np.load(path)
    if scannet_kit is not None:
        for path in sorted(scannet_kit.glob(f"*-{other}-0-tiles.npz")):
            name = path.name.removesuffix(f"-{other}-0-tiles.npz")
            rivals[f"scannet, {name}"] = np.load(path)["scores"]
    return rivals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", choices=ENCODERS, default=ENCODERS[0])
    parser.add_argument("--attempt", choices=list(ATTEMPTS), default="patches-2x")
    parser.add_argument("--encoders-kit", type=Path, help="folder of experiments/encoders_kit.py")
    parser.add_argument("--scannet-kit", type=Path, help="folder of experiments/scannet_kit.py")
    options = parser.parse_args()
    kit, out = Path(os.environ["LOBULE_REFERENCE"]) / "kit", make_folder(options.out)
    report: dict[str, Any] = {}
    for slide in SLIDES:
        corners, labels = tiles_of(kit, slide)
        (other,) = set(SLIDES) - {slide}
        scores = scores_of(kit, out, options.encoder, slide, options.attempt)
        blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in corners]
        rivals = baselines(kit, make_folder(out / "baselines"), other, slide)
        rivals |= rivals_of(slide, options.encoders_kit, options.scannet_kit)
        for name, rival_scores in rivals.items():
            paired = compare_scores(labels, scores, rival_scores, blocks)
            report.setdefault(slide, {})[name] = {
                "probe": paired.a,
                "auc": paired.b,
                "difference": paired.difference.to_dict(),
            }
            print(f"{slide}: probe {paired.a:.3f}, {name} {paired.b:.3f}, difference {paired.difference}")
    write_json(out / f"{options.attempt}-{options.encoder}.json", report)


if __name__ == "__main__":
    main()
