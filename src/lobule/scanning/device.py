"""The device, precision, memory layout and number of replicas of a model, partly chosen by a measurement."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from lobule.errors import ConfigError, ModelError
from lobule.nets.fused import can_fuse, fuse
from lobule.nets.shapes import activation_bytes
from lobule.scanning.contract import Batch, EngineSettings, Model, ScanOptions

PRECISIONS = ("auto", "float32", "bfloat16")
MARGIN = 0.9
"""Factor applied to the measured speed of every form except the default, so that noise does not decide."""


@dataclass(frozen=True)
class Measured:
    """The speed measurement at the start of a scan. It is stored in `run.json`, apart from the results."""

    fields_per_s: dict[str, float]
    difference: float | None
    """Largest difference between the scores in the chosen precision and in float32."""
    chosen: str

    def sentence(self) -> str:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.fields_per_s.items())
        if self.difference is None or self.chosen.startswith("float32"):
            return f"{self.chosen} (fields/s per replica: {rates})"
        cost = f"scores differ from float32 by at most {self.difference:.1e}"
        return f"{self.chosen}: {cost} (fields/s per replica: {rates})"


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
            actual=str(error).splitlines()[0],
            remedy="Use --device auto or cpu, or a device that `lobule doctor` lists",
        ) from error
    return requested


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
"""Tiles that a core computes at once: more would not fit in its cache, fewer would not fill its vector
units."""


def slices_of(pixels: torch.Tensor, engine: EngineSettings) -> Sequence[torch.Tensor]:
    """Split a batch of tiles into the slices that are computed at once; on a GPU, the whole batch."""
    return pixels.split(SLICE) if engine.device == "cpu" else (pixels,)


def dtype_of(engine: EngineSettings) -> torch.dtype:
    """Return the number format in which the networks compute."""
    return torch.bfloat16 if engine.precision == "bfloat16" else torch.float32


def random_batch(engine: EngineSettings, height: int, width: int, fields: int = 1) -> Batch:
    """Return random 8-bit pixels of fields on the device, for measuring the speed of a model."""
    pixels = np.random.default_rng(0).integers(0, 256, (fields, height, width, 3), np.uint8)
    return Batch(torch.from_numpy(pixels).to(engine.device))


def copy_to_device(module: nn.Module, engine: EngineSettings) -> nn.Module:
    """Return a copy of a module for inference, on the device and in the precision of the engine settings.

    On a CPU, layers that can be traced are fused.
    """
    with torch.no_grad():  # Otherwise the copy of a compiled module refers to the gradients of the original.
        copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():  # A compiled module lacks the method `requires_grad_`.
        parameter.requires_grad_(False)
    dtype = dtype_of(engine)
    memory = torch.channels_last if engine.channels_last else torch.contiguous_format
    ready: nn.Module = copied.to(device=engine.device, dtype=dtype, memory_format=memory)  # type: ignore[call-overload]
    fusible = engine.device == "cpu" and engine.channels_last and dtype == torch.float32
    return fuse(ready) if fusible and can_fuse() else ready


def measure(
    model: Model,
    engine: EngineSettings,
    options: ScanOptions,
    precision: str = "auto",
    channels_last: bool | None = None,
) -> tuple[EngineSettings, Measured]:
    """Measure the allowed forms (precision and memory layout), choose the fastest and move the model to it.

    float32 with channels last is the default; another form is chosen only if it is clearly faster.

    Returns:
        The engine settings with the chosen form, and the measurement.

    Raises:
        ModelError: The model does not run in any allowed form.
    """
    forms = possible_forms(engine, precision, channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(engine.replica_threads)
    rates: dict[str, float] = {}
    outputs: dict[str, dict[str, torch.Tensor]] = {}
    try:
        for form in forms:
            model.move_to_device(form, options)
            try:
                rates[_name(form)], outputs[_name(form)] = _rate(model, form, options)
            except RuntimeError:
                # A compiled model may support only float32, which is an error only if the user chose
                # bfloat16.
                if precision != "auto" or form.precision == "float32":
                    raise
    except RuntimeError as error:
        raise ModelError("the model does not run on this device", actual=str(error)) from error
    finally:
        torch.set_num_threads(threads)
    best = max(
        (form for form in forms if _name(form) in rates),
        key=lambda form: rates[_name(form)] * (1.0 if _is_default(form) else MARGIN),
    )
    if best is not forms[-1]:  # The model is already in the last form.
        model.move_to_device(best, options)
    exact = next((outputs[_name(f)] for f in forms if f.precision == "float32"), None)
    return best, Measured(
        rates, None if exact is None else _difference(exact, outputs[_name(best)]), _name(best)
    )


def possible_forms(
    engine: EngineSettings, precision: str = "auto", channels_last: bool | None = None
) -> list[EngineSettings]:
    """Return the engine settings with each precision and memory layout that the user and device allow."""
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision '{precision}'", expected=", ".join(PRECISIONS))
    forms = [replace(engine, precision=p, channels_last=c) for p, c in _forms(engine, precision)]
    if channels_last is not None:
        forms = list(dict.fromkeys(replace(form, channels_last=channels_last) for form in forms))
    return forms


def _is_default(form: EngineSettings) -> bool:
    return form.precision == "float32" and form.channels_last


def _forms(engine: EngineSettings, precision: str) -> list[tuple[str, bool]]:
    forms = []
    if precision in ("auto", "float32"):
        forms += [("float32", True)] if engine.device != "cpu" else [("float32", False), ("float32", True)]
    if precision == "bfloat16" or (precision == "auto" and _has_bfloat16(engine.device)):
        forms.append(("bfloat16", True))
    return forms


def _has_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        # On a CPU without matrix units, bfloat16 is emulated and slower than float32.
        check: Callable[[], bool] | None = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return bool(check and check())
    return False


def _name(engine: EngineSettings) -> str:
    return engine.precision + (" channels-last" if engine.channels_last else "")


def _rate(
    model: Model, engine: EngineSettings, options: ScanOptions, seconds: float = 0.4
) -> tuple[float, dict[str, torch.Tensor]]:
    key, batch = model.sample_batch(engine, options)
    with torch.inference_mode():
        outputs = model.forward(key, batch)
        best, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < seconds or best == float("inf"):
            _wait(engine.device)
            start = time.perf_counter()
            model.forward(key, batch)
            _wait(engine.device)
            best = min(best, time.perf_counter() - start)
    return len(batch.pixels) / best, {name: value.float().cpu() for name, value in outputs.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _difference(exact: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float | None:
    difference = max(float((exact[key] - other[key]).abs().max()) for key in exact)
    return difference if math.isfinite(difference) else None


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
