"""Compare heatmaps with `painting="fast"` to exact ones, on the real exam.

The networks have the published architectures and random weights, because trained weights are not
available. They read the four real views of the reference kit. The exact patch scores are the recorded ones of
the published code. The script prints the differences of patch scores and heatmaps for each view, and the
scores of the exam with both kinds of heatmaps. A network with random weights reacts strongly to the edges of
patches, so the differences of a trained network may be smaller.

    LOBULE_REFERENCE=folder python -m experiments.four_view_fast [--out four_view_fast.json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.api import scan
from lobule.bundles import Bundle, write_bundle
from lobule.cohort import Case, Cohort
from lobule.mammograms.exam_views import ExamView, PatchView
from lobule.mammograms.published.patches import draw_grid, heatmap_of
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view import Config, load
from lobule.methods.four_view.heatmaps import Bands, pooled_scores
from lobule.methods.four_view.model import Nets
from lobule.methods.four_view.planning import patch_frame
from lobule.nets.four_view import TARGETS, ViewWise
from lobule.results import open_results
from lobule.scanning.contract import ScanOptions
from lobule.scanning.exam_passes import scored_rows
from lobule.settings import parse
from tests.nets.four_view_recipe import BENIGN, MALIGNANT, made_net

SALT = "four_view-visible-12"
EXACT = (0.2852467, 0.4216548, 0.3568609, 0.5758981)
"""Scores of this exam by the published code with exact heatmaps, over 10 windows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="four_view_fast.json")
    options = parser.parse_args()
    reference = Path(os.environ["LOBULE_REFERENCE"])
    images = reference / "kit" / "mammograms" / "nyu" / "images"
    with np.load(reference / "goldens" / "four_view" / "heatmaps.npz") as arrays:
        exact = arrays["exam_probs"]
    files = {view.lower().replace("-", "_"): (str(images / f"0_{view}.png"),) for view in VIEWS}
    case = Case("0", "p", "exam", views=files)
    config = parse(Config, {"architecture.heatmaps": True, "reading.compat": "nyu"})
    with tempfile.TemporaryDirectory() as folder:
        classifier = made_net("view-heatmaps", SALT)
        assert isinstance(classifier, ViewWise)
        weights = Nets((classifier,), (), (made_net("patch", SALT),)).state_dict()
        bundle = write_bundle(
            Path(folder) / "bundle", Bundle("four_view", config.to_dict(), TARGETS, None), weights
        )
        settings = {"reading.painting": "fast"}
        scan(Path(folder) / "bundle", Cohort((case,)), Path(folder) / "r", settings=settings)
        done = open_results(Path(folder) / "r").case_folder("0")
        predictor = load(bundle)
        views = predictor.images(case, ScanOptions())
        rng, first, rows = random.Random(0), 0, []
        for view in VIEWS:
            image = views[view]
            assert isinstance(image, ExamView)
            grid = draw_grid(image.shape, rng)
            source = PatchView(image, patch_frame(image, config))
            engine = json.loads((Path(folder) / "r" / "engine.json").read_text())
            bands = Bands.over(source.pixels.shape, engine["cells"] ** 2)
            evidence = scored_rows(done.tables[f"evidence {view}"], "evidence")
            scores = pooled_scores(bands.joined([evidence[i] for i in range(bands.count)]), grid)
            rows.append(_row(view, exact[first : first + len(grid)], scores, image, grid))
            first += len(grid)
        result = done.result
        assert result is not None
        fast = [result["scores"][name] for name in TARGETS]
    found_all = {"views": rows, "scores": {"exact": list(EXACT), "fast": fast}, "told": result["heatmaps"]}
    _print(found_all)
    Path(options.out).write_text(json.dumps(found_all, indent=1))


def _row(view: str, exact: NDArray[Any], fast: NDArray[Any], image: ExamView, grid: Any) -> dict[str, Any]:
    both = [BENIGN, MALIGNANT]
    patches = np.abs(exact[:, both] - fast[:, both])
    maps = [heatmap_of(image.pixels.shape, grid, scores[:, MALIGNANT]) for scores in (exact, fast)]
    apart = np.abs(maps[0] - maps[1])
    return {
        "view": view,
        "patches": len(grid),
        "patch_mean": float(patches.mean()),
        "patch_greatest": float(patches.max()),
        "malignant_map_mean": float(apart.mean()),
        "malignant_map_greatest": float(apart.max()),
        "malignant_map_correlation": float(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1]),
    }


def _print(report: dict[str, Any]) -> None:
    print("view    patches  patch mean  greatest  map mean  greatest  correlation")
    for row in report["views"]:
        print(
            f"{row['view']:7s} {row['patches']:7d} {row['patch_mean']:11.4f} {row['patch_greatest']:9.4f} "
            f"{row['malignant_map_mean']:9.4f} {row['malignant_map_greatest']:9.4f} "
            f"{row['malignant_map_correlation']:12.3f}"
        )
    for method, scores in report["scores"].items():
        print(f"scores with {method} heatmaps: " + "  ".join(f"{score:.4f}" for score in scores))
    print(f"reported by the scan: {report['told']}")


if __name__ == "__main__":
    main()
