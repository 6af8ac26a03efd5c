"""`lobule weights convert`: a model that people already have, wrapped into a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lobule.cli.frame import Answer, answers, facts
from lobule.errors import UsageError

if TYPE_CHECKING:
    from lobule.bundles import Bundle


@answers(
    "lobule weights convert model.safetensors --config config.json --out bundle",
    "lobule weights convert torchscript_model.pt --config config.json --out bundle --trust",
    "lobule weights convert sample_image_model.p --method four-view --out four-view",
)
@click.argument("weights")
@click.option("--method", type=click.Choice(["classifier", "four-view", "four_view"]), default="classifier")
@click.option(
    "--config", metavar="FILE", help="classifier: WSInfer's config.json: class names, patch size, µm/px."
)
@click.option("--out", required=True, metavar="DIR", help="The bundle to write.")
@click.option(
    "--architecture",
    metavar="SOURCE:NAME",
    help="classifier: timm:NAME or torchvision:NAME, where the configuration does not say it.",
)
@click.option("--trust", is_flag=True, help="Allow a TorchScript file, which can run code when it is loaded.")
@click.option("--patch", metavar="FILE", help="four-view: the patch network of a model that reads heatmaps.")
def command(
    weights: str,
    method: str,
    config: str | None,
    out: str,
    architecture: str | None,
    trust: bool,
    patch: str | None,
) -> Answer:
    """Make a bundle of a published or home-made model, so that `lobule scan` can run it.

    classifier: a state dict (safetensors, or a PyTorch file of which nothing but tensors is read) of a timm
    or torchvision model, or a TorchScript file, with a configuration as WSInfer writes it.

    four-view: a checkpoint of NYU's four-view classifier, view-wise or image-wise; where it reads heatmaps,
    the patch network's as well.
    """
    if method == "classifier":
        _refuse(method, patch=patch)
        if config is None:
            raise UsageError(
                "a tile classifier needs its configuration",
                expected="--config with class names, patch size and µm/px",
                remedy="Or say --method four-view, if the weights are a mammography classifier's",
            )
        return _classifier(weights, config, out, architecture, trust)
    _refuse(method, config=config, architecture=architecture, trust=trust or None)
    return _four_view(weights, out, patch)


def _refuse(method: str, **asked: object) -> None:
    for name, value in asked.items():
        if value is not None:
            raise UsageError(f"--{name} means nothing to {method}", remedy=f"Leave --{name} out")


def _classifier(weights: str, config: str, out: str, architecture: str | None, trust: bool) -> Answer:
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
    return Answer(data, facts(lines))


def _four_view(weights: str, out: str, patch: str | None) -> Answer:
    from lobule.methods.four_view import convert

    bundle = convert(weights, out, patch=patch)
    sources = {name: bundle.provenance[name] for name in ("classifier", "patch") if name in bundle.provenance}
    data = {
        **_data(bundle, out),
        "variant": bundle.config["variant"],
        "heatmaps": bundle.config["heatmaps"],
        "sources": sources,
    }
    lines = [
        ("bundle", out),
        ("model", f"{data['variant']}, images {'with' if data['heatmaps'] else 'without'} heatmaps"),
        ("scores", ", ".join(bundle.classes)),
    ]
    lines += [
        (name, f"{source['source']}, git blob {source['git_blob']}: {source['published_as']}")
        for name, source in sources.items()
    ]
    return Answer(data, facts(lines))


def _data(bundle: Bundle, out: str) -> dict[str, object]:
    return {
        "bundle": out,
        "method": bundle.method,
        "classes": list(bundle.classes),
        "mpp": bundle.mpp,
        "fingerprint": bundle.fingerprint,
    }
