"""Tests of extraction: features of the right tiles, resuming, failed tiles and retries."""

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
MACHINE = Machine(device="cpu", precision="float32", batch=4, readers=2, replicas=2, channels_last=True)
EXTRACTION = Extraction(Tiling(MPP, TILE, 224), "float32")
EVERYWHERE = ScanOptions(tissue=None)


@pytest.fixture(scope="module")
def net() -> Encoder:
    return encoder("lobule:tiny", "random")


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    paths = [write_slide(tmp_path / f"s{n}.tif", pixels_of(300, 200, n)) for n in (1, 2)]
    return Cohort(tuple(Case(path.stem, f"p{path.stem}", "slide", str(path), mpp=MPP) for path in paths))


def run(
    net: Encoder, cohort: Cohort, out: Path, extraction: Extraction = EXTRACTION, **arguments: Any
) -> Any:
    return extract(net, cohort, out, extraction, EVERYWHERE, MACHINE, **arguments)


def reference_features(net: Encoder, path: str, corner: Any) -> np.ndarray:
    """Encode one tile without the scanner."""
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
        values = read_as_trident(file.path)
        assert (values["patch_size"], values["patch_size_level0"], values["level0_width"]) == (64, 64, 300)
        expected_corners = [[x, y] for y in range(0, 200, TILE) for x in range(0, 300, TILE)]
        assert values["coords"].tolist() == expected_corners
        for row in (0, 7, 19):  # the last tile extends beyond the corner of the slide
            np.testing.assert_allclose(
                values["features"][row],
                reference_features(net, str(case.path), values["coords"][row]),
                atol=2e-4,
            )
    assert not list((tmp_path / "f" / "scan").rglob("*.parquet")), (
        "the tables are deleted, because the feature files contain the data"
    )
    assert torch.is_tensor(next(iter(net.weights.values())))
    assert folder.encoder_weights is not None


def test_second_run_only_extracts_missing_files(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    run(net, cohort, tmp_path / "f")
    before = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*.h5")}
    assert run(net, cohort, tmp_path / "f").counters.fields_done == 0
    deleted_path = open_features(tmp_path / "f").find(cohort["s1"]).path
    features = read_as_trident(deleted_path)["features"]
    deleted_path.unlink()
    assert run(net, cohort, tmp_path / "f").counters.fields_done == 20
    after = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*.h5")}
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(read_as_trident(deleted_path)["features"], features)


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[int, int]]]:
    """A set of corners; tiles at these corners cannot be read."""
    unreadable_corners: set[tuple[int, int]] = {(64, 64)}
    read = Slide.read_lattice

    def read_or_fail(self: Slide, lattice: Any, box: Box) -> Any:
        if box.width == TILE and (box.x, box.y) in unreadable_corners:
            raise DamagedTile(self.path, 0, (0, 0), "unreadable for this test")
        return read(self, lattice, box)

    monkeypatch.setattr(Slide, "read_lattice", read_or_fail)
    yield unreadable_corners


def test_other_region_with_as_many_tiles_is_extracted_again(
    net: Encoder, cohort: Cohort, tmp_path: Path
) -> None:
    def corners(box: Box) -> list[list[int]]:
        case = replace(cohort.cases[0], kind="region", l0_box=box)
        run(net, Cohort((case,)), tmp_path / "f")
        coords: list[list[int]] = open_features(tmp_path / "f").find(case).l0_coords().tolist()
        return coords

    assert corners(Box(0, 0, TILE, TILE)) == [[0, 0]]
    assert corners(Box(TILE, 0, TILE, TILE)) == [[TILE, 0]]


def test_unreadable_tile_is_left_out_and_retried(
    net: Encoder, cohort: Cohort, tmp_path: Path, unreadable: set[tuple[int, int]]
) -> None:
    report = run(net, cohort, tmp_path / "f")
    assert report.partial == ("s1", "s2")
    file = open_features(tmp_path / "f").find(cohort["s1"])
    assert file.count == 19
    assert [64, 64] not in file.l0_coords().tolist()
    unreadable.clear()
    assert dict(run(net, cohort, tmp_path / "f", retry_failed=True).counts) == {"complete": 2}
    retried_file = open_features(tmp_path / "f").find(cohort["s1"])
    assert retried_file.count == 20
    np.testing.assert_allclose(
        retried_file.read(slice(6, 7))[0],
        reference_features(net, str(cohort["s1"].path), (64, 64)),
        atol=2e-4,
    )


def test_unreadable_slide_leaves_no_file(
    net: Encoder, cohort: Cohort, tmp_path: Path, unreadable: set[tuple[int, int]]
) -> None:
    unreadable |= {(x, y) for y in range(0, 200, TILE) for x in range(0, 300, TILE)}
    report = run(net, cohort, tmp_path / "f")
    assert set(report.failed) == {"s1", "s2"}
    assert not list((tmp_path / "f").rglob("*.h5"))


def test_slide_of_glass_gives_an_empty_file(net: Encoder, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "glass.tif", np.full((600, 600, 3), 244, np.uint8))
    glass = Cohort((Case("glass", "p", "slide", str(path), mpp=4.0),))
    report = extract(net, glass, tmp_path / "f", Extraction(Tiling(4.0, TILE, 224)), ScanOptions(), MACHINE)
    assert dict(report.counts) == {"unscored": 1}
    assert not report.failed
    assert open_features(tmp_path / "f").find(glass["glass"]).count == 0
    again = extract(net, glass, tmp_path / "f", Extraction(Tiling(4.0, TILE, 224)), ScanOptions(), MACHINE)
    assert dict(again.counts) == {"unscored": 1}


def test_other_backbone_or_tile_size_is_refused_in_the_same_folder(
    net: Encoder, cohort: Cohort, tmp_path: Path
) -> None:
    run(net, cohort, tmp_path / "f")
    weights = {name: value + 0.01 if "conv" in name else value for name, value in net.weights.items()}
    with pytest.raises(ResultsError, match="features of another encoding"):
        run(encoder("lobule:tiny", weights), cohort, tmp_path / "f")
    with pytest.raises(ResultsError, match="another tile_px"):
        run(net, cohort, tmp_path / "f", Extraction(Tiling(MPP, 128, 224), "float32"))


def test_invalid_tile_sizes_are_refused(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not accept tiles of 64 px.*--input"):
        run(net, cohort, tmp_path / "small", Extraction(Tiling(MPP, TILE, TILE)))
    assert not (tmp_path / "small").exists(), (
        "the folder was not created, so it can be used with a valid tile size"
    )
    fixed = encoder("timm:vit_tiny_patch16_224", "random")
    with pytest.raises(ConfigError, match=r"accepts only tiles of 224 px.*--input 224"):
        run(fixed, cohort, tmp_path / "fixed", Extraction(Tiling(MPP, TILE, 128)))
    with pytest.raises(ConfigError, match="float32 features only"):
        run(net, cohort, tmp_path / "clam", Extraction(Tiling(MPP, TILE, 224), "float16", "clam"))


def test_bfloat16_features_are_close_to_float32(net: Encoder, cohort: Cohort, tmp_path: Path) -> None:
    run(net, cohort, tmp_path / "f")
    machine = Machine(device="cpu", precision="bfloat16", batch=4, replicas=1, channels_last=True)
    extract(net, cohort, tmp_path / "h", EXTRACTION, EVERYWHERE, machine)
    float32_features, bfloat16_features = (
        open_features(tmp_path / name).find(cohort["s1"]).read(slice(0, 20)) for name in ("f", "h")
    )
    difference = np.linalg.norm(float32_features - bfloat16_features) / np.linalg.norm(float32_features)
    assert 0 < difference < 0.02
