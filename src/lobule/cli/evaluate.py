"""`lobule evaluate`: compare results with the labels and annotations of a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lobule.cli import options as shared
from lobule.cli.base import CommandOutput, format_fields, lobule_command, note, table
from lobule.errors import UsageError
from lobule.results.result import RESEARCH_USE


@lobule_command(
    "lobule evaluate RESULTS cohort-scanned.csv --by site --out evaluation",
    "lobule evaluate --submission detections --masks masks",
    'lobule evaluate RESULTS cohort-scanned.csv --reviewer "Ann Smith" --against RESULTS',
    "lobule evaluate --reader-study readers.csv",
)
@click.argument("paths", nargs=-1, metavar="[RESULTS] [COHORT]")
@click.option(
    "--by",
    multiple=True,
    metavar="COL",
    help="Also report each measure by this column of the manifest; repeatable.",
)
@click.option("--out", metavar="DIR", help="Folder for evaluation.json, table.csv and plots (SVG and PNG).")
@click.option("--plots/--no-plots", default=True, help="Draw plots when --out is set.")
@click.option("--split", metavar="NAME", help="Evaluate only the cases of this split.")
@click.option(
    "--positive", multiple=True, metavar="LABEL", help="A label that counts as positive; repeatable."
)
@click.option("--score", metavar="NAME", help="The score to evaluate, if results have several.")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    type=float,
    help="A threshold that was fixed in advance; repeatable.",
)
@click.option(
    "--against", metavar="RESULTS", help="Other results, or a submission, to compare with on the same cases."
)
@click.option(
    "--reviewer",
    metavar="NAME",
    help="Evaluate the review of this person in `lobule view`: accepted and drawn findings.",
)
@click.option(
    "--submission",
    multiple=True,
    metavar="DIR|CSV",
    help="Evaluate a submission to Camelyon16 instead of RESULTS.",
)
@click.option(
    "--masks", metavar="DIR", help="Folder of ground-truth masks, named NAME_Mask.tif as in Camelyon16."
)
@click.option("--mask-step", type=click.FloatRange(1), metavar="PX", help="Level-0 pixels per mask pixel.")
@click.option(
    "--lesion-scale",
    type=click.Choice(["auto", "official", "um"]),
    default="auto",
    help="Cell size of the lesion measure: 32 px as the organisers use, or 7.776 µm.",
)
@click.option(
    "--findings",
    type=click.Choice(["stored", "nms"]),
    default="stored",
    help="Use the stored findings, or derive them from the map by non-maximum suppression.",
)
@click.option("--nms-map", metavar="NAME", help="Map for non-maximum suppression; by default the densest.")
@click.option(
    "--nms-radius",
    type=click.IntRange(1),
    metavar="CELLS",
    help="Radius of the suppression; by default 768 px.",
)
@click.option("--nms-threshold", type=float, default=0.5)
@click.option("--missing-score", type=float, metavar="S", help="Score to assume for cases without a score.")
@click.option(
    "--patients",
    type=click.Choice(["max", "mean", "learned"]),
    help="Also evaluate one score per patient: the highest or the mean score of the slides, or a combination "
    "that is fitted to the split of --patient-fit.",
)
@click.option(
    "--patient-label",
    default="same",
    metavar="same|any|COL",
    help="Label of a patient: that of all slides, which must agree; positive if any slide is; or a column.",
)
@click.option(
    "--patient-fit",
    default="val",
    metavar="NAME",
    help="Split to which the learned combination is fitted; it must not be the evaluated one.",
)
@click.option(
    "--maps", is_flag=True, help="Also judge the cells of stored maps by outlines: AUC, Dice and orientation."
)
@click.option(
    "--map-smooth",
    type=click.FloatRange(0),
    default=0.0,
    metavar="CELLS",
    help="Smooth maps with a Gaussian of this width before they are judged.",
)
@click.option(
    "--map-fit",
    default="val",
    metavar="NAME",
    help="Split on which the threshold of the Dice coefficient is chosen; not the evaluated one.",
)
@click.option(
    "--bundle", metavar="BUNDLE", help="The bundle whose training patients must not be in the cohort."
)
@click.option(
    "--allow-overlap", is_flag=True, help="Allow training patients in the cohort; the report mentions them."
)
@click.option(
    "--reader-study", metavar="FILE", help="Evaluate a table of readers and models instead of results."
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=click.FloatRange(0, 1),
    help="For --reader-study: weight of a model in its combination with readers; repeatable; by default 0.5.",
)
@click.option(
    "--max-fpr",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="For --reader-study: also the partial area up to this false-positive rate, standardised.",
)
@click.option(
    "--paired", is_flag=True, help="For --reader-study: compare every model with every reader, paired."
)
@click.option(
    "--resamples",
    type=click.IntRange(2),
    default=2000,
    help="Number of bootstrap resamples for the intervals.",
)
@click.option("--seed", default=0)
@shared.cluster_options
def command(paths: tuple[str, ...], reader_study: str | None, **options: Any) -> CommandOutput:
    """Evaluate results on a labelled cohort: FROC, AUC, precision, recall and calibration with intervals.

    Intervals are computed by resampling patients. Cases without a score are counted and listed. It is an
    error if the cohort contains patients of the model's training set. A submission needs no COHORT if --masks
    contains the tumours of its slides. Research use only.
    """
    study = {name: options.pop(name) for name in ("weights", "max_fpr", "paired")}
    if reader_study is not None:
        return _reader_study_output(paths, reader_study, options, study)
    if any(study.values()):
        raise UsageError("--weight, --max-fpr and --paired belong to --reader-study")
    from lobule.api import evaluate

    results, cohort = _results_and_cohort(paths, options["submission"], options["masks"])
    evaluation = evaluate(results, cohort, **options)
    text = as_text(evaluation.data)
    if options["out"]:
        text += f"\n\nThe evaluation was written to {options['out']}."
    return CommandOutput(evaluation.data, text, failed=evaluation.failed)


def _results_and_cohort(
    paths: tuple[str, ...], submission: tuple[str, ...], masks: str | None
) -> tuple[str | None, str | None]:
    """Return the paths of results and cohort; a submission replaces the results, its masks the cohort."""
    if submission:
        if len(paths) > 1 or not (paths or masks):
            raise UsageError(
                "a submission needs one cohort or masks",
                actual=", ".join(paths) or "neither",
                remedy="Pass COHORT or --masks DIR",
            )
        return None, paths[0] if paths else None
    if len(paths) != 2:
        raise UsageError(
            "two paths are required", expected="RESULTS and COHORT", actual=", ".join(paths) or "neither"
        )
    return paths[0], paths[1]


def _reader_study_output(
    paths: tuple[str, ...], file: str, options: Mapping[str, Any], study: Mapping[str, Any]
) -> CommandOutput:
    from lobule.evaluation import Options, evaluate_readers
    from lobule.evaluation.summary import reader_comparison_table, reader_table
    from lobule.evaluation.writing import write_reader_study

    if paths:
        raise UsageError(
            "--reader-study cannot be combined with results or a cohort", actual=", ".join(paths)
        )
    note(f"resampling patients {options['resamples']} times for every reader and model …")
    data = evaluate_readers(
        file,
        Options(resamples=options["resamples"], seed=options["seed"]),
        weights=study["weights"] or (0.5,),
        max_fpr=study["max_fpr"],
        paired=study["paired"],
    )
    if options["out"]:
        write_reader_study(data, options["out"])
    counts = f"{data['cases']} of {data['patients']} patients, {data['positive']} positive"
    text = format_fields([("reader study", file), ("cases", counts)])
    tables = [table(*reader_table(data))]
    if data["comparisons"]:
        tables.append(table(*reader_comparison_table(data)))
    return CommandOutput(data, "\n\n".join([text, *tables, RESEARCH_USE]))


# -- printing -----------------------------------------------------------------------------------------------


def as_text(data: Mapping[str, Any]) -> str:
    """Format the evaluation for a terminal."""
    from lobule.evaluation.maps import map_sentence
    from lobule.evaluation.summary import case_sentences, patient_sentence

    head = [("source", data["source"]), *case_sentences(data)]
    head += [(name, data[name]) for name in ("against", "labels") if data[name]]
    head.append(("training patients", data["overlap"]["sentence"]))
    if data["overlap_against"]:
        head.append(("of the other", data["overlap_against"]["sentence"]))
    if "reader" in data:
        head.append(("reader", _reader_sentence(data["reader"])))
    head += [("note", note) for note in data["notes"]]
    if data["patients"] is not None:
        head.append(("patient scores", patient_sentence(data["patients"])))
    if data["maps"] is not None:
        head.append(("maps", map_sentence(data["maps"])))
    blocks = [*_task_blocks(data), *_lesion_blocks(data), *_map_blocks(data)] or [_nothing_to_measure(data)]
    return "\n\n".join([format_fields(head), *blocks, RESEARCH_USE])


def _reader_sentence(reader: Mapping[str, Any]) -> str:
    marked = f"{reader['marked']} of {reader['lesions']} lesions marked on {reader['slides']} slides"
    if reader["false_positives_per_slide"] is None:
        return marked
    return f"{marked}, {reader['false_positives_per_slide']:.2f} false marks per slide"


def _task_blocks(data: Mapping[str, Any]) -> list[str]:
    from lobule.evaluation.summary import difference_table, patient_reports, point_table, shown, task_table

    blocks = []
    reports = [*data["tasks"].items(), *patient_reports(data).items()]
    for name, report in reports:
        blocks.append(click.style(f"{name}, {report['unit']}", bold=True))
        blocks.append(table(*task_table(report, name)))
        if report["all"]["operating_points"]:
            blocks.append(table(*point_table(report["all"])))
        if "reason" in report["all"]["calibration"]:
            blocks.append(f"no calibration: {report['all']['calibration']['reason']}")
        if "against" in report:
            blocks.append(table(*difference_table(report)))
    if data["classes"] is not None:
        classes = data["classes"]
        counts = zip(classes["classes"], classes["confusion"], strict=True)
        blocks.append(f"accuracy {shown(classes['accuracy'])}")
        header = ["true class, predicted as", *classes["classes"]]
        blocks.append(table(header, [[name, *map(str, row)] for name, row in counts]))
    return blocks


def _lesion_blocks(data: Mapping[str, Any]) -> list[str]:
    from lobule.evaluation.summary import class_table, difference_table, lesion_table

    report = data["lesions"]
    if report is None:
        return []
    blocks = [click.style("lesions", bold=True), table(*lesion_table(report))]
    if reason := report["all"]["froc"].get("reason"):
        blocks.append(f"no FROC score: {reason}")
    blocks.append(table(*class_table(report["all"])))
    if "against" in report:
        blocks.append(table(*difference_table(report)))
    return blocks


def _map_blocks(data: Mapping[str, Any]) -> list[str]:
    from lobule.evaluation.summary import map_table

    if data["maps"] is None:
        return []
    return [click.style("maps", bold=True), table(*map_table(data["maps"]))]


def _nothing_to_measure(data: Mapping[str, Any]) -> str:
    cases = data["cases"]
    if len(cases["without_label"]) == cases["cohort"]:
        return "Nothing to measure: no case of the cohort has a label."
    return (
        "Nothing to measure: no case has both a label and a score. "
        "Check that the results and the cohort contain the same cases."
    )
