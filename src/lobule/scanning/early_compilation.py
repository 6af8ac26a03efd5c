"""Compiles the int8 networks of a scan while the first case is opened and its tissue is found."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch

from lobule.scanning.contract import Batch, EngineSettings, Model, ScanOptions

log = logging.getLogger("lobule.scan")


class EarlyCompilation:
    """Compiles the networks for a sample batch, in a thread and once.

    Otherwise the first batch would compile them, and the other replicas would wait for it. In other
    precisions than int8, nothing is done, because a sample may be smaller than the fields of the scan.

    Create it before any replica starts: a model may trace its networks to choose the size of the sample, and
    no network can be computed meanwhile.
    """

    def __init__(self, model: Model, engine: EngineSettings, options: ScanOptions) -> None:
        self._model, self._threads = model, engine.replica_threads
        self._sample: tuple[Any, Batch] | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        if engine.precision == "int8":
            self._sample = model.sample_batch(engine, options)

    def start(self) -> None:
        """Start to compile, if this was not done yet."""
        with self._starting:
            if self._thread is None and self._sample is not None:
                self._thread = threading.Thread(target=self._compile, args=self._sample, name="compile")
                self._thread.start()
            self._sample = None

    def wait(self) -> None:
        """Wait until everything is compiled."""
        if self._thread is not None:
            self._thread.join()

    def _compile(self, key: Any, batch: Batch) -> None:
        from lobule.scanning.openvino_runtime import compiling_only

        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode(), compiling_only():
                self._model.forward(key, batch)
        except Exception:  # The first batch meets the same error, and reports it.
            log.debug("The networks could not be compiled early", exc_info=True)
