"""Draws patches from slides during training, without storing them and without importing torch.

Sample `index` of a round depends only on (seed, round, index) and the pool. The stream is therefore the same
for any number of workers and after a resume. Each attempt at a sample has a separate random generator, so it
makes no difference whether a slide turns out to be unreadable now or was already known to be.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lobule.augment import NO_AUGMENTATION, AugmentConfig
from lobule.augment import draw as draw_augmentation
from lobule.color import RGB
from lobule.errors import CaseError, ConfigError, DamagedTile, LobuleError, UsageError
from lobule.geometry import Box, Lattice
from lobule.scanning.loader import cause_of
from lobule.slides.slide import Slide
from lobule.training.batch_stream import BatchStream
from lobule.training.patch_sampling import NORMAL, FixedPositions, Pool

MAX_OPEN = 128
"""Slides that one worker keeps open."""
CACHE_BYTES = 2 << 20
"""Cache of decoded tiles per open slide. It is small because patches are far apart and rarely share tiles."""
ATTEMPTS = 1000
EPOCH = 0xE90C
"""Mixed into the seed so that the order of an epoch is independent of other uses of the seed."""


@dataclass(frozen=True)
class SampleConfig:
    """Settings for drawing and reading patches."""

    mpp: float
    side: int
    """Pixels per side of a patch."""
    tumour_share: float = 0.5
    hard_share: float = 0.5
    """Share of the normal patches that are drawn from hard positions, if there are any."""
    hard_jitter: float = 16.0
    """Largest random offset from a hard position in x and y, in pixels, because the tissue that the model
    mistook for tumour is larger than one pixel."""
    by_site: bool = False
    """Draw the site before the slide, so that a site with few slides has the same weight as others."""
    augment: AugmentConfig = NO_AUGMENTATION
    upsample: bool = False


@dataclass(frozen=True)
class Draw:
    """The slide, position and class of one patch."""

    slide: int
    label: int
    l0_x: float
    l0_y: float
    hard: bool = False


@dataclass(frozen=True, eq=False)
class Samples:
    """A batch of patches."""

    index: int
    """Index of the first sample in the round."""
    pixels: NDArray[np.uint8]
    """(n, side, side, 3)."""
    labels: NDArray[np.int64]
    draws: tuple[Draw, ...]
    failures: Mapping[int, str] = field(default_factory=dict)
    """For slides by number that turned out to be unreadable, the cause."""

    def __len__(self) -> int:
        return len(self.labels)

    def divide(self, count: int) -> list[Samples]:
        """Divide the batch into `count` smaller batches of nearly the same size and share of classes."""
        edges = [number * len(self) // count for number in range(count + 1)]
        return [
            Samples(self.index + a, self.pixels[a:b], self.labels[a:b], self.draws[a:b])
            for a, b in pairwise(edges)
            if a < b
        ]


# -- drawing ------------------------------------------------------------------------------------------------


def label_of(index: int, tumour_share: float) -> int:
    """Return the class of a sample. Classes alternate evenly, so every range of samples has the share."""
    return int(math.floor((index + 1) * tumour_share) - math.floor(index * tumour_share))


def draw(pool: Pool, config: SampleConfig, label: int, rng: np.random.Generator) -> Draw | None:
    """Draw a slide uniformly, so that large lesions do not dominate, and then a position on it."""
    hard = label == NORMAL and bool(pool.hard) and rng.random() < config.hard_share
    slides = sorted(pool.hard) if hard else pool.usable(label)
    if config.by_site:
        sites = sorted({pool.slides[number].case.site or "" for number in slides})
        site = sites[int(rng.integers(len(sites)))]
        slides = [number for number in slides if (pool.slides[number].case.site or "") == site]
    number = slides[int(rng.integers(len(slides)))]
    positions = pool.slides[number]
    if not hard:
        point = positions.draw(label, rng)
        return None if point is None else Draw(number, label, *point)
    hard_point = pool.hard[number][int(rng.integers(len(pool.hard[number])))]
    near = hard_point + (2 * rng.random(2) - 1) * config.hard_jitter * config.mpp / positions.mpp
    x, y = near if positions.classes(near[None])[0] == NORMAL else hard_point
    return Draw(number, label, float(x), float(y), hard=True)


def draw_fixed(fixed: FixedPositions, seed: int, index: int, attempt: int) -> Draw:
    """Return the position of a sample in shuffled epochs; after a failed attempt, another of its class."""
    epoch, turn = divmod(index, len(fixed))
    order = np.random.default_rng([seed, EPOCH, epoch]).permutation(len(fixed))
    number = order[turn]
    if attempt:
        same = np.flatnonzero(fixed.labels == fixed.labels[number])
        number = np.random.default_rng([seed, EPOCH, epoch, turn, attempt]).choice(same)
    x, y = fixed.l0_points[number]
    return Draw(int(fixed.slides[number]), int(fixed.labels[number]), float(x), float(y))


@dataclass(eq=False)
class Sampler:
    """Draws and reads samples for one worker, with separately opened slides."""

    pool: Pool
    config: SampleConfig
    seed: int
    round_: int
    failures: dict[int, str]
    """For slides by number that are not read any more, the cause."""
    _open: OrderedDict[int, tuple[Slide, Lattice]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.failures = dict(self.failures)  # Workers do not share what they find.

    def batch(self, first: int, size: int) -> Samples:
        samples = [self.sample(index) for index in range(first, first + size)]
        labels = np.array([chosen.label for _, chosen in samples], np.int64)
        draws = tuple(chosen for _, chosen in samples)
        return Samples(first, np.stack([pixels for pixels, _ in samples]), labels, draws, dict(self.failures))

    def sample(self, index: int) -> tuple[RGB, Draw]:
        """Return the augmented patch of a sample, and its slide, position and class."""
        for attempt in range(ATTEMPTS):
            rng = np.random.default_rng([self.seed, self.round_, index, attempt])
            chosen = self._choose(index, attempt, rng)
            if chosen is None or chosen.slide in self.failures:
                continue
            try:
                return self._read(chosen, rng), chosen
            except DamagedTile:  # Only this position is unreadable.
                continue
            except UsageError:
                raise
            except (
                Exception
            ) as error:  # After any error of a reader, the training continues without the slide.
                self._lose(chosen.slide, error)
        raise CaseError(
            f"{ATTEMPTS} consecutive positions could not be read, because many tiles are damaged",
            remedy="Copy the slides again from their source and run the same command again",
        )

    def _choose(self, index: int, attempt: int, rng: np.random.Generator) -> Draw | None:
        if self.pool.fixed is not None:
            chosen = draw_fixed(self.pool.fixed, self.seed, index, attempt)
            self._check_left(chosen.label)
            return chosen
        label = label_of(index, self.config.tumour_share)
        self._check_left(label)
        return draw(self.pool, self.config, label, rng)

    def _lose(self, number: int, error: Exception) -> None:
        self.failures[number] = cause_of(error)
        if number in self._open:
            self._open.pop(number)[0].close()

    def _check_left(self, label: int) -> None:
        fixed = self.pool.fixed
        usable = self.pool.usable(label) if fixed is None else fixed.slides_by_class[label]
        if all(number in self.failures for number in usable):
            raise CaseError(
                f"none of the {len(usable)} slides of one class can be read any more",
                subject=self.pool.slides[usable[0]].case.path,
                actual=self.failures[usable[0]],
                remedy="Check the disk, then run the same command again to continue from the last checkpoint",
            )

    def _read(self, chosen: Draw, rng: np.random.Generator) -> RGB:
        config, (slide, lattice) = self.config, self._opened(chosen.slide)
        side = config.augment.source_side(config.side)
        x = round(chosen.l0_x / float(lattice.step_x) - side / 2)
        y = round(chosen.l0_y / float(lattice.step_y) - side / 2)
        pixels = slide.read_lattice(lattice, Box(x, y, side, side))
        return draw_augmentation(config.augment, rng).apply(pixels, config.side)

    def _opened(self, number: int) -> tuple[Slide, Lattice]:
        """Return the slide as opened by this worker. Too many open slides close the least recently used."""
        if number not in self._open:
            slide = copy.copy(
                self.pool.slides[number].slide
            )  # Copies path and µm/px; the file is opened again.
            slide.use_cache(CACHE_BYTES)
            lattice = slide.lattice(mpp=self.config.mpp, upsample=self.config.upsample)
            self._open[number] = slide, lattice
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(number)
        return self._open[number]

    def close(self) -> None:
        for slide, _ in self._open.values():
            slide.close()
        self._open.clear()


# -- the stream ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class SampleStream(BatchStream[Samples]):
    """Batches of patches, drawn and read by threads or processes."""

    pool: Pool
    """The positions to draw from."""
    config: SampleConfig
    batch: int
    """Samples per batch, over all ranks."""
    _: KW_ONLY
    seed: int
    round_: int = 0
    """Number of the round, which changes the samples."""
    batches: int | None = None
    """Number of batches; None is endless."""
    workers: int = 1
    """Number of threads or processes."""
    processes: bool = False
    """Whether workers are processes."""
    ahead: int = 4
    """Number of batches to prepare in advance."""
    share: tuple[int, int] = (0, 1)
    """(rank, ranks); each rank gets an equal share of every batch."""
    failures: dict[int, str] = field(default_factory=dict)
    """For slides by number that turned out to be unreadable, the cause."""
    _samplers: list[Sampler] = field(default_factory=list)
    """The samplers of threads; those of processes end with their process."""

    def __post_init__(self) -> None:
        if self.batch % self.share[1]:
            raise ConfigError(
                f"a batch of {self.batch} cannot be shared by {self.share[1]} processes",
                expected=f"a multiple of {self.share[1]}",
            )

    def __next__(self) -> Samples:
        try:
            samples = super().__next__()
        except BrokenProcessPool as error:
            raise LobuleError(
                "a worker process that draws patches was killed",
                remedy="The memory was probably exhausted: use fewer workers and run the same command again",
            ) from error
        self.failures = {**samples.failures, **self.failures}
        return samples

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "round": self.round_, "batch": self.batch}

    def state(self) -> dict[str, Any]:
        causes = {self.pool.slides[number].case.id: cause for number, cause in sorted(self.failures.items())}
        return {**super().state(), "lost": causes}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        number_of = {positions.case.id: number for number, positions in enumerate(self.pool.slides)}
        self.failures = {number_of[name]: why for name, why in state["lost"].items() if name in number_of}

    def close(self) -> None:
        super().close()
        for sampler in self._samplers:
            sampler.close()
        self._samplers.clear()

    def begin_batch(self, executor: Executor, number: int) -> Future[Samples] | None:
        if self.batches is not None and number >= self.batches:
            return None
        rank, ranks = self.share
        size = self.batch // ranks
        return executor.submit(_draw_batch, number * self.batch + rank * size, size)

    def start_workers(self) -> tuple[Executor, int]:
        arguments = (self._samplers, self.pool, self.config, self.seed, self.round_, dict(self.failures))
        if not self.processes:
            return ThreadPoolExecutor(self.workers, "sample", _begin_worker, arguments), self.ahead
        # Processes are spawned, because torch's threads do not survive a fork.
        workers = ProcessPoolExecutor(self.workers, get_context("spawn"), _begin_worker, arguments)
        return workers, self.ahead


_worker = threading.local()
"""The sampler of each worker, which is a thread or the only thread of a process."""


def _begin_worker(samplers: list[Sampler], *arguments: Any) -> None:
    _worker.sampler = Sampler(*arguments)
    samplers.append(_worker.sampler)


def _draw_batch(first: int, size: int) -> Samples:
    samples: Samples = _worker.sampler.batch(first, size)
    return samples
