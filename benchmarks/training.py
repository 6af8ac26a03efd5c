"""Training: how much of the machine works while patches are drawn, and drawing against stored PNG files.

efficiency       (CPU seconds to draw a patch alone + to train on it alone) × patches/s / cores; at most 1
over_png_folder  patches/s drawn from slides over patches/s read from PNG files of the same patches, as most
                 training code stores them beforehand
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.augment import AugmentConfig
from lobule.cohort import Case, Cohort
from lobule.engines.placement import available_cores
from lobule.engines.places import Pool
from lobule.engines.sample import SampleConfig, Sampler, SampleStream, gather
from lobule.nets.backbones import BACKBONES
from lobule.nets.scaling import PLAIN_SCALING
from lobule.phantoms.slides import SlidePhantom, write_slide
from lobule.tissue import TissueConfig
from measure import arguments, report

BATCH, SIDE, MPP = 16, 203, 0.5


def made(folder: Path, slides: int, side: int) -> Pool:
    """Generated tumour slides, outlined."""
    cases = []
    for number in range(slides):
        path = folder / f"{number}.tif"
        phantom = SlidePhantom(number, side, side, MPP, tissue=0.6, micro=2, mimics=1)
        truth = write_slide(phantom, path)
        polygons = tuple(Polygon(np.asarray(one.points)) for one in truth.outlines)
        write_annotation(path.with_suffix(".xml"), Annotation(polygons))
        cases.append(
            Case(f"s{number}", f"p{number}", "slide", str(path), annotation=str(path.with_suffix(".xml")))
        )
    return gather(Cohort(tuple(cases)), TissueConfig())


def cpu_seconds(task: Callable[[int], object], rounds: int) -> float:
    """CPU seconds of one call: the least of some rounds, after one to warm up."""
    task(0)
    best = float("inf")
    for round_ in range(1, rounds + 1):
        start = time.process_time()
        task(round_)
        best = min(best, time.process_time() - start)
    return best


def trainer() -> Callable[[np.ndarray], None]:
    """A step of the small net on a batch."""
    net = BACKBONES["tiny"](2).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    labels = torch.arange(BATCH) % 2

    def step(pixels: np.ndarray) -> None:
        optimiser.zero_grad(set_to_none=True)
        logits = net(PLAIN_SCALING.apply(torch.from_numpy(pixels))).flatten(1)
        nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()

    return step


def png_over(pool: Pool, folder: Path, config: SampleConfig, batches: int) -> float:
    """Drawing from slides over reading stored patches, both on one thread and without augmentation."""
    sampler = Sampler(pool, config, 0, 0, {})
    for index in range(batches * BATCH):
        Image.fromarray(sampler.sample(index)[0]).save(folder / f"{index}.png")

    def stored(round_: int) -> None:
        for index in range(batches * BATCH):
            with Image.open(folder / f"{index}.png") as image:
                np.asarray(image.convert("RGB"))

    drawn = cpu_seconds(lambda round_: sampler.batch((round_ + 1) * batches * BATCH, batches * BATCH), 3)
    read = cpu_seconds(stored, 3)
    sampler.close()
    print(f"drawn from slides {batches * BATCH / drawn:.0f}/s, read from PNG {batches * BATCH / read:.0f}/s")
    return read / drawn


def main() -> None:
    quick = arguments(__doc__ or "").quick
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = made(folder, 2 if quick else 6, 2048 if quick else 6144)
        plain = SampleConfig(MPP, SIDE)
        augmented = SampleConfig(MPP, SIDE, augment=AugmentConfig())
        over_png = png_over(pool, folder, plain, 2 if quick else 8)
        step, sampler = trainer(), Sampler(pool, augmented, 0, 0, {})
        pixels = sampler.batch(0, BATCH).pixels
        torch.set_num_threads(1)
        alone_train = cpu_seconds(lambda _: step(pixels), 4) / BATCH
        alone_draw = cpu_seconds(lambda number: sampler.batch(number * BATCH, BATCH), 4) / BATCH
        sampler.close()
        torch.set_num_threads(cores)
        batches = 10 if quick else 60
        with SampleStream(pool, augmented, BATCH, seed=1, workers=cores, ahead=2 * cores) as stream:
            step(next(stream).pixels)
            start = time.perf_counter()
            for samples in islice(stream, batches):
                step(samples.pixels)
            rate = batches * BATCH / (time.perf_counter() - start)
    efficiency = (alone_train + alone_draw) * rate / cores
    print(f"draw {1e3 * alone_draw:.1f} ms, train {1e3 * alone_train:.1f} ms a patch; {rate:.0f} patches/s")
    report("training", {"efficiency": efficiency, "over_png_folder": over_png})


if __name__ == "__main__":
    main()
