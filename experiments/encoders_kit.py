"""EfficientNet-Lite 0 against SqueezeNet and colour on the two kit slides, in pairs, for three methods.

For each of the slides 8863 and 8865, a method is trained without the patient of that slide, once with each
encoder and otherwise with the same data and settings:

* `rakhlin`: the cohort and settings of experiments/rakhlin_kit.py. Two middle stages of each encoder are
  pooled: SqueezeNet's fire5 and fire9 with crops of 224 px, and EfficientNet-Lite's `blocks` 2 and 4 with
  crops of 112 px.
* `chowder`: blocks of the other slide as bags (experiments/chowder_kit.py, four offsets), on the features
  before the classifier; tiles are enlarged to 224 px for SqueezeNet and to 112 px for EfficientNet-Lite.
* `reverse_distillation`: the settings of experiments/reverse_distillation_kit.py, with the default
  augmentation.

Colour is logistic regression on the mean and spread of RGB of the tiles of the other slide, and of the
patches of other patients (experiments/scannet_kit.py). Every labelled tile counts; a tile that a map leaves
out has the score 0. Intervals resample blocks of 5 × 5 tiles (1 mm). EfficientNet-Lite comes from the extra
`lobule[starter]`. Research use only.

    LOBULE_REFERENCE=… python experiments/encoders_kit.py OUT [--method chowder] [--encoder squeezenet]

A run continues where it was stopped, and prints every comparison of which both sides are finished.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from chowder_kit import OFFSETS, blocks
from kit_before_after import WEIGHTS, slide_case
from numpy.typing import NDArray
from rakhlin_kit import SETTINGS as RAKHLIN
from rakhlin_kit import cohort
from reverse_distillation_kit import SETTINGS as DISTILLATION
from reverse_distillation_kit import case_of
from scannet_kit import BLOCK, MPP, SLIDES, TILE, baselines, tiles_of

import lobule
from lobule.cohort import Cohort
from lobule.files import make_folder, write_json
from lobule.measures.compare import compare_scores
from lobule.results.folder import open_results

SQUEEZENET, LITE = "squeezenet", "efficientnet-lite0"


def squeezenet(kit: Path) -> str:
    return str(kit / WEIGHTS)


def rakhlin(kit: Path, out: Path, slide: str, encoder: str) -> Path:
    """Train without the patient of a slide and scan the slide; return the results."""
    (other,) = set(SLIDES) - {slide}
    settings = {**RAKHLIN, "features": str(out / "features")}
    if encoder == LITE:
        settings |= {"encoders": ["efficientnet-lite0@blocks.2+blocks.4"], "scale": 2.5, "sizes": [112]}
    else:
        settings["weights"] = [squeezenet(kit)]
    bundle = out / f"without-{slide}"
    lobule.train("rakhlin", cohort(kit, out, other), bundle, settings=settings, device="cpu")
    lobule.scan(
        bundle, Cohort((slide_case(kit, slide),)), out / f"scan-{slide}", device="cpu",
        settings={"map_augmentations": 1},
    )  # fmt: skip
    return out / f"scan-{slide}"


def chowder(kit: Path, out: Path, slide: str, encoder: str) -> Path:
    (other,) = set(SLIDES) - {slide}
    slides = Cohort(tuple(slide_case(kit, name) for name in SLIDES))
    of_encoder: dict[str, Any] = {"encoder": LITE, "input_px": 112}
    if encoder == SQUEEZENET:
        of_encoder = {"encoder": "squeezenet1_1", "weights": squeezenet(kit), "input_px": 224}
    features = out / "features"
    report = lobule.extract_features(
        slides, features, **of_encoder, mpp=MPP, tile=TILE, tissue_share=0.3, device="cpu",
    )  # fmt: skip
    assert not report.failed, report.failed
    bags = Cohort(tuple(case for offset in OFFSETS for case in blocks(kit, other, offset)))
    settings = {"features": str(features)}
    bundle = out / f"without-{slide}"
    lobule.train("chowder", bags, bundle, settings=settings, val=None, device="cpu")
    lobule.scan(
        bundle, Cohort((slide_case(kit, slide),)), out / f"scan-{slide}", device="cpu", settings=settings
    )
    return out / f"scan-{slide}"


def reverse_distillation(kit: Path, out: Path, slide: str, encoder: str) -> Path:
    (other,) = set(SLIDES) - {slide}
    settings = {**DISTILLATION, "loss": "focal", "teacher": LITE}
    if encoder == SQUEEZENET:
        settings |= {"teacher": "squeezenet1_1", "weights": squeezenet(kit)}
    bundle = out / f"without-{slide}"
    lobule.train(
        "reverse_distillation", Cohort((case_of(kit, other),)), bundle, settings=settings, device="cpu",
        workers=1, val=None,
    )  # fmt: skip
    lobule.scan(bundle, Cohort((slide_case(kit, slide),)), out / f"scan-{slide}", tissue=False, device="cpu")
    return out / f"scan-{slide}"


METHODS: dict[str, Callable[[Path, Path, str, str], Path]] = {
    "chowder": chowder, "reverse_distillation": reverse_distillation, "rakhlin": rakhlin,
}  # fmt: skip


def tile_scores(kit: Path, results: Path, slide: str) -> NDArray[np.float64]:
    """The score of every labelled tile of a slide; 0 where the map has none."""
    (reader,) = open_results(results).case_folder(f"idc_{slide}").maps.values()
    classes = reader.info.classes
    scores = reader.scores("1" if "1" in classes else classes[-1])
    corners, _ = tiles_of(kit, slide)
    rows, columns = (corners // TILE).T[::-1]
    inside = (rows < scores.shape[0]) & (columns < scores.shape[1])
    scores_of_tiles = np.zeros(len(corners))
    scores_of_tiles[inside] = scores[rows[inside], columns[inside]]
    return scores_of_tiles


def measure(kit: Path, out: Path, method: str, encoder: str) -> None:
    """Write the tile scores of both slides, unless they are there already."""
    folder = make_folder(out / method / encoder)
    for slide in SLIDES:
        path = folder / f"tiles-{slide}.npy"
        if not path.exists():
            np.save(path, tile_scores(kit, METHODS[method](kit, folder, slide, encoder), slide))


def compare(kit: Path, out: Path, method: str) -> dict[str, Any]:
    """The tile AUC with EfficientNet-Lite, and its paired differences from SqueezeNet and from colour."""
    report: dict[str, Any] = {}
    for slide in SLIDES:
        paths = {name: out / method / name / f"tiles-{slide}.npy" for name in (LITE, SQUEEZENET)}
        if not all(path.exists() for path in paths.values()):
            continue
        corners, labels = tiles_of(kit, slide)
        (other,) = set(SLIDES) - {slide}
        simple = baselines(kit, make_folder(out / "baselines"), other, slide)
        rivals = {SQUEEZENET: np.load(paths[SQUEEZENET])}
        rivals |= {name: scores for name, scores in simple.items() if "colour" in name}
        tile_blocks = [f"{x // BLOCK},{y // BLOCK}" for x, y in corners]
        report[slide] = {}
        for name, scores in rivals.items():
            paired = compare_scores(labels, np.load(paths[LITE]), scores, tile_blocks)
            report[slide][name] = {
                "lite": paired.a,
                "auc": paired.b,
                "difference": paired.difference.to_dict(),
            }
            print(f"{method}, {slide}: {LITE} {paired.a:.3f}, {name} {paired.b:.3f}, {paired.difference}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=list(METHODS), help="all if not given")
    parser.add_argument("--encoder", choices=(LITE, SQUEEZENET), help="both if not given")
    options = parser.parse_args()
    kit, out = Path(os.environ["LOBULE_REFERENCE"]) / "kit", make_folder(options.out)
    for method in [options.method] if options.method else METHODS:
        for encoder in [options.encoder] if options.encoder else (LITE, SQUEEZENET):
            measure(kit, out, method, encoder)
        write_json(out / f"{method}.json", compare(kit, out, method))


if __name__ == "__main__":
    main()
