"""Evaluate results on a labelled cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lobule.api.runners import Runner, case_map
from lobule.settings import checked_options

if TYPE_CHECKING:
    from lobule.cohort import Cohort
    from lobule.evaluation import Evaluation
    from lobule.evaluation.sources import Source


@checked_options
def evaluate(
    results: str | Path | None,
    cohort: Cohort | str | Path | None = None,
    *,
    submission: str | Path | Sequence[str | Path] = (),
    against: str | Path | None = None,
    reviewer: str | None = None,
    bundle: str | Path | None = None,
    out: str | Path | None = None,
    plots: bool = True,
    by: Sequence[str] = (),
    split: str | None = None,
    positive: Sequence[str] = (),
    score: str | None = None,
    thresholds: Sequence[float] = (),
    findings: Literal["stored", "nms"] = "stored",
    nms_map: str | None = None,
    nms_radius: int | None = None,
    nms_threshold: float = 0.5,
    masks: str | Path | None = None,
    mask_step: float | None = None,
    lesion_scale: Literal["auto", "official", "um"] = "auto",
    missing_score: float | None = None,
    patients: Literal["max", "mean", "learned"] | None = None,
    patient_label: str = "same",
    patient_fit: str = "val",
    maps: bool = False,
    map_smooth: float = 0.0,
    map_fit: str = "val",
    allow_overlap: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    runner: Runner = "local",
    address: str | None = None,
    workers: int | None = None,
    worker_cpus: int | None = None,
) -> Evaluation:
    """Evaluate results on a labelled cohort.

    Args:
        results: A results folder or its URL, or None if a submission is evaluated.
        cohort: A cohort or the path of its manifest. Only a submission with the option `masks` needs none.
        submission: Files or folders in the official forms of Camelyon16, instead of `results`.
        against: Another results folder or submission to compare with on the same cases.
        reviewer: Evaluate the review of this person instead of the model: accepted and drawn findings.
        bundle: The bundle that made the results. It names the training patients if the results do not.
        out: Folder for the numbers, the table and the plots. By default nothing is written.
        plots: Also draw the plots in `out`.
        by: Columns of the cohort by which every measure is broken down.
        split: Evaluate only the cases of this split.
        positive: Labels that count as positive; by default the meaning of each label decides.
        score: The score to evaluate, if the results have several.
        thresholds: Thresholds of operating points that were fixed beforehand.
        findings: "stored", or "nms" for non-maximum suppression of the map as in NCRF.
        nms_map: Map for "nms"; by default the densest.
        nms_radius: Radius of "nms" in cells; by default 768 level-0 pixels.
        nms_threshold: Smallest score of a finding of "nms".
        masks: Folder of ground-truth masks, named as the organisers of Camelyon16 name them.
        mask_step: Level-0 pixels per mask pixel, for slides whose size is not known.
        lesion_scale: Size of a mask cell: "official" 32 px, "um" 7.776 µm, "auto" one of them by the µm/px.
        missing_score: The score of cases without a result. By default these cases are left out.
        patients: Also evaluate one score per patient: the "max" or "mean" of the slide scores, or a "learned"
            combination of them.
        patient_label: The label of a patient: "same" if all slides must have the same label, "any" if a
            patient is positive when any slide is, or the name of a column.
        patient_fit: The split to which a learned combination is fitted. It must not be the evaluated one.
        maps: Also judge the cells of stored maps by outlines: area under the ROC curve, Dice and orientation.
        map_smooth: Width in cells of a Gaussian that smooths maps before they are judged.
        map_fit: The split on which the threshold of the Dice coefficient is chosen.
        allow_overlap: Allow training patients in the cohort; the report mentions them.
        resamples: Number of bootstrap resamples for the intervals.
        seed: Seed of the resampling.
        runner: "local" works in this process; "ray" on workers of Ray (extra `ray`), one per core.
        address: Address of a Ray cluster; by default, Ray is started on this machine.
        workers: Number of workers on Ray.
        worker_cpus: CPU cores of a worker on Ray.

    Returns:
        The evaluation, with an interval for each measure.

    Raises:
        UsageError: Results or cohort are missing, or an option is invalid.
        Leakage: The cohort shares patients with the training set.
    """
    from lobule.cohort import Cohort, read_cohort
    from lobule.errors import UsageError
    from lobule.evaluation import Options, evaluate_source, official_cohort, open_source, read_submission
    from lobule.evaluation.options import as_tuple
    from lobule.evaluation.plots import need_plots
    from lobule.evaluation.reviewers import open_review_source
    from lobule.evaluation.sources import open_results_source
    from lobule.files import is_url
    from lobule.results import local_results
    from lobule.results.map_check import FILE as MAP_CHECK
    from lobule.results.store_copies import store_back

    evaluation_options = Options(
        by=as_tuple("by", by),
        split=split,
        positive=as_tuple("positive", positive),
        score=score,
        thresholds=as_tuple("thresholds", thresholds),
        findings=findings,
        nms_map=nms_map,
        nms_radius=nms_radius,
        nms_threshold=nms_threshold,
        masks=None if masks is None else str(masks),
        mask_step=mask_step,
        lesion_scale=lesion_scale,
        missing_score=missing_score,
        patients=patients,
        patient_label=patient_label,
        patient_fit=patient_fit,
        maps=maps,
        map_smooth=map_smooth,
        map_fit=map_fit,
        allow_overlap=allow_overlap,
        resamples=resamples,
        seed=seed,
    )
    if out is not None and plots:
        need_plots()
    url = results
    results = None if results is None else local_results(results)
    against = against if against is None else local_results(against)
    submitted = [submission] if isinstance(submission, str | Path) else list(submission)
    if reviewer is not None and (submitted or findings != "stored"):
        raise UsageError("a reviewer is evaluated on the stored findings of results")
    source: Source
    if submitted:
        source = read_submission(submitted)
    elif reviewer is not None and results is not None:
        source = open_review_source(str(results), reviewer, evaluation_options)
    elif results is not None:
        source = open_results_source(results, evaluation_options)
    else:
        raise UsageError("there is nothing to evaluate", expected="a results folder or a submission")
    if cohort is None:
        if not submitted or masks is None:
            remedy = "Pass a cohort, or a submission with masks"
            raise UsageError("there is no cohort to evaluate on", remedy=remedy)
        cohort = official_cohort(source, evaluation_options)
    elif not isinstance(cohort, Cohort):
        # The slides may have been moved since the scan; the results contain everything that is needed.
        cohort = read_cohort(cohort, check_files=False)
    other = None if against is None else open_source(against, evaluation_options)
    with case_map(runner, address, workers, worker_cpus) as map_cases:
        evaluation = evaluate_source(
            source, cohort, evaluation_options, against=other, bundle=bundle, map_cases=map_cases
        )
    if out is not None:
        evaluation.write(out, plots=plots)
    if _store_map_check(source, evaluation, split) and is_url(str(url)) and results is not None:
        store_back(str(url), results, [MAP_CHECK])
    return evaluation


def _store_map_check(source: Source, evaluation: Evaluation, split: str | None) -> bool:
    """Store the outcome of the orientation check beside the maps, if it was made on enough patients."""
    from lobule.evaluation.few_patients import FEW_PATIENTS
    from lobule.evaluation.sources import ResultsSource
    from lobule.results.map_check import store_map_check

    maps = evaluation.data["maps"]
    if maps is None or maps["orientation_passed"] is None or not isinstance(source, ResultsSource):
        return False
    if maps["patients"] < FEW_PATIENTS:
        return False
    passed, value = maps["orientation_passed"], maps["orientation"]["value"]
    store_map_check(source.results, value, passed, maps["slides"], split)
    return True
