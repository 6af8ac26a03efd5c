"""Hashes of networks, by which converted and quantised models are found again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from lobule.bundles import INT8
from lobule.files import read_json

INDEX = f"{INT8}index.json"
"""The file of a quantised bundle that lists its models."""
TOLERANCE = 1e-3
"""Relative difference of the norms of tensors up to which two networks are the same. Folding normalisation
layers on another processor changes the last bits of the weights."""


def network_digest(net: nn.Module) -> str:
    """A hash of everything that determines the output of a network: its structure and its weights."""
    digest = hashlib.sha256(structure_digest(net).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def structure_digest(net: nn.Module) -> str:
    """A hash of the modules of a network and their attributes, without its weights."""
    digest = hashlib.sha256()
    for name, module in net.named_modules():
        digest.update(f"\n{name} {type(module).__module__}.{type(module).__qualname__}".encode())
        if isinstance(module, fx.GraphModule | torch.jit.ScriptModule):
            digest.update(str(module.code).encode())
        for attribute, value in sorted(module.__dict__.items()):
            if not attribute.startswith("_"):
                digest.update(f" {attribute}={_text_of(value)}".encode())
    return digest.hexdigest()


def _text_of(value: Any) -> str:
    """The text of an attribute; functions and modules have addresses in theirs, so their names are used."""
    if isinstance(value, nn.Module) or callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def signature(net: nn.Module) -> list[float]:
    """The norm of each tensor of a network, by which networks of the same structure are distinguished."""
    return [float(torch.linalg.vector_norm(value.double())) for _, value in sorted(net.state_dict().items())]


def int8_models(folder: Path, net: nn.Module) -> dict[tuple[int, ...], Path]:
    """Return the int8 models of a network by their input shape."""
    structure, norms = structure_digest(net), np.array(signature(net))
    entries: list[dict[str, Any]] = read_json(folder / INDEX)["models"]
    return {
        tuple(entry["shape"]): folder / str(entry["file"])
        for entry in entries
        if entry["structure"] == structure
        and np.allclose(entry["signature"], norms, rtol=TOLERANCE, atol=1e-6)
    }
