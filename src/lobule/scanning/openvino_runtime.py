"""Networks that OpenVINO computes on a CPU.

A network is converted once per input shape. Converted models are stored in the user's cache folder, under a
hash of the network's weights and structure, the shape and the versions, so that later scans only load them.
A network that OpenVINO cannot convert is computed by torch, with a warning that names the layer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.errors import BundleError, LobuleError
from lobule.scanning.contract import EngineSettings
from lobule.scanning.converted_networks import converted
from lobule.scanning.network_identity import int8_models, network_digest
from lobule.scanning.openvino_conversion import conversion_lock, failing_layer, last_line
from lobule.scanning.openvino_library import core, openvino

log = logging.getLogger("lobule.scan")

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""The precision of the layers that are not quantised, for each precision of the engine settings."""
EXACT_BATCHES = 8
"""Batches up to this size are padded to a power of two, larger ones to a multiple of it, so that a network is
converted for few shapes. The padding depends only on the size of the batch."""

Recorder = Callable[["OpenVinoNet", Tensor], None]
Form = tuple[tuple[int, ...], bool]
"""The shape of an input, and whether its channels are last in memory."""
_recorder: Recorder | None = None
_has_inferred = threading.Event()
"""Set after the first inference of this process."""


@contextmanager
def recorded_inputs(recorder: Recorder) -> Iterator[None]:
    """Call a function with every network and its input; used to collect fields for a calibration."""
    global _recorder
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None


class OpenVinoNet(nn.Module):
    """A network on a CPU with the interface of a module: float32 tensors in and out.

    OpenVINO is imported for the first batch. If it is missing, too old or damaged, this batch fails: torch
    computes only networks that OpenVINO itself cannot convert or compile.

    Args:
        net: The network, in evaluation mode and float32.
        engine: The precision, and the numbers of replicas and threads.
        fallback: Builds the network for torch, for layers that cannot be converted.
        quantised: Folder with models that `lobule weights quantize` wrote, for the precision int8.
        channels_last: Pass inputs to OpenVINO as they are in memory if their channels are last. This saves
            copies, but some networks are slower with it: a ResNet-18 by a tenth.
    """

    def __init__(
        self,
        net: nn.Module,
        engine: EngineSettings,
        fallback: Callable[[], nn.Module],
        quantised: Path | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self._hidden = (net,)  # In a tuple, so that it is not a submodule, which would be copied and moved.
        self._engine, self._fallback_of, self._quantised = engine, fallback, quantised
        self._channels_last = channels_last
        self._compiled: dict[Form, Any] = {}
        self._fallback: nn.Module | None = None
        self._requests = threading.local()
        self._digest: str | None = None
        self._int8: dict[tuple[int, ...], Path] | None = None
        if engine.precision == "int8" and quantised is not None:
            threading.Thread(target=self._compile_early, name="compile").start()

    @property
    def net(self) -> nn.Module:
        return self._hidden[0]

    @property
    def digest(self) -> str:
        """A hash of the weights and the structure of the network."""
        if self._digest is None:
            self._digest = network_digest(self.net)
        return self._digest

    def forward(self, x: Tensor) -> Any:
        if _recorder is not None:
            _recorder(self, x)
        size, shape = len(x), self._padded_shape(x)
        channels_last = self._channels_last and has_channels_last(x)
        request = self._request_for(shape, channels_last, x)
        if request is None:
            return self._in_torch(x)
        inputs = x.permute(0, 2, 3, 1) if channels_last else x.contiguous()
        if shape[0] != size:
            inputs = torch.cat([inputs, inputs.new_zeros((shape[0] - size, *inputs.shape[1:]))])
        results = infer(request, inputs.numpy())
        outputs = [torch.from_numpy(np.array(results[i]))[:size] for i in range(len(results))]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _padded_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape that is computed for an input: in int8 the next larger batch that has a model."""
        shape = (padded_size(len(x)), *x.shape[1:])
        batches = [
            batch for batch, *rest in self._int8_models() if tuple(rest) == shape[1:] and batch >= len(x)
        ]
        return (min(batches, default=shape[0]), *shape[1:])

    def _int8_models(self) -> dict[tuple[int, ...], Path]:
        if self._int8 is None:
            with conversion_lock:
                folder = self._quantised if self._engine.precision == "int8" else None
                self._int8 = {} if folder is None else int8_models(folder, self.net)
        return self._int8

    def _request_for(self, shape: tuple[int, ...], channels_last: bool, x: Tensor) -> Any:
        """Return this thread's request for an input; None if the network cannot be converted."""
        requests: dict[Form, Any] = self._requests.__dict__.setdefault("by_form", {})
        form = shape, channels_last
        if form not in requests:
            compiled = self._compiled_for(form, x)
            if compiled is None:
                return None
            requests[form] = compiled.create_infer_request()
        return requests[form]

    def _in_torch(self, x: Tensor) -> Any:
        assert self._fallback is not None
        return self._fallback(x)

    def _compiled_for(self, form: Form, x: Tensor) -> Any:
        with conversion_lock:
            if form not in self._compiled and self._fallback is None:
                try:
                    self._compiled[form] = self._compile_form(form)
                except LobuleError:
                    raise
                except Exception as error:  # OpenVINO raises many undocumented types.
                    layer = failing_layer(self.net, x) or "the whole network"
                    log.warning(
                        "OpenVINO cannot run %s of %s, so torch computes this network: %s",
                        layer, type(self.net).__name__, last_line(error),
                    )  # fmt: skip
                    self._fallback = self._fallback_of()
            return self._compiled.get(form)

    def _compile_early(self) -> None:
        """Compile the int8 models while the first case is opened, so that no replica has to wait for them."""
        try:
            for shape in self._int8_models():
                with conversion_lock:
                    form = shape, self._channels_last
                    if form not in self._compiled:
                        self._compiled[form] = self._compile_form(form)
        except Exception:  # The first batch meets the same error, and reports it.
            log.debug("The int8 models could not be compiled early", exc_info=True)

    def _model_for(self, shape: tuple[int, ...]) -> Any:
        path = self._int8_models().get(shape)
        if path is not None:
            try:
                return core().read_model(path)
            except RuntimeError as error:
                raise BundleError(
                    "an int8 model of the bundle cannot be read", subject=path, actual=last_line(error)
                ) from error
        if self._engine.precision == "int8" and self._quantised is not None:
            log.warning(
                "The bundle has no int8 model of %s for inputs of the shape %s: they are computed in float32",
                type(self.net).__name__, "x".join(map(str, shape)),
            )  # fmt: skip
        return converted(self.net, self.digest, shape)

    def _compile_form(self, form: Form) -> Any:
        shape, channels_last = form
        model = self._model_for(shape)
        if channels_last:
            model = with_channels_last(model)
        engine = self._engine
        settings = {
            "NUM_STREAMS": engine.replicas,
            "INFERENCE_NUM_THREADS": engine.replicas * engine.replica_threads,
            "INFERENCE_PRECISION_HINT": HINTS[engine.precision],
            "ENABLE_CPU_PINNING": False,
        }
        return core().compile_model(model, "CPU", settings)


def infer(request: Any, inputs: NDArray[Any]) -> Any:
    """Run a request; the first one of this process runs alone.

    The Python interface of OpenVINO prepares itself at its first call. If two threads make that call at the
    same time, one may wait for the other while it has the interpreter's lock that the other needs, and the
    scan stops forever.
    """
    if _has_inferred.is_set():
        return request.infer([inputs], share_inputs=True)
    with conversion_lock:
        results = request.infer([inputs], share_inputs=True)
    _has_inferred.set()
    return results


def has_channels_last(x: Tensor) -> bool:
    """Whether an image is stored with its channels last, and only so."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def with_channels_last(model: Any) -> Any:
    """Let a model read images whose channels are last in memory.

    Where the first convolution computes in this layout, OpenVINO reorders each image that has another one.
    """
    library = openvino()
    layouts = library.preprocess.PrePostProcessor(model)
    layouts.input().tensor().set_layout(library.Layout("NHWC"))
    layouts.input().model().set_layout(library.Layout("NCHW"))
    return layouts.build()


def padded_size(size: int) -> int:
    """The size of the batch that is computed for a batch of `size`."""
    if size > EXACT_BATCHES:
        return -(-size // EXACT_BATCHES) * EXACT_BATCHES
    return 1 << (size - 1).bit_length()
