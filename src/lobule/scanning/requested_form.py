"""Checks of the requested runtime and precision. They need no torch, so commands make them at once."""

from __future__ import annotations

import os

from lobule.bundles import no_int8_models
from lobule.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16", "int8")
RUNTIMES = ("auto", "torch", "openvino")


def requested_runtime(runtime: str) -> str:
    """Return the runtime; the environment variable LOBULE_RUNTIME replaces "auto".

    Raises:
        ConfigError: The variable has an unknown value.
    """
    replacement = os.environ.get("LOBULE_RUNTIME")
    if runtime != "auto" or not replacement:
        return runtime
    if replacement not in RUNTIMES:
        raise ConfigError(
            f"the environment variable LOBULE_RUNTIME has the unknown value '{replacement}'",
            expected=", ".join(RUNTIMES),
        )
    return replacement


def check_requested_form(precision: str, runtime: str, device: str, has_int8: bool) -> None:
    """Refuse a precision and a runtime that do not exist, or that fit neither each other nor the device.

    Args:
        precision: The requested precision, or "auto".
        runtime: The requested runtime, or "auto".
        device: The device, or "auto".
        has_int8: Whether the bundle has int8 models.

    Raises:
        ConfigError: The request cannot be met.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision '{precision}'", expected=", ".join(PRECISIONS))
    if runtime not in RUNTIMES:
        raise ConfigError(f"unknown runtime '{runtime}'", expected=", ".join(RUNTIMES))
    is_cpu = device in ("auto", "cpu")
    if runtime == "openvino" and not is_cpu:
        raise ConfigError(
            "OpenVINO computes on a CPU",
            actual=f"the device {device}",
            remedy="Use --device cpu, or another runtime (--runtime or the variable LOBULE_RUNTIME)",
        )
    if precision == "int8" and not has_int8:
        raise no_int8_models()
    if precision == "int8" and (runtime == "torch" or not is_cpu):
        raise ConfigError(
            "int8 needs the runtime openvino on a CPU",
            actual=f"the runtime {runtime} and the device {device}",
            remedy="Use --runtime openvino --device cpu, or another precision",
        )
