"""Extraction: features of the right tiles, resumed, failed and retried as the scanner does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, DamagedTile, ResultsError
from lobule.features import open_features
from lobule.geometry import Box
from lobule.methods.extraction import Extraction, extract
from lobule.nets.encoders import Encoder, encoder
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine
from lobule.scanning.tile_features import Tiling
from lobule.slides.slide import Slide, open_slide
from tests.features.foreign import read_as_trident
from tests.scanning.support import pixels_of, write_slide

TILE, MPP = 64, 0.5
MACHINE = Machine(device="cpu", precision="float32", batch=4, readers=2, lanes=2, channels_last=True)
EXTRACTION = Extraction(Tiling(MPP, TILE, 224), "float32")
EVERYWHERE = ScanOptions(tissue=None)


@pytest.fixture(scope="module")
def net() -> Encoder:
    return encoder("lobule:tiny", "random")


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    paths = [write_slide(tmp_path / f"s{n}.tif", pixels_of(300, 200, n)) for n in (1, 2)]
    return Cohort(tuple(Case(path.stem, f"p{path.stem}", "slide", str(path), mpp=MPP) for path in paths))


def run(net: Encoder, cohort: Cohort, out: Path, how: Extraction = EXTRACTION, **more: Any) -> Any:
    return extract(net, cohort, out, how, EVERYWHERE, MACHINE, **more)


def by_hand(net: Encoder, path: str, corner: Any) -> np.ndarray:
    """One tile through the encoder, with nothing of the scanner."""
    with open_slide(path, mpp=MPP) as slide:
        pixels = slide.read_level(0, Box(int(corner[0]), int(corner[1]), TILE, TILE))
    images = net.scaling.apply(torch.from_numpy(pixels)[None])
    resized = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    return net.net(resized)[0].numpy()


def test_every_tile_gets_the_features_of_its_pixels(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    report = run(net, cohort, tmp_path / "f")
    assert dict(report.counts) == {"complete": 2}
    folder = open_features(tmp_path / "f")
    for case in cohort:
        file = folder.find(case)
        assert (file.count, file.dim, file.hash) == (20, 96, net.hash_at(224))
        found = read_as_trident(file.path)
        assert (found["patch_size"], found["patch_size_level0"], found["level0_width"]) == (64, 64, 300)
        expected_corners = [[x, y] for y in range(0, 200, TILE) for x in range(0, 300, TILE)]
        assert found["coords"].tolist() == expected_corners
        for row in (0, 7, 19):  # the last hangs over the slide's corner
            np.testing.assert_allclose(
                found["features"][row], by_hand(net, str(case.path), found["coords"][row]), atol=2e-4
            )
    assert not list((tmp_path / "f" / "scan").rglob("*.parquet")), "what is in the files is not kept twice"
    assert torch.is_tensor(next(iter(net.weights.values())))
    assert folder.encoder_weights is not None


def test_run_again_it_does_nothing_and_a_lost_file_is_made_again(
    net: Encoder, cohort: Cohort, tmp_path: Path
) -> None:
    run(net, cohort, tmp_path / "f")
    before = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*.h5")}
    assert run(net, cohort, tmp_path / "f").counters.fields_done == 0
    gone = open_features(tmp_path / "f").find(cohort["s1"]).path
    features = read_as_trident(gone)["features"]
    gone.unlink()
    assert run(net, cohort, tmp_path / "f").counters.fields_done == 20
    after = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*.h5")}
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(read_as_trident(gone)["features"], features)


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[int, int]]]:
    """Corners of tiles that cannot be read, as long as they are in the set."""
    broken: set[tuple[int, int]] = {(64, 64)}
    read = Slide.read_lattice

    def reading(self: Slide, lattice: Any, box: Box) -> Any:
        if box.width == TILE and (box.x, box.y) in broken:
            raise DamagedTile(self.path, 0, (0, 0), "made so")
        return read(self, lattice, box)

    monkeypatch.setattr(Slide, "read_lattice", reading)
    yield broken


def test_another_region_of_as_many_tiles_is_extracted_anew(
    net: Encoder, cohort: Cohort, tmp_path: Path
) -> None:
    def corners(box: Box) -> list[list[int]]:
        case = replace(cohort.cases[0], kind="region", l0_box=box)
        run(net, Cohort((case,)), tmp_path / "f")
        found: list[list[int]] = open_features(tmp_path / "f").find(case).l0_coords().tolist()
        return found

    assert corners(Box(0, 0, TILE, TILE)) == [[0, 0]]
    assert corners(Box(TILE, 0, TILE, TILE)) == [[TILE, 0]]


def test_a_tile_that_cannot_be_read_costs_itself_and_is_retried(
    net: Encoder, cohort: Cohort, tmp_path: Path, unreadable: set[tuple[int, int]]
) -> None:
    report = run(net, cohort, tmp_path / "f")
    assert report.partial == ("s1", "s2")
    file = open_features(tmp_path / "f").find(cohort["s1"])
    assert file.count == 19
    assert [64, 64] not in file.l0_coords().tolist()
    unreadable.clear()
    assert dict(run(net, cohort, tmp_path / "f", retry_failed=True).counts) == {"complete": 2}
    whole = open_features(tmp_path / "f").find(cohort["s1"])
    assert whole.count == 20
    np.testing.assert_allclose(
        whole.read(slice(6, 7))[0], by_hand(net, str(cohort["s1"].path), (64, 64)), atol=2e-4
    )


def test_a_slide_of_which_nothing_can_be_read_leaves_no_file(
    net: Encoder, cohort: Cohort, tmp_path: Path, unreadable: set[tuple[int, int]]
) -> None:
    unreadable |= {(x, y) for y in range(0, 200, TILE) for x in range(0, 300, TILE)}
    report = run(net, cohort, tmp_path / "f")
    assert set(report.failed) == {"s1", "s2"}
    assert not list((tmp_path / "f").rglob("*.h5"))


def test_glass_alone_gives_an_empty_file(net: Encoder, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "glass.tif", np.full((600, 600, 3), 244, np.uint8))
    glass = Cohort((Case("glass", "p", "slide", str(path), mpp=4.0),))
    report = extract(net, glass, tmp_path / "f", Extraction(Tiling(4.0, TILE, 224)), ScanOptions(), MACHINE)
    assert dict(report.counts) == {"unscored": 1}
    assert not report.failed
    assert open_features(tmp_path / "f").find(glass["glass"]).count == 0
    again = extract(net, glass, tmp_path / "f", Extraction(Tiling(4.0, TILE, 224)), ScanOptions(), MACHINE)
    assert dict(again.counts) == {"unscored": 1}


def test_another_backbone_or_tile_cannot_join(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    run(net, cohort, tmp_path / "f")
    weights = {name: value + 0.01 if "conv" in name else value for name, value in net.weights.items()}
    with pytest.raises(ResultsError, match="features of another encoding"):
        run(encoder("lobule:tiny", weights), cohort, tmp_path / "f")
    with pytest.raises(ResultsError, match="another tile_px"):
        run(net, cohort, tmp_path / "f", Extraction(Tiling(MPP, 128, 224), "float32"))


def test_sizes_that_cannot_be_are_refused(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not accept tiles of 64 px.*--input"):
        run(net, cohort, tmp_path / "small", Extraction(Tiling(MPP, TILE, TILE)))
    assert not (tmp_path / "small").exists(), "so that the folder can be used with tiles that fit"
    fixed = encoder("timm:vit_tiny_patch16_224", "random")
    with pytest.raises(ConfigError, match=r"224 px alone.*--input 224"):
        run(fixed, cohort, tmp_path / "fixed", Extraction(Tiling(MPP, TILE, 128)))
    with pytest.raises(ConfigError, match="float32 features alone"):
        run(net, cohort, tmp_path / "clam", Extraction(Tiling(MPP, TILE, 224), "float16", "clam"))


def test_bfloat16_differs_little(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    run(net, cohort, tmp_path / "f")
    half = Machine(device="cpu", precision="bfloat16", batch=4, lanes=1, channels_last=True)
    extract(net, cohort, tmp_path / "h", EXTRACTION, EVERYWHERE, half)
    one, other = (open_features(tmp_path / name).find(cohort["s1"]).read(slice(0, 20)) for name in ("f", "h"))
    difference = np.linalg.norm(one - other) / np.linalg.norm(one)
    assert 0 < difference < 0.02
