"""The first inference of a process runs alone, because OpenVINO's Python interface can block otherwise."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from lobule.scanning import openvino_runtime


class Request:
    """Notes how many calls began before the first one ended."""

    def __init__(self) -> None:
        self.calls = self.calls_during_first = 0

    def infer(self, inputs: list[Any], share_inputs: bool) -> int:
        self.calls += 1
        if not self.calls_during_first:
            time.sleep(0.05)
            self.calls_during_first = self.calls
        return len(inputs)


def test_the_first_inference_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "_has_inferred", threading.Event())
    request, inputs = Request(), np.zeros(1, np.float32)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: openvino_runtime.infer(request, inputs), range(4))) == [1] * 4
    assert (request.calls_during_first, request.calls) == (1, 4)
    assert openvino_runtime._has_inferred.is_set()
