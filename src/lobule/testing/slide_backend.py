"""Conformance suite for slide backends. The tests of a backend inherit `BackendConformance`.

A backend outside this repository is tested in one short file:

    import pytest
    from lobule.slides import READERS
    from lobule.testing.slide_backend import BackendConformance, KnownSlide

    READERS["mine"] = "my_package.my_backend"        # a module with open_backend(path) -> Backend | None

    class TestMine(BackendConformance):
        reader = "mine"

        @pytest.fixture(scope="class")
        @classmethod
        def known_slide(cls, tmp_path_factory):
            pixels = [...]                           # (height, width, 3) uint8 of each level, largest first
            path = ...                               # a file that contains exactly these pixels
            return KnownSlide(path, pixels, mpp=(0.25, 0.25))

The pixels must be exact: use lossless compression, or decode the tiles with a second decoder.
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lobule.errors import ConfigError, FinerThanSlide, MissingMpp
from lobule.geometry import Box, Size
from lobule.slides import READERS, RGB, Slide, open_slide


@dataclass(frozen=True)
class KnownSlide:
    """A file and its expected contents."""

    path: Path
    pixels: list[RGB]
    """The pixels of each level, largest first."""
    mpp: tuple[float, float] | None = None
    """µm/px of level 0 in x and y; None if the file does not state it."""
    associated: Mapping[str, RGB] = field(default_factory=dict)
    bounds: Box | None = None
    tolerance: int = 0
    """Largest accepted difference of a sample; above 0 only for the rounding of a second decoder."""


CHILD = """
import hashlib, pickle, sys
from lobule.slides import READERS
readers, slide, box = pickle.load(sys.stdin.buffer)
READERS.update(readers)
print(hashlib.sha256(slide.read(box, level=0).tobytes()).hexdigest())
"""


class BackendConformance:
    """Inherit this class, set `reader`, and define the fixture `known_slide`."""

    reader: str

    @pytest.fixture(scope="class")
    @classmethod
    def known_slide(cls) -> KnownSlide:
        raise NotImplementedError("define the fixture known_slide")

    @pytest.fixture
    def slide(self, known_slide: KnownSlide) -> Iterator[Slide]:
        with open_slide(known_slide.path, backend=self.reader) as slide:
            yield slide

    def assert_same(self, known_slide: KnownSlide, actual: RGB, expected: RGB) -> None:
        assert actual.dtype == np.uint8
        assert actual.shape == expected.shape
        difference = np.abs(actual.astype(np.int16) - expected.astype(np.int16)).max(initial=0)
        assert difference <= known_slide.tolerance

    # -- metadata -----------------------------------------------------------------------------------------

    def test_levels_are_those_of_the_file(self, slide: Slide, known_slide: KnownSlide) -> None:
        sizes = [level.size for level in slide.levels]
        assert sizes == [Size(p.shape[1], p.shape[0]) for p in known_slide.pixels]
        assert sizes == sorted(sizes, reverse=True)
        for level in slide.levels:
            assert level.tile.width > 0 and level.tile.height > 0

    def test_steps_are_exact_ratios_of_levels(self, slide: Slide) -> None:
        for index, level in enumerate(slide.levels):
            step_x, step_y = slide.steps(index)
            assert abs(slide.size.width / step_x - level.size.width) < 1
            assert abs(slide.size.height / step_y - level.size.height) < 1
        assert slide.steps(0) == (Fraction(1), Fraction(1))

    def test_format_and_properties_are_text(self, slide: Slide) -> None:
        assert slide.format
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in slide.properties.items())

    def test_bounds(self, slide: Slide, known_slide: KnownSlide) -> None:
        assert slide.bounds == (known_slide.bounds or Box(0, 0, *slide.size))

    def test_mpp_has_a_source(self, slide: Slide, known_slide: KnownSlide) -> None:
        if known_slide.mpp is None:
            assert slide.stated_mpp is None
            return
        assert slide.stated_mpp is not None and slide.stated_mpp.source
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx(known_slide.mpp, rel=1e-5)

    def test_missing_mpp_names_the_remedy(self, known_slide: KnownSlide) -> None:
        with open_slide(known_slide.path, backend=self.reader) as slide:
            if known_slide.mpp is None:
                with pytest.raises(MissingMpp, match="--slide-mpp"):
                    slide.lattice(mpp=1.0)
        with open_slide(known_slide.path, backend=self.reader, mpp=0.5) as slide:
            assert slide.mpp.x == slide.mpp.y == 0.5
            assert slide.stated_mpp is not None and "given" in slide.stated_mpp.source

    def test_finer_than_the_slide_is_refused(self, known_slide: KnownSlide) -> None:
        with open_slide(known_slide.path, backend=self.reader, mpp=0.5) as slide:
            with pytest.raises(FinerThanSlide, match="--upsample"):
                slide.read(Box(0, 0, 4, 4), mpp=0.25)
            assert slide.read(Box(0, 0, 4, 4), mpp=0.25, upsample=True).shape == (8, 8, 3)

    # -- pixels -------------------------------------------------------------------------------------------

    def test_every_pixel_of_every_level(self, slide: Slide, known_slide: KnownSlide) -> None:
        for level, pixels in enumerate(known_slide.pixels):
            self.assert_same(
                known_slide, slide.read_level(level, Box(0, 0, pixels.shape[1], pixels.shape[0])), pixels
            )

    def test_random_boxes(self, slide: Slide, known_slide: KnownSlide) -> None:
        for level, pixels in enumerate(known_slide.pixels):
            for box in boxes_within(pixels, 20, seed=level):
                self.assert_same(known_slide, slide.read_level(level, box), cut(pixels, box))

    def test_one_pixel_at_each_corner(self, slide: Slide, known_slide: KnownSlide) -> None:
        for level, pixels in enumerate(known_slide.pixels):
            height, width = pixels.shape[:2]
            for x in (0, width - 1):
                for y in (0, height - 1):
                    self.assert_same(
                        known_slide, slide.read_level(level, Box(x, y, 1, 1)), pixels[y : y + 1, x : x + 1]
                    )

    def test_boxes_are_half_open_and_meet(self, slide: Slide, known_slide: KnownSlide) -> None:
        for level, pixels in enumerate(known_slide.pixels):
            height, width = pixels.shape[:2]
            rows = [
                np.concatenate(
                    [slide.read_level(level, Box(x, y, min(61, width - x), min(53, height - y)))
                     for x in range(0, width, 61)], axis=1,
                )
                for y in range(0, height, 53)
            ]  # fmt: skip
            self.assert_same(known_slide, np.concatenate(rows), pixels)

    def test_white_outside(self, slide: Slide, known_slide: KnownSlide) -> None:
        for level, pixels in enumerate(known_slide.pixels):
            height, width = pixels.shape[:2]
            assert (slide.read_level(level, Box(width, 0, 5, 5)) == 255).all()
            assert (slide.read_level(level, Box(-9, -9, 9, 9)) == 255).all()
            around = slide.read_level(level, Box(-3, -2, width + 7, height + 5))
            framed = np.full_like(around, 255)
            framed[2 : 2 + height, 3 : 3 + width] = pixels
            self.assert_same(known_slide, around, framed)

    def test_level_reads_take_level_0_boxes(self, slide: Slide, known_slide: KnownSlide) -> None:
        for level, pixels in enumerate(known_slide.pixels):
            step_x, step_y = slide.steps(level)
            x, y = pixels.shape[1] // 3, pixels.shape[0] // 4
            l0_box = Box(-(-x * step_x // 1), -(-y * step_y // 1), int(8 * step_x), int(4 * step_y))
            self.assert_same(known_slide, slide.read(l0_box, level=level), pixels[y : y + 4, x : x + 8])

    def test_reads_by_mpp_take_the_near_level(self, known_slide: KnownSlide) -> None:
        with open_slide(known_slide.path, backend=self.reader, mpp=0.25) as slide:
            for level, pixels in enumerate(known_slide.pixels):
                step_x, _ = slide.steps(level)
                lattice = slide.lattice(mpp=0.25 * float(step_x) * 1.04)
                assert lattice.level == level
                self.assert_same(known_slide, slide.read_lattice(lattice, Box(1, 2, 5, 6)), pixels[2:8, 1:6])

    def test_reduced_reads_stay_near_the_mean(self, slide: Slide, known_slide: KnownSlide) -> None:
        """A decoder may reduce with any filter, but means over 8 × 8 px must agree with the pixels."""
        for level, pixels in enumerate(known_slide.pixels):
            assert 1 in slide.backend.reductions(level)
            for reduce in slide.backend.reductions(level):
                size = slide.reduced_size(level, reduce)
                actual = slide.read_level(level, Box(0, 0, *size), reduce)
                assert actual.shape == (size.height, size.width, 3)
                means, expected = block_means(actual, 8), block_means(pixels, 8 * reduce)
                rows, columns = min(len(means), len(expected)), min(means.shape[1], expected.shape[1])
                difference = np.abs(means[:rows, :columns] - expected[:rows, :columns])
                assert difference.size == 0 or np.median(difference) < 2.0
                boxes = list(boxes_within(actual, 5, seed=reduce))
                assert all(np.array_equal(slide.read_level(level, b, reduce), cut(actual, b)) for b in boxes)

    def test_associated_images(self, slide: Slide, known_slide: KnownSlide) -> None:
        assert set(slide.associated) == set(known_slide.associated)
        for name, pixels in known_slide.associated.items():
            declared = slide.associated[name]
            assert declared is None or declared == Size(pixels.shape[1], pixels.shape[0])
            self.assert_same(known_slide, slide.read_associated(name), pixels)
        with pytest.raises(ConfigError):
            slide.read_associated("no such image")

    def test_what_comes_back_may_be_written_to(self, slide: Slide, known_slide: KnownSlide) -> None:
        box = Box(0, 0, min(32, slide.size.width), min(32, slide.size.height))
        slide.read_level(0, box)[:] = 7
        self.assert_same(known_slide, slide.read_level(0, box), cut(known_slide.pixels[0], box))

    # -- threads, processes, closing ----------------------------------------------------------------------

    def test_threads_read_what_one_reads(self, slide: Slide, known_slide: KnownSlide) -> None:
        work = [
            (level, box) for level, p in enumerate(known_slide.pixels) for box in boxes_within(p, 24, seed=9)
        ]
        with ThreadPoolExecutor(8) as pool:
            for (level, box), actual in zip(
                work, pool.map(lambda w: slide.read_level(*w), work), strict=True
            ):
                self.assert_same(known_slide, actual, cut(known_slide.pixels[level], box))

    def test_closing_while_threads_read(self, slide: Slide, known_slide: KnownSlide) -> None:
        work = list(boxes_within(known_slide.pixels[0], 60, seed=3))

        def read(item: tuple[int, Box]) -> RGB:
            if item[0] % 10 == 5:
                slide.close()
            return slide.read_level(0, item[1])

        with ThreadPoolExecutor(4) as pool:
            for box, actual in zip(work, pool.map(read, enumerate(work)), strict=True):
                self.assert_same(known_slide, actual, cut(known_slide.pixels[0], box))

    def test_use_after_close_opens_again(self, slide: Slide, known_slide: KnownSlide) -> None:
        slide.close()
        slide.close()
        self.assert_same(known_slide, slide.read_level(0, Box(0, 0, 8, 8)), known_slide.pixels[0][:8, :8])

    def test_a_pickled_slide_carries_its_path_only(self, slide: Slide, known_slide: KnownSlide) -> None:
        slide.read_level(0, Box(0, 0, 8, 8))
        packed = pickle.dumps(slide)
        assert len(packed) < 1000
        with pickle.loads(packed) as copy:
            self.assert_same(known_slide, copy.read_level(0, Box(0, 0, 8, 8)), known_slide.pixels[0][:8, :8])

    def test_another_process_reads_the_same(self, slide: Slide, known_slide: KnownSlide) -> None:
        box = Box(-2, -2, min(100, slide.size.width), min(100, slide.size.height))
        readers = {self.reader: READERS[self.reader]}
        packed = pickle.dumps((readers, slide, box))
        child = subprocess.run([sys.executable, "-c", CHILD], input=packed, capture_output=True, check=True)
        assert child.stdout.decode().strip() == hashlib.sha256(slide.read(box, level=0).tobytes()).hexdigest()


def boxes_within(pixels: RGB, count: int, seed: int) -> Iterator[Box]:
    """Random boxes of all sizes inside an image."""
    rng = np.random.default_rng(seed)
    height, width = pixels.shape[:2]
    for _ in range(count):
        left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
        top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
        yield Box.of_edges(left, top, right, bottom)


def cut(pixels: RGB, box: Box) -> RGB:
    return pixels[box.y : box.bottom, box.x : box.right]


def block_means(pixels: RGB, side: int) -> NDArray[np.float64]:
    height, width = (length // side * side for length in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // side, side, width // side, side, 3)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3))
    return means
