"""Official splits that share patients: each patient is assigned to one split, with a note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lobule.cohort import SPLITS, Case
from lobule.cohort.rows import same_patient


def one_split_per_patient(cases: Sequence[Case]) -> list[Case]:
    """Move every case of a patient to the last of train, val and test in which the patient occurs.

    The official test set stays complete, and no patient of it is trained on. A moved case has the attribute
    `official_split`, and all cases of the patient have a note.
    """
    splits: dict[str, set[str]] = {}
    for case in cases:
        if case.split is not None:
            splits.setdefault(same_patient(case.patient), set()).add(case.split)
    assigned = []
    for case in cases:
        present = sorted(splits.get(same_patient(case.patient), ()), key=SPLITS.index)
        if len(present) < 2:
            assigned.append(case)
            continue
        note = f"the official split has this patient in {' and '.join(present)}; assigned to {present[-1]}"
        attributes = {**case.attributes, "note": note}
        if case.split not in (None, present[-1]):
            attributes["official_split"] = str(case.split)
        assigned.append(
            replace(case, split=present[-1] if case.split is not None else None, attributes=attributes)
        )
    return assigned
