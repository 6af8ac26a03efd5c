"""Published weights of the mammography networks: our names for them, and how to recognise genuine files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobule.errors import BundleError

ALIASES = {"l_cc": "cc", "r_cc": "cc", "l_mlo": "mlo", "r_mlo": "mlo"}
"""The published classifiers hold each trunk under three names."""

GENUINE: dict[str, str] = {
    "286ec862": "sample_image_model.p",
    "312ea110": "sample_imageheatmaps_model.p",
    "44ce5238": "sample_patch_model.p",
    "a903386d": "ImageOnly__ModeImage_weights.p",
    "75c17172": "ImageHeatmaps__ModeImage_weights.p",
    "04e47337": "GMIC sample_model_1.p",
    "98074a24": "GMIC sample_model_2.p",
    "9304d4b3": "GMIC sample_model_3.p",
    "4e87f645": "GMIC sample_model_4.p",
    "ec942dd6": "GMIC sample_model_5.p",
}
"""Git blob ids (their first eight digits) of the files as published."""

EXPENDABLE = ("shared_rep_filter.weight",)
"""Published GMIC files contain it, but the network does not use it."""


def git_blob_id(content: bytes) -> str:
    """The id under which git stores a file: what `GENUINE` is keyed by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def published_source(path: Path) -> dict[str, str]:
    """Return the name and hash of a weights file, and the published file that it is a copy of."""
    git_blob = git_blob_id(path.read_bytes())
    published_name = GENUINE.get(git_blob[:8], "none of the published files")
    return {"source": path.name, "git_blob": git_blob, "published_as": published_name}


def load_published(net: nn.Module, checkpoint: Mapping[str, Any], path: str | Path | None = None) -> None:
    """Load a published checkpoint strictly: every tensor of the network, and no others.

    Accepts `{"model": state}`, the doubled trunks, names from before torchvision 0.4.1 and files from before
    batch norms counted their batches. Errors name the file at `path`.
    """
    state = resolved(checkpoint, path)
    network_state = net.state_dict()
    for key, tensor in network_state.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(tensor))
    for key in EXPENDABLE:
        state.pop(key, None)
    missing, extra = sorted(network_state.keys() - state.keys()), sorted(state.keys() - network_state.keys())
    shapes = [k for k in network_state.keys() & state.keys() if network_state[k].shape != state[k].shape]
    if missing or extra or shapes:
        raise BundleError(
            "the checkpoint does not fit the network",
            subject=path,
            expected=f"{len(network_state)} tensors",
            actual="; ".join(
                _fault_message(fault, keys) for fault, keys in _faults(missing, extra, shapes) if keys
            ),
        )
    net.load_state_dict(state)


def resolved(checkpoint: Mapping[str, Any], path: str | Path | None = None) -> dict[str, Tensor]:
    """The state under our names, each tensor once. Aliases with different values are an error."""
    inner = checkpoint.get("model", checkpoint)
    state: dict[str, Tensor] = {}
    for key, tensor in inner.items():
        name = canonical(key)
        if name in state and not torch.equal(state[name], tensor):
            raise BundleError(
                "two names of the same trunk have different tensors",
                subject=path,
                expected=name,
                actual=f"another value under {key}",
            )
        state[name] = tensor
    return state


def canonical(key: str) -> str:
    """Our name of a published parameter."""
    key = re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", key)
    head, _, rest = key.partition(".")
    trunk, _, tail = rest.partition(".")
    if head == "four_view_resnet" and trunk in ALIASES:
        return f"{head}.{ALIASES[trunk]}.{tail}"
    return key


def _faults(*keys: list[str]) -> list[tuple[str, list[str]]]:
    return list(zip(("missing", "not of the network", "of another shape"), keys, strict=True))


def _fault_message(fault: str, keys: list[str]) -> str:
    remainder = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{fault}: {', '.join(keys[:3])}{remainder}"
