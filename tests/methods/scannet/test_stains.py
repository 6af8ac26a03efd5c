"""With `stains=macenko`, two stainings of one tissue get nearly the same map.

Training and scanning see the same normalised colours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.bundles import read_bundle
from lobule.cohort import Case, Cohort
from lobule.geometry import Box
from lobule.methods.scannet.predictor import load
from lobule.results.folder import open_results
from lobule.scanning.scan import Machine, scan
from lobule.slides.normalised import with_normalisation
from lobule.slides.slide import open_slide
from lobule.stitch import State
from lobule.training.patch_pools import gather
from lobule.training.sampling import SampleConfig, SampleStream
from tests.methods.scannet.support import write_tiny_bundle
from tests.slides.test_normalised import stained, write

MPP = 4.0
MACHINE = Machine(device="cpu", precision="float32", cells=8, channels_last=True)


@pytest.fixture
def stainings(tmp_path: Path) -> list[Path]:
    return [write(tmp_path, "weak", stained(0.6, 0.9)), write(tmp_path, "strong", stained(1.3, 1.1))]


def maps(stains: str, stainings: list[Path], out: Path) -> list[NDArray[np.float32]]:
    bundle = write_tiny_bundle(out / "bundle", mpp=MPP, stains=stains)
    predictor = load(read_bundle(bundle))
    cases = tuple(Case(path.stem, path.stem, "slide", str(path), mpp=MPP) for path in stainings)
    metadata = {"method": "scannet", "fingerprint": stains, "classes": list(predictor.classes)}
    assert not scan(predictor, metadata, Cohort(cases), out / "results", machine=MACHINE).failed
    folders = [open_results(out / "results").case_folder(path.stem) for path in stainings]
    read = [next(iter(folder.maps.values())).read() for folder in folders]
    both = np.all([states == State.SCORED for _, states in read], axis=0)
    assert both.sum() > 50
    return [scores[0][both] for scores, _ in read]


def test_two_stainings_get_nearly_the_same_map(stainings: list[Path], tmp_path: Path) -> None:
    raw = maps("none", stainings, tmp_path / "raw")
    normalised = maps("macenko", stainings, tmp_path / "normalised")
    before, after = (np.abs(pair[0] - pair[1]).mean() for pair in (raw, normalised))
    assert after < before / 2


def test_training_patches_have_the_normalised_colours(stainings: list[Path], tmp_path: Path) -> None:
    outline = tmp_path / "outline.xml"
    corners = np.array([(150, 150), (350, 150), (350, 350), (150, 350)], np.float64)
    write_annotation(outline, Annotation((Polygon(corners),)))
    case = Case("a", "a", "slide", str(stainings[1]), mpp=MPP, label="1", annotation=str(outline))
    pool = gather(Cohort((case,)), stains="macenko")
    with SampleStream(pool, SampleConfig(MPP, 32), 8, seed=3) as stream:
        samples = next(stream)
    slide = with_normalisation(open_slide(stainings[1], mpp=MPP), "macenko")
    for pixels, chosen in zip(samples.pixels, samples.draws, strict=True):
        corner = round(chosen.l0_x - 16), round(chosen.l0_y - 16)
        expected = slide.read_lattice(slide.lattice(level=0), Box(*corner, 32, 32))
        np.testing.assert_array_equal(pixels, expected)
