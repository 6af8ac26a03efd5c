"""Tests of feature files: other tools read ours, we read theirs, and damaged files are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from lobule.cohort import Case
from lobule.errors import ConfigError, DamagedFile, MissingMpp, NotReadable, ResultsError
from lobule.features import (
    Encoding,
    FeatureManifest,
    TileFrame,
    nominal_magnification,
    open_features,
    prepare_folder,
    write_coords,
    write_features,
)
from lobule.features.hdf5 import read_feature_file
from lobule.geometry import Size
from tests.features.foreign import (
    COORDS,
    FEATURES,
    l0_patch,
    read_as_clam,
    read_as_trident,
    write_clam,
    write_stamp,
    write_trident,
)

ENCODING = Encoding("resnet50", "sha256:1234", 6)
LEVEL = TileFrame("s1", 256, 0.5, 512, Size(4096, 3072), 40.0, 1, (2.0, 2.0), Size(2048, 1536))
RESAMPLED = replace(LEVEL, level=None, level_size=None, downsample=(1.9, 1.9))
MANIFEST = FeatureManifest(ENCODING, 0.5, 256, 224, 0.1)


def case(name: str = "s1", path: str | None = None, mpp: float | None = 0.25) -> Case:
    return Case(name, "p", "slide", path or f"/slides/{name}.svs", mpp=mpp)


def write_slide_features(
    root: Path, frame: TileFrame = LEVEL, manifest: FeatureManifest = MANIFEST
) -> tuple[Path, Path]:
    prepare_folder(root, manifest)
    coords, path = manifest.paths_of(root, frame)
    for target in (coords, path):
        target.parent.mkdir(parents=True, exist_ok=True)
    with write_features(
        path, frame, manifest.encoding, source="sha256:slide", dtype=manifest.dtype,
        coords_dtype="int32" if manifest.layout == "clam" else "int64",
    ) as append:  # fmt: skip
        append(FEATURES[:3], COORDS[:3])
        append(FEATURES[3:], COORDS[3:])
    write_coords(coords, frame, COORDS)
    return coords, path


def test_trident_reader_reads_our_files(tmp_path: Path) -> None:
    coords, path = write_slide_features(tmp_path)
    assert path.relative_to(tmp_path).as_posix() == "20x_256px_0px_overlap/features_resnet50/s1.h5"
    assert coords.relative_to(tmp_path).as_posix() == "20x_256px_0px_overlap/patches/s1_patches.h5"
    values = read_as_trident(path)
    np.testing.assert_array_equal(values["coords"], COORDS)
    assert values["coords"].dtype == np.int64
    np.testing.assert_array_equal(values["features"], FEATURES.astype(np.float16))
    expected = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0, "name": "s1", "level0_width": 4096, "level0_height": 3072,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected
    assert (values["features.name"], values["features.encoder"]) == ("s1", "resnet50")
    with h5py.File(coords) as file:
        assert dict(file["coords"].attrs)["patch_size_level0"] == 512
        assert list(file) == ["coords"]


def test_clam_reader_reads_our_files(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, layout="clam", dtype="float32")
    coords, path = write_slide_features(tmp_path, manifest=manifest)
    assert path == tmp_path / "h5_files" / "s1.h5"
    assert coords == tmp_path / "patches" / "s1.h5"
    values = read_as_clam(coords, path)
    assert (values["patch_size"], values["patch_level"], values["name"]) == (256, 1, "s1")
    assert tuple(values["level_dim"]) == tuple(values["downsampled_level_dim"]) == (2048, 1536)
    assert l0_patch(values).tolist() == [512, 512]
    assert values["features"].dtype == np.float32
    assert values["coords"].dtype == np.int32
    np.testing.assert_array_equal(values["features"], FEATURES)
    np.testing.assert_array_equal(values["patches"], COORDS)


def test_clam_reader_raises_for_resampled_tiles(tmp_path: Path) -> None:
    coords, path = write_slide_features(
        tmp_path, RESAMPLED, replace(MANIFEST, layout="clam", dtype="float32")
    )
    with pytest.raises(KeyError, match="patch_level"):
        read_as_clam(coords, path)
    assert read_as_trident(path)["patch_size_level0"] == 512


def test_slide_without_tissue_gives_a_file_without_rows(tmp_path: Path) -> None:
    with write_features(tmp_path / "s.h5", LEVEL, ENCODING):
        pass
    values = read_as_trident(tmp_path / "s.h5")
    assert values["features"].shape == (0, 6)
    assert values["coords"].shape == (0, 2)
    assert read_feature_file(tmp_path / "s.h5").count == 0


@pytest.mark.parametrize("kind", ["trident", "trident without attributes", "clam", "stamp", "lobule"])
def test_files_of_every_tool_are_read(tmp_path: Path, kind: str) -> None:
    if kind == "lobule":
        write_slide_features(tmp_path)
    elif kind == "clam":
        write_clam(tmp_path, "s1")
    elif kind == "stamp":
        write_stamp(tmp_path, "s1")
    else:
        write_trident(tmp_path, "s1", attributes_in_features=kind == "trident")
    file = open_features(tmp_path).find(case())
    assert file.kind == kind.partition(" ")[0]
    assert (file.count, file.dim) == (4, 6)
    np.testing.assert_array_equal(file.l0_coords(0.25), COORDS)
    assert file.l0_side(0.25) == 512
    expected = FEATURES if kind.startswith(("trident", "clam")) else FEATURES.astype(np.float16)
    np.testing.assert_array_equal(np.concatenate([block for _, block in file.blocks(3)]), expected)
    np.testing.assert_array_equal(file.take(np.array([3, 0, 3])), expected[[3, 0, 3]])
    encoder = {"trident": "uni", "clam": None, "stamp": "ctp", "lobule": "resnet50"}
    assert file.encoder == encoder[file.kind]


def test_coordinates_file_is_used_if_attributes_lack_the_tile_size(tmp_path: Path) -> None:
    path = write_trident(tmp_path, "s1", attributes_in_features=False)
    with h5py.File(path, "r+") as opened:
        opened["coords"].attrs.update({"name": "s1", "savetodir": "/elsewhere"})
    file = open_features(tmp_path).find(case())
    assert (file.kind, file.tile_l0) == ("trident", 512)


def test_missing_tile_size_and_mpp_are_not_guessed(tmp_path: Path) -> None:
    write_clam(tmp_path / "clam", "s1", with_patches=False)
    assert open_features(tmp_path / "clam").find(case()).l0_side() is None
    write_stamp(tmp_path / "stamp", "s1")
    file = open_features(tmp_path / "stamp").find(case())
    with pytest.raises(MissingMpp):
        file.l0_coords(None)
    write_stamp(tmp_path / "feet", "s1", unit="ft")
    with pytest.raises(DamagedFile, match="unknown unit"):
        open_features(tmp_path / "feet").find(case())


def test_interrupted_writing_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    with pytest.raises(KeyboardInterrupt), write_features(path, LEVEL, ENCODING) as append:
        append(FEATURES, COORDS)
        assert not path.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_half_written_files_are_refused_by_name(tmp_path: Path) -> None:
    _, path = write_slide_features(tmp_path / "cut")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFile, match=r"s1\.h5: half-written"):
        open_features(tmp_path / "cut").find(case())
    _, path = write_slide_features(tmp_path / "fewer")
    with h5py.File(path, "a") as file:
        file["features"].resize(2, axis=0)
    with pytest.raises(DamagedFile, match="2 features, 4 coordinates"):
        open_features(tmp_path / "fewer").find(case())
    _, path = write_slide_features(tmp_path / "killed")
    path.rename(path.with_name(".s1.0123456789ab.part.h5"))
    with pytest.raises(DamagedFile, match="half-written: the extraction was stopped"):
        open_features(tmp_path / "killed").find(case())
    with pytest.raises(NotReadable, match="no features of the case 'other'"):
        open_features(tmp_path / "killed").find(case("other"))
    (tmp_path / "nothing").mkdir()
    with h5py.File(tmp_path / "nothing" / "s1.h5", "w") as file:
        file["coords"] = COORDS
    with pytest.raises(DamagedFile, match="not a feature file"):
        open_features(tmp_path / "nothing").find(case())


def test_nan_features_are_refused_with_their_row(tmp_path: Path) -> None:
    path = write_trident(tmp_path, "s1")
    with h5py.File(path, "a") as file:
        file["features"][2, 1] = np.nan
    file_ = open_features(tmp_path).find(case())
    with pytest.raises(DamagedFile, match=r"in 1 rows, first in row 2"):
        list(file_.blocks())
    np.testing.assert_array_equal(file_.read(slice(0, 2)), FEATURES[:2])


def test_values_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"fit into float16.*--dtype float32"),
        write_features(tmp_path / "s.h5", LEVEL, ENCODING) as append,
    ):
        append(FEATURES * 1e6, COORDS)
    assert not (tmp_path / "s.h5").exists()


def test_features_of_two_backbones_cannot_share_a_folder(tmp_path: Path) -> None:
    _, path = write_slide_features(tmp_path)
    assert prepare_folder(tmp_path, MANIFEST) == tmp_path
    with pytest.raises(ResultsError, match="another encoding"):
        prepare_folder(tmp_path, replace(MANIFEST, encoding=replace(ENCODING, hash="sha256:5678")))
    with pytest.raises(ResultsError, match="another tile_px"):
        prepare_folder(tmp_path, replace(MANIFEST, tile_px=512))
    with pytest.raises(ResultsError, match="another input_px"):  # the hash depends on it as well
        prepare_folder(
            tmp_path, replace(MANIFEST, input_px=96, encoding=replace(ENCODING, hash="sha256:5678"))
        )
    frame = replace(LEVEL, name="s2")
    with write_features(path.with_name("s2.h5"), frame, replace(ENCODING, hash="sha256:5678")) as append:
        append(FEATURES, COORDS)
    folder = open_features(tmp_path)
    assert folder.find(case("s1")).count == 4
    with pytest.raises(ConfigError, match="the features come from another backbone"):
        folder.find(case("s2"))


def test_folder_with_several_encoders_is_refused(tmp_path: Path) -> None:
    path = write_trident(tmp_path, "s1")
    other = path.parent.parent / "features_ctp"
    other.mkdir()
    with pytest.raises(ConfigError, match="several kinds"):
        open_features(tmp_path).find(case())
    assert open_features(path.parent).find(case()).encoder == "uni"
    with pytest.raises(NotReadable, match="no such folder of features"):
        open_features(tmp_path / "nowhere")


def test_file_of_a_case_is_found_by_case_or_slide_name(tmp_path: Path) -> None:
    write_trident(tmp_path, "slide_7")
    folder = open_features(tmp_path)
    region = case("bag 1", "/slides/slide_7.svs")
    assert folder.is_slide_file(region, folder.find(region))
    slide_case = case("slide_7", "/slides/slide_7.svs")
    assert not folder.is_slide_file(slide_case, folder.find(slide_case))


@pytest.mark.parametrize(
    ("mpp", "usual"),
    [(0.5, 20), (0.4986, 20), (0.243, 40), (0.2277, 40), (1.0, 10), (4.0, 2.5), (0.65, 15.385)],
)
def test_nominal_magnification_is_a_standard_one_if_near(mpp: float, usual: float) -> None:
    assert nominal_magnification(mpp) == usual


def write_tampered_file(path: Path, name: str, write: Callable[[h5py.File], object]) -> Path:
    """A valid feature file in which one dataset is replaced."""
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
        file["coords"] = np.zeros((3, 2), np.int64)
        file["coords"].attrs["patch_size_level0"] = 256
        del file[name]
        write(file)
    return path


HOSTILE: dict[str, Callable[[h5py.File], object]] = {
    "external storage": lambda file: file.create_dataset(
        "features", (3, 4), np.float32, external=[("/etc/passwd", 0, 48)]
    ),
    "an external link": lambda file: file.__setitem__("features", h5py.ExternalLink("other.h5", "features")),
    "a soft link": lambda file: file.__setitem__("features", h5py.SoftLink("/coords")),
    "text": lambda file: file.create_dataset("features", data=[[b"a", b"b"]] * 3),
    "references": lambda file: file.create_dataset("features", (3, 4), h5py.ref_dtype),
    "compounds": lambda file: file.create_dataset("features", (3, 4), np.dtype([("x", "f4")])),
    "a group": lambda file: file.create_group("features"),
    "a scalar": lambda file: file.create_dataset("features", data=5.0),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_features_that_are_not_plain_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
    path = write_tampered_file(tmp_path / "a.h5", "features", HOSTILE[kind])
    with pytest.raises(DamagedFile, match=r"a\.h5"):
        read_feature_file(path)


def test_virtual_features_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.ones((3, 4), np.float32)
    layout = h5py.VirtualLayout((3, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (3, 4))
    path = write_tampered_file(
        tmp_path / "a.h5", "features", lambda file: file.create_virtual_dataset("features", layout)
    )
    with pytest.raises(DamagedFile, match="stored in other files"):
        read_feature_file(path)


def test_tile_size_as_text_is_refused(tmp_path: Path) -> None:
    path = write_tampered_file(
        tmp_path / "a.h5", "features", lambda file: file.__setitem__("features", np.ones((3, 4)))
    )
    with h5py.File(path, "a") as file:
        file["coords"].attrs["patch_size_level0"] = "large"
    with pytest.raises(DamagedFile, match=r"a\.h5"):
        read_feature_file(path)
