"""Training: how much of the machine works while patches are drawn, and drawing against stored PNG files.

efficiency       (CPU seconds to draw a patch alone + to train on it alone) × patches/s / cores; at most 1
over_png_folder  patches/s drawn from slides over patches/s that torch's DataLoader reads from PNG files of
                 the same patches, as most training code stores them beforehand; as many workers each

The parts are measured alone before and after the training, since a shared machine drifts.

Also printed: CPU seconds of training divided by those of its two parts alone and, as a bound for any
training, the factor by which the CPU seconds of a plain step grow when every core runs such a process
(`beside`: cores share the memory bus).

`--quick` takes 8 batches in place of 80, smaller slides, and fewer rounds.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.augment import AugmentConfig
from lobule.cohort import Case, Cohort
from lobule.nets.backbones import BACKBONES
from lobule.nets.scaling import PLAIN_SCALING
from lobule.phantoms.slides import SlidePhantom, write_slide
from lobule.scanning.device import available_cores
from lobule.tissue import TissueConfig
from lobule.training.fitting import FitOptions, Group, TrainMachine, fit
from lobule.training.patch_pools import gather
from lobule.training.patch_sampling import Pool
from lobule.training.sampling import SampleConfig, Sampler, Samples, SampleStream
from measure import arguments, report

BATCH, SIDE, MPP = 32, 203, 0.5
PAPER_SIDE = 244
"""Of the patches that are stored: those of the paper's net."""


def make_pool(folder: Path, slides: int, side: int) -> Pool:
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
    """CPU seconds of one call on one thread: the median of some rounds, after one to warm up."""
    task(0)
    seconds = []
    for round_ in range(1, rounds + 1):
        start = time.process_time()
        task(round_)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


# -- training -----------------------------------------------------------------------------------------------


def loss_of(net: nn.Module, samples: Samples) -> Tensor:
    logits = net(PLAIN_SCALING.apply(torch.from_numpy(samples.pixels))).flatten(1)
    return nn.functional.cross_entropy(logits, torch.from_numpy(samples.labels))


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES["tiny"](2).to(memory_format=torch.channels_last)


def step_alone(rounds: int) -> float:
    """CPU seconds a patch of the plain step, in this process and on one thread."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    samples = Samples(0, pixels, np.arange(BATCH, dtype=np.int64) % 2, ())
    step = trainer()
    return cpu_seconds(lambda _: step(samples), rounds) / BATCH


def step_beside(cores: int, rounds: int) -> float:
    """CPU seconds a patch with a process a core over those of one process alone."""
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(step_alone, [1] * cores))  # starts them
        alone = pool.submit(step_alone, rounds).result()
        together = list(pool.map(step_alone, [rounds] * cores))
        return sum(together) / cores / alone


def trainer() -> Callable[[Samples], None]:
    """A step of the small net on a batch, written plainly."""
    net = small_net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step(samples: Samples) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss_of(net, samples).backward()
        optimiser.step()

    return step


class Clocked:
    """A stream that notes when the first batch after a start was asked for, and the last."""

    def __init__(self, stream: SampleStream, warm: int) -> None:
        self.stream, self.warm, self.batches_taken = stream, warm, 0
        self.began = self.cpu = 0.0

    def __next__(self) -> Samples:
        if self.batches_taken == self.warm:
            self.began, self.cpu = time.perf_counter(), time.process_time()
        self.batches_taken += 1
        return next(self.stream)

    def state(self) -> dict[str, Any]:
        return self.stream.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.stream.restore(state)


def rates(pool: Pool, config: SampleConfig, folder: Path, batches: int) -> tuple[float, float]:
    """Patches a second of wall time, and CPU seconds a patch, of a training as `lobule train` runs it."""
    machine, warm = TrainMachine(device="cpu", precision="float32").resolved(), 4
    net = small_net()
    replicas = machine.replicas_for(BATCH)
    options = FitOptions(
        steps=batches + warm, schedule="constant", checkpoint_every=10**9, replicas=replicas, log_every=50
    )
    workers = machine.workers or 1
    with SampleStream(pool, config, BATCH, seed=1, workers=workers, ahead=max(4, 2 * workers)) as stream:
        clocked = Clocked(stream, warm)
        fit(net, loss_of, clocked, options, folder, [Group(list(net.parameters()), 0.01)])
        wall, cpu = time.perf_counter() - clocked.began, time.process_time() - clocked.cpu
    return batches * BATCH / wall, cpu / (batches * BATCH)


# -- against PNG files --------------------------------------------------------------------------------------


class PngFolder(Dataset[tuple[np.ndarray[Any, Any], int]]):
    """Patches in files, a folder a class."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        with Image.open(self.files[index]) as image:
            return np.array(image.convert("RGB")), int(self.files[index].parent.name)


def png_over(pool: Pool, folder: Path, batches: int, cores: int, rounds: int) -> float:
    """Drawing from slides over the DataLoader, both without augmentation, in turns."""
    config = SampleConfig(MPP, PAPER_SIDE)
    sampler = Sampler(pool, config, 0, 0, {})
    for label in (0, 1):
        (folder / str(label)).mkdir(parents=True)
    for index in range(batches * BATCH):
        pixels, chosen = sampler.sample(index)
        Image.fromarray(pixels).save(folder / str(chosen.label) / f"{index}.png")
    sampler.close()
    # a worker starts anew with each pass over a folder unless told otherwise; ours is kept too
    loader = DataLoader(
        PngFolder(folder), BATCH, shuffle=True, num_workers=cores, persistent_workers=True, prefetch_factor=4
    )
    best = {"png": float("inf"), "slides": float("inf")}
    for round_ in range(rounds + 1):
        # bounded, so that nothing is drawn ahead while the other is timed
        stream = SampleStream(
            pool, config, BATCH, seed=1, round_=round_, batches=batches, workers=cores, ahead=4 * cores
        )
        start = time.perf_counter()
        read = sum(len(labels) for _, labels in loader)
        middle = time.perf_counter()
        with stream:
            samples_drawn = sum(len(samples) for samples in stream)
        end = time.perf_counter()
        if round_ > 0:  # the first starts the loader's workers
            best["png"] = min(best["png"], (middle - start) / read)
            best["slides"] = min(best["slides"], (end - middle) / samples_drawn)
    print(f"drawn from slides {1 / best['slides']:.0f}/s, read from PNG files {1 / best['png']:.0f}/s")
    return best["png"] / best["slides"]


def main() -> None:
    quick = arguments(__doc__ or "").quick
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = make_pool(folder, 2 if quick else 6, 2048 if quick else 6144)
        over_png = png_over(pool, folder / "png", 4 if quick else 16, cores, 2 if quick else 4)
        augmented = SampleConfig(MPP, SIDE, augment=AugmentConfig())
        rounds = 3 if quick else 12

        def alone() -> tuple[float, float]:
            """CPU seconds of drawing a patch and of training on it, each measured alone."""
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            step, sampler = trainer(), Sampler(pool, augmented, 0, 0, {})
            batch = sampler.batch(0, BATCH)
            train = cpu_seconds(lambda _: step(batch), rounds) / BATCH
            draw = cpu_seconds(lambda number: sampler.batch(number * BATCH, BATCH), rounds) / BATCH
            sampler.close()
            torch.set_num_threads(threads)
            return draw, train

        before = alone()
        rate, cpu = rates(pool, augmented, folder / "fit", 8 if quick else 80)
        draw, train = ((one + two) / 2 for one, two in zip(before, alone(), strict=True))
        beside = step_beside(cores, rounds)
    print(f"draw {1e3 * draw:.1f} ms, train {1e3 * train:.1f} ms a patch; {rate:.0f} patches/s")
    print(f"CPU seconds of training over those of its parts alone: {cpu / (draw + train):.2f}")
    efficiency = (draw + train) * rate / cores
    report("training", {"efficiency": efficiency, "beside": beside, "over_png_folder": over_png})


if __name__ == "__main__":
    main()
