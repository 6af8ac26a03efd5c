"""`lobule weights convert`: convert an existing model into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command
from lobule.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lobule.bundles import Bundle

    Description = tuple[Bundle, dict[str, Any], list[tuple[str, str]]]
    """A bundle, what is printed about it as JSON besides its fields, and the printed lines."""

OPTIONS = {
    "classifier": ("config", "architecture", "trust"),
    "four-view": ("patch",),
    "gmic": (),
    "rakhlin": (),
    "reverse-distillation": ("architecture", "teacher"),
}
"""The options of each method, besides --out and --fresh."""
ONE_FILE = ("classifier", "reverse-distillation")
"""Methods whose bundle contains one model."""


@lobule_command(
    "lobule weights convert model.safetensors --config config.json --out bundle",
    "lobule weights convert torchscript_model.pt --config config.json --out scripted --trust",
    "lobule weights convert sample_image_model.p --method four-view --out four-view",
    "lobule weights convert sample_model_1.p sample_model_2.p --method gmic --out gmic",
    "lobule weights convert vgg16_notop.h5 --method rakhlin --out keras",
)
@click.argument("weights", nargs=-1, required=True, metavar="WEIGHTS...")
@click.option("--method", type=click.Choice(list(OPTIONS)), default="classifier")
@click.option(
    "--config",
    metavar="FILE",
    help="classifier: the config.json of WSInfer, with class names, patch size and µm/px.",
)
@click.option("--out", required=True, metavar="DIR", help="Folder for the bundle or the files.")
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
def command(weights: tuple[str, ...], method: str, out: str, fresh: bool, **options: Any) -> CommandOutput:
    """Convert a model that was trained elsewhere into a bundle, so that `lobule scan` can run it.

    classifier: a state dict of a timm or torchvision model (safetensors, or a PyTorch file from which only
    tensors are read), or a TorchScript file, with a configuration in the format of WSInfer.

    four-view: a checkpoint of NYU's four-view classifier, view-wise or image-wise. If it reads heatmaps, the
    checkpoint of the patch network is needed as well. gmic: a checkpoint of NYU's GMIC.

    reverse-distillation: a checkpoint of RD4AD or FW-RD. The teacher is added to the bundle.

    rakhlin: ImageNet weights of ResNet-50, InceptionV3 and VGG-16 as keras-applications published them
    (HDF5). Each becomes a safetensors file in the folder, for a training with the settings that are printed.

    Several mammography checkpoints or bundles become one bundle that averages their scores. If image-wise
    four-view classifiers are among them, those score the exams that lack a view.
    """
    from lobule.bundles import check_no_bundle

    check_no_bundle(out, fresh)
    for name, value in options.items():
        if value and name not in OPTIONS[method]:
            raise UsageError(f"{method} does not support --{name}", remedy=f"Remove the option --{name}")
    if method == "rakhlin":
        return _keras(weights, Path(out), fresh)
    if method in ONE_FILE and len(weights) > 1:
        raise UsageError(f"{method} needs exactly one file of weights", actual=", ".join(weights))
    convert = {"classifier": _classifier, "gmic": _gmic, "four-view": _four_view}.get(method, _student)
    bundle, details, lines = convert(weights, out, options)
    data = {"bundle": out, "method": bundle.method, "classes": list(bundle.classes), "mpp": bundle.mpp}
    data |= {"fingerprint": bundle.fingerprint, **details}
    return CommandOutput(data, format_fields([("bundle", out), *lines]))


def _keras(weights: tuple[str, ...], out: Path, fresh: bool) -> CommandOutput:
    from safetensors.torch import save_file

    from lobule.files import make_folder, write_atomic
    from lobule.methods.rakhlin.keras_weights import read_keras_weights

    converted = {}
    for path in weights:
        encoder = read_keras_weights(path)
        target = make_folder(out) / f"{encoder.encoder}.safetensors"
        if target.exists() and not fresh:
            raise UsageError(
                "the file exists already",
                subject=target,
                remedy="Pass --fresh to replace it, or choose another --out",
            )
        source = {"format": "pt", "source": Path(path).name, "source_hash": encoder.source_hash}
        with write_atomic(target) as temporary_path:
            save_file(encoder.tensors, temporary_path, source)
        converted[encoder.encoder] = {"file": str(target), **source}
    files = ",".join(item["file"] for item in converted.values())
    settings = f"--set keras=true --set encoders={','.join(converted)} --set weights={files}"
    lines = [(name, f"{item['file']}, from {item['source']}") for name, item in converted.items()]
    return CommandOutput(
        {"encoders": converted, "settings": settings}, format_fields([*lines, ("train with", settings)])
    )


def _student(weights: tuple[str, ...], out: str, options: Mapping[str, Any]) -> Description:
    from lobule.methods.reverse_distillation.convert import convert

    bundle = convert(
        weights[0], out, teacher=options["architecture"] or "", teacher_weights=options["teacher"] or ""
    )
    data = {"teacher": bundle.config["teacher"], "form": bundle.provenance["form"]}
    lines = [
        ("model", f"{data['form']} with the teacher {data['teacher']}"),
        ("patches", f"{bundle.config['patch']} px at {bundle.mpp:g} µm/px"),
        ("source", str(bundle.provenance["source_hash"])),
        *(("note", note) for note in bundle.provenance["notes"]),
    ]
    return bundle, data, lines


def _classifier(weights: tuple[str, ...], out: str, options: Mapping[str, Any]) -> Description:
    from lobule.methods.classifier.convert import convert

    if options["config"] is None:
        raise UsageError(
            "a tile classifier needs its configuration",
            expected="--config with class names, patch size and µm/px",
            remedy="Pass --method four-view instead if these are weights of a mammography classifier",
        )
    bundle = convert(
        weights[0], options["config"], out, architecture=options["architecture"], trust=options["trust"]
    )
    data = {"architecture": bundle.config["architecture"], "source_hash": bundle.provenance["source_hash"]}
    lines = [
        ("model", str(data["architecture"])),
        ("classes", ", ".join(bundle.classes)),
        ("tiles", f"{bundle.config['tile']} px at {bundle.mpp:g} µm/px"),
        ("source", str(data["source_hash"])),
    ]
    return bundle, data, lines


def _four_view(weights: tuple[str, ...], out: str, options: Mapping[str, Any]) -> Description:
    from lobule.methods.four_view import convert

    bundle = convert(weights, out, patch=options["patch"])
    config, provenance = bundle.config["architecture"], bundle.provenance
    members = provenance.get("classifiers") or [provenance["classifier"]]
    patch = {"patch": provenance["patch"]} if "patch" in provenance else {}
    data = {name: config[name] for name in ("variant", "heatmaps", "members", "alone")}
    data["sources"] = ({"classifier": members[0]} if len(members) == 1 else {"classifiers": members}) | patch
    count = f"{config['members']} × " if config["members"] > 1 else ""
    reads = "with" if config["heatmaps"] else "without"
    lines = [("model", f"{count}{config['variant']}, images {reads} heatmaps")]
    if config["alone"]:
        lines.append(("exams that lack a view", f"{config['alone']} × image_wise"))
    lines.append(("scores", ", ".join(bundle.classes)))
    lines += [("classifier", _source(source)) for source in members]
    return bundle, data, lines + [("patch", _source(source)) for source in patch.values()]


def _gmic(weights: tuple[str, ...], out: str, options: Mapping[str, Any]) -> Description:
    from lobule.methods.gmic import convert

    bundle = convert(weights, out)
    sources = bundle.provenance["classifiers"]
    lines = [("model", f"{len(bundle.config['top_shares'])} × gmic"), ("scores", ", ".join(bundle.classes))]
    lines += [("classifier", _source(source)) for source in sources]
    return bundle, {"members": len(sources), "sources": {"classifiers": sources}}, lines


def _source(source: Mapping[str, str]) -> str:
    if "fingerprint" in source:
        return f"{source['source']}, fingerprint {source['fingerprint'][:16]}"
    return f"{source['source']}, git blob {source['git_blob']}: {source['published_as']}"
