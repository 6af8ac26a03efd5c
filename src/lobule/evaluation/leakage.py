"""Prevent the evaluation of a model on the patients that it was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lobule.bundles import patient_hash, read_bundle
from lobule.cohort import Cohort
from lobule.errors import BundleError, Leakage, ResultsError
from lobule.evaluation.sources import ResultsSource, Source
from lobule.files import read_json
from lobule.results import Results
from lobule.results.checks import is_text_list
from lobule.results.folder import PATIENTS


@dataclass(frozen=True)
class Overlap:
    """Whether the cohort and the training set of the model share patients, for the report."""

    checked: bool
    """False if the training patients are unknown."""
    sentence: str
    """The outcome, or the reason why it was not checked, in words."""
    patients: tuple[str, ...] = ()
    """Patients of the cohort that the model was trained on."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"patients": list(self.patients)}


def check_overlap(
    cohort: Cohort, source: Source, bundle: str | Path | None, allow_overlap: bool, model_name: str = ""
) -> Overlap:
    """Raise `Leakage` if a patient of the cohort is a training patient, unless `allow_overlap` is set.

    Args:
        cohort: The cases to evaluate.
        source: Where the scores come from; results contain the training patients of their bundle.
        bundle: The bundle that produced the results, if the results do not contain its training patients.
        allow_overlap: Report shared patients instead of raising an error.
        model_name: The name of the model in messages.
    """
    training_hashes, location_or_reason = _training_patients(source, bundle)
    if not training_hashes:
        return Overlap(False, f"not checked: {location_or_reason}")
    shared = tuple(patient for patient in cohort.patients() if patient_hash(patient) in training_hashes)
    total = len(cohort.patients())
    if not shared:
        return Overlap(
            True, f"none of the {total} patients is among the {len(training_hashes)} training patients"
        )
    sentence = f"{len(shared)} of the {total} patients are in the training set of {model_name or 'the model'}"
    if allow_overlap:
        return Overlap(True, f"{sentence}; this was allowed, so the measures are too optimistic", shared)
    raise Leakage(
        sentence,
        subject=location_or_reason,
        actual=", ".join(shared[:5]) + (", …" if len(shared) > 5 else ""),
        remedy="Evaluate other patients (--split test), or pass --allow-overlap; the report then lists them",
    )


def _training_patients(source: Source, bundle: str | Path | None) -> tuple[frozenset[str], str]:
    """Return the hashes of the training patients and where they are stored, or no hash and the reason."""
    results = source.results if isinstance(source, ResultsSource) else None
    if bundle is not None:
        return _patients_of_bundle(bundle, results)
    remedy = "the training patients; pass the bundle with --bundle"
    if results is None:
        return frozenset(), f"a submission does not contain {remedy}"
    path = results.path / PATIENTS
    stored_list = read_json(path) if path.is_file() else {"patients": []}
    if not (isinstance(stored_list, dict) and is_text_list(stored_list.get("patients"))):
        raise ResultsError(
            "the list of training patients is damaged", subject=path, remedy="Pass the bundle with --bundle"
        )
    scan_fingerprint = results.settings.get("bundle", {}).get("fingerprint")
    # A list with another fingerprint was written by a scan with another bundle.
    if not path.is_file() or stored_list.get("fingerprint", scan_fingerprint) != scan_fingerprint:
        return frozenset(), f"the results do not contain {remedy}"
    if not stored_list["patients"]:
        return frozenset(), "the bundle lists no training patients"
    return frozenset(stored_list["patients"]), str(results.path)


def _patients_of_bundle(path: str | Path, results: Results | None) -> tuple[frozenset[str], str]:
    """Like `_training_patients`, for a bundle. Raises an error if `results` come from another bundle."""
    loaded_bundle = read_bundle(path)
    scan_fingerprint = None if results is None else results.settings.get("bundle", {}).get("fingerprint")
    if scan_fingerprint is not None and scan_fingerprint != loaded_bundle.fingerprint:
        raise BundleError(
            "this is not the bundle that produced the results",
            subject=path,
            expected=f"fingerprint {scan_fingerprint[:16]}",
            actual=loaded_bundle.fingerprint[:16],
            remedy="Pass the bundle that was used for the scan",
        )
    if not loaded_bundle.patients:
        return frozenset(), "the bundle lists no training patients"
    return frozenset(loaded_bundle.patients), str(path)
