"""Camelyon16 as GigaDB releases it, with generated slides: archives, masks and a damaged slide."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from lobule.cohort import read_cohort
from lobule.phantoms.cohorts import write_slide_cohort
from lobule.phantoms.slides import SlidePhantom
from lobule.slides.slide import open_slide

RUNS = Path(__file__).parents[2] / "runs"


def write_camelyon16(folder: Path, like: SlidePhantom, *, training: int, testing: int, seed: int) -> None:
    """Write training/ and testing/ with half normal and half tumour slides, two more of which are damaged.

    The annotations are packed, test slides have masks of the organisers' names, and a folder of tissue masks
    repeats the names of all slides.
    """
    source = folder / "source"
    manifest = write_slide_cohort(
        source,
        slides=training + testing,
        split=(training, 0, testing),
        like=like,
        lesions=[(0, 1, 1)],
        seed=seed,
    )
    counts = {"tumor": 0, "normal": 0, "test": 0}
    packed: dict[str, list[tuple[Path, str]]] = {"training": [], "testing": []}
    reference = []
    for case in read_cohort(manifest):
        group = "test" if case.split == "test" else str(case.label)
        counts[group] += 1
        number = counts[group] + (group != "tumor" and counts[group] > 1)  # 002 is the damaged slide
        name = f"{group}_{number:03d}"
        top = "testing" if group == "test" else "training"
        target = folder / top / ("images" if group == "test" else group) / f"{name}.tif"
        target.parent.mkdir(parents=True, exist_ok=True)
        assert case.path is not None
        shutil.move(case.path, target)
        with open_slide(target) as slide:
            width, height = slide.size
        blank = np.zeros((height // 32, width // 32), np.uint8)
        tissue = folder / "background_tissue" / f"{name}.tif"  # sorts before training/
        tissue.parent.mkdir(exist_ok=True)
        Image.fromarray(blank + 1).save(tissue)
        if case.annotation is not None:
            packed[top].append((Path(case.annotation), f"{name}.xml"))
        if group == "test":
            reference.append(
                f"{name},{str(case.label).capitalize()},{'IDC,Micro' if case.annotation else 'None,None'}\n"
            )
            if case.annotation is not None:
                mask = np.asarray(Image.open(source / "masks" / f"{Path(case.path).stem}.png"))
                file = folder / "testing/evaluation/evaluation_mask" / f"{name}_evaluation_mask.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((mask == 2).astype(np.uint8)).save(
                    file
                )  # tumour is 1, as ASAP's script writes
    for top, members in packed.items():
        with zipfile.ZipFile(folder / top / "lesion_annotations.zip", "w") as archive:
            for file, name in members:
                archive.write(file, f"lesion_annotations/{name}")
    (folder / "testing" / "reference.csv").write_text("".join(reference))
    for damaged, intact in (("training/normal/normal_002", "training/normal/normal_001"),
                           ("testing/images/test_002", "testing/images/test_001")):  # fmt: skip
        content = (folder / f"{intact}.tif").read_bytes()
        (folder / f"{damaged}.tif").write_bytes(content[: len(content) // 3])
    shutil.rmtree(source)


def start(script: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "DEVICE": "cpu",
        **variables,
    }
    return subprocess.Popen(
        ["bash", str(RUNS / f"{script}.sh")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_once(script: str, variables: dict[str, str], pattern: str) -> None:
    """Start a script and kill it, with all its processes, as soon as a file matches a pattern below OUT."""
    process = start(script, variables)
    deadline = time.monotonic() + 900
    while not list(Path(variables["OUT"]).glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(script: str, variables: dict[str, str]) -> str:
    """Run a script to its end and return what it printed."""
    process = start(script, variables)
    printed, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, printed
    return printed
