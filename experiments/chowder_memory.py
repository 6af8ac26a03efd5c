"""Training on bags that do not fit in memory: 400 bags of 10,000 tiles with 2,048 half-precision features.

The 16 GB of features are a few files that are linked under many names. Four steps are measured: reading
every file once, as at the start of a training; one epoch of CHOWDER on 1,000 tiles per bag; one epoch on
whole bags; and the whole of `train` (one member, one epoch, localisation and checks). Each step runs in a
separate process, whose peak memory is printed. At most 2 GiB of tiles are cached; the others are read again.

    python experiments/chowder_memory.py --out FILE [--bags 400] [--tiles 10000] [--dim 2048]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FILES = 4
KINDS = ("gather", "1,000 tiles a bag", "whole bags", "train")


def memory_peak() -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def make(folder: Path, bags: int, tiles: int, dim: int) -> None:
    """Write a few files; the first tiles of every second file differ from the others."""
    from lobule.features import Encoding, FeatureManifest, TileFrame, prepare_folder, write_features
    from lobule.geometry import Size

    manifest = FeatureManifest(Encoding("resnet50", "sha256:0", dim), 0.5, 224, 224, 0.1)
    root = prepare_folder(folder, manifest)
    rng = np.random.default_rng(0)
    frame = TileFrame("bag", 224, 0.5, 224, Size(100_000, 100_000), 20.0)
    frame_folder = manifest.paths_of(root, frame)[1].parent
    frame_folder.mkdir(parents=True)
    for number in range(FILES):
        with write_features(frame_folder / f"bag_{number:04d}.h5", frame, manifest.encoding) as append:
            for start in range(0, tiles, 1000):
                rows = np.arange(start, min(start + 1000, tiles))
                values = rng.normal(size=(len(rows), dim)).astype(np.float32)
                if number % 2 and start == 0:
                    values[:200, :50] += 2
                append(values, np.stack([rows % 400, rows // 400], axis=1) * 224)
    for number in range(FILES, bags):
        os.link(frame_folder / f"bag_{number % FILES:04d}.h5", frame_folder / f"bag_{number:04d}.h5")


def run(folder: Path, bags: int, kind: str) -> dict[str, float]:
    from lobule.cohort import Case, Cohort
    from lobule.features import open_features
    from lobule.methods.chowder import Config
    from lobule.methods.chowder.bags import gather
    from lobule.methods.chowder.fit import fit
    from lobule.methods.chowder.train import train
    from lobule.training.fitting import TrainMachine

    cohort = Cohort(
        tuple(
            Case(
                f"bag_{number:04d}",
                f"p{number}",
                "slide",
                f"/none/bag_{number:04d}.tif",
                label=str(number % 2),
            )
            for number in range(bags)
        )
    )
    config = Config(features=str(folder), members=1, epochs=1, tiles=0 if kind == "whole bags" else 1000)
    began = time.perf_counter()
    if kind == "gather":
        gather(cohort, open_features(folder))
    elif kind == "train":
        with tempfile.TemporaryDirectory() as out:
            train(config, cohort, out, machine=TrainMachine(device="cpu", precision="float32"))
    else:
        bags_of_all = gather(cohort, open_features(folder)).bags
        began = time.perf_counter()
        fit(config.resolved(), bags_of_all, [], seed=0)
    return {"seconds": time.perf_counter() - began, "peak": memory_peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--bags", type=int, default=400)
    parser.add_argument("--tiles", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(Path(options.one[0]), options.bags, options.one[1])))
        return
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.bags, options.tiles, options.dim)
        size = options.bags * options.tiles * options.dim * 2
        for kind in KINDS:
            command = [sys.executable, __file__, "--bags", str(options.bags), "--one", folder, kind]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            peaks[kind] = json.loads(output.splitlines()[-1])
            rate = size / 1e9 / peaks[kind]["seconds"]
            print(
                f"{kind}: {peaks[kind]['seconds']:.0f} s, peak {peaks[kind]['peak'] / 2**30:.2f} GiB; "
                f"{size / 1e9:.1f} GB of features, {rate:.2f} GB/s",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(peaks, indent=1))


if __name__ == "__main__":
    main()
