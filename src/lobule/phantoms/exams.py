"""Generated four-view exams with exact truth: breast labels, and an outline of every lesion in both views."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.files import make_folder, write_csv, write_text
from lobule.mammograms.views import VIEWS, View, is_mirrored, stored_pointing
from lobule.phantoms import _breast, _lesions
from lobule.phantoms._breast import FIELD_MM, Breast, Density, Floats, stream
from lobule.phantoms._lesions import MALIGNANT, Kind, Lesion, Outline
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.phantoms.cohorts import split_of

LABELS = ("left_benign", "left_malignant", "right_benign", "right_malignant")
WHITE = 4095
TISSUE_ROWS = 1300
"""Tissue has no detail finer than 0.2 mm, so it is computed on at most this many rows."""


@dataclass(frozen=True)
class ExamPhantom:
    """All parameters of one generated exam; equal phantoms give equal bytes."""

    seed: int
    height: int = 2600
    width: int = 1900
    left_benign: bool = False
    left_malignant: bool = False
    right_benign: bool = False
    right_malignant: bool = False
    density: Density | None = None
    """The density class of both breasts; None chooses it at random."""
    horizontal_flip: Literal["NO", "YES"] = "NO"
    """NO stores left breasts pointing right, as the NYU exams do; YES the other way."""
    gain: float = 1.0
    gamma: float = 1.0
    """Gain and gamma stand for a site's detector and its processing."""
    lesion_contrast: float = 1.0
    """Factor on the brightness that lesions add to the tissue around them."""
    malignant_kinds: tuple[Kind, ...] = MALIGNANT
    """The kinds that a malignant lesion is chosen from."""
    marker: bool = True
    """Burn the view's letters into the background, as systems do."""

    def labels(self) -> dict[str, bool]:
        return {name: bool(getattr(self, name)) for name in LABELS}


@dataclass(frozen=True)
class ExamImages:
    """A rendered exam: 12-bit images in uint16, background exactly 0, and the truth."""

    phantom: ExamPhantom
    images: dict[View, NDArray[np.uint16]]
    masks: dict[View, NDArray[np.uint8]]
    """0 nothing, 1 benign, 2 malignant."""
    outlines: tuple[Outline, ...]
    mm_per_px: float


def render_exam(phantom: ExamPhantom) -> ExamImages:
    density = phantom.density or _draw_density(stream(phantom.seed, "density"))
    both = Breast.draw(stream(phantom.seed, "patient"), density)
    images: dict[View, NDArray[np.uint16]] = {}
    masks: dict[View, NDArray[np.uint8]] = {}
    outlines: list[Outline] = []
    for view in VIEWS:
        breast = _one_breast(both, stream(phantom.seed, "breast", view[0]))
        picture, view_outlines = _render_view(phantom, view, breast)
        images[view] = picture
        masks[view] = _mask(view_outlines, picture.shape)
        outlines += view_outlines
    return ExamImages(phantom, images, masks, tuple(outlines), FIELD_MM / phantom.height)


def _draw_density(rng: np.random.Generator) -> Density:
    classes: tuple[Density, ...] = ("a", "b", "c", "d")
    return classes[int(rng.choice(4, p=[0.12, 0.42, 0.36, 0.10]))]


def _one_breast(both: Breast, rng: np.random.Generator) -> Breast:
    """One of the two breasts of a person, which are similar but not equal."""
    scale = rng.normal(1, 0.025)
    return replace(
        both,
        depth_mm=both.depth_mm * scale,
        half_width_mm=both.half_width_mm * scale * rng.normal(1, 0.02),
        half_height_mm=both.half_height_mm * scale * rng.normal(1, 0.02),
    )


def lesions_of(phantom: ExamPhantom, side: str) -> tuple[Lesion, ...]:
    """The lesions of a breast, the same for its two views."""
    name = {"L": "left", "R": "right"}[side]
    lesions = []
    for malignant in (False, True):
        grade = "malignant" if malignant else "benign"
        if getattr(phantom, f"{name}_{grade}"):
            rng, kinds = stream(phantom.seed, "lesion", side, grade), phantom.malignant_kinds
            lesion = Lesion.draw(rng, malignant=malignant, kinds=kinds if malignant else None)
            lesions.append(replace(lesion, contrast=lesion.contrast * phantom.lesion_contrast))
    return tuple(lesions)


def _render_view(
    phantom: ExamPhantom, view: View, breast: Breast
) -> tuple[NDArray[np.uint16], list[Outline]]:
    shape = (phantom.height, phantom.width)
    share = min(1.0, TISSUE_ROWS / phantom.height)
    coarse_shape = (round(phantom.height * share), round(phantom.width * share))
    coarse = _breast.lay_out(
        breast, is_mlo=view.endswith("MLO"), shape=coarse_shape, rng=stream(phantom.seed, "layout", view)
    )
    layout = coarse.at(shape)
    picture = _breast.enlarge(_breast.tissue(coarse, stream(phantom.seed, "tissue", view)), shape)
    outlines = []
    for lesion in lesions_of(phantom, view[0]):
        rng = stream(phantom.seed, "drawing", view, lesion.kind)
        outlines.append(
            Outline(view, lesion.kind, lesion.malignant, _lesions.add(lesion, layout, picture, rng))
        )
    finished = _breast.finish(layout, picture, stream(phantom.seed, "noise", view))
    stored = _as_stored(finished, phantom)
    if is_mirrored(view, phantom.horizontal_flip):
        stored = np.ascontiguousarray(stored[:, ::-1])
        outlines = [replace(o, polygon=_mirrored(o.polygon, phantom.width)) for o in outlines]
    if phantom.marker:
        _burn_marker(stored, view, right=stored_pointing(view, phantom.horizontal_flip) == "right")
    return stored, outlines


def _as_stored(picture: Floats, phantom: ExamPhantom) -> NDArray[np.uint16]:
    tones = np.clip(phantom.gain * picture, 0, 1) ** np.float32(phantom.gamma)
    values: NDArray[np.uint16] = np.rint(tones * WHITE).astype(np.uint16)
    values[picture > 0] = np.maximum(values[picture > 0], 1)
    return values


def _mirrored(polygon: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    return np.stack([polygon[:, 0], width - polygon[:, 1]], axis=1)


def _mask(outlines: list[Outline], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    mask = np.zeros(shape, np.uint8)
    for outline in outlines:
        inside = _lesions.mask_of(outline.polygon, (shape[0], shape[1]))
        mask[inside] = np.maximum(mask[inside], 2 if outline.malignant else 1)
    return mask


def _burn_marker(image: NDArray[np.uint16], view: str, *, right: bool) -> None:
    """The view's letters in the upper corner away from the chest wall, where it stays clear of the breast."""
    height, width = image.shape
    size = max(8, height // 36)
    canvas = Image.new("L", (width, 2 * size), 0)
    font = ImageFont.load_default(size)
    text = f"{view[0]}  {view[2:]}"
    drawing = ImageDraw.Draw(canvas)
    extent = drawing.textlength(text, font=font)
    drawing.text((width - extent - size if right else size, size // 3), text, fill=255, font=font)
    letters = np.asarray(canvas, dtype=np.uint16) > 127
    corner = image[size : 3 * size]
    if not np.any(corner[letters]):
        corner[letters] = WHITE


def write_exams(
    out: Path | str,
    *,
    exams: int,
    form: Literal["png", "dicom"] = "png",
    seed: int = 0,
    malignant: float = 0.4,
    benign: float = 0.3,
    sites: int = 2,
    size: tuple[int, int] = (2600, 1900),
    lesion_contrast: float = 1.0,
    malignant_kinds: tuple[Kind, ...] = MALIGNANT,
    splits: tuple[tuple[str, float], ...] = (("train", 0.6), ("val", 0.2), ("test", 0.2)),
    threads: int = 1,
) -> Path:
    """Write a cohort of generated exams; returns the path of its `cohort.csv`.

    `size` is (height, width). `malignant` and `benign` are the shares of breasts with such a lesion.
    `lesion_contrast` above 1 makes lesions easier to see than those of the default exams, and malignant
    lesions can be limited to some `malignant_kinds`. Beside
    the images go `masks/` (0 nothing, 1 benign, 2 malignant), `outlines/` (each exam's lesions as GeoJSON,
    named by view and classed benign or malignant) and `truth.json` with all that is known of every lesion.
    Exams are generated by so many `threads`; their number does not change any file.
    """
    folder = Path(out)
    for name in ("images", "masks", "outlines"):
        make_folder(folder / name)

    def write_exam(number: int) -> tuple[dict[str, object], dict[str, object]]:
        phantom = cohort_phantom(
            number, seed=seed, malignant=malignant, benign=benign, sites=sites, size=size
        )
        phantom = replace(phantom, lesion_contrast=lesion_contrast, malignant_kinds=malignant_kinds)
        case, patient = f"exam{number:04d}", f"PHANTOM{number:04d}"
        rendered = render_exam(phantom)
        row: dict[str, object] = {"case": case, "patient": patient}
        row |= {"split": split_of((number + 0.5) / exams, splits), "site": f"site{number % sites}"}
        for view in VIEWS:
            path = _write_view(folder, case, patient, view, rendered, form)
            row[view.lower().replace("-", "_")] = path
        row |= {name: int(value) for name, value in phantom.labels().items()}
        return row | {"annotation": _write_outlines(folder, case, rendered.outlines)}, _truth(rendered)

    with ThreadPoolExecutor(threads, thread_name_prefix="exams") as pool:
        written = list(pool.map(write_exam, range(exams)))
    rows = [row for row, _ in written]
    truth = {str(row["case"]): exam_truth for row, exam_truth in written}
    write_text(folder / "truth.json", json.dumps(truth, indent=1, sort_keys=True) + "\n")
    manifest = folder / "cohort.csv"
    write_csv(manifest, list(rows[0]) if rows else ["case"], rows)
    return manifest


def cohort_phantom(
    number: int, *, seed: int, malignant: float, benign: float, sites: int, size: tuple[int, int]
) -> ExamPhantom:
    """The phantom of one exam of a cohort; gain and gamma vary by site and slightly by exam."""
    rng = stream(seed, "cohort", str(number))
    site = stream(seed, "site", str(number % sites))
    phantom = ExamPhantom(
        seed=int(rng.integers(2**63)),
        height=size[0],
        width=size[1],
        gain=float(site.uniform(0.85, 1.1) * rng.uniform(0.93, 1.07)),
        gamma=float(site.uniform(0.85, 1.2)),
    )
    return replace(
        phantom,
        left_benign=bool(rng.random() < benign),
        left_malignant=bool(rng.random() < malignant),
        right_benign=bool(rng.random() < benign),
        right_malignant=bool(rng.random() < malignant),
    )


def _write_view(
    folder: Path, case: str, patient: str, view: View, rendered: ExamImages, form: Literal["png", "dicom"]
) -> str:
    Image.fromarray(rendered.masks[view]).save(folder / "masks" / f"{case}_{view}.png")
    relative = f"images/{case}_{view}.{'png' if form == 'png' else 'dcm'}"
    if form == "png":
        Image.fromarray(rendered.images[view]).save(folder / relative)
    else:
        dataset = dicom_dataset(
            rendered.images[view], view, rendered.mm_per_px, seed=rendered.phantom.seed,
            patient=patient, horizontal_flip=rendered.phantom.horizontal_flip,
        )  # fmt: skip
        write_dicom(folder / relative, dataset)
    return relative


def _write_outlines(folder: Path, case: str, outlines: tuple[Outline, ...]) -> str:
    """Write the lesions of an exam as one annotation. Return its path, or "" without a lesion."""
    if not outlines:
        return ""
    polygons = tuple(
        Polygon(o.polygon[:, ::-1], "other", o.view, "malignant" if o.malignant else "benign")
        for o in outlines
    )
    relative = f"outlines/{case}.geojson"
    write_annotation(folder / relative, Annotation(polygons))
    return relative


def _truth(rendered: ExamImages) -> dict[str, object]:
    return {
        "labels": rendered.phantom.labels(),
        "horizontal_flip": rendered.phantom.horizontal_flip,
        "mm_per_px": rendered.mm_per_px,
        "lesions": [
            {
                "view": outline.view,
                "kind": outline.kind,
                "malignant": outline.malignant,
                "polygon_row_column": [[round(float(r), 2), round(float(c), 2)] for r, c in outline.polygon],
            }
            for outline in rendered.outlines
        ],
    }
