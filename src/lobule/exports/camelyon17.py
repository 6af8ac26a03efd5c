"""`camelyon17`: the submission to Camelyon17: the pN stage of each patient and the class of each slide.

A slide has the class of its largest finding: above 2 mm `macro`, from 0.2 mm `micro`, otherwise `itc`, and
`negative` without findings. The names of cases are those of the challenge, `patient_000_node_0`. With other
names, the patients of the cohort are used, which `show_patients` must allow.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lobule.errors import UsageError
from lobule.exports.case import ExportCase
from lobule.exports.export import CaseOutput, CaseRecord, Export
from lobule.exports.options import ExportOptions

CASE_NAME = re.compile(r"(patient_[0-9]{3})_node_[0-9]+")
CLASSES = ("negative", "itc", "micro", "macro")
"""Classes of a slide, in increasing order."""


def write(case: ExportCase, folder: Path, options: ExportOptions) -> CaseOutput:
    name = CASE_NAME.fullmatch(case.name)
    if name is None and not options.show_patients:
        raise UsageError(
            "the submission needs the name of the patient",
            subject=case.name,
            expected="a case name such as patient_000_node_0",
            remedy="Rename the cases, or pass --show-patients to write the patients of the cohort",
        )
    largest, unsized = 0, 0
    for _, finding in case.findings(options):
        largest = max(largest, CLASSES.index(finding.lesion_class or "itc"))
        unsized += finding.lesion_class is None
    notes = [f"{unsized:,} findings have no size and count as isolated tumour cells."] if unsized else []
    patient = name[1] if name is not None else case.patient or case.name
    return CaseOutput(tuple(notes), {"class": CLASSES[largest], "patient": patient})


def stage_of(classes: Collection[str]) -> str:
    """Return the pN stage of the slides of a patient, by the rules of the challenge."""
    counts = Counter(classes)
    metastases = counts["macro"] + counts["micro"]
    if counts["macro"]:
        return "pN1" if metastases <= 3 else "pN2"
    if counts["micro"]:
        return "pN1mi"
    return "pN0(i+)" if counts["itc"] else "pN0"


def finish(records: Sequence[CaseRecord], folder: Path, options: ExportOptions) -> None:
    patients: dict[str, list[CaseRecord]] = {}
    for record in records:
        if record.exported:
            patients.setdefault(str(record.summary["patient"]), []).append(record)
    with (folder / "submission.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", "stage"])
        for patient, slides in sorted(patients.items()):
            classes: Mapping[str, str] = {slide.case: str(slide.summary["class"]) for slide in slides}
            writer.writerow([f"{patient}.zip", stage_of(classes.values())])
            writer.writerows([f"{case}.tif", classes[case]] for case in sorted(classes))


EXPORT = Export(
    "camelyon17",
    "submission to Camelyon17: pN stages and slide classes",
    write,
    kinds=frozenset({"slide"}),
    supports=frozenset({"min_score", "show_patients"}),
    finish=finish,
)
