"""`lobule demo exams`: generate mammograms, train on some, scan the others and show it on one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lobule.cli.base import CommandOutput
from lobule.cli.demo_story import Story
from lobule.results.result import RESEARCH_USE

EXAMS, EXAMS_LEAST = 105, 10
SIZE = (320, 234)
"""Height and width of a view in pixels of 0.75 mm; those of a hospital are eight to twelve times as large."""
LESIONS: dict[str, Any] = {
    "malignant": 0.45, "benign": 0.35, "lesion_contrast": 2.0, "malignant_kinds": ("spiculated mass",),
}  # fmt: skip
"""Few exams and short training need lesions that are easy to see: twice the contrast of the default exams.
Fine calcifications of 0.1 to 0.2 mm cannot be seen in such large pixels, so malignant lesions are masses."""
SPLITS = (("train", 2 / 3), ("test", 1 / 3))
"""The last weights of a training are used, so no exam is set aside to validate them."""
RESAMPLES = 2000
PATCH_STEPS, CLASSIFIER_STEPS, STEPS_LEAST = 1200, 240, 6
SETTINGS: dict[str, Any] = {
    "architecture": {
        # The patch classifier sees squares of 24 mm and paints the heatmaps.
        "heatmaps": True, "patch": 32, "patch_stride": 16, "patch_growth": 8, "patch_blocks": (2, 2, 2, 2),
        "patch_first_width": 16, "heatmap_cell": 4,
        # The exam classifier sees whole views and their heatmaps at a quarter of the resolution. It joins
        # both views of a breast, which needs fewer exams than joining both breasts.
        "variant": "side_wise", "window": (296, 184), "move": (8, 8), "resize": 0, "shrink": 4,
        "widths": (16, 16, 32, 32, 64), "pool": "max", "crop_iterations": 7, "crop_buffer": 4,
    },
    "reading": {"epochs": 1},
    "training": {
        "patch_batch": 32, "patch_rate": 0.01, "patch_shares": (0.35, 0.2, 0.15, 0.3), "swap_sides": True,
        "batch": 6, "rate": 0.003, "trunk_rate": 0.003, "positive_share": 0.7, "malignant_share": 0.8,
        "birads_steps": 0, "schedule": "cosine",
    },
}  # fmt: skip


def demo_exams(out: str, side: int, seed: int) -> CommandOutput:
    """Generate exams, train a small four-view classifier on some, scan the others and evaluate the scan."""
    from lobule.cli.demo_exams_page import write_page
    from lobule.files import make_folder

    story = Story(make_folder(Path(out) / "exams"), side, seed)
    story.run(STEPS)
    write_page(story)
    next_step = f"lobule evaluate {story.data['results']} {story.data['cohort']} --split test --by site"
    return story.output(next_step, RESEARCH_USE)


# -- the steps ----------------------------------------------------------------------------------------------


def generate(story: Story) -> None:
    """Generate exams with benign and malignant lesions, each outlined in both views of its breast."""
    from lobule.cohort import read_cohort
    from lobule.phantoms.exams import write_exams
    from lobule.scanning.device import available_cores

    count = max(EXAMS_LEAST, round(EXAMS * story.share))
    manifest = write_exams(
        story.folder / "images", exams=count, seed=story.seed, size=SIZE, splits=SPLITS,
        threads=available_cores(), **LESIONS,
    )  # fmt: skip
    story.cohort = read_cohort(manifest)
    splits = {name: len(story.cohort.split(name)) for name, _ in SPLITS}
    counts = f"{splits['train']} to train on, {splits['test']} to test"
    story.lines.append(("exams", f"{count}, a view has {SIZE[1]} × {SIZE[0]} px: {counts}"))
    story.data |= {"cohort": str(manifest), "exams": splits, "size": list(SIZE), "lesion_settings": LESIONS}


def train(story: Story) -> None:
    """Train the patch classifier on outlines, then the exam classifier on heatmaps and labels."""
    import lobule

    steps = max(STEPS_LEAST, round(CLASSIFIER_STEPS * story.share))
    patch_steps = max(STEPS_LEAST, round(PATCH_STEPS * story.share))
    training = {
        **SETTINGS["training"], "steps": steps, "patch_steps": patch_steps,
        "evaluate_every": max(steps, patch_steps),
    }  # fmt: skip
    settings = {**SETTINGS, "training": training}
    bundle = lobule.train(
        "four_view", story.cohort, story.folder / "bundle", settings=settings, seed=story.seed, fresh=True,
        val=None,
    )  # fmt: skip
    story.lines.append(("model", f"{bundle.path}: {patch_steps} steps of patches, {steps} of whole exams"))
    story.data |= {"bundle": str(bundle.path), "settings": settings}


def scan(story: Story) -> None:
    """Scan the exams that were not used for training."""
    import lobule

    report = lobule.scan(story.folder / "bundle", story.unseen, story.folder / "results", fresh=True)
    story.data["results"] = str(report.path)


def evaluate(story: Story) -> None:
    """Compute the AUC of malignant and benign breasts, and how well heatmaps point at lesions."""
    import lobule
    from lobule.cli.demo_lesions import GRADES, TOP_SHARE, lesion_ranks, lesion_summary
    from lobule.evaluation.summary import shown
    from lobule.results import open_results

    evaluation = lobule.evaluate(
        story.folder / "results",
        story.unseen,
        out=story.folder / "evaluation",
        plots=False,
        resamples=RESAMPLES,
    )
    story.ranks = lesion_ranks(list(story.unseen), open_results(story.folder / "results"))
    story.data |= {"auc": {}, "breasts": {}, "lesions": {}}
    for grade in reversed(GRADES):
        report = evaluation.tasks[grade]["all"]
        lesions = lesion_summary(story.ranks, grade)
        story.data["auc"][grade] = report["auroc"]
        story.data["breasts"][grade] = {"positive": report["positive"], "breasts": report["breasts"]}
        story.data["lesions"][grade] = lesions
        counted = f"{report['positive']} of {report['breasts']} breasts"
        story.lines.append((f"AUC, {grade}", f"{shown(report['auroc'], digits=3)}, {counted}, unseen exams"))
        if lesions["lesions"]:
            story.lines.append((
                f"heatmaps, {grade}",
                f"{lesions['share']:.0%} of {lesions['lesions']} lesion outlines have their centre in the "
                f"highest {TOP_SHARE:.0%} of the view; by chance {lesions['chance']:.0%}",
            ))  # fmt: skip


STEPS: tuple[tuple[str, Callable[[Story], None]], ...] = (
    ("Generating exams", generate),
    ("Training on some of them", train),
    ("Scanning the others", scan),
    ("Evaluating the scan", evaluate),
)
