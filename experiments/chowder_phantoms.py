"""Bag models on generated slides: one label a slide, features of a small net, judged on unseen slides.

The features are those of Lobule's small net after a short ScanNet training on sixteen other generated slides
of four other sites with outlines, or with `--random` of the same net with random weights. The bags know slide
labels alone: two sites, normal places that resemble tumour on every slide, tiles of 224 px at 1 µm/px. Given
are the slide AUC, and the tile AUC inside positive slides by the painted outlines.

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
    """Weights of the small net, trained for some minutes on outlined slides that no bag model sees."""
    from lobule.api import train

    if not (folder / "bundle" / "model.json").exists():
        like = SlidePhantom(0, SIDE, SIDE, MPP, mimics=2)
        cohort = write_slide_cohort(
            folder / "slides", slides=ENCODER_SLIDES, sites=4, seed=ENCODER_SEED, like=like, split=(1, 0, 0)
        )
        settings = {
            "trunk": "tiny", "mpp": MPP, "steps": 400, "batch": 32, "rate": 0.03, "schedule": "cosine",
            "evaluate_every": 400, "rounds": 0,
        }  # fmt: skip
        train(
            "scannet",
            cohort,
            folder / "bundle",
            settings=settings,
            machine={"device": "cpu"},
            val=None,
            fresh=True,
        )
    return folder / "bundle" / "weights.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--work", type=Path, required=True, help="where slides and features are made, and kept"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a model")
    parser.add_argument("--train", type=int, default=40)
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a slide, at 1 µm/px")
    parser.add_argument("--models", default="", help="only models whose name holds this")
    parser.add_argument("--random", action="store_true", help="random weights in place of trained ones")
    options = parser.parse_args()
    weights = "random" if options.random else trained_net(options.work / "encoder")
    sides = {}
    for name, count, seed in (("train", options.train, 11), ("test", options.test, 77)):
        folder = options.work / f"{name}-{count}-{options.side}"
        manifest = folder / "cohort.csv"
        if not manifest.exists():
            like = SlidePhantom(0, options.side, options.side, MPP, mimics=2)
            manifest = write_slide_cohort(folder, slides=count, sites=2, seed=seed, like=like)
        cohort = read_cohort(manifest)
        report = extract_features(
            cohort,
            folder / f"features-{'random' if options.random else 'trained'}",
            backbone="lobule:tiny",
            weights=weights,
            mpp=MPP,
            tile=TILE,
            machine={"device": "cpu", "precision": "float32"},
        )
        assert not report.failed, report.failed
        sides[name] = gather(cohort, open_features(report.path.parent)).bags
    inside = {bag.case.id: flags for bag in sides["test"] if (flags := tiles_in_outlines(bag)) is not None}
    tiles = {name: sum(map(len, bags)) for name, bags in sides.items()}
    print(f"{tiles['train']} and {tiles['test']} tiles; of those in positive test slides, tumour:")
    print(", ".join(f"{name} {flags.mean():.2f}" for name, flags in inside.items()))
    print(HEADER)
    weights_said = "random" if options.random else "trained"
    flags = fit_all(
        [row for row in rows(options.members, transmil_epochs=4) if options.models in row.name],
        sides["train"],
        [Unseen(f"{options.train} → {options.test} phantoms, {weights_said} net", sides["test"], inside)],
        options.seeds,
        out=options.out,
    )
    print("\n".join([HEADER, *map(line, flags)]))


if __name__ == "__main__":
    main()
