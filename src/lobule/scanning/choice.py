"""The runtime, precision and memory layout of a model, chosen by a measurement at the start of a scan."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from lobule.errors import ConfigError, LobuleError, ModelError, UsageError
from lobule.scanning.contract import OPENVINO, Batch, EngineSettings, Model, ScanOptions
from lobule.scanning.device import has_bfloat16
from lobule.scanning.requested_form import check_requested_form

log = logging.getLogger("lobule.scan")

MARGIN = 0.9
"""Factor applied to the measured speed of every float32 form except the default, so that noise does not
decide."""
BFLOAT16_MARGIN = 1.15
"""bfloat16 is chosen if it is at least this many times as fast as the chosen form in float32."""
PROBE_SHARE = 0.8
"""A model is not measured in bfloat16 if single layers reach less than this share of their float32 speed."""
MOST_RUNS = 50
"""A form of the model is run at most this often to measure its rate: more would not find a faster run."""

RealFields = Callable[[EngineSettings], list[tuple[Any, Batch]]]
"""Returns keys and batches of fields with tissue of the first cases; empty if none can be read."""


@dataclass(frozen=True)
class Measured:
    """The speed measurement at the start of a scan. It is stored in `run.json`, apart from the results."""

    fields_per_s: dict[str, float]
    difference: float | None
    """Largest difference between the scores in the chosen form and in float32 by torch."""
    chosen: str
    measured_on: str = "random pixels"
    """The fields on which the difference was measured: "tissue" or "random pixels"."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Forms that were not measured, with the reason."""

    def sentence(self) -> str:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.fields_per_s.items())
        if self.difference is None or self.chosen.startswith("float32"):
            return f"{self.chosen} (fields/s per replica: {rates})"
        cost = (
            f"scores differ from those of torch in float32 by at most {self.difference:.1e} "
            f"on {self.measured_on}"
        )
        return f"{self.chosen}: {cost} (fields/s per replica: {rates})"


def measure(
    model: Model,
    engine: EngineSettings,
    options: ScanOptions,
    precision: str = "auto",
    channels_last: bool | None = None,
    runtime: str = "torch",
    real_fields: RealFields | None = None,
) -> tuple[EngineSettings, Measured]:
    """Measure the allowed forms (runtime, precision and layout), choose one and move the model to it.

    float32 by torch with channels last is the default; another form is chosen only if it is clearly faster.

    Args:
        model: The model.
        engine: Engine settings with the sizes of fields and batches.
        options: Options of the scan.
        precision: The requested precision, or "auto".
        channels_last: The requested memory layout, or None.
        runtime: The requested runtime, or "auto".
        real_fields: Fields on which the difference to float32 is measured; random pixels without it.

    Returns:
        The engine settings with the chosen form, and the measurement.

    Raises:
        ModelError: The model does not run in any allowed form.
    """
    forms = possible_forms(engine, precision, channels_last, runtime)
    skipped: dict[str, str] = {}
    if precision == "auto" and len(forms) > 1 and not _bfloat16_pays(engine.device):
        reason = "single layers are slower in bfloat16 than in float32 on this machine"
        skipped = {_name(form): reason for form in forms if _is_bfloat16_of_torch(form)}
        forms = [form for form in forms if not _is_bfloat16_of_torch(form)]
    threads = torch.get_num_threads()
    torch.set_num_threads(engine.replica_threads)
    try:
        rates, outputs, placed = _measure_forms(model, forms, options, skipped)
        best = _best(forms, rates)
        if not _is_default(best):
            best, placed = _measure_default_again(model, forms, rates, options, placed)
        if best != placed:
            model.move_to_device(best, options)
        difference, measured_on = _difference_to_float32(model, best, options, forms, outputs, real_fields)
    except RuntimeError as error:
        raise ModelError("the model does not run on this device", actual=str(error)) from error
    finally:
        torch.set_num_threads(threads)
    return best, Measured(rates, difference, _name(best), measured_on, skipped)


def _measure_forms(
    model: Model,
    forms: list[EngineSettings],
    options: ScanOptions,
    skipped: dict[str, str],
) -> tuple[dict[str, float], dict[str, dict[str, torch.Tensor]], EngineSettings]:
    """Return the rate and the outputs of each form that runs, and the form of the last move."""
    rates: dict[str, float] = {}
    outputs: dict[str, dict[str, torch.Tensor]] = {}
    for form in forms:
        try:
            model.move_to_device(form, options)
            rates[_name(form)], outputs[_name(form)] = _rate(model, form, options)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LobuleError) as error:
            # A compiled model may support only float32; the files of OpenVINO may find no space.
            is_last = not rates and form == forms[-1]
            if is_last or (form.precision == "float32" and form.runtime == "torch"):
                raise
            skipped[_name(form)] = str(error).splitlines()[0][:200]
            if isinstance(error, LobuleError):
                log.warning("%s is left out of the choice: %s", _name(form), error)
    return rates, outputs, forms[-1]


def _measure_default_again(
    model: Model,
    forms: list[EngineSettings],
    rates: dict[str, float],
    options: ScanOptions,
    placed: EngineSettings,
) -> tuple[EngineSettings, EngineSettings]:
    """Measure the default form once more before another form replaces it.

    Another program may have slowed down the first measurement. The choice is cached, so it would slow down
    every later scan.

    Returns:
        The best form, and the form of the last move.
    """
    default = next((form for form in forms if _is_default(form) and _name(form) in rates), None)
    if default is None:
        return _best(forms, rates), placed
    try:
        model.move_to_device(default, options)
        rates[_name(default)] = max(rates[_name(default)], _rate(model, default, options)[0])
    except RuntimeError as error:
        log.debug("%s cannot be measured again: %s", _name(default), error)
    return _best(forms, rates), default


def _best(forms: list[EngineSettings], rates: Mapping[str, float]) -> EngineSettings:
    """Return the form to use: the fastest in float32, unless bfloat16 is faster by its margin."""
    measured = [form for form in forms if _name(form) in rates]
    exact = [form for form in measured if form.precision == "float32"]
    rounded = [form for form in measured if form.precision != "float32"]
    fastest = max(rounded, key=lambda form: rates[_name(form)], default=None)
    if not exact:
        assert fastest is not None
        return fastest
    best = max(exact, key=lambda form: rates[_name(form)] * (1.0 if _is_default(form) else MARGIN))
    if fastest is not None and rates[_name(fastest)] >= BFLOAT16_MARGIN * rates[_name(best)]:
        return fastest
    return best


def possible_forms(
    engine: EngineSettings,
    precision: str = "auto",
    channels_last: bool | None = None,
    runtime: str = "torch",
) -> list[EngineSettings]:
    """Return the engine settings with each form that the user, the device and the bundle allow.

    Raises:
        ConfigError: There is no such precision or runtime, or they do not fit the device or the bundle.
    """
    check_requested_form(precision, runtime, engine.device, bool(engine.int8_folder))
    if uses_int8(engine, precision, runtime):
        return [replace(engine, precision="int8", runtime=OPENVINO, channels_last=True)]
    forms = [] if runtime == OPENVINO else _torch_forms(engine, precision)
    forms += _openvino_forms(engine, precision, runtime)
    if channels_last is not None:
        forms = list(dict.fromkeys(replace(form, channels_last=channels_last) for form in forms))
    return forms


def uses_int8(engine: EngineSettings, precision: str, runtime: str) -> bool:
    """Whether the scan uses the int8 models of the bundle: on request, and by default if it has some."""
    from lobule.scanning.openvino_library import openvino

    if precision == "int8":
        check_requested_form(precision, runtime, engine.device, bool(engine.int8_folder))
        openvino()
        return True
    usable = precision == "auto" and runtime != "torch" and engine.device == "cpu" and engine.int8_folder
    return bool(usable) and openvino_allowed(runtime)


def openvino_allowed(runtime: str) -> bool:
    """Whether OpenVINO may be used. If it cannot be, this is an error only if the user requested it."""
    from lobule.scanning.openvino_library import is_installed, openvino

    if runtime == OPENVINO:
        openvino()
        return True
    if runtime != "auto" or not is_installed():
        return False
    try:
        openvino()
    except UsageError as error:
        log.warning("OpenVINO is not used: %s", error)
        return False
    return True


def _torch_forms(engine: EngineSettings, precision: str) -> list[EngineSettings]:
    forms: list[tuple[str, bool]] = []
    if precision in ("auto", "float32"):
        forms += [("float32", True)] if engine.device != "cpu" else [("float32", False), ("float32", True)]
    if precision == "bfloat16" or (precision == "auto" and _runs_bfloat16(engine.device)):
        forms.append(("bfloat16", True))
    return [replace(engine, precision=name, channels_last=layout, runtime="torch") for name, layout in forms]


def _openvino_forms(engine: EngineSettings, precision: str, runtime: str) -> list[EngineSettings]:
    if engine.device != "cpu" or not openvino_allowed(runtime):
        return []
    from lobule.scanning.openvino_library import runs_bfloat16

    names = [name for name in ("float32", "bfloat16") if precision in ("auto", name)]
    if not runs_bfloat16() and "bfloat16" in names:
        names.remove("bfloat16")
        if precision == "bfloat16" and runtime == OPENVINO:
            raise ConfigError(
                "OpenVINO does not compute in bfloat16 on this processor",
                expected="AVX512-BF16, AMX or similar units",
                remedy="Use --precision float32",
            )
    return [replace(engine, precision=name, channels_last=True, runtime=OPENVINO) for name in names]


def _is_default(form: EngineSettings) -> bool:
    return form.precision == "float32" and form.channels_last and form.runtime == "torch"


def _is_bfloat16_of_torch(form: EngineSettings) -> bool:
    return form.precision == "bfloat16" and form.runtime == "torch"


def _runs_bfloat16(device: str) -> bool:
    """Whether torch can compute in bfloat16 on a device. Only a measurement shows whether it is faster."""
    if device.startswith("cuda"):
        return has_bfloat16(device)
    return device == "cpu"


@cache
def _bfloat16_pays(device: str) -> bool:
    """Whether one convolution or matrix product is about as fast in bfloat16 as in float32.

    On a processor that emulates bfloat16, a whole field would take up to a hundred times as long.
    """
    if device != "cpu":
        return True
    layers = [
        (nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last), torch.ones(1, 64, 40, 40)),
        (nn.Linear(512, 512), torch.ones(64, 512)),
    ]
    with torch.inference_mode():
        for layer, x in layers:
            exact = min(_seconds(layer, x) for _ in range(4))
            layer, x = layer.bfloat16(), x.bfloat16()
            if min(_seconds(layer, x) for _ in range(3)) * PROBE_SHARE <= exact:
                return True
    return False


def _seconds(layer: nn.Module, x: torch.Tensor) -> float:
    began = time.perf_counter()
    layer(x)
    return time.perf_counter() - began


def _name(engine: EngineSettings) -> str:
    if engine.runtime == OPENVINO:
        return f"{OPENVINO} {engine.precision}"
    return engine.precision + (" channels-last" if engine.channels_last else "")


def _rate(
    model: Model, engine: EngineSettings, options: ScanOptions, seconds: float = 0.4
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the fields per second of the fastest run, and the outputs.

    It runs for some tenths of a second, but a small network at most `MOST_RUNS` times.
    """
    key, batch = model.sample_batch(engine, options)
    with torch.inference_mode():
        outputs = model.forward(key, batch)
        best, began = float("inf"), time.perf_counter()
        for run in range(MOST_RUNS):
            if run and time.perf_counter() - began >= seconds:
                break
            _wait(engine.device)
            start = time.perf_counter()
            model.forward(key, batch)
            _wait(engine.device)
            best = min(best, time.perf_counter() - start)
    return len(batch.pixels) / best, _on_host(outputs)


def _on_host(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float().cpu() for name, value in outputs.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _difference_to_float32(
    model: Model,
    best: EngineSettings,
    options: ScanOptions,
    forms: list[EngineSettings],
    outputs: Mapping[str, dict[str, torch.Tensor]],
    real_fields: RealFields | None,
) -> tuple[float | None, str]:
    """Return the largest difference of a score to float32 by torch, and the fields it was measured on.

    The model is in its best form before and after. It is used in this form last, so that OpenVINO compiles
    its networks before the first case.
    """
    if best.precision == "float32" and best.runtime == "torch":
        return 0.0, "random pixels"
    samples = [] if real_fields is None else real_fields(best)
    if not samples:
        if best.runtime == OPENVINO:
            with torch.inference_mode():
                model.forward(*model.sample_batch(best, options))
        in_float32 = [_name(form) for form in forms if form.precision == "float32"]
        exact = next((outputs[name] for name in in_float32 if name in outputs), None)
        return (None if exact is None else _difference(exact, outputs[_name(best)])), "random pixels"
    with torch.inference_mode():
        model.move_to_device(replace(best, precision="float32", runtime="torch"), options)
        expected = [_on_host(model.forward(key, batch)) for key, batch in samples]
        model.move_to_device(best, options)
        actual = [_on_host(model.forward(key, batch)) for key, batch in samples]
    differences = [_difference(*pair) for pair in zip(expected, actual, strict=True)]
    finite = [difference for difference in differences if difference is not None]
    return (max(finite) if len(finite) == len(differences) else None), "tissue"


def _difference(exact: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float | None:
    difference = max(float((exact[key] - other[key]).abs().max()) for key in exact)
    return difference if math.isfinite(difference) else None
