"""`--max-ram` for images that are decoded whole: one at a time, or refused with the amount that they need."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from lobule.errors import TooLarge
from lobule.geometry import Box
from lobule.results import open_results
from lobule.scanning.decoding_memory import DecodingMemory
from lobule.scanning.scan import scan
from lobule.slides import open_slide
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, cohort_of

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


def never() -> None:
    pass


def test_cases_that_do_not_fit_together_run_one_after_the_other() -> None:
    memory = DecodingMemory(100, 500)
    at_once: list[int] = []
    inside = 0
    lock = threading.Lock()

    def work(nbytes: int) -> None:
        nonlocal inside
        with memory.reserve(nbytes, "a.png", never):
            with lock:
                inside += nbytes
                at_once.append(inside)
            threading.Event().wait(0.01)
            with lock:
                inside -= nbytes

    threads = [threading.Thread(target=work, args=(nbytes,)) for nbytes in (60, 60, 30, 100, 0, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(at_once) == 6 and max(at_once) <= 100


def test_refused_slide_is_told_the_sizes_and_the_limit_that_it_needs() -> None:
    memory = DecodingMemory(1 << 30, 4 << 30)
    message = "takes 3.00 GiB at once.*at most 1.00 GiB, which --max-ram of 4 GiB.*Pass --max-ram 12.1GiB"
    with pytest.raises(TooLarge, match=message), memory.reserve(3 << 30, "a.png", never):
        pass


def test_waiting_ends_when_the_scan_stops() -> None:
    memory = DecodingMemory(100, 500)

    def stopped() -> None:
        raise KeyboardInterrupt

    with (
        memory.reserve(80, "a.png", never),
        pytest.raises(KeyboardInterrupt),
        memory.reserve(80, "b.png", stopped),
    ):
        pass


def test_plain_image_above_the_limit_fails_and_states_the_needed_memory(tmp_path: Path) -> None:
    Image.fromarray(np.full((1500, 2000, 3), 200, np.uint8)).save(tmp_path / "large.png")
    Image.fromarray(np.full((300, 200, 3), 200, np.uint8)).save(tmp_path / "small.png")
    cohort = cohort_of(tmp_path / "large.png", tmp_path / "small.png")
    machine = SMALL.__class__(**{**SMALL.__dict__, "max_ram": 64 * MIB})
    report = scan(MeanPredictor(), BUNDLE, cohort, tmp_path / "out", EVERYWHERE, machine)
    assert report.counts == {"failed": 1, "complete": 1}
    (message,) = report.failed.values()
    assert "--max-ram" in message and "large.png" in message and "GiB" in message
    with open_slide(tmp_path / "large.png") as slide:
        assert slide.decoding_bytes >= 2000 * 1500 * 4
    memory = DecodingMemory(50 * MIB, 250 * MIB)
    with pytest.raises(TooLarge, match=r"Pass --max-ram 0\.3GiB"), memory.reserve(52 * MIB, "a.png", never):
        pass
    assert open_results(tmp_path / "out") is not None


PEAK = """
import sys
from pathlib import Path
from typing import Any
from lobule.geometry import Box
from lobule.slides import open_slide
import imagecodecs, PIL.Image, simplejpeg
import lobule.slides.flat, lobule.slides.tiff

def resident(field):
    return int(Path("/proc/self/status").read_text().partition(field + ":")[2].split()[0]) * 1024

with open_slide(sys.argv[1]) as slide:
    slide.use_cache(1)
    declared, before = slide.decoding_bytes, resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    slide.read_level(0, Box(0, 0, 64, 64))
    print(declared, resident("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("name", "write_options"),
    [
        ("a.png", {"compress_level": 1}),
        ("grey.png", {"compress_level": 1}),
        ("a.jpg", {}),
        ("progressive.jpg", {"progressive": True, "subsampling": 0}),
        ("a.webp", {"method": 0}),
        ("a.jp2", {}),
        ("deep.tif", {}),
    ],
)
def test_declared_memory_covers_the_memory_used_for_decoding(
    tmp_path: Path, name: str, write_options: dict[str, object]
) -> None:
    side = 3000
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (side // 20, side // 20, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    path = tmp_path / name
    if name == "deep.tif":
        deep = np.dstack([pixels, pixels[..., :1]]).astype(np.uint16) * 257
        tifffile.imwrite(path, deep, photometric="rgb", extrasamples=["unassalpha"], tile=(3008, 3008),
                         compression="zlib", metadata=None)  # fmt: skip
    else:
        image = Image.fromarray(pixels)
        (image.convert("L") if name == "grey.png" else image).save(path, **write_options)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    declared, used = map(int, done.stdout.split())
    assert used <= declared + 16 * MIB  # libraries that are loaded at the first decoding
    assert declared <= 20 * side * side


def test_large_tiles_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 256, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="zlib")
    monkeypatch.setattr("lobule.slides.tiff.LARGE_TILE_PIXELS", 1000)
    from lobule.slides import tiff

    decode_tile: Any = vars(tiff)["decode_tile"]
    inside: list[int] = []
    at_once: list[int] = []

    def watched(*arguments: object) -> object:
        inside.append(1)
        threading.Event().wait(0.002)
        at_once.append(len(inside))
        try:
            return decode_tile(*arguments)  # type: ignore[arg-type]
        finally:
            inside.pop()

    monkeypatch.setattr(tiff, "decode_tile", watched)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.decoding_bytes == 64 * 64 * (3 + 3)
        threads = [
            threading.Thread(target=slide.read_level, args=(0, Box(x, y, 64, 64)))
            for x in (0, 64, 128, 192)
            for y in (0, 64)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(at_once) == 8 and max(at_once) == 1
        assert np.array_equal(slide.read_level(0, Box(0, 0, 256, 128)), pixels)
