"""`lobule weights convert`: convert an existing model into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobule.bundles import Bundle


@lobule_command(
    "lobule weights convert model.safetensors --config config.json --out bundle",
    "lobule weights convert torchscript_model.pt --config config.json --out scripted --trust",
    "lobule weights convert sample_image_model.p --method four-view --out four-view",
    "lobule weights convert sample_model_1.p sample_model_2.p --method gmic --out gmic",
)
@click.argument("weights", nargs=-1, required=True, metavar="WEIGHTS...")
@click.option(
    "--method",
    type=click.Choice(
        ["classifier", "four-view", "four_view", "gmic", "reverse-distillation", "reverse_distillation"]
    ),
    default="classifier",
)
@click.option(
    "--config",
    metavar="FILE",
    help="classifier: the config.json of WSInfer, with class names, patch size and µm/px.",
)
@click.option("--out", required=True, metavar="DIR", help="Folder for the bundle.")
@click.option(
    "--architecture",
    metavar="SOURCE:NAME",
    help="classifier: timm:NAME or torchvision:NAME, if the configuration does not state it; "
    "reverse-distillation: the teacher, if the shapes of the weights do not determine it.",
)
@click.option("--trust", is_flag=True, help="Allow a TorchScript file, which can run code when it is loaded.")
@click.option("--patch", metavar="FILE", help="four-view: the patch network of a model that reads heatmaps.")
@click.option(
    "--teacher",
    metavar="FILE",
    help="reverse-distillation: weights of the teacher, if not those of torchvision.",
)
@click.option("--fresh", is_flag=True, help="Replace an existing bundle.")
def command(
    weights: tuple[str, ...],
    method: str,
    config: str | None,
    out: str,
    architecture: str | None,
    trust: bool,
    patch: str | None,
    teacher: str | None,
    fresh: bool,
) -> CommandOutput:
    """Convert a model that was trained elsewhere into a bundle, so that `lobule scan` can run it.

    classifier: a state dict of a timm or torchvision model (safetensors, or a PyTorch file from which only
    tensors are read), or a TorchScript file, with a configuration in the format of WSInfer.

    four-view: a checkpoint of NYU's four-view classifier, view-wise or image-wise. If it reads heatmaps, the
    checkpoint of the patch network is needed as well. gmic: a checkpoint of NYU's GMIC.

    reverse-distillation: a checkpoint of RD4AD or FW-RD. The teacher is added to the bundle.

    Several mammography checkpoints or bundles become one bundle that averages their scores. If image-wise
    four-view classifiers are among them, those score the exams that lack a view.
    """
    from lobule.bundles import MODEL

    if (Path(out) / MODEL).exists() and not fresh:
        raise UsageError(
            "the folder contains a bundle already",
            subject=out,
            remedy="Pass --fresh to replace it, or choose another --out",
        )
    if method.startswith("reverse"):
        _refuse(method, config=config, trust=trust or None, patch=patch)
        return _reverse_distillation(weights, out, architecture, teacher)
    _refuse(method, teacher=teacher)
    if method == "classifier":
        _refuse(method, patch=patch)
        if config is None:
            raise UsageError(
                "a tile classifier needs its configuration",
                expected="--config with class names, patch size and µm/px",
                remedy="Pass --method four-view instead if these are weights of a mammography classifier",
            )
        if len(weights) > 1:
            raise UsageError("a tile classifier needs exactly one file of weights", actual=", ".join(weights))
        return _classifier(weights[0], config, out, architecture, trust)
    _refuse(method, config=config, architecture=architecture, trust=trust or None)
    if method == "gmic":
        _refuse(method, patch=patch)
        return _gmic(weights, out)
    return _four_view(weights, out, patch)


def _reverse_distillation(
    weights: tuple[str, ...], out: str, architecture: str | None, teacher: str | None
) -> CommandOutput:
    from lobule.methods.reverse_distillation import convert

    if len(weights) > 1:
        raise UsageError("a student needs exactly one file of weights", actual=", ".join(weights))
    bundle = convert(weights[0], out, teacher=architecture or "", teacher_weights=teacher or "")
    data = {**_data(bundle, out), "teacher": bundle.config["teacher"], "form": bundle.provenance["form"]}
    lines = [
        ("bundle", out),
        ("model", f"{data['form']} with the teacher {data['teacher']}"),
        ("patches", f"{bundle.config['patch']} px at {bundle.mpp:g} µm/px"),
        ("source", str(bundle.provenance["source_hash"])),
    ]
    return CommandOutput(data, format_fields(lines + [("note", note) for note in bundle.provenance["notes"]]))


def _refuse(method: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{method} does not support --{name}", remedy=f"Remove the option --{name}")


def _classifier(weights: str, config: str, out: str, architecture: str | None, trust: bool) -> CommandOutput:
    from lobule.methods.classifier import convert

    bundle = convert(weights, config, out, architecture=architecture, trust=trust)
    data = {
        **_data(bundle, out),
        "architecture": bundle.config["architecture"],
        "source_hash": bundle.provenance["source_hash"],
    }
    lines = [
        ("bundle", out),
        ("model", str(data["architecture"])),
        ("classes", ", ".join(bundle.classes)),
        ("tiles", f"{bundle.config['tile']} px at {bundle.mpp:g} µm/px"),
        ("source", str(data["source_hash"])),
    ]
    return CommandOutput(data, format_fields(lines))


def _four_view(weights: tuple[str, ...], out: str, patch: str | None) -> CommandOutput:
    from lobule.methods.four_view import convert

    bundle = convert(weights, out, patch=patch)
    config, provenance = bundle.config, bundle.provenance
    members = provenance.get("classifiers") or [provenance["classifier"]]
    sources = {"classifier": members[0]} if len(members) == 1 else {"classifiers": members}
    data = {
        **_data(bundle, out),
        "variant": config["variant"],
        "heatmaps": config["heatmaps"],
        "members": config["members"],
        "alone": config["alone"],
        "sources": sources | ({"patch": provenance["patch"]} if "patch" in provenance else {}),
    }
    count = f"{config['members']} × " if config["members"] > 1 else ""
    reads = "with" if config["heatmaps"] else "without"
    lines = [("bundle", out), ("model", f"{count}{config['variant']}, images {reads} heatmaps")]
    if config["alone"]:
        lines.append(("exams that lack a view", f"{config['alone']} × image_wise"))
    lines.append(("scores", ", ".join(bundle.classes)))
    lines += [("classifier", _source(source)) for source in members]
    if "patch" in provenance:
        lines.append(("patch", _source(provenance["patch"])))
    return CommandOutput(data, format_fields(lines))


def _gmic(weights: tuple[str, ...], out: str) -> CommandOutput:
    from lobule.methods.four_view.gmic import convert

    bundle = convert(weights, out)
    sources = bundle.provenance["classifiers"]
    data = {**_data(bundle, out), "members": len(sources), "sources": {"classifiers": sources}}
    lines = [("bundle", out), ("model", f"{len(bundle.config['top_shares'])} × gmic")]
    lines.append(("scores", ", ".join(bundle.classes)))
    return CommandOutput(
        data, format_fields([*lines, *(("classifier", _source(source)) for source in sources)])
    )


def _source(source: Mapping[str, str]) -> str:
    if "fingerprint" in source:
        return f"{source['source']}, fingerprint {source['fingerprint'][:16]}"
    return f"{source['source']}, git blob {source['git_blob']}: {source['published_as']}"


def _data(bundle: Bundle, out: str) -> dict[str, object]:
    return {
        "bundle": out,
        "method": bundle.method,
        "classes": list(bundle.classes),
        "mpp": bundle.mpp,
        "fingerprint": bundle.fingerprint,
    }
