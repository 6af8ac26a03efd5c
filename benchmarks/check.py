"""Copies that `lobule check` finds, false alarms, and its speed, on generated slides, images and exams.

Some cases of each kind are copied with seven transformations: compressed again at JPEG 60, cropped by 10 %,
cut at a corner by 10 %, rotated by 90°, halved, doubled, and several of these together. A false alarm is a
reported pair of cases that are not copies of each other. `--quick` checks 8 cases of each kind with four of
the seven transformations.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lobule.audit.duplicates import near_duplicates
from lobule.audit.picture import Picture, filtered, pictures_of, shrunk
from lobule.cohort import Case
from lobule.geometry import Box
from lobule.phantoms.exams import ExamPhantom, render_exam
from lobule.phantoms.images import CLASSES, image
from lobule.phantoms.slides import SlidePhantom, write_slide
from lobule.slides.slide import open_slide
from measure import machine

Pixels = NDArray[np.uint8]


def jpeg(pixels: Pixels) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream).convert("RGB"))


def cropped(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    return pixels[height // 20 : height - height // 20, width // 20 : width - width // 20]


def rescaled(pixels: Pixels, factor: float = 0.5) -> Pixels:
    height, width = (round(side * factor) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG 60": jpeg,
    "cropped by 10 %": cropped,
    "corner cut by 10 %": lambda pixels: pixels[pixels.shape[0] // 10 :, : -pixels.shape[1] // 10],
    "rotated by 90°": lambda pixels: np.ascontiguousarray(np.rot90(pixels)),
    "half": rescaled,
    "double": lambda pixels: rescaled(pixels, 2.0),
    "all": lambda pixels: rescaled(jpeg(np.ascontiguousarray(np.rot90(cropped(pixels), 3)))),
}


def slides(count: int, folder: Path) -> Iterator[tuple[str, Pixels]]:
    for seed in range(count):
        path = folder / f"{seed}.tif"
        write_slide(SlidePhantom(seed, 1024, 768, 4.0, site=seed % 3), path)
        with open_slide(path) as slide:
            yield f"slide {seed}", slide.read_level(0, Box(0, 0, *slide.size))


def images(count: int, folder: Path) -> Iterator[tuple[str, Pixels]]:
    for seed in range(count):
        yield f"image {seed}", image(list(CLASSES)[seed % 4], seed=seed, size=(512, 384))


def exams(count: int, folder: Path) -> Iterator[tuple[str, Pixels]]:
    for seed in range(-(-count // 4)):
        rendered = render_exam(ExamPhantom(seed, height=1040, width=760))
        for view, pixels in rendered.images.items():
            grey = (pixels.astype(np.float64) * 255 / max(int(pixels.max()), 1)).astype(np.uint8)
            yield f"exam {seed} {view}", np.stack([grey] * 3, axis=2)


QUICK_COPIES = ("JPEG 60", "cropped by 10 %", "rotated by 90°", "half")


def picture(name: str, pixels: Pixels) -> Picture:
    return filtered(Case(name, name, "image"), "image", shrunk(pixels.mean(axis=2, dtype=np.float32)))


KINDS = {"slides": slides, "images": images, "exams": exams}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="8 cases of each kind and four transformations, under 45 s"
    )
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; repeatable")
    options = parser.parse_args()
    count = 8 if options.quick else 120
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kind or KINDS:
            generate = KINDS[kind]
            originals = list(generate(count, Path(folder)))
            pictures = [picture(name, pixels) for name, pixels in originals]
            false = len(near_duplicates(pictures)) / len(pictures)
            copied = originals[:: max(1, len(originals) // (2 if options.quick else 30))]
            hits_of_kind, planted = 0, 0
            for change in QUICK_COPIES if options.quick else COPIES:
                copy = COPIES[change]
                copies = [picture(f"copy of {name}", copy(pixels)) for name, pixels in copied]
                reported = {
                    frozenset((pair.first.case, pair.second.case))
                    for pair in near_duplicates(pictures + copies)
                }
                hits = sum(frozenset((name, f"copy of {name}")) in reported for name, _ in copied)
                print(f"{kind}, {change}: {hits} of {len(copied)} copies found")
                hits_of_kind, planted = hits_of_kind + hits, planted + len(copied)
            ratios[f"{kind}_copies_found"] = hits_of_kind / planted
            ratios[f"{kind}_false_alarms"] = false
            alarms = f"false alarms on {false:.2%} of {len(pictures)}"
            print(f"{kind}: {hits_of_kind} of {planted} copies found, {alarms}")
        paths = sorted(Path(folder).glob("*.tif"))
        if not paths:
            print(json.dumps({"name": "check", "ratios": ratios, "machine": machine()}))
            return
        cases = [Case(path.stem, path.stem, "slide", str(path)) for path in paths]
        start = time.process_time()
        read = [one for case in cases for one in pictures_of(case)]
        near_duplicates(read)
        rate = len(cases) / (time.process_time() - start)
        print(f"{rate:.1f} slides per second of processor time; 1,000 slides: {1000 / rate / 60:.1f} min")
        ratios["slides_per_cpu_second"] = rate
    print(json.dumps({"name": "check", "ratios": ratios, "machine": machine()}))


if __name__ == "__main__":
    main()
