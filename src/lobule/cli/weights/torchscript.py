"""`lobule weights torchscript`: a bundle as TorchScript for QuPath, WSInfer and other programs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.errors import ConfigError

CONVERTERS = {
    "scannet": "lobule.methods.scannet.torchscript",
    "reverse_distillation": "lobule.methods.reverse_distillation.torchscript",
    "classifier": "lobule.methods.classifier.torchscript",
}
"""Methods whose model scores single patches, and the modules that convert them."""
REASONS = {
    "rakhlin": "its classes come from gradient-boosted trees, which torch cannot run",
    "colour": "it is a logistic regression on colour statistics, which serves for comparison only",
    "four_view": "it scores the breasts of whole exams",
    "gmic": "it scores whole mammograms",
}
"""Why models of other methods cannot be converted."""
OF_SLIDES = "it scores a slide from the features of all its tiles"
MODEL, CONFIG, CARD = "torchscript_model.pt", "config.json", "README.md"


@lobule_command("lobule weights torchscript BUNDLE --out OUT")
@click.argument("bundle")
@click.option(
    "--out", required=True, metavar="DIR", help="Folder for the model, its configuration and its card."
)
def command(bundle: str, out: str) -> CommandOutput:
    """Convert a bundle into TorchScript, which runs in plain torch without Lobule.

    Bundles of scannet, reverse-distillation and classifier can be converted, since their models score single
    patches. Those of other methods score slides or exams, or need trees that torch cannot run.

    The folder has the layout of WSInfer: torchscript_model.pt, config.json and README.md. The model takes
    normalised patches and returns one logit per class. Research use only.
    """
    from lobule.bundles import read_bundle
    from lobule.cli.weights.catalog import licences
    from lobule.files import make_folder, write_atomic, write_json, write_text
    from lobule.reports.model_card import model_card
    from lobule.results.result import RESEARCH_USE

    opened = read_bundle(bundle)
    if opened.method not in CONVERTERS:
        raise ConfigError(
            f"a model of {opened.method} cannot become a classifier of patches",
            subject=bundle,
            actual=REASONS.get(opened.method, OF_SLIDES),
            expected=f"a bundle of {', '.join(CONVERTERS)}",
        )
    module, config = import_module(CONVERTERS[opened.method]).torchscript_of(opened)
    folder = make_folder(out)
    with write_atomic(folder / MODEL) as temporary_path:
        module.save(str(temporary_path))
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, model_card(bundle, licences=licences()))
    data = {"folder": str(Path(out)), "config": config, "research_use": RESEARCH_USE}
    lines = [("model", str(folder / MODEL)), ("classes", ", ".join(config["class_names"]))]
    lines.append(("patch", f"{config['patch_size_pixels']} px at {config['spacing_um_px']:g} µm/px"))
    return CommandOutput(data, format_fields(lines) + f"\n\n{RESEARCH_USE}")
