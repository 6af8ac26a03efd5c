"""int8 models of the networks of a bundle: collecting fields, quantising with NNCF, and finding the models.

A quantised bundle has one model per network and input shape, and the file `int8-index.json`, which also holds
the field and batch sizes that the models were made for.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.bundles import INT8
from lobule.errors import ConfigError
from lobule.files import read_json, write_json
from lobule.scanning.contract import EngineSettings
from lobule.scanning.network_identity import INDEX, signature, structure_digest
from lobule.scanning.openvino_conversion import convert, save_model
from lobule.scanning.openvino_library import nncf
from lobule.scanning.openvino_runtime import OpenVinoNet, padded_size

LEAST_FIELDS = 8
"""Fewest fields for a calibration. More do not hurt; 100 to 300 are usual."""
LEAST_PIXELS = 1 << 20
"""Pixels in fewer fields that are also enough, because the fields of dense networks are large."""
MOST_BYTES = 1 << 29
"""Most memory for the collected fields of one network."""

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""OpenVINO's names of the layers that are quantised."""


@dataclass(eq=False)
class CollectedInputs:
    """Inputs of every network, by network and shape, up to `most` fields each."""

    most: int
    inputs: dict[tuple[OpenVinoNet, tuple[int, ...]], list[NDArray[np.float32]]] = field(default_factory=dict)
    fields: dict[tuple[OpenVinoNet, tuple[int, ...]], int] = field(default_factory=dict)

    def add(self, net: OpenVinoNet, x: Tensor) -> None:
        """Add a batch. A short batch is filled up by repeating its fields."""
        key = net, (padded_size(len(x)), *x.shape[1:])
        inputs, fields = self.inputs.setdefault(key, []), self.fields.setdefault(key, 0)
        if fields < self.most and (len(inputs) + 1) * x.nbytes <= MOST_BYTES:
            inputs.append(np.ascontiguousarray(x.numpy()[np.arange(key[1][0]) % len(x)]))
            self.fields[key] = fields + len(x)

    def has_larger_batch(self, net: OpenVinoNet, shape: tuple[int, ...]) -> bool:
        """Whether short batches can be filled up to a larger one with enough fields for a calibration."""
        return any(
            other is net and larger[1:] == shape[1:] and larger[0] > shape[0] and is_enough(fields, larger)
            for (other, larger), fields in self.fields.items()
        )


def is_enough(fields: int, shape: tuple[int, ...]) -> bool:
    """Whether a network can be calibrated on so many fields of a shape (batch, channels, height, width)."""
    return fields >= LEAST_FIELDS or fields * shape[-2] * shape[-1] >= LEAST_PIXELS


def write_models(
    collected: CollectedInputs,
    engine: EngineSettings,
    folder: Path,
    complete: Mapping[OpenVinoNet, tuple[int, ...]] | None = None,
) -> list[dict[str, Any]]:
    """Quantise every network for each shape of its inputs, and write the models and their index.

    Args:
        collected: The inputs of the networks.
        engine: Engine settings with the sizes that the models are for.
        folder: Where the models are written.
        complete: The input shape in a scan of each network that was calibrated on smaller fields.

    Raises:
        ConfigError: There are too few fields, or no network was computed by OpenVINO.
        RuntimeError: A network cannot be computed on fields of another size than it was calibrated on.
    """
    if not collected.inputs:
        raise ConfigError("OpenVINO computed no network of this bundle, so there is nothing to quantise")
    entries: list[dict[str, Any]] = []
    for (net, shape), inputs in collected.inputs.items():
        fields = collected.fields[net, shape]
        if not is_enough(fields, shape) and collected.has_larger_batch(net, shape):
            continue
        if not is_enough(fields, shape):
            raise ConfigError(
                "there are too few fields with tissue for a calibration",
                expected=f"at least {LEAST_FIELDS} for the input shape {shape}",
                actual=str(fields),
                remedy="Use a cohort with more tissue",
            )
        structure, in_scan = structure_digest(net.net), (complete or {}).get(net, shape)
        name = f"{INT8}{len(entries)}.xml"
        model = _quantised(net.net, shape, inputs)
        if in_scan != shape:
            model.reshape(list(in_scan))
        save_model(model, folder / name)
        entries.append(
            {"file": name, "structure": structure, "signature": signature(net.net), "shape": list(in_scan),
             "fields": fields}
        )  # fmt: skip
    write_json(folder / INDEX, {"cells": engine.cells, "batch": engine.batch, "models": entries})
    return entries


def _quantised(net: nn.Module, shape: tuple[int, ...], inputs: list[NDArray[np.float32]]) -> Any:
    """Quantise a network; if it returns maps, its first and its last layer stay in float32.

    The scores of dense maps depend most on these layers. The scores of whole tiles by a ResNet-18 are nearer
    to those in float32 if all layers are quantised.

    The shift of each layer's mean output is measured layer by layer and removed. NNCF's fast correction
    ignores what earlier layers changed, which raised all scores.
    """
    library = nncf()
    has_attention = any(isinstance(module, nn.LayerNorm) for module in net.modules())
    model = convert(net, shape)
    returns_maps = any(len(output.get_partial_shape()) > 2 for output in model.outputs)
    layers = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in LAYERS]
    in_float32 = sorted({layers[0], layers[-1]}) if returns_maps and layers[2:] else []
    with _only_errors_of_nncf(), contextlib.redirect_stdout(io.StringIO()):  # Progress bars.
        return library.quantize(
            model,
            library.Dataset(inputs),
            subset_size=len(inputs),
            preset=library.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            ignored_scope=library.IgnoredScope(names=in_float32) if in_float32 else None,
            model_type=library.ModelType.TRANSFORMER if has_attention else None,
        )


@contextlib.contextmanager
def _only_errors_of_nncf() -> Iterator[None]:
    """Hide what NNCF logs below ERROR. Its own function would also change handlers that other loggers use."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def with_int8_sizes(engine: EngineSettings) -> EngineSettings:
    """Return the engine settings with the field and batch sizes of the int8 models."""
    index = read_json(Path(engine.int8_folder) / INDEX)
    return replace(engine, cells=int(index["cells"]), batch=int(index["batch"]))
