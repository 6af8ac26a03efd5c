"""Other people's classifiers wrapped into bundles: TorchScript with WSInfer's configuration, or weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lobule.bundles import Bundle, write_bundle
from lobule.errors import BundleError, ConfigError
from lobule.files import fingerprint
from lobule.methods.classifier.config import Config, of_wsinfer
from lobule.methods.classifier.predictor import build, load_torchscript


def convert(
    weights: str | Path,
    config: str | Path,
    out: str | Path,
    *,
    architecture: str | None = None,
    trust: bool = False,
) -> Bundle:
    """Make a bundle of a model file and a WSInfer-style configuration.

    `weights` is a safetensors or PyTorch state dict (then `architecture`, or the configuration, names the
    timm or torchvision model) or a TorchScript file (needs `trust`, since such a file can run code).
    """
    try:
        facts: dict[str, Any] = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the configuration cannot be read: {error}", subject=config) from error
    path = Path(weights)
    if not path.is_file():
        raise ConfigError("there is no such weights file", subject=weights)
    provenance = {"source": path.name, "source_hash": fingerprint(path, full=True)}
    settings = of_wsinfer(facts)
    if _is_torchscript(path):
        if not trust:
            raise ConfigError(
                "this is a TorchScript file, which can run code",
                subject=path,
                remedy="Pass --trust if you know where it came from",
            )
        return _bundle_torchscript(path, settings, out, provenance)
    named = architecture or _named(facts)
    settings = replace(settings, architecture=named)
    state = load_state(path)
    net = build(settings)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(
            f"the weights are not those of {named}", subject=path, actual=str(error).splitlines()[-1].strip()
        ) from error
    bundle = Bundle("classifier", settings.to_dict(), settings.classes, settings.mpp, provenance=provenance)
    return write_bundle(out, bundle, net.state_dict())


def _named(facts: dict[str, Any]) -> str:
    name = facts.get("architecture")
    if not name:
        raise ConfigError(
            "nothing says which architecture the weights are for", remedy="Pass --architecture timm:NAME"
        )
    return str(name) if ":" in str(name) else f"timm:{name}"


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist())


def _bundle_torchscript(path: Path, settings: Config, out: str | Path, provenance: dict[str, Any]) -> Bundle:
    load_torchscript(path)  # a file that does not load is refused now, not in a scan
    bundle = Bundle("classifier", settings.to_dict(), settings.classes, settings.mpp, provenance=provenance)
    return write_bundle(out, bundle, copies={"model.pt": path})


def load_state(path: Path) -> dict[str, Any]:
    """A state dict from safetensors, or from a PyTorch file read without running anything in it."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise types of their own
        raise BundleError(
            "the weights cannot be read", subject=path, actual=str(error).splitlines()[0]
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not (isinstance(loaded, dict) and all(isinstance(v, torch.Tensor) for v in loaded.values())):
        raise BundleError("not a state dict of tensors", subject=path)
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}
