"""Finds the encoders of the table that a file of weights belongs to, by names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from lobule.encoders.build import build_network, published_tensors
from lobule.encoders.entry import EncoderEntry
from lobule.encoders.key_maps import convert
from lobule.encoders.table import ENCODERS


def find_owners(checkpoint: Mapping[str, Tensor]) -> list[str]:
    """Names of the encoders that have exactly these tensors, in the order of the table.

    Several encoders can have the same network. Only networks with the width of the file are built, on the
    meta device, which takes about a second.
    """
    described = {name: tensor.to("meta") for name, tensor in checkpoint.items()}
    shapes = {tensor.shape for tensor in described.values()}
    return [
        entry.name
        for entry in ENCODERS.values()
        if _has_width(entry, shapes) and _has_tensors(entry, described)
    ]


def _has_width(entry: EncoderEntry, shapes: Collection[tuple[int, ...]]) -> bool:
    """Whether a convolution or a class token has the width of an encoder, as far as its entry states it."""
    if entry.pooling == "average":
        return any(len(shape) == 4 and shape[0] == entry.width for shape in shapes)
    width = entry.width // 2 if entry.pooling == "class and mean" else entry.width
    return any(len(shape) == 3 and (shape[2] == width or entry.network.head) for shape in shapes)


def _has_tensors(entry: EncoderEntry, described: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint has every tensor of an encoder in the right shape, and no other."""
    expected = published_tensors(entry, build_network(entry))
    shapes = {name: tensor.shape for name, tensor in expected.items() if not _is_counter(name)}
    for naming in entry.published.naming:
        converted = convert(naming, described, expected)
        tensors = {name: tensor.shape for name, tensor in converted.tensors.items() if not _is_counter(name)}
        if tensors == shapes and not converted.not_used:
            return True
    return False


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
