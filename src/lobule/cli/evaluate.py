"""`lobule evaluate`: results against what is true of a cohort, with intervals, by site or any column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lobule.cli.base import Answer, format_fields, lobule_command, note, table
from lobule.errors import UsageError

RESEARCH_USE = "Research use only: not a medical device, not for diagnosis."


@lobule_command(
    "lobule evaluate RESULTS cohort-scanned.csv --by site --to evaluation",
    "lobule evaluate --submission detections --masks masks",
    "lobule evaluate --reader-study readers.csv",
)
@click.argument("paths", nargs=-1, metavar="[RESULTS] [COHORT]")
@click.option("--by", multiple=True, metavar="COL", help="Every number also by this column; repeatable.")
@click.option("--to", metavar="DIR", help="Write evaluation.json, table.csv and plots (SVG and PNG) there.")
@click.option("--plots/--no-plots", default=True, help="Draw plots with --to.")
@click.option("--split", metavar="NAME", help="Only the cases of this split.")
@click.option("--positive", multiple=True, metavar="LABEL", help="Labels that are positive; repeatable.")
@click.option("--score", metavar="NAME", help="The score to judge, where results have several.")
@click.option("--threshold", "thresholds", multiple=True, type=float, help="An operating point fixed before.")
@click.option("--against", metavar="RESULTS", help="Other results (or a submission) on the same cases.")
@click.option("--submission", multiple=True, metavar="DIR|CSV", help="Judge a submission to Camelyon16.")
@click.option("--masks", metavar="DIR", help="Ground-truth masks as Camelyon16 names them: NAME_Mask.tif.")
@click.option("--mask-step", type=click.FloatRange(1), metavar="PX", help="Level-0 pixels a mask pixel.")
@click.option(
    "--lesion-scale",
    type=click.Choice(["auto", "official", "um"]),
    default="auto",
    show_default=True,
    help="A cell of 32 px as the organisers have it, or of 7.776 µm.",
)
@click.option(
    "--findings",
    type=click.Choice(["stored", "nms"]),
    default="stored",
    show_default=True,
    help="Detections: as stored, or non-maximum suppression of the map.",
)
@click.option("--nms-map", metavar="NAME", help="The map to suppress; the densest if not given.")
@click.option("--nms-radius", type=click.IntRange(1), metavar="CELLS", help="768 px if not given.")
@click.option("--nms-threshold", type=float, default=0.5, show_default=True)
@click.option("--missing-score", type=float, metavar="S", help="The score of cases without a score.")
@click.option("--bundle", metavar="BUNDLE", help="Whose training patients must not be in the cohort.")
@click.option("--allow-overlap", is_flag=True, help="Go on with training patients; the report says so.")
@click.option("--reader-study", metavar="FILE", help="A table of readers and models instead.")
@click.option("--resamples", type=click.IntRange(2), default=2000, show_default=True, help="For intervals.")
@click.option("--seed", default=0, show_default=True)
def command(paths: tuple[str, ...], reader_study: str | None, **options: Any) -> Answer:
    """FROC, AUC, precision and recall, and calibration, each with its interval, by site or any column.

    Intervals resample patients. Cases without a score are counted and listed. A cohort that shares a patient
    with the model's training set is refused. A submission needs no COHORT where --masks says which slides
    have tumours. Research use only.
    """
    if reader_study is not None:
        return _reader_study_answer(paths, reader_study, options)
    from lobule.api import evaluate

    results, cohort = _results_and_cohort(paths, options["submission"], options["masks"])
    evaluation = evaluate(results, cohort, **options)
    text = as_text(evaluation.data)
    if options["to"]:
        text += f"\n\nwritten to {options['to']}"
    return Answer(evaluation.data, text, failed=evaluation.failed)


def _results_and_cohort(
    paths: tuple[str, ...], submission: tuple[str, ...], masks: str | None
) -> tuple[str | None, str | None]:
    """Results and cohort; a submission stands in for the results, and its masks for the cohort."""
    if submission:
        if len(paths) > 1 or not (paths or masks):
            raise UsageError(
                "a submission is judged on one cohort or on masks",
                actual=", ".join(paths) or "neither",
                remedy="Give COHORT, or --masks DIR",
            )
        return None, paths[0] if paths else None
    if len(paths) != 2:
        raise UsageError(
            "say what to evaluate and on what",
            expected="RESULTS and COHORT",
            actual=", ".join(paths) or "neither",
        )
    return paths[0], paths[1]


def _reader_study_answer(paths: tuple[str, ...], file: str, options: Mapping[str, Any]) -> Answer:
    from lobule.evaluation import Options, evaluate_readers
    from lobule.evaluation.summary import reader_table
    from lobule.evaluation.writing import write_reader_study

    if paths:
        raise UsageError("--reader-study takes no results and no cohort", actual=", ".join(paths))
    note(f"resampling patients {options['resamples']} times for every reader and model …")
    data = evaluate_readers(file, Options(resamples=options["resamples"], seed=options["seed"]))
    if options["to"]:
        write_reader_study(data, options["to"])
    counts = f"{data['cases']} of {data['patients']} patients, {data['positive']} positive"
    text = format_fields([("reader study", file), ("cases", counts)])
    return Answer(data, f"{text}\n\n{table(*reader_table(data))}\n\n{RESEARCH_USE}")


# -- printing -----------------------------------------------------------------------------------------------


def as_text(data: Mapping[str, Any]) -> str:
    """The whole evaluation as a person reads it in a terminal."""
    from lobule.evaluation.summary import case_sentences

    head = [("source", data["source"]), *case_sentences(data)]
    if data["against"]:
        head.append(("against", data["against"]))
    if data["labels"]:
        head.append(("labels", data["labels"]))
    head.append(("training patients", data["overlap"]["sentence"]))
    if data["overlap_against"]:
        head.append(("of the other", data["overlap_against"]["sentence"]))
    head += [("note", note) for note in data["notes"]]
    blocks = [format_fields(head), *_task_blocks(data), *_lesion_blocks(data)]
    if len(blocks) == 1:
        blocks.append(_nothing_to_measure(data))
    return "\n\n".join([*blocks, RESEARCH_USE])


def _task_blocks(data: Mapping[str, Any]) -> list[str]:
    from lobule.evaluation.summary import difference_table, point_table, shown, task_table

    blocks = []
    for name, report in data["tasks"].items():
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
        rows = [
            [name, *map(str, row)] for name, row in zip(classes["classes"], classes["confusion"], strict=True)
        ]
        blocks.append(f"accuracy {shown(classes['accuracy'])}")
        blocks.append(table(["is, and is called", *classes["classes"]], rows))
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


def _nothing_to_measure(data: Mapping[str, Any]) -> str:
    cases = data["cases"]
    if len(cases["without_label"]) == cases["cohort"]:
        return "Nothing to measure: no case of the cohort has a label."
    return (
        "Nothing to measure: no case has both a label and a score. "
        "Check that results and cohort name the same cases."
    )
