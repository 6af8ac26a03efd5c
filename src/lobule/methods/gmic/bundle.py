"""Bundles of GMIC models: loading, and conversion of published checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lobule.bundles import MODEL, Bundle, plain_weights, read_bundle, write_bundle
from lobule.errors import ConfigError
from lobule.methods.gmic.config import Config
from lobule.methods.gmic.predictor import GmicPredictor
from lobule.nets.four_view import TARGETS
from lobule.nets.four_view_weights import load_published, published_source
from lobule.nets.gmic import Gmic
from lobule.nets.published import GMIC_TOP_SHARES


def build(config: Config) -> list[Gmic]:
    """Build the models of a configuration, with random weights."""
    names = ("regions", "region_px", "widths", "quirks")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    return [Gmic(top_share=share, **options) for share in config.top_shares]


def load(bundle: Bundle, *, trust: bool = False) -> GmicPredictor:
    """Load a GMIC bundle as a predictor. Its weights are plain tensors, so `trust` has no effect."""
    config, nets = _load_nets(bundle)
    return GmicPredictor(config, [net.eval() for net in nets])


def _load_nets(bundle: Bundle) -> tuple[Config, list[Gmic]]:
    config = Config.from_dict(bundle.config)
    nets = build(config)
    bundle.fill(_numbered(nets), "gmic")
    return config, nets


def _numbered(nets: Sequence[Gmic]) -> nn.ModuleDict:
    """The names of the tensors of each model start with its number."""
    return nn.ModuleDict({str(number): net for number, net in enumerate(nets, start=1)})


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
            bundle = read_bundle(path, "gmic")
            bundle_config, bundle_nets = _load_nets(bundle)
            if nets and replace(config, top_shares=bundle_config.top_shares) != bundle_config:
                raise ConfigError("the models of one bundle must agree in all settings", subject=bundle.path)
            config = bundle_config
            nets += bundle_nets
            patients |= set(bundle.patients)
            sources.append({"source": Path(path).name, "fingerprint": bundle.fingerprint})
            continue
        checkpoint, source = plain_weights(path), published_source(Path(path))
        (net,) = build(replace(config, top_shares=(_top_share(source),)))
        load_published(net, checkpoint, path)
        nets.append(net)
        sources.append(source)
    config = replace(config, top_shares=tuple(net.top_share for net in nets))
    combined = Bundle("gmic", config.to_dict(), TARGETS, None, provenance={"classifiers": sources})
    combined = replace(combined, patients=tuple(sorted(patients)))
    return write_bundle(out, combined, _numbered(nets).state_dict())


def _top_share(source: Mapping[str, Any]) -> float:
    for name in (source["published_as"], source["source"]):
        match = re.search(r"sample_model_([1-5])\.", name)
        if match:
            return GMIC_TOP_SHARES[int(match[1]) - 1]
    return GMIC_TOP_SHARES[0]
