"""Loads encoders: from the hub, a cache, a package or a file, with the same checks in each case."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobule.bundles import read_weights
from lobule.encoders.build import adapted_tensors, build_network, fill, published_tensors
from lobule.encoders.checkpoint_files import locate
from lobule.encoders.entry import EncoderEntry, Naming
from lobule.encoders.key_maps import Converted, convert
from lobule.encoders.owners import find_owners
from lobule.encoders.table import ENCODERS, find_entry
from lobule.errors import ConfigError, LobuleError, ModelError
from lobule.fingerprints import fingerprint
from lobule.nets.encoders import RANDOM_SEED, Encoder, encoder
from lobule.nets.preparation import Preparation
from lobule.nets.scaling import InputScaling

log = logging.getLogger("lobule.encoders")

WRAPPERS = ("state_dict", "model", "teacher")
"""Keys under which checkpoints store the tensors of their network."""
FAR = 0.1
"""Relative difference from the µm/px of an encoder that causes a warning."""
REFERENCE_TOLERANCE = 1e-3


def open_encoder(name: str, weights: str | Path = "pretrained", *, unverified: bool = False) -> Encoder:
    """An encoder by name, with checked weights.

    Args:
        name: A name of the table `ENCODERS`, or `torchvision:NAME`, `timm:NAME` or `lobule:NAME`. A name of
            torchvision that is not in the table needs no prefix.
        weights: "pretrained" for the published weights, "random", or a file.
        unverified: Accept encoders with properties that no source confirms, and files with another hash than
            the published one.

    Raises:
        ConfigError: The encoder is refused or does not exist, or its weights cannot be found or downloaded.
        ModelError: The file does not contain the weights of this encoder.
    """
    entry = find_entry(name, unverified=unverified)
    if entry is None:
        return encoder(name, weights if weights in ("pretrained", "random") else _plain(Path(weights)))  # type: ignore[arg-type]
    announce_licence(entry.name)
    if weights == "random":
        return _with_random_weights(entry)
    path = locate(entry) if weights == "pretrained" else Path(weights)
    return load_file(entry, path, unverified=unverified)


def restore_encoder(name: str, tensors: Mapping[str, Tensor]) -> Encoder:
    """An encoder from the tensors that Lobule stored with features or a bundle (`Encoder.weights`)."""
    entry = ENCODERS.get(name)
    if entry is None:
        return encoder(name, tensors)
    network = build_network(entry)
    names = {name.removeprefix("body."): name for name in network.state_dict()}
    if set(names) != set(tensors):
        raise ModelError(f"these tensors are not those of the encoder '{name}'")
    return _encoder_of(entry, fill(network, {names[name]: tensor for name, tensor in tensors.items()}), {})


def load_file(entry: EncoderEntry, path: Path, *, unverified: bool = False) -> Encoder:
    """The encoder of an entry with the weights of a file, after all checks."""
    network = build_network(entry)
    checkpoint = _checkpoint(entry, path)
    expected = published_tensors(entry, network)
    tensors = _matching(entry, path, checkpoint, expected)
    sha256 = fingerprint(path).removeprefix("sha256:")
    if not unverified:
        _check_hash(entry, path, sha256)
    network = fill(network, adapted_tensors(entry, network, tensors))
    loaded = _encoder_of(entry, network, {"file": path.name, "sha256": sha256})
    _check_reference(entry, path, loaded)
    return loaded


def _with_random_weights(entry: EncoderEntry) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = build_network(entry, meta=False)
    return _encoder_of(entry, network.eval().requires_grad_(False), {})


def _encoder_of(entry: EncoderEntry, network: nn.Module, loaded: Mapping[str, Any]) -> Encoder:
    preparation = Preparation(entry.resize_px, entry.input_px, entry.interpolation)
    not_confirmed = {"not_confirmed": list(entry.not_confirmed)} if entry.not_confirmed else {}
    return Encoder(
        entry.name,
        network,
        entry.width,
        InputScaling(entry.mean, entry.std),
        None if entry.any_size else entry.input_px,
        None if entry.any_size else preparation,
        {**entry.licence.as_dict(entry.name), **loaded, **not_confirmed},
    )


@cache
def announce_licence(name: str) -> None:
    """Print the licence of an encoder once per process, if it forbids something."""
    licence = ENCODERS[name].licence
    if licence.is_restricted:
        log.warning("%s", licence.sentence(name))


def mpp_warning(entry: EncoderEntry, mpp: float) -> str | None:
    """A sentence if tiles have another µm/px than an encoder was made for."""
    if not entry.mpp:
        return None
    nearest = min(entry.mpp, key=lambda value: abs(mpp / value - 1))
    if abs(mpp / nearest - 1) <= FAR:
        return None
    factor = max(mpp / nearest, nearest / mpp)
    direction = "coarser" if mpp > nearest else "finer"
    return (
        f"Tiles at {mpp:g} µm/px are {factor:.3g} times {direction} than the {nearest:g} µm/px "
        f"that '{entry.name}' was made for; its features may be of little use."
    )


# -- checks -------------------------------------------------------------------------------------------------


def _plain(path: Path) -> dict[str, Tensor]:
    from lobule.bundles import plain_weights

    return plain_weights(path)


def _checkpoint(entry: EncoderEntry, path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, by their published names."""
    try:
        loaded = read_weights(path)
    except LobuleError as error:
        if not path.is_file():
            raise
        reason = "" if error.remedy else ": the file is damaged or only half downloaded"
        raise ConfigError(
            f"the weights of '{entry.name}' cannot be read{reason}",
            subject=path,
            actual=f"{path.stat().st_size:,} bytes; {error.actual}",
            remedy=error.remedy or f"Delete the file and download it again from {entry.published.address}",
        ) from error
    loaded = _unwrapped(entry, path, loaded)
    if not isinstance(loaded, Mapping) or not all(_is_named_tensor(*item) for item in loaded.items()):
        raise ConfigError(
            f"the file does not contain the weights of '{entry.name}'",
            subject=path,
            expected="tensors by name, with all of their values",
            remedy=f"Use the file from {entry.published.address}",
        )
    return loaded


def _unwrapped(entry: EncoderEntry, path: Path, loaded: Any) -> Any:
    """The tensors of a checkpoint that stores them under a key, as trainings do."""
    keys = [key for key in WRAPPERS if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)]
    if len(keys) > 1:
        raise ConfigError(
            f"the file contains several networks, and it is not clear which of them is '{entry.name}'",
            subject=path,
            actual=", ".join(keys),
            remedy="Save the tensors of one of them to a separate file",
        )
    return loaded[keys[0]] if keys else loaded


def _is_named_tensor(name: object, value: object) -> bool:
    """Whether a checkpoint's item is a tensor whose values are all in the file."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _matching(
    entry: EncoderEntry, path: Path, checkpoint: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors by timm's names, if none of the network is missing and all of the file are used."""
    attempts = [
        (naming, _checked(convert(naming, checkpoint, expected), expected))
        for naming in entry.published.naming
    ]
    for _, (tensors, problems) in attempts:
        if not problems:
            return tensors
    naming, (_, problems) = min(attempts, key=lambda attempt: len(attempt[1][1]))
    kinds = [problem.partition(" ")[0] for problem in problems]
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    actual = f"{', '.join(counts)} tensors, for example: {'; '.join(problems[:3])}"
    owners = " or ".join(f"'{owner}'" for owner in find_owners(checkpoint) if owner != entry.name)
    raise ModelError(
        f"this file does not contain the weights of '{entry.name}'",
        subject=path,
        expected=f"{len(expected)} tensors of {entry.network.timm} with {_NAMES[naming]}, as in "
        f"{entry.published.file}",
        actual=f"the tensors of {owners}; {actual}" if owners else actual,
        remedy=f"Use the file from {entry.published.address}, or name the encoder that this file belongs to"
        + (f": {owners}" if owners else ""),
    )


_NAMES: dict[Naming, str] = {
    "timm": "the names of timm",
    "dinov2": "the names of transformers' Dinov2Model",
    "vit": "the names of transformers' ViTModel",
    "native": "the names of the DINOv2 repository",
    "gpfm release": "the names of GPFM's release",
    "keep": "the names of KEEP",
    "efficientnet lite": "the names of efficientnet_lite_pytorch",
}


def _checked(converted: Converted, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The converted tensors, and a problem for each tensor that is missing, not used, or of another shape."""
    tensors, problems = converted.tensors, []
    for name, tensor in expected.items():
        if name not in tensors:
            if not name.endswith("num_batches_tracked"):
                problems.append(f"missing {name}")
        elif tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            problems.append(f"misshapen {name}: {shapes}")
        elif tensors[name].is_floating_point() != tensor.is_floating_point():
            problems.append(f"mistyped {name}: {tensors[name].dtype} instead of {tensor.dtype}")
        elif tensor.is_floating_point() and not torch.isfinite(tensors[name].float()).all():
            problems.append(f"infinite {name}: it contains values that are not numbers")
    problems += [f"unused {name}" for name in (*converted.not_used, *(set(tensors) - set(expected)))]
    counters = {
        name: torch.zeros_like(tensor, device="cpu")
        for name, tensor in expected.items()
        if name.endswith("num_batches_tracked") and name not in tensors
    }
    return {**tensors, **counters}, problems


def _check_hash(entry: EncoderEntry, path: Path, sha256: str) -> None:
    """Compare the hash of a file with the published one, if it is known and the format is the same.

    A file of safetensors is never equal to a torch file, so only its tensors are checked.
    """
    published = entry.published
    formats = {Path(name).suffix == ".safetensors" for name in (path.name, published.file)}
    if published.sha256 is None or len(formats) > 1:
        return
    if not sha256.startswith(published.sha256):
        owner = next((other.name for other in ENCODERS.values() if _has_hash(other, sha256)), None)
        raise ModelError(
            f"this is not the published file of '{entry.name}'",
            subject=path,
            expected=f"SHA-256 {published.sha256}",
            actual=f"{sha256}, the file of '{owner}'" if owner else sha256,
            remedy=f"Use the file from {published.address}, or pass --unverified if you trained the weights",
        )


def _has_hash(entry: EncoderEntry, sha256: str) -> bool:
    return entry.published.sha256 is not None and sha256.startswith(entry.published.sha256)


def reference_tile(side: int) -> Tensor:
    """uint8 (1, side, side, 3): a smooth pattern that is the same on every machine."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    channels = [(3 * rows + columns) % 256, (rows * columns // 64) % 256, (columns - rows) % 256]
    return torch.stack(channels, dim=2).to(torch.uint8)[None]


def reference_features(loaded: Encoder, entry: EncoderEntry) -> Tensor:
    """The features of the reference tile."""
    with torch.inference_mode():
        features: Tensor = loaded.net(loaded.scaling.apply(reference_tile(entry.input_px)))
    return features[0]


def _check_reference(entry: EncoderEntry, path: Path, loaded: Encoder) -> None:
    if not entry.reference:
        return
    expected = torch.tensor(entry.reference)
    actual = reference_features(loaded, entry)[: len(expected)]
    if float((actual - expected).abs().max()) > REFERENCE_TOLERANCE:
        raise ModelError(
            f"'{entry.name}' computes other features of the reference tile than it should",
            subject=path,
            expected=", ".join(f"{value:.4f}" for value in entry.reference),
            actual=", ".join(f"{value:.4f}" for value in actual.tolist()),
            remedy="Update timm and torch, and report this as a bug if it stays",
        )
