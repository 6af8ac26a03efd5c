"""Copies of networks whose weights are not copied."""

from __future__ import annotations

import copy

import torch
from torch import nn


def copy_sharing_tensors(module: nn.Module) -> nn.Module:
    """Return a copy of a module with separate layers, whose parameters and buffers are the same memory.

    The copy can be moved, converted and rewritten without a change of the original, because these operations
    replace tensors. Operations that write into a tensor change both. A module that contains compiled code is
    copied completely.
    """
    with torch.no_grad():  # Otherwise the copy of a compiled module refers to the gradients of the original.
        if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
            return copy.deepcopy(module)
        shared: dict[int, object] = {
            id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            for parameter in module.parameters()
        }
        shared |= {id(buffer): buffer.detach() for buffer in module.buffers()}
        return copy.deepcopy(module, shared)


def own_tensors(module: nn.Module, original: nn.Module) -> None:
    """Copy the parameters and buffers of a module, in place, that share memory with those of another one."""
    originals = {tensor.data_ptr() for tensor in (*original.parameters(), *original.buffers())}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.data_ptr() in originals:
            tensor.data = tensor.data.clone()
