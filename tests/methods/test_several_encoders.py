"""Several encoders in one pass over a slide, tokens of patches, and recorded licences."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lobule.api.features import default_tile, open_encoders
from lobule.cohort import Case, Cohort
from lobule.encoders import ENCODERS
from lobule.encoders.load import load_file, open_encoder
from lobule.errors import ConfigError, DamagedFile, NotReadable, ResultsError
from lobule.features import TokenGrid, open_features, read_token_file
from lobule.geometry import Box
from lobule.methods.extraction import Extraction, extract
from lobule.methods.token_grids import write_dense_grids
from lobule.nets.encoders import Encoder, encoder
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import Machine
from lobule.scanning.tile_features import Tiling, quantised
from lobule.slides.slide import Slide, open_slide
from tests.encoders.published import LAYOUTS, all_tokens, checkpoint, features, random_weights, small_entry
from tests.features.foreign import read_as_trident
from tests.scanning.support import pixels_of, write_slide

TILE, MPP = 224, 0.5
MACHINE = Machine(device="cpu", precision="float32", batch=2, readers=2, replicas=2, channels_last=True)
EXTRACTION = Extraction(Tiling(MPP, TILE, TILE), "float32")
EVERYWHERE = ScanOptions(tissue=None)
TILES = 6


def small(name: str, folder: Path) -> Encoder:
    """A small network with the layout of an encoder."""
    path = folder / f"{name}.safetensors"
    tensors = checkpoint(random_weights(LAYOUTS[name]))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load_file(small_entry(name), path)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    path = write_slide(tmp_path / "s1.tif", pixels_of(600, 400, 1))
    return Cohort((Case("s1", "p1", "slide", str(path), mpp=MPP),))


def run(encoders: Any, cohort: Cohort, out: Path, extraction: Extraction = EXTRACTION, **options: Any) -> Any:
    report = extract(encoders, cohort, out, extraction, EVERYWHERE, MACHINE, **options)
    assert not report.failed, report.failed
    return report


def pixels_at(cohort: Cohort, corner: Any) -> torch.Tensor:
    with open_slide(cohort.cases[0].path, mpp=MPP) as slide:
        box = Box(int(corner[0]), int(corner[1]), TILE, TILE)
        return torch.from_numpy(slide.read_level(0, box))[None]


# -- several encoders ---------------------------------------------------------------------------------------


def test_one_pass_gives_the_features_of_separate_passes(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = small("uni", tmp_path), encoder("lobule:tiny", "random")
    read = Slide.read_lattice
    corners: list[tuple[int, int]] = []

    def counted(self: Slide, lattice: Any, box: Box) -> Any:
        corners.append((box.x, box.y))
        return read(self, lattice, box)

    monkeypatch.setattr(Slide, "read_lattice", counted)
    run([first, second], cohort, tmp_path / "both")
    assert len(corners) == len(set(corners)) == TILES, "every tile is read once for both encoders"
    monkeypatch.undo()
    for one, name in ((first, "uni"), (second, "lobule_tiny")):
        run(one, cohort, tmp_path / name)
        alone, together = (
            open_features(folder).find(cohort["s1"]) for folder in (tmp_path / name, tmp_path / "both" / name)
        )
        assert (alone.hash, alone.dim, alone.count) == (together.hash, together.dim, TILES)
        np.testing.assert_array_equal(alone.l0_coords(), together.l0_coords())
        np.testing.assert_allclose(alone.read(slice(0, TILES)), together.read(slice(0, TILES)), atol=1e-5)
        assert open_features(tmp_path / "both" / name).encoder_weights is not None


def test_one_missing_file_is_extracted_again(cohort: Cohort, tmp_path: Path) -> None:
    both = [small("uni", tmp_path), encoder("lobule:tiny", "random")]
    run(both, cohort, tmp_path / "both")
    assert run(both, cohort, tmp_path / "both").counters.fields_done == 0
    path = open_features(tmp_path / "both" / "uni").find(cohort["s1"]).path
    before = path.read_bytes()
    path.unlink()
    assert run(both, cohort, tmp_path / "both").counters.fields_done == TILES
    assert path.read_bytes() == before


def test_the_same_encoder_twice_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    one = encoder("lobule:tiny", "random")
    with pytest.raises(ConfigError, match="named twice"):
        run([one, one], cohort, tmp_path / "both")


def test_each_encoder_has_weights_of_its_own_or_all_have_the_same() -> None:
    names = ["lobule:tiny", "efficientnet-lite0"]
    assert [one.name for one in open_encoders(names, "random")] == names
    with pytest.raises(ConfigError, match="2 weights for 1 encoders"):
        open_encoders("lobule:tiny", ["random", "random"])


def test_default_tile_is_that_of_the_encoder() -> None:
    lite0, lite2, other = open_encoders(["efficientnet-lite0", "efficientnet-lite2", "lobule:tiny"], "random")
    assert default_tile([lite2]) == 260
    assert default_tile([lite0, other]) == 224
    with pytest.raises(ConfigError, match=r"different sizes.*efficientnet-lite2 260 px.*--tile"):
        default_tile([lite0, lite2])
    assert ENCODERS["prov-gigapath"].default_tile_px == 256


def test_tiles_are_resized_and_cut_as_the_authors_specify(cohort: Cohort, tmp_path: Path) -> None:
    """GigaPath: 256 px by bicubic interpolation, then the central 224 px; compared with Pillow."""
    from PIL import Image

    giga = small("prov-gigapath", tmp_path)
    run(giga, cohort, tmp_path / "f")
    file = open_features(tmp_path / "f").find(cohort["s1"])
    pixels = pixels_at(cohort, file.l0_coords()[1])
    by_pillow = Image.fromarray(pixels[0].numpy()).resize((256, 256), Image.Resampling.BICUBIC)
    assert giga.preparation is not None
    prepared = giga.preparation.apply(pixels)
    levels = np.abs(prepared[0].numpy().astype(int) - np.asarray(by_pillow)[16:240, 16:240])
    assert levels.max() <= 1 and (levels > 0).mean() < 0.01 and prepared.dtype == torch.uint8
    entry = ENCODERS["prov-gigapath"]
    scaled = (prepared.float() / 255 - torch.tensor(entry.mean)) / torch.tensor(entry.std)
    expected = features(random_weights(LAYOUTS["prov-gigapath"]), scaled.permute(0, 3, 1, 2))
    np.testing.assert_allclose(file.read(slice(1, 2)), expected.numpy(), atol=1e-4)
    manifest = json.loads((tmp_path / "f" / "features.json").read_text())
    assert manifest["preparation"] == {"resize_px": 256, "crop_px": 224, "interpolation": "bicubic"}


# -- tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 2e-3), ("int8", 2e-2)])
def test_tokens_are_those_of_the_transformer(
    storage: Any, tolerance: float, cohort: Cohort, tmp_path: Path
) -> None:
    """The reference is the published computation; virchow2 has registers before the patches."""
    net = small("virchow2", tmp_path)
    run(net, cohort, tmp_path / "f", replace(EXTRACTION, tokens=storage))
    folder = open_features(tmp_path / "f")
    tokens, feature_file = folder.find_tokens(cohort["s1"]), folder.find(cohort["s1"])
    width = LAYOUTS["virchow2"].width
    assert (tokens.count, tokens.grid) == (TILES, TokenGrid(16, 16, width, storage))
    np.testing.assert_array_equal(tokens.l0_coords(), feature_file.l0_coords())
    weights = random_weights(LAYOUTS["virchow2"])
    for row in (0, TILES - 1):
        images = net.scaling.apply(pixels_at(cohort, tokens.l0_coords()[row]))
        expected = all_tokens(weights, images)[0, 1 + 4 :].reshape(16, 16, width)
        actual = tokens.read(slice(row, row + 1))[0]
        assert float(np.abs(actual - expected.numpy()).max()) < tolerance * float(expected.abs().max())
        np.testing.assert_allclose(
            feature_file.read(slice(row, row + 1))[0], features(weights, images)[0].numpy(), atol=1e-4
        )
    together = np.concatenate([block for _, block in tokens.blocks(tiles=4)])
    np.testing.assert_array_equal(together, tokens.read(slice(0, TILES)))


def test_a_reader_of_trident_files_can_read_tokens(cohort: Cohort, tmp_path: Path) -> None:
    net = small("kaiko-vits16", tmp_path)
    run(net, cohort, tmp_path / "f", replace(EXTRACTION, tokens="float16"))
    tokens = open_features(tmp_path / "f").find_tokens(cohort["s1"])
    values = read_as_trident(tokens.path)
    assert values["features"].shape == (TILES, 14 * 14, LAYOUTS["kaiko-vits16"].width)
    assert values["features"].dtype == np.float16
    assert values["patch_size_level0"] == TILE
    np.testing.assert_array_equal(values["coords"], tokens.l0_coords())


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_reader_of_slide2vecs_grids_can_read_tokens(storage: Any, cohort: Cohort, tmp_path: Path) -> None:
    """Names, shapes and metadata as slide2vec 7.1.4 stores dense regions."""
    net = small("kaiko-vits16", tmp_path)
    run(net, cohort, tmp_path / "f", replace(EXTRACTION, tokens=storage))
    features_folder = open_features(tmp_path / "f")
    assert write_dense_grids(features_folder, cohort["s1"], tmp_path / "grids") == TILES
    folder = tmp_path / "grids" / "dense_embeddings" / "s1"
    width, tokens = LAYOUTS["kaiko-vits16"].width, features_folder.find_tokens(cohort["s1"])
    assert len(list(folder.iterdir())) == 2 * TILES
    for row, (x, y) in enumerate(tokens.l0_coords().tolist()):
        grid = torch.load(folder / f"{x}_{y}.pt", weights_only=True)
        assert (grid.dtype, tuple(grid.shape)) == (torch.float16, (width, 14, 14))
        expected = tokens.read(slice(row, row + 1))[0].transpose(2, 0, 1)
        np.testing.assert_allclose(grid.float().numpy(), expected, rtol=1e-3, atol=1e-6)
        metadata = json.loads((folder / f"{x}_{y}.meta.json").read_text(encoding="utf-8"))
        values = {"sample_id": "s1", "x": x, "y": y, "feature_dim": width, "grid_shape": [14, 14]}
        assert values.items() <= metadata.items()
        assert metadata["patch_size"] == [16, 16]


def test_int8_takes_half_the_space_and_keeps_the_largest_value() -> None:
    tokens = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0)) * 30
    values, scales = quantised(tokens)
    assert (values.dtype, scales.dtype) == (torch.int8, torch.float16)
    restored = values.float() * scales.float()[..., None]
    largest = tokens.abs().amax(dim=2, keepdim=True)
    assert float(((restored - tokens).abs() / largest).max()) < 1 / 127
    assert not quantised(torch.zeros(1, 2, 4))[0].any()


def test_tokens_of_another_grid_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    run(small("kaiko-vits16", tmp_path), cohort, tmp_path / "f", replace(EXTRACTION, tokens="float16"))
    path = open_features(tmp_path / "f").find_tokens(cohort["s1"]).path
    width = LAYOUTS["kaiko-vits16"].width
    with pytest.raises(
        ConfigError, match=rf"another grid.*16 × 16 tokens.*14 × 14 tokens of {width} numbers"
    ):
        read_token_file(path, TokenGrid(16, 16, width, "float16"))
    with h5py.File(path, "a") as file:
        file["coords"].resize(3, axis=0)
    with pytest.raises(DamagedFile, match="half-written"):
        read_token_file(path)


def test_tokens_of_other_features_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    run(small("kaiko-vits16", tmp_path), cohort, tmp_path / "f", replace(EXTRACTION, tokens="float16"))
    folder = open_features(tmp_path / "f")
    path = folder.find_tokens(cohort["s1"]).path
    with h5py.File(path, "a") as file:
        file.attrs["encoder_hash"] = "sha256:0"
    with pytest.raises(ConfigError, match="tokens do not belong to the features"):
        folder.find_tokens(cohort["s1"])
    path.unlink()
    with pytest.raises(NotReadable, match="no tokens of the case 's1'"):
        folder.find_tokens(cohort["s1"])


def test_missing_tokens_are_extracted_again(cohort: Cohort, tmp_path: Path) -> None:
    net, extraction = small("kaiko-vits16", tmp_path), replace(EXTRACTION, tokens="int8")
    run(net, cohort, tmp_path / "f", extraction)
    path = open_features(tmp_path / "f").find_tokens(cohort["s1"]).path
    path.unlink()
    assert run(net, cohort, tmp_path / "f", extraction).counters.fields_done == TILES
    assert path.is_file()
    with pytest.raises(ResultsError, match="another tokens"):
        run(net, cohort, tmp_path / "f")


def test_a_convolutional_network_has_no_tokens(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lobule:tiny' has no tokens"):
        run(encoder("lobule:tiny", "random"), cohort, tmp_path / "f", replace(EXTRACTION, tokens="float16"))


# -- licences, resolutions and revisions --------------------------------------------------------------------


def test_features_record_the_licence_and_the_file(cohort: Cohort, tmp_path: Path) -> None:
    run(small("uni", tmp_path), cohort, tmp_path / "f")
    stored = json.loads((tmp_path / "f" / "features.json").read_text())["weights"]
    assert (stored["licence"], stored["commercial"], stored["file"]) == (
        "CC-BY-NC-ND-4.0", False, "uni.safetensors",
    )  # fmt: skip
    assert len(stored["sha256"]) == 64
    with h5py.File(open_features(tmp_path / "f").find(cohort["s1"]).path) as file:
        assert file.attrs["encoder_licence"] == "CC-BY-NC-ND-4.0"
    run(encoder("lobule:tiny", "random"), cohort, tmp_path / "g")
    assert "weights" not in json.loads((tmp_path / "g" / "features.json").read_text())


def test_another_revision_is_refused_in_the_same_folder(cohort: Cohort, tmp_path: Path) -> None:
    first = small("uni", tmp_path)
    run(first, cohort, tmp_path / "f")
    tensors = checkpoint(random_weights(LAYOUTS["uni"], seed=1))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "new.safetensors")
    same_name_other_hash = "another encoding.*uni with the weights sha256:.*uni with the weights sha256:"
    with pytest.raises(ResultsError, match=same_name_other_hash):
        run(load_file(small_entry("uni"), tmp_path / "new.safetensors"), cohort, tmp_path / "f")


def test_resolution_far_from_that_of_the_encoder_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lobule.encoders"):
        open_encoders("lunit-vits16", "random", mpp=2.0)
    assert any("4 times coarser than the 0.5 µm/px" in record.getMessage() for record in caplog.records)


def test_random_weights_are_the_same_in_every_process() -> None:
    first, second = (open_encoder("efficientnet-lite0", "random") for _ in range(2))
    assert first.hash_at(224) == second.hash_at(224)
