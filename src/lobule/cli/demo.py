"""`lobule demo`: generate slides, train, scan and evaluate, and write one page about the results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, lobule_command, progress, table
from lobule.cli.demo_story import FULL_SIDE, METHODS, Story
from lobule.errors import UsageError
from lobule.results.result import RESEARCH_USE

if TYPE_CHECKING:
    from lobule.evaluation import Evaluation

SMALLEST_SIDE, LARGEST_SIDE = 1024, 65536
MODEL_MPP = 1.0
STRIDE = 16
BATCH = 32
STEPS, STEPS_LEAST = 160, 8
VALIDATION_PATCHES, VALIDATION_PATCHES_LEAST = 128, 32
"""Validation patches of the full demo and of the smallest one."""
COLOUR_WINDOWS, COLOUR_WINDOWS_LEAST = 2000, 256
"""Windows that train the colour baseline, in the full demo and in the smallest one."""
RESAMPLES = 2000


@lobule_command("lobule demo", "lobule demo exams")
@click.argument("kind", type=click.Choice(["slides", "exams"]), default="slides", metavar="[slides|exams]")
@click.option("--out", default="lobule-demo", metavar="DIR", help="Folder for the files of the demo.")
@click.option(
    "--side",
    default=FULL_SIDE,
    help="Width of the slides in pixels. Smaller values give fewer and smaller slides, or fewer exams.",
)
@click.option("--seed", default=11, help="Seed of the generated cohort.")
@click.option("--view", "show", is_flag=True, help="Open the results in the viewer at the end.")
def command(kind: str, out: str, side: int, seed: int, show: bool) -> CommandOutput:
    """Generate slides or exams, train on some, scan and evaluate the others, and write one page about it.

    The demo takes a few minutes and needs neither patient data nor a network. The test slides come from
    hospitals, and have stains, that are not in the training set. A model that uses only colour is evaluated
    on the same slides for comparison. The network is small and its training is short, so the figures do not
    show what the method can reach. The page about exams shows how well malignant and benign breasts are
    separated from the others, and whether the heatmaps point at the lesions.
    """
    from lobule.files import make_folder

    if show:
        from lobule.cli.view import require_pages

        require_pages()  # An error now is better than one after the training.
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise UsageError(f"--side {side} is out of range", expected=f"{SMALLEST_SIDE} to {LARGEST_SIDE}")
    if kind == "exams":
        from lobule.cli.demo_exams import demo_exams

        return _and_view(demo_exams(out, side, seed), show)
    story = Story(make_folder(out), side, seed)
    story.run(STEPS_OF_STORY)
    from lobule.cli.demo_page import write_page

    write_page(story)
    story.data["picture"] = str(story.picture)
    next_step = f"lobule scan {story.bundle('scannet')} {story.unseen.cases[0].path} --out finer --stride 8"
    output = story.output(next_step, f"{table(*summary(story))}\n\n{RESEARCH_USE}")
    return _and_view(output, show)


def _and_view(output: CommandOutput, show: bool) -> CommandOutput:
    """Print the output and serve the viewer until Ctrl-C, if that was requested."""
    if not show:
        return output
    from lobule.cli.view import open_library, view

    results = output.data["results"]
    paths = [results] if isinstance(results, str) else list(results.values())
    click.echo(output.text)
    view(open_library(paths, output.data["cohort"], None), open_browser=True)
    return CommandOutput(output.data, "")


# -- the steps ----------------------------------------------------------------------------------------------


def generate(story: Story) -> None:
    """Generate lymph nodes of nine hospitals, with metastases and with normal regions that resemble them."""
    from lobule.cli.demo_cohort import slide_counts, write_demo_cohort

    counts = slide_counts(story.side)
    with progress("painting", sum(counts.values()), "slides") as advance:
        story.cohort, story.truths = write_demo_cohort(
            story.folder / "slides", story.seed, story.side, lambda slides: advance(1)
        )
    lesions = [outline for case in story.unseen for outline in story.truths[case.id].outlines]
    sizes = {name: sum(outline.lesion_class == name for outline in lesions) for name in ("micro", "itc")}
    counts_text = ", ".join(f"{count} to {split}" for split, count in counts.items())
    story.lines += [
        ("slides", f"{story.side:,} px wide: {counts_text}, half of each split without tumour"),
        ("in the test", f"metastases: {sizes['micro']}, groups of isolated cells: {sizes['itc']}"),
    ]
    story.data |= {"cohort": str(story.folder / "slides" / "cohort.csv"), "slides": counts, "lesions": sizes}


def describe(story: Story) -> None:
    """Describe one slide, and compare its detected tissue area with the painted one."""
    from lobule.cli.info import slide_summary
    from lobule.cli.tissue import measure
    from lobule.phantoms.truth import GLASS
    from lobule.slides.slide import open_slide

    case = story.unseen.cases[0]
    assert case.path is not None
    truth = story.truths[case.id]
    with open_slide(case.path) as slide:
        story.data["info"] = slide_summary(slide)
        story.lines.append(("read as", f"{slide.format}, {len(slide.levels)} levels, {slide.mpp}"))
        measured_mm2 = measure(slide).tissue.area_mm2
    painted_mm2 = float((truth.mask(16) != GLASS).sum()) * (16 * truth.mpp / 1000) ** 2
    areas = f"{measured_mm2:.2f} mm² detected on {case.id}, {painted_mm2:.2f} mm² painted"
    story.lines.append(("tissue", areas))
    story.data["tissue"] = {"found_mm2": measured_mm2, "painted_mm2": painted_mm2}


def train_net(story: Story) -> None:
    """Train a small dense network on the outlines of the training slides."""
    import lobule

    share = story.share
    steps = max(STEPS_LEAST, round(STEPS * share))
    validated = max(VALIDATION_PATCHES_LEAST, round(VALIDATION_PATCHES * share))
    settings = {
        "trunk": "tiny", "weights": "random", "mpp": MODEL_MPP, "stride": STRIDE, "batch": BATCH,
        "rate": 0.03, "steps": steps, "schedule": "cosine", "evaluate_every": steps, "val_patches": validated,
        "rounds": 0,
    }  # fmt: skip
    bundle = lobule.train(
        "scannet", story.cohort, story.bundle("scannet"), settings=settings, seed=story.seed, fresh=True
    )
    story.lines.append(("model", f"{bundle.path}, {steps * BATCH:,} patches"))
    story.data["training"] = {"bundle": str(bundle.path), "steps": steps, "metrics": dict(bundle.metrics)}


def train_colour_model(story: Story) -> None:
    """Train a model that uses only colour, for comparison."""
    import lobule

    patches = max(COLOUR_WINDOWS_LEAST, round(COLOUR_WINDOWS * story.share))
    settings = {"mpp": MODEL_MPP, "stride": STRIDE, "patches": patches}
    lobule.train(
        "colour", story.cohort, story.bundle("colour"), settings=settings, seed=story.seed, fresh=True
    )


def scan_unseen_slides(story: Story) -> None:
    """Scan the slides of unseen hospitals with both models."""
    import lobule

    for method in METHODS:
        lobule.scan(story.bundle(method), story.unseen, story.results(method), fresh=True)
    story.data["results"] = {method: str(story.results(method)) for method in METHODS}


def evaluate_models(story: Story) -> None:
    """Evaluate both models with the official measures, and compare them on the same slides."""
    import lobule

    evaluate = partial(lobule.evaluate, split="test", resamples=RESAMPLES, plots=False)
    net_results, colour_results = (story.results(method) for method in METHODS)
    out = story.folder / "evaluation"
    net = evaluate(net_results, story.cohort, against=colour_results, out=out, by=["site"])
    colour = evaluate(colour_results, story.cohort, out=story.folder / "evaluation-colour")
    story.evaluations = dict(zip(METHODS, (net, colour), strict=True))
    story.data["evaluation"] = {name: selected_measures(each) for name, each in story.evaluations.items()}


def selected_measures(evaluation: Evaluation) -> dict[str, Any]:
    """Select the measures of one model that the table shows."""
    assert evaluation.lesions is not None
    lesions, (task,) = evaluation.lesions["all"], evaluation.tasks.values()
    return {
        "froc": lesions["froc_score"],
        "sensitivity_at": lesions["froc"]["sensitivity_at"],
        "curve": {name: lesions["froc"][name] for name in ("false_positives", "sensitivity")},
        "lesions": lesions["lesions"],
        "isolated_tumour_cells": lesions["isolated_tumour_cells"],
        "slide_auc": task["all"]["auroc"],
    }


def summary(story: Story) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table: one row per model, with intervals over patients."""
    from lobule.evaluation.summary import number, shown

    rates = ("0.25", "1", "8")
    header = ["on unseen hospitals", "FROC (95 % interval)", *[f"at {rate}" for rate in rates]]
    rows = []
    for method, name in METHODS.items():
        selected = story.data["evaluation"][method]
        at = selected["sensitivity_at"] or {}
        rows.append([
            name, shown(selected["froc"], digits=2), *[number(at.get(rate), 2) for rate in rates],
            shown(selected["slide_auc"], digits=2),
        ])  # fmt: skip
    return [*header, "slide AUC (95 % interval)"], rows


def draw(story: Story) -> None:
    """Draw one slide with its tissue and tumours outlined, enlarged lesions, and the map of the network."""
    from lobule.cli import picture
    from lobule.cli.demo_picture import append_map, draw_heatmap, painted_tumours, zooms_of
    from lobule.cli.tissue import measure
    from lobule.results.folder import open_results
    from lobule.slides.slide import open_slide

    case = story.unseen.cases[0]
    assert case.path is not None
    truth = story.truths[case.id]
    (reader,) = open_results(story.results("scannet")).case_folder(case.id).maps.values()
    subtitle = f"a generated lymph node, {truth.width:,} x {truth.height:,} pixels, seed {story.seed}"
    with open_slide(case.path) as slide:
        measured = measure(slide)
        tissue = picture.trace_outlines(measured.mask, *measured.l0_step)
        groups = [picture.Outlines(tissue, picture.TISSUE, "detected tissue"), painted_tumours(truth)]
        footer = "Generated pixels, no patient."
        page = picture.draw_slide(slide, "lobule demo", subtitle, groups, zooms_of(truth), footer)
        page = append_map(page, draw_heatmap(reader, slide.thumbnail(1152), truth, 3))
    picture.save(page, story.picture)


STEPS_OF_STORY: tuple[tuple[str, Callable[[Story], None]], ...] = (
    ("Painting the slides", generate),
    ("Reading one and finding its tissue", describe),
    ("Training the network", train_net),
    ("Training the colour baseline", train_colour_model),
    ("Scanning slides of unseen hospitals", scan_unseen_slides),
    ("Evaluating both models", evaluate_models),
    ("Drawing", draw),
)
"""The steps of the demo, in order, with the title that is shown while they run."""
