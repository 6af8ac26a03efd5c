"""`lobule weights`: list, inspect, convert, calibrate and quantise weights."""

from __future__ import annotations

from lobule.cli.base import LazyGroup

WEIGHTS: dict[str, tuple[str, str]] = {
    "list": ("lobule.cli.weights.list:command", "List known weights with source, licence, hash and state."),
    "inspect": ("lobule.cli.weights.inspect:command", "Show tensors, hash and origin of a weights file."),
    "convert": ("lobule.cli.weights.convert:command", "Convert an existing model into a bundle."),
    "calibrate": ("lobule.cli.weights.calibrate:command", "Calibrate a bundle on labelled cases of a site."),
    "quantize": ("lobule.cli.weights.quantize:command", "Write a bundle that runs in int8, with a report."),
    "torchscript": ("lobule.cli.weights.torchscript:command", "Convert a bundle into TorchScript."),
}
"""Commands of the group; each is imported when it is called."""

command = LazyGroup("weights", WEIGHTS, help="List, inspect, convert, calibrate and quantise weights.")
