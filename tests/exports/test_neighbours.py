"""Files that other programs read: OME-Zarr, SpatialData, DICOM by dcmqi and DSA by the schema of large_image.

Their pins conflict with ours, so `environments.py` creates an environment for each program.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import lobule
from lobule.exports import ExportOptions
from lobule.exports.run import export_results
from lobule.results import Results
from lobule.results.result import RESEARCH_USE
from lobule.reviews import Review, append_review
from lobule.testing.export import HOLE, MPP, SIZE, SQUARES, STRIDE, known_map, write_known_results
from tests.exports.environments import interpreter, run_python
from tests.scanning.support import write_slide


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = write_known_results(tmp_path_factory.mktemp("neighbours"), ["squares"], incomplete_cases=False)
    outline = ((700.0, 500.0), (800.0, 500.0), (800.0, 650.5))
    append_review(results.path, "squares", "Grace", Review("draw", label="tumour", polygon=outline))
    return results


def squares_in_place(scores: np.ndarray, scale: list[float], translation: list[float]) -> bool:
    """Whether the cells with high scores cover the squares, within half a level-0 pixel.

    Coordinates of OME-Zarr are those of centres of cells; the centre of level-0 pixel p is at p · µm/px.
    """
    rows, columns = np.nonzero(scores > 0.5)
    ends = []
    for cells, axis in ((columns, -1), (rows, -2)):
        for cell, side in ((cells.min(), -0.5), (cells.max(), 0.5)):
            ends.append(((cell + side) * scale[axis] + translation[axis]) / MPP + 0.5)
    expected = [
        min(box.x for box in SQUARES), max(box.right for box in SQUARES),
        min(box.y for box in SQUARES), max(box.bottom for box in SQUARES),
    ]  # fmt: skip
    return bool(np.abs(np.array(ends) - expected).max() < 0.5)


@pytest.fixture(scope="module")
def ome_zarr(results: Results, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The map in both versions of OME-Zarr, which the readers open in one process."""
    folder = tmp_path_factory.mktemp("ome-zarr")
    for version in ("0.5", "0.4"):
        export_results(results.path, "ome-zarr", folder / version, options=ExportOptions(ngff=version))
    return {version: folder / version / "squares.ome.zarr" for version in ("0.5", "0.4")}


OME_ZARR = """
import json, sys
import numpy as np
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
for path in sys.argv[1:]:
    nodes = list(Reader(parse_url(path, mode="r"))())
    image = nodes[0]
    np.save(path + ".scores.npy", np.asarray(image.data[0]))
    transforms = image.metadata["coordinateTransformations"][0]
    by_type = {transform["type"]: list(transform[transform["type"]]) for transform in transforms}
    labels = [node for node in nodes if "labels" in str(node.zarr) and node.data]
    states = np.unique(np.asarray(labels[-1].data[0])).tolist()
    axes = [axis["name"] for axis in image.metadata["axes"]]
    print(json.dumps({"axes": axes, "levels": len(image.data), **by_type, "states": states}))
"""


def test_ome_zarr_reads_maps_in_place(ome_zarr: dict[str, Path]) -> None:
    lines = run_python("ome-zarr", OME_ZARR, *ome_zarr.values()).splitlines()
    expected, states = known_map()
    assert len(lines) == 2
    for line, path in zip(lines, ome_zarr.values(), strict=True):
        read, scores = json.loads(line), np.load(f"{path}.scores.npy")
        assert np.array_equal(scores, np.where(states == 2, expected, np.nan), equal_nan=True)
        assert read["axes"] == ["c", "y", "x"]
        assert squares_in_place(scores[1], read["scale"], read["translation"])
        assert read["states"] == np.unique(states).tolist() and len(read["states"]) == 3


NGFF_ZARR = """
import json, sys
import numpy as np
import ngff_zarr
for argument in sys.argv[1:]:
    version, path = argument.split("=", 1)
    multiscales = ngff_zarr.from_ngff_zarr(path, validate=True, version=version)
    image = multiscales.images[0]
    np.save(path + ".ngff.npy", np.asarray(image.data))
    print(json.dumps({
        "dims": list(image.dims), "scale": [image.scale[axis] for axis in "yx"],
        "translation": [image.translation[axis] for axis in "yx"], "units": image.axes_units,
    }))
"""


def test_ngff_zarr_finds_the_metadata_valid(ome_zarr: dict[str, Path]) -> None:
    arguments = [f"{version}={path}" for version, path in ome_zarr.items()]
    lines = run_python("ngff-zarr", NGFF_ZARR, *arguments).splitlines()
    assert len(lines) == 2
    for line, path in zip(lines, ome_zarr.values(), strict=True):
        read, scores = json.loads(line), np.load(f"{path}.ngff.npy")
        assert read["dims"] == ["c", "y", "x"] and read["units"]["x"] == "micrometer"
        assert squares_in_place(scores[1], read["scale"], read["translation"])
        assert read["scale"] == [STRIDE * MPP, STRIDE * MPP]


# -- SpatialData --------------------------------------------------------------------------------------------

SPATIAL_DATA = """
import json, sys
source, results, slide, out = sys.argv[1:]
sys.path.insert(0, source)
from lobule.exports.run import export_results
(record,) = export_results(results, "spatialdata", out).records
assert record.exported, record
assert "torch" not in sys.modules
import numpy as np
import spatialdata
import wsidata
path = out + "/squares.zarr"
data = spatialdata.read_zarr(path)
findings = data.shapes["findings"]
um = spatialdata.transform(findings, to_coordinate_system="micrometers")
wsi = wsidata.open_wsi(slide, store=path)
features = wsi.fetch.features_anndata("scannet", tile_key="tiles")
spec = wsi.tile_spec("tiles")
tissue = features.obs["tissue_id"].to_numpy()
np.savez(out + "/features.npz", x=features.X, spatial=features.obsm["spatial"], tissue=tissue)
print(json.dumps({
    "classes": list(features.var_names),
    "tile": [spec.base_width, spec.base_height, spec.mpp],
    "areas": findings.area.tolist(),
    "areas_um2": um.area.tolist(),
    "points": len(data.shapes["finding_points"]),
    "tissue_area": float(data.shapes["tissues"].area.sum()),
    "research_use": data.attrs["lobule"]["research_use"],
}))
"""


def test_spatialdata_is_read_by_wsidata(results: Results, tmp_path: Path) -> None:
    """wsidata is the data structure of LazySlide: it joins the scores, the tiles and the slide."""
    slide = write_slide(tmp_path / "squares.tif", np.full((SIZE[1], SIZE[0], 3), 230, np.uint8))
    source, out = Path(lobule.__file__).parents[1], tmp_path / "out"
    read = json.loads(run_python("spatialdata", SPATIAL_DATA, source, results.path, slide, out))
    expected, states = known_map()
    rows, columns = np.nonzero(states == 2)
    with np.load(out / "features.npz") as features:
        assert np.array_equal(features["x"], expected[:, rows, columns].T)
        assert np.array_equal(features["spatial"], np.stack([columns, rows], axis=1) * STRIDE)
        assert (features["tissue"] == 0).all()
    assert read["classes"] == ["normal", "tumour"] and read["tile"] == [STRIDE, STRIDE, MPP]
    areas = [box.width * box.height for box in SQUARES]
    areas[0] -= HOLE.width * HOLE.height
    assert read["areas"] == areas and read["points"] == 1
    assert read["areas_um2"] == pytest.approx([area * MPP**2 for area in areas])
    assert read["tissue_area"] == (states != 1).sum() * STRIDE**2
    assert read["research_use"] == RESEARCH_USE


@pytest.mark.campaign
def test_spatialdata_keeps_the_contract_of_exports(tmp_path: Path) -> None:
    """The conformance suite, run in the environment of spatialdata."""
    suite = tmp_path / "test_suite.py"
    suite.write_text(
        "from lobule.testing.export import ExportConformance\n\n\n"
        "class TestSpatialData(ExportConformance):\n"
        '    format = "spatialdata"\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(lobule.__file__).parents[1])}
    done = subprocess.run(
        [interpreter("spatialdata"), "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", suite],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


# -- DICOM structured reports -------------------------------------------------------------------------------


def test_dcmqi_reads_the_report_of_a_slide(results: Results, tmp_path: Path) -> None:
    """dcmqi reads only images with patient coordinates, so segmentations of slides are not for it."""
    export_results(results.path, "dicom-sr", tmp_path)
    program = interpreter("dcmqi").with_name("tid1500reader")
    arguments = [
        "--inputDICOM",
        str(tmp_path / "squares.sr.dcm"),
        "--outputMetadata",
        str(tmp_path / "sr.json"),
    ]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.splitlines()[0])  # its version
    slide, *findings = json.loads((tmp_path / "sr.json").read_text())["Measurements"]

    def values(group: dict) -> dict[str, float]:
        return {item["quantity"]["CodeMeaning"]: float(item["value"]) for item in group["measurementItems"]}

    assert values(slide) == {"Score of the slide: tumour": 0.875}
    assert [values(group)["Score of the model"] for group in findings] == [0.9, 0.8, 0.7, 0.25]
    assert {group["Finding"]["CodeMeaning"] for group in findings} == {"Neoplasm"}
    assert values(findings[1])["Area"] == pytest.approx(SQUARES[1].width * SQUARES[1].height * MPP**2)


# -- Digital Slide Archive ----------------------------------------------------------------------------------

VALIDATE = """
import json, sys
import jsonschema
from girder_large_image_annotation.models.annotation import AnnotationSchema
validator = jsonschema.Draft6Validator(AnnotationSchema.annotationSchema)
documents = [json.load(open(path)) for path in sys.argv[1:]]
print(json.dumps([[error.message for error in validator.iter_errors(one)] for one in documents]))
"""


def test_dsa_files_keep_the_schema_of_large_image(results: Results, tmp_path: Path) -> None:
    layers = ("findings", "tissue", "reviews")
    export_results(results.path, "dsa", tmp_path, options=ExportOptions(layers=layers))
    document = json.loads((tmp_path / "squares.json").read_text())
    assert {element["type"] for element in document["elements"]} == {"polyline", "rectangle", "point"}
    document["elements"][0]["lineColor"] = "no colour"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    valid, wrong = json.loads(run_python("dsa", VALIDATE, tmp_path / "squares.json", tmp_path / "wrong.json"))
    assert valid == [] and len(wrong) == 1 and "no colour" in wrong[0]
