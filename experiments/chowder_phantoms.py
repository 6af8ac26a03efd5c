"""Bag models on generated slides: one label per slide, features of a small net, tested on new slides.

The features come from Lobule's small net after a short ScanNet training on sixteen other generated slides
of four other sites with outlines, or, with `--random`, from the same net with random weights. The bags are
trained with slide labels only. The slides are of two sites, each slide contains normal regions that resemble
tumour, and tiles have 224 px at 1 µm/px. The output is the slide AUC, and the tile AUC within positive slides
by the generated outlines.

    python experiments/chowder_phantoms.py --work DIR --out FILE [--train 40] [--test 20] [--random]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from chowder_comparators import HEADER, SEEDS, Unseen, fit_all, line, rows

from lobule.api import extract_features
from lobule.cohort import read_cohort
from lobule.features import open_features
from lobule.methods.chowder.bags import gather
from lobule.methods.chowder.checks import tiles_in_outlines
from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.phantom import SlidePhantom

SIDE, MPP, TILE = 2560, 1.0, 224
ENCODER_SLIDES, ENCODER_SEED = 16, 501


def trained_net(folder: Path) -> Path:
    """Weights of the small net, trained for some minutes on outlined slides that no bag model uses."""
    from lobule.api import train

    if not (folder / "bundle" / "model.json").exists():
        template = SlidePhantom(0, SIDE, SIDE, MPP, mimics=2)
        cohort = write_slide_cohort(
            folder / "slides",
            slides=ENCODER_SLIDES,
            sites=4,
            seed=ENCODER_SEED,
            like=template,
            split=(1, 0, 0),
        )
        settings = {
            "trunk": "tiny", "weights": "random", "mpp": MPP, "steps": 400, "batch": 32, "rate": 0.03,
            "schedule": "cosine", "evaluate_every": 400, "rounds": 0,
        }  # fmt: skip
        train(
            "scannet",
            cohort,
            folder / "bundle",
            settings=settings,
            device="cpu",
            val=None,
            fresh=True,
        )
    return folder / "bundle" / "weights.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for slides and features")
    parser.add_argument("--out", type=Path, required=True, help="output file: one JSON line per model")
    parser.add_argument("--train", type=int, default=40)
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--side", type=int, default=SIDE, help="side of a slide in pixels, at 1 µm/px")
    parser.add_argument("--models", default="", help="only models whose name contains this text")
    parser.add_argument("--random", action="store_true", help="use random instead of trained weights")
    options = parser.parse_args()
    weights = "random" if options.random else trained_net(options.work / "encoder")
    bags_by_split = {}
    for name, count, seed in (("train", options.train, 11), ("test", options.test, 77)):
        folder = options.work / f"{name}-{count}-{options.side}"
        manifest = folder / "cohort.csv"
        if not manifest.exists():
            template = SlidePhantom(0, options.side, options.side, MPP, mimics=2)
            manifest = write_slide_cohort(folder, slides=count, sites=2, seed=seed, like=template)
        cohort = read_cohort(manifest)
        report = extract_features(
            cohort,
            folder / f"features-{'random' if options.random else 'trained'}",
            backbone="lobule:tiny",
            weights=weights,
            mpp=MPP,
            tile=TILE,
            device="cpu",
            precision="float32",
        )
        assert not report.failed, report.failed
        bags_by_split[name] = gather(cohort, open_features(report.path.parent)).bags
    inside = {
        bag.case.id: is_tumour
        for bag in bags_by_split["test"]
        if (is_tumour := tiles_in_outlines(bag)) is not None
    }
    tiles = {name: sum(map(len, bags)) for name, bags in bags_by_split.items()}
    print(f"{tiles['train']} and {tiles['test']} tiles; of those in positive test slides, tumour:")
    print(", ".join(f"{name} {is_tumour.mean():.2f}" for name, is_tumour in inside.items()))
    print(HEADER)
    weights_name = "random" if options.random else "trained"
    summaries = fit_all(
        [row for row in rows(options.members, transmil_epochs=4) if options.models in row.name],
        bags_by_split["train"],
        [
            Unseen(
                f"{options.train} → {options.test} phantoms, {weights_name} net",
                bags_by_split["test"],
                inside,
            )
        ],
        options.seeds,
        out=options.out,
    )
    print("\n".join([HEADER, *map(line, summaries)]))


if __name__ == "__main__":
    main()
