"""Conversion of networks from torch to OpenVINO."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobule.scanning.openvino_library import leave_root_logger_alone, openvino

conversion_lock = threading.RLock()
"""One thread at a time converts: tracing a network temporarily changes state of the whole process."""


def convert(net: nn.Module, shape: tuple[int, ...]) -> Any:
    """Convert a network for one input shape."""
    with _conversion_settings():
        return openvino().convert_model(net, example_input=torch.zeros(shape), input=list(shape))


@contextmanager
def _conversion_settings() -> Iterator[None]:
    """Let one thread at a time convert, and ignore the warnings of tracing that shapes become constants.

    OpenVINO logs with the root logger. Where NNCF is installed, a conversion imports torch's compiler of
    extensions, which warns about CUDA without a GPU. Both are silenced; loggers of other modules are not.
    """
    leave_root_logger_alone()
    root = logging.getLogger()
    silenced = (root, logging.getLogger("torch.utils.cpp_extension"))
    with conversion_lock, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # Without a handler, the first message to the root logger would configure it for the whole process.
        handler = None if root.handlers else logging.lastResort or logging.NullHandler()
        if handler is not None:
            root.addHandler(handler)
        for logger in silenced:
            logger.addFilter(_is_error)
        try:
            yield
        finally:
            for logger in silenced:
                logger.removeFilter(_is_error)
            if handler is not None:
                root.removeHandler(handler)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def save_model(model: Any, path: Path) -> None:
    """Write a model as an XML file and a BIN file. The XML file comes last, so that one is complete."""
    temporary = path.with_name(f".{path.stem}.part.xml")
    openvino().save_model(model, temporary, compress_to_fp16=False)
    temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
    temporary.replace(path)


def failing_layer(net: nn.Module, x: Tensor) -> str | None:
    """Return the name and type of the first layer that cannot be converted alone; None if every layer can."""
    inputs: dict[str, tuple[Any, ...]] = {}
    names = {module: name for name, module in net.named_modules() if not list(module.children())}

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # Only the shapes, because the inputs of all layers together may not fit into the memory.
        inputs.setdefault(names[module], tuple(_on_device(argument, "meta") for argument in arguments))

    handles = [module.register_forward_pre_hook(record) for module in names]
    try:
        with torch.inference_mode():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    for name, arguments in inputs.items():
        layer = net.get_submodule(name)
        zeros = tuple(_on_device(argument, "cpu") for argument in arguments)
        try:
            with _conversion_settings():
                openvino().convert_model(layer, example_input=zeros)
        except Exception:
            return f"the layer '{name}' ({type(layer).__name__})" if name else type(layer).__name__
    return None


def _on_device(argument: Any, device: str) -> Any:
    """Return zeros on a device for a tensor, and every other argument of a layer unchanged."""
    return torch.zeros_like(argument, device=device) if isinstance(argument, Tensor) else argument


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, in which OpenVINO states the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
