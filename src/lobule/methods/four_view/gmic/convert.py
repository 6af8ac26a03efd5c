"""Conversion of published GMIC checkpoints to a bundle. The scores of several models are averaged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lobule.bundles import MODEL, Bundle, read_bundle, write_bundle
from lobule.errors import ConfigError
from lobule.methods.four_view.convert import load_tensors, read_checkpoint
from lobule.methods.four_view.gmic.config import Config
from lobule.methods.four_view.gmic.predictor import build, fill, weights_of
from lobule.nets.four_view import TARGETS
from lobule.nets.gmic import TOP_SHARES, Gmic


def convert(weights: str | Path | Sequence[str | Path], out: str | Path, **settings: Any) -> Bundle:
    """Convert GMIC checkpoints, or combine existing bundles, into one bundle.

    The five published models differ in the share of saliency cells that the global score averages. A
    checkpoint is identified by its hash, else by its name (`sample_model_3.p`). Any other checkpoint gets the
    share of the first model.

    Args:
        weights: One or several checkpoints or GMIC bundles.
        out: Folder of the new bundle.
        **settings: Fields of `Config`.

    Returns:
        The bundle that was written.

    Raises:
        ConfigError: if a bundle is of another method or has other settings than the previous ones.
        BundleError: if a file is not a GMIC checkpoint.
    """
    paths = [weights] if isinstance(weights, str | Path) else list(weights)
    nets: list[Gmic] = []
    sources: list[dict[str, Any]] = []
    patients: set[str] = set()
    config = Config(**settings)
    for path in paths:
        if (Path(path) / MODEL).is_file():
            bundle = read_bundle(path)
            config = _check_bundle(config if nets else None, bundle)
            bundle_nets = build(Config.from_dict(bundle.config))
            fill(bundle_nets, bundle.weights(), bundle)
            nets += bundle_nets
            patients |= set(bundle.patients)
            sources.append({"source": Path(path).name, "fingerprint": bundle.fingerprint})
            continue
        checkpoint, source = read_checkpoint(path)
        (net,) = build(replace(config, top_shares=(_top_share(source),)))
        load_tensors(net, checkpoint, path)
        nets.append(net)
        sources.append(source)
    config = replace(config, top_shares=tuple(net.top_share for net in nets))
    combined = Bundle(
        "gmic",
        config.to_dict(),
        TARGETS,
        None,
        provenance={"classifiers": sources},
        patients=tuple(sorted(patients)),
    )
    return write_bundle(out, combined, weights_of(nets))


def _top_share(source: Mapping[str, Any]) -> float:
    for name in (source["published_as"], source["source"]):
        match = re.search(r"sample_model_([1-5])\.", name)
        if match:
            return TOP_SHARES[int(match[1]) - 1]
    return TOP_SHARES[0]


def _check_bundle(previous: Config | None, bundle: Bundle) -> Config:
    if bundle.method != "gmic":
        raise ConfigError(
            "the bundle is of another method", subject=bundle.path, expected="gmic", actual=bundle.method
        )
    config = Config.from_dict(bundle.config)
    if previous is not None and replace(previous, top_shares=config.top_shares) != config:
        raise ConfigError("the models of one bundle must agree in all settings", subject=bundle.path)
    return config
