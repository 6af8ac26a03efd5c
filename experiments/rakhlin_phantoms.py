"""Rakhlin's method on generated images of four classes: fusion, the cost of the quick recipe, and memory.

fusion   120 images of 60 patients, four sets (two layers of SqueezeNet by two crop sizes), 10 folds by 5
         seeds: cross-validated accuracy with its interval, of the fusion and of each member
recipes  60 images of 30 patients, crops of 100 px: the full recipe (50 augmentations of 20 crops, 10 folds
         by 5 seeds) against the quick one, and the paired difference with patients resampled
         (--quick: 48 images, 4 augmentations of 6 crops, 5 folds by 2 seeds for fusion; 24 for recipes)
memory   peak memory of describing 400 images over that of describing 100, with a cheap encoder

Images are 512 × 384 px at 1.68 µm/px, as large in µm as those of BACH, and not scaled: crops of 100 and
150 px are as wide in µm as the paper's at 200 and 300. Research use only.

    LOBULE_REFERENCE=… python experiments/rakhlin_phantoms.py EXPERIMENT OUT [--quick]

prints a table and writes OUT/EXPERIMENT.json. Trainings stay in OUT, and the
same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import lobule
from lobule.bundles import Bundle
from lobule.files import make_folder, write_json
from lobule.measures.estimate import Resampling
from lobule.phantoms.images import write_images

SIZE, MPP = (512, 384), 1.68
COMMON: dict[str, Any] = {"mpp": MPP, "scale": 1.0, "sizes": [100, 150]}
BOTH_LAYERS = "squeezenet1_1@features.7+features.12"
LAYERS = ["squeezenet1_1@features.7", "squeezenet1_1@features.12"]


def weights() -> list[str]:
    kit = Path(os.environ["LOBULE_REFERENCE"]) / "kit"
    return [str(kit / "weights/squeezenet1_1-imagenet-rgb.safetensors")]


def images(out: Path, per_class: int, seed: int) -> Path:
    """A cohort of generated images, of two sites, two images a patient; made once."""
    folder = out / f"images-{per_class}-{seed}"
    manifest = folder / "cohort.csv"
    if not manifest.exists():
        count = 2 * per_class
        write_images(
            folder, per_class, size=SIZE, mpp=MPP, seed=seed, patients=count, sites=2, split=(1, 0, 0)
        )
    return manifest


def trained(out: Path, name: str, manifest: Path, settings: dict[str, Any]) -> Bundle:
    bundle_folder = out / name
    if (bundle_folder / "model.json").exists():
        from lobule.bundles import read_bundle

        return read_bundle(bundle_folder)
    settings = {**COMMON, "weights": weights(), "features": str(out / "features"), **settings}
    bundle: Bundle = lobule.train("rakhlin", manifest, bundle_folder, settings=settings, device="cpu")
    return bundle


def hits(bundle: Bundle) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Whether the fusion of models that had not seen an image classified it correctly; and the patients."""
    assert bundle.path is not None
    with (bundle.path / "training/out_of_fold.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["set"] == "fusion"]
    names = list(bundle.classes)
    right = [names[int(np.argmax([float(row[name]) for name in names]))] == row["label"] for row in rows]
    return np.array(right), [row["patient"] for row in rows]


def fusion(out: Path, quick: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"encoders": LAYERS, "augmentations": 8, "crops": 8}
    if quick:
        settings |= {"augmentations": 4, "crops": 6, "boosting.folds": 5, "boosting.seeds": 2}
    manifest = images(out, 12 if quick else 30, 1)
    bundle = trained(out, "fusion-quick" if quick else "fusion", manifest, settings)
    metrics = dict(bundle.metrics)
    print(f"fusion {metrics['accuracy']:.3f}, mean of members {metrics['mean_of_members']:.3f}")
    for name, set_metrics in metrics["sets"].items():
        print(f"  {name:35s} {set_metrics['accuracy']:.3f}")
    return metrics


def recipes(out: Path, quick: bool) -> dict[str, Any]:
    manifest = images(out, 6 if quick else 15, 2)
    areas, right = {}, {}
    for recipe in ("quick", "full"):
        bundle = trained(
            out,
            f"{recipe}{'-few' * quick}",
            manifest,
            {"encoders": [BOTH_LAYERS], "sizes": [100], "recipe": recipe},
        )
        right[recipe], patients = hits(bundle)
        areas[recipe] = dict(bundle.metrics)
        print(f"{recipe}: accuracy {areas[recipe]['accuracy']:.3f}, log loss {areas[recipe]['log_loss']:.3f}")
    gain = right["full"].astype(float) - right["quick"]
    value = float(gain.mean())
    estimate = Resampling().estimate(
        value, patients, lambda weights: (weights @ gain) / weights.sum(axis=1), "patient"
    )
    print(f"full less quick: {estimate}")
    return {**areas, "full_less_quick": estimate.to_dict()}


DESCRIBE = """
import sys
import lobule
lobule.train("rakhlin", sys.argv[1], sys.argv[2], device="cpu", settings={
    "encoders": ["squeezenet1_1@features.3"], "weights": ["random"], "mpp": 0.0, "scale": 1.0, "sizes": [90],
    "augmentations": 2, "crops": 2, "boosting.folds": 2, "boosting.seeds": 1, "boosting.rounds": 2})
"""


def memory(out: Path, quick: bool) -> dict[str, Any]:
    """Peak memory of a whole training on 100 and on 400 images of one size."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from PIL import Image

    from measure import peak_bytes

    peaks = {}
    rng = np.random.default_rng(0)
    for count in (100, 400):
        folder = make_folder(out / f"plain-{count}")
        lines = ["case,patient,label,image"]
        for number in range(count):
            pixels = rng.normal((190, 130, 180), 30, (300, 400, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)
            lines.append(f"{number},{number},{number % 2},{number}.png")
        (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
        subprocess.run(["rm", "-rf", str(folder / "B")], check=True)
        peaks[count] = peak_bytes(["-c", DESCRIBE, str(folder / "cohort.csv"), str(folder / "B")])
    print(f"peak {peaks[100] >> 20} MiB for 100 images, {peaks[400] >> 20} MiB for 400")
    return {"peak_bytes": peaks, "ratio": peaks[400] / peaks[100]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", choices=["fusion", "recipes", "memory"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer images, a minute or two")
    options = parser.parse_args()
    out = make_folder(options.out)
    report = {"fusion": fusion, "recipes": recipes, "memory": memory}[options.experiment](out, options.quick)
    write_json(out / f"{options.experiment}{'-quick' * options.quick}.json", json.loads(json.dumps(report)))


if __name__ == "__main__":
    main()
