"""The optional libraries OpenVINO and NNCF, imported without their telemetry.

Both send usage statistics to a server through the package `openvino_telemetry`, unless pytest or the variable
CI hides it. Importing that package is blocked here, before either library is imported; then both use their
own replacements, which send nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any

from lobule.errors import ConfigError, MissingExtra

TELEMETRY = "openvino_telemetry"
OLDEST = (2025, 0)
"""The oldest release of OpenVINO whose results are tested."""
_lock = threading.Lock()


def is_installed(name: str = "openvino") -> bool:
    return importlib.util.find_spec(name) is not None


def openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingExtra: It is not installed.
        ConfigError: It is too old.
    """
    library = _import("openvino", "openvino", "the runtime openvino")
    version = str(library.__version__)
    if _release(version) < OLDEST:
        raise ConfigError(
            "the installed OpenVINO is too old",
            expected=f"{OLDEST[0]}.{OLDEST[1]} or newer",
            actual=version,
            remedy="Upgrade it: pip install --upgrade openvino; or use --runtime torch",
        )
    return library


def nncf() -> Any:
    """Import NNCF, which quantises models of OpenVINO.

    Raises:
        MissingExtra: It is not installed, or OpenVINO is not.
        ConfigError: OpenVINO is too old, or one of the two cannot be imported.
    """
    if is_installed("nncf"):
        openvino()
    return _import("nncf", "quantize", "`lobule weights quantize`")


@cache
def core() -> Any:
    """The OpenVINO core of this process; models are compiled by it."""
    return openvino().Core()


@cache
def leave_root_logger_alone() -> None:
    """Keep OpenVINO from changing the root logger when it converts a network.

    It sets the level to ERROR, which would hide warnings of other threads, and sets it back only if the
    conversion succeeds.
    """
    for module, function in (("convert_impl", "init_logger"), ("convert", "restore_logger_state")):
        with suppress(ImportError):  # Other releases may be divided into other modules.
            setattr(importlib.import_module(f"openvino.tools.ovc.{module}"), function, lambda *_, **__: None)


def runs_bfloat16() -> bool:
    """Whether the processor has units for bfloat16 that OpenVINO uses; elsewhere it computes float32."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _import(name: str, extra: str, needed_for: str) -> Any:
    with _lock:
        sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # None makes every import of it fail
        _mute_loaded_telemetry()
        logger_class = logging.getLoggerClass()
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if is_installed(name):
                problem = f"{name} is installed but cannot be imported"
                raise ConfigError(problem, actual=str(error), remedy="Install it again") from error
            raise MissingExtra(extra, needed_for) from error
        finally:
            logging.setLoggerClass(logger_class)  # NNCF sets its own class for every logger of the process.


def _mute_loaded_telemetry() -> None:
    """Switch off telemetry that another library imported before."""
    loaded: Any = sys.modules.get(TELEMETRY)
    if loaded is not None:
        for name in ("send_event", "send_error", "send_stack_trace", "start_session", "end_session"):
            setattr(loaded.Telemetry, name, lambda *_, **__: None)


def _release(version: str) -> tuple[int, int]:
    year, minor = [*version.split("."), "0"][:2]
    return int(year), int("".join(digit for digit in minor if digit.isdigit()) or 0)
