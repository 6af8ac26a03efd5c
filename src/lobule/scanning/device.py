"""The device of a model, its replicas and its memory; networks in the form that the device computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lobule.errors import ConfigError
from lobule.nets.copying import copy_sharing_parameters
from lobule.nets.fused import can_fuse, fuse
from lobule.nets.shapes import activation_bytes
from lobule.scanning.contract import OPENVINO, Batch, EngineSettings


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # The call exists only on Linux.
        return max(1, os.cpu_count() or 1)


def choose_device(requested: str = "auto") -> str:
    """Return the requested device; "auto" prefers CUDA, then the GPU of an Apple computer, then the CPU."""
    if requested == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=requested)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"the device '{requested}' cannot be used",
            expected=f"auto, or one of this machine's devices: {', '.join(existing_devices())}",
            actual=f'the error of torch "{str(error).splitlines()[0]}"',
            remedy="Use --device auto or cpu, or a device that `lobule doctor` lists",
        ) from error
    return requested


def existing_devices() -> list[str]:
    """Return the names of the devices of this machine."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def has_bfloat16(card: str) -> bool:
    """Return whether a CUDA card computes in bfloat16 without emulating it."""
    if not torch.cuda.is_available():
        return False
    with torch.cuda.device(card):  # torch answers for the current card.
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def replicas_for(device: str, cores: int) -> tuple[int, int]:
    """Return the number of replicas (batches computed at the same time) and the threads of each replica.

    On a CPU, each core computes a separate batch (up to eight replicas), so that cores never wait for each
    other. On a GPU, one of two replicas computes while the other copies its batch.
    """
    if device != "cpu":
        return 2, 1
    replicas = min(cores, 8)
    return replicas, max(1, cores // replicas)


SLICE = 8
"""Tiles of a batch on a CPU, which most networks compute at once. More would not fit in a core's cache."""

TORCH_SLICE = 4
"""Tiles that a classifier of torch computes at once on a core: as fast as eight of them, with half the memory
for activations. The models of OpenVINO are compiled for eight."""


def slices_of(pixels: torch.Tensor, engine: EngineSettings) -> Sequence[torch.Tensor]:
    """Split a batch of tiles into the slices that are computed at once; on a GPU, the whole batch."""
    if engine.device != "cpu":
        return (pixels,)
    slices: tuple[torch.Tensor, ...] = pixels.split(SLICE if engine.runtime == OPENVINO else TORCH_SLICE)
    return slices


def dtype_of(engine: EngineSettings) -> torch.dtype:
    """Return the number format of the networks' input. OpenVINO converts it by itself."""
    is_rounded = engine.precision == "bfloat16" and engine.runtime != OPENVINO
    return torch.bfloat16 if is_rounded else torch.float32


def random_batch(engine: EngineSettings, height: int, width: int, fields: int = 1) -> Batch:
    """Return random 8-bit pixels of fields on the device, for measuring the speed of a model."""
    pixels = np.random.default_rng(0).integers(0, 256, (fields, height, width, 3), np.uint8)
    return Batch(torch.from_numpy(pixels).to(engine.device))


def copy_to_device(
    module: nn.Module, engine: EngineSettings, *, channels_last_input: bool = False
) -> nn.Module:
    """Return a copy of a module for inference, on the device and in the precision of the engine settings.

    Parameters that need no conversion are not copied: they must not be changed while the copy is used.
    On a CPU, layers that can be traced are fused, or OpenVINO computes the module. Then only `forward` can be
    called, with one tensor. With `channels_last_input`, OpenVINO reads the channels of that tensor last.
    """
    copied = copy_sharing_parameters(module).eval()
    for parameter in copied.parameters():  # A compiled module lacks the method `requires_grad_`.
        parameter.requires_grad_(False)
    if engine.runtime == OPENVINO:
        from lobule.scanning.openvino_runtime import OpenVinoNet

        quantised = Path(engine.int8_folder) if engine.int8_folder else None
        return OpenVinoNet(copied, engine, lambda: _in_torch(copied, engine), quantised, channels_last_input)
    return _in_torch(copied, engine)


def in_torch(engine: EngineSettings) -> EngineSettings:
    """Return the settings for a network that torch must compute, whatever the runtime of the others is."""
    return replace(engine, runtime="torch", precision="float32") if engine.runtime == OPENVINO else engine


def _in_torch(module: nn.Module, engine: EngineSettings) -> nn.Module:
    """Move a module to the device in torch's precision and layout, and fuse its layers on a CPU."""
    dtype = dtype_of(engine)
    memory = torch.channels_last if engine.channels_last else torch.contiguous_format
    ready: nn.Module = module.to(device=engine.device, dtype=dtype, memory_format=memory)  # type: ignore[call-overload]
    fusible = engine.device == "cpu" and engine.channels_last
    return fuse(ready) if fusible and can_fuse(dtype) else ready


DEVICE_SHARE = 0.6
"""Share of the free memory of a GPU that activations may use; the rest is for weights and fragmentation."""


def max_bytes_on(device: str, host_bytes: int) -> int:
    """Return the memory limit for activations: `host_bytes`, or on a GPU a share of its free memory."""
    if not device.startswith("cuda"):
        return host_bytes
    free, _ = torch.cuda.mem_get_info(device)
    return int(DEVICE_SHARE * free)


HEADROOM = 2
"""Ratio of the actual peak memory to the size of the largest layer; convolutions need scratch space."""


def working_bytes(module: nn.Module, height: int, width: int, channels: int = 3) -> int:
    """Return the memory that the computation of one float32 field may need, in bytes."""
    return HEADROOM * activation_bytes(module, (1, channels, height, width))


def largest_cells(
    needs: Callable[[int], int], max_bytes: int, *, preferred: int, smallest: int = 1, purpose: str = "field"
) -> int:
    """Return the largest number of cells per side, up to `preferred`, whose field fits in `max_bytes`.

    Args:
        needs: Bytes that a field with this many cells per side needs.
        max_bytes: Largest number of bytes that the field may need.
        preferred: The largest number to return.
        smallest: The smallest number to return.
        purpose: What a field is called in the error message.

    Raises:
        ConfigError: Even the smallest field does not fit.
    """
    if needs(preferred) <= max_bytes:
        return preferred
    low, high = smallest, preferred
    if needs(smallest) > max_bytes:
        raise ConfigError(
            f"the smallest {purpose} does not fit under the memory ceiling",
            expected=f"at least {needs(smallest) / 2**30:.2g} GiB per replica",
            actual=f"{max_bytes / 2**30:.2g} GiB",
            remedy="Raise --max-ram",
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle) <= max_bytes else (low, middle)
    return low
