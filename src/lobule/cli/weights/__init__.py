"""`lobule weights`: which pretrained and published weights there are, and what a file of weights holds."""

from __future__ import annotations

from lobule.cli.base import LazyGroup

WEIGHTS: dict[str, tuple[str, str]] = {
    "list": ("lobule.cli.weights.list:command", "Known weights: source, licence, hash, state."),
    "inspect": (
        "lobule.cli.weights.inspect:command",
        "Tensors, hash and origin of a file, of which nothing is run.",
    ),
    "convert": ("lobule.cli.weights.convert:command", "A model that you already have, as a bundle."),
    "calibrate": (
        "lobule.cli.weights.calibrate:command",
        "A bundle's scores made probabilities on a site's labelled cases.",
    ),
}
"""Commands of the group, loaded when called."""

command = LazyGroup("weights", WEIGHTS, help="Pretrained and published weights.")
