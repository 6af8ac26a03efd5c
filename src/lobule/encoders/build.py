"""The networks of encoders, built without weights from the arguments in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lobule.encoders.entry import EncoderEntry
from lobule.errors import ModelError
from lobule.nets.averaged import AveragedMaps
from lobule.nets.vit import VitEncoder, resampled_positions


def network_arguments(entry: EncoderEntry) -> dict[str, Any]:
    """The arguments of timm's `create_model` for an encoder."""
    arguments: dict[str, Any] = {"num_classes": 0, **entry.network.arguments}
    if entry.network.swiglu:
        from timm.layers import SwiGLUPacked

        arguments |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    return arguments


def build_network(entry: EncoderEntry, *, meta: bool = True, **overrides: Any) -> nn.Module:
    """The network of an encoder at the size of its input.

    Args:
        entry: The encoder.
        meta: Build it on the meta device, without allocating its weights.
        **overrides: Arguments of timm that replace those of the table, for example to make it smaller.
    """
    import timm

    arguments = {**network_arguments(entry), **overrides}
    with torch.device("meta" if meta else "cpu"):
        body = timm.create_model(entry.network.timm, pretrained=False, **arguments)
        if entry.pooling == "average":
            return AveragedMaps(body)
        return VitEncoder(body, with_mean=entry.pooling == "class and mean", head=entry.network.head)


def published_tensors(entry: EncoderEntry, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network by timm's names, with the position table of the published file."""
    tensors = {name.removeprefix("body."): tensor for name, tensor in network.state_dict().items()}
    if entry.network.table_px is not None and isinstance(network, VitEncoder):
        positions = tensors["pos_embed"]
        prefix = positions.shape[1] - network.grid[0] * network.grid[1]
        grid = entry.network.table_px // patch_px(network)
        tensors["pos_embed"] = torch.empty(1, prefix + grid**2, positions.shape[2], device="meta")
    return tensors


def patch_px(network: VitEncoder) -> int:
    """Side of a patch in pixels."""
    body: Any = network.body
    return int(body.patch_embed.patch_size[0])


def adapted_tensors(
    entry: EncoderEntry, network: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Published tensors by the names of the network, with the position table at the size of the input."""
    adapted = dict(tensors)
    if entry.network.resampling is not None and isinstance(network, VitEncoder):
        prefix = int(network.state_dict()["body.pos_embed"].shape[1]) - network.grid[0] * network.grid[1]
        antialias = entry.network.resampling == "bicubic with antialias"
        adapted["pos_embed"] = resampled_positions(
            adapted["pos_embed"], network.grid[0], prefix, antialias=antialias
        )
    names = {name.removeprefix("body."): name for name in network.state_dict()}
    return {names[name]: tensor for name, tensor in adapted.items()}


def parameter_count(entry: EncoderEntry, network: nn.Module) -> int:
    """Number of parameters with the position table of the published file."""
    trained = {name.removeprefix("body.") for name, _ in network.named_parameters()}
    return sum(
        tensor.numel() for name, tensor in published_tensors(entry, network).items() if name in trained
    )


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put tensors into a network that was built on the meta device."""
    try:
        network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError("the weights do not fit the network", actual=str(error).splitlines()[-1]) from error
    return network.float().eval().requires_grad_(False)
