"""Camelyon17: the whole slides in both published layouts, and the patches of WILDS."""

from __future__ import annotations

import re
from pathlib import Path

from lobule.cohort import Case, Cohort
from lobule.layouts.folders import files_under, non_empty_cohort
from lobule.layouts.tables import Row, csv_cells, path_inside, read_table, whole_number

_SLIDE = re.compile(r"(patient_(\d{3}))_node_[0-4]", re.IGNORECASE)
_TRAINING_PATIENTS = 100
"""Patients 000 to 099 are the training set, 20 of each of the five centres in turn."""
_PATIENTS_PER_CENTRE = 20
_CLASSES = ("negative", "itc", "micro", "macro")


def camelyon17(folder: str | Path) -> Cohort:
    """Camelyon17: five slides of each patient, with the class of each training slide.

    The labels are the four classes of the organisers: negative, itc, micro and macro. A slide without
    outlines is not negative for that reason. Slides of the test set have no label.

    Attributes: `exhaustive` is false for the outlined slides, because their isolated tumour cells are not
    outlined exhaustively. `mask_tumour` is 2 for slides with a mask and no outlines: in these masks, 1 is
    normal tissue, and a mask whose only value is 1 shows a slide without tumour.
    """
    top = Path(folder).absolute()
    slides: dict[str, Path] = {}
    outlines: dict[str, str] = {}
    masks: dict[str, str] = {}
    classes: dict[str, str] = {}
    for file in files_under(top):
        suffix, stem = file.suffix.lower(), file.stem.lower()
        name = stem.removesuffix("_mask")
        if suffix == ".csv":
            classes |= _read_stages(file)
        elif _SLIDE.fullmatch(name) is None:
            continue
        elif suffix == ".xml":
            outlines.setdefault(name, str(file))
        elif suffix == ".tif" and (stem != name or "mask" in file.parent.name.lower()):
            masks.setdefault(name, str(file))
        elif suffix == ".tif":
            slides.setdefault(name, file)
    cases = []
    for name, file in sorted(slides.items()):
        match = _SLIDE.fullmatch(name)
        assert match is not None
        number = int(match[2])
        is_training = number < _TRAINING_PATIENTS
        annotation = outlines.get(name) or masks.get(name)
        attributes = {"exhaustive": "false"} if annotation else {}
        if annotation and name not in outlines:
            attributes["mask_tumour"] = "2"
        cases.append(
            Case(
                name,
                match[1],
                "slide",
                path=str(file),
                split="train" if is_training else "test",
                label=classes.get(name),
                site=f"center_{number // _PATIENTS_PER_CENTRE}" if is_training else None,
                annotation=annotation,
                attributes=attributes,
            )
        )
    return non_empty_cohort(
        folder,
        cases,
        "Camelyon17",
        "files such as patient_000_node_0.tif, unpacked from the archives of patients",
    )


def _read_stages(file: Path) -> dict[str, str]:
    """The class of each slide. The table also has rows of patients, `patient_000.zip,pN0`."""
    rows = [[cell.strip().lower() for cell in row[:2]] for row in csv_cells(file) if len(row) > 1]
    return {
        Path(name).stem: word for name, word in rows if _SLIDE.fullmatch(Path(name).stem) and word in _CLASSES
    }


# -- WILDS --------------------------------------------------------------------------------------------------

_SPLIT_OF_CENTRE = {"1": "val", "2": "test"}
"""Centres outside the training set; the others are for training."""


def camelyon17_wilds(folder: str | Path) -> Cohort:
    """The patches of 96 px of CAMELYON17-WILDS, with the official split by centre.

    Patches of centre 1 are for validation and those of centre 2 for testing. The validation patches of the
    training centres come from patients of the training set, so they get no split, with a note.
    """
    tables = [file for file in files_under(folder) if file.name.lower() == "metadata.csv"]
    cases = [_wilds_case(table.parent, row) for table in tables for row in read_table(table)]
    return non_empty_cohort(folder, cases, "CAMELYON17-WILDS", "metadata.csv beside the folder patches")


def _wilds_case(top: Path, row: Row) -> Case:
    slide = f"patient_{row['patient'].zfill(3)}_node_{whole_number(row['node'])}"
    name = f"patch_{slide}_x_{whole_number(row['x coord'])}_y_{whole_number(row['y coord'])}"
    centre = whole_number(row["center"])
    split: str | None = _SPLIT_OF_CENTRE.get(centre, "train")
    attributes = {"slide_name": slide}
    if split == "train" and whole_number(row["split"]) != "0":
        split = None
        attributes["note"] = "official validation patch of a training patient; left out of the splits"
    return Case(
        name,
        slide.partition("_node")[0],
        "image",
        path=str(path_inside(top / "patches", slide, f"{name}.png")),
        split=split,
        label="tumor" if whole_number(row["tumor"]) == "1" else "normal",
        site=f"center_{centre}",
        attributes=attributes,
    )
