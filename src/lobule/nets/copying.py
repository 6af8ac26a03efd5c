"""Copies of networks that share the parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn


def copy_sharing_parameters(module: nn.Module) -> nn.Module:
    """Return a copy that has its own layers and buffers but shares the memory of all parameters.

    The copy can be moved, converted and rewritten without a change of the original, because these operations
    replace tensors. Operations that write into a parameter change both. A module that contains compiled code
    is copied completely.
    """
    with torch.no_grad():  # Otherwise the copy of a compiled module refers to the gradients of the original.
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
            return copy.deepcopy(module)
        tensors: dict[int, object] = {
            id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            for parameter in module.parameters()
        }
        # A buffer may be a small part of a large memory, all of which `deepcopy` would copy.
        tensors |= {id(buffer): buffer.detach().clone() for buffer in module.buffers()}
        return copy.deepcopy(module, tensors)


def unshare_tensors(module: nn.Module, original: nn.Module) -> None:
    """Copy every tensor of a module that shares memory with another module."""
    originals = {tensor.data_ptr() for tensor in (*original.parameters(), *original.buffers())}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.data_ptr() in originals:
            tensor.data = tensor.data.clone()
