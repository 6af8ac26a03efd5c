"""Conversion of other classifiers to bundles: weights or TorchScript files with a WSInfer configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lobule.bundles import Bundle, read_weights, write_bundle
from lobule.errors import BundleError, ConfigError
from lobule.fingerprints import fingerprint
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
    """Convert a model file and a WSInfer-style configuration to a bundle.

    Args:
        weights: A state dict (safetensors or PyTorch), or a TorchScript file.
        config: The configuration file.
        out: The folder of the bundle.
        architecture: `timm:NAME` or `torchvision:NAME` for a state dict; default: that of the configuration.
        trust: Allow a TorchScript file, which can run code.

    Returns:
        The bundle as written.

    Raises:
        ConfigError: The configuration is invalid, or a TorchScript file is not trusted.
        BundleError: The weights cannot be read or do not fit the architecture.
    """
    try:
        wsinfer_config: dict[str, Any] = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration: {error}", subject=config) from error
    path = Path(weights)
    if not path.is_file():
        raise ConfigError("the weights file does not exist", subject=weights)
    provenance = {"source": path.name, "source_hash": fingerprint(path, full=True)}
    settings = of_wsinfer(wsinfer_config)
    if _is_torchscript(path):
        if not trust:
            raise ConfigError(
                "this is a TorchScript file, which can run code",
                subject=path,
                remedy="Pass --trust if you know where it came from",
            )
        return _bundle_torchscript(path, settings, out, provenance)
    architecture_name = architecture or _architecture_of(wsinfer_config)
    settings = replace(settings, architecture=architecture_name)
    state = load_state(path)
    net = build(settings)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(
            f"the weights do not fit the architecture {architecture_name}",
            subject=path,
            actual=str(error).splitlines()[-1].strip(),
        ) from error
    bundle = Bundle("classifier", settings.to_dict(), settings.classes, settings.mpp, provenance=provenance)
    return write_bundle(out, bundle, net.state_dict())


def _architecture_of(wsinfer_config: dict[str, Any]) -> str:
    name = wsinfer_config.get("architecture")
    if not name:
        raise ConfigError(
            "the architecture of the weights is unknown", remedy="Pass --architecture timm:NAME"
        )
    return str(name) if ":" in str(name) else f"timm:{name}"


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist())


def _bundle_torchscript(path: Path, settings: Config, out: str | Path, provenance: dict[str, Any]) -> Bundle:
    load_torchscript(path)  # refuse a damaged file now and not in the first scan
    bundle = Bundle("classifier", settings.to_dict(), settings.classes, settings.mpp, provenance=provenance)
    return write_bundle(out, bundle, copies={"model.pt": path})


def load_state(path: Path) -> dict[str, Any]:
    """Load a state dict from a safetensors file, or from a PyTorch file without running code in it."""
    import torch

    loaded = read_weights(path, BundleError)
    if path.suffix == ".safetensors":
        return dict(loaded)
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not (isinstance(loaded, dict) and all(isinstance(v, torch.Tensor) for v in loaded.values())):
        raise BundleError("the file does not contain a state dict of tensors", subject=path)
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}
