"""Encoders of the table as teachers, as far as their authors' specifications allow it."""

from __future__ import annotations

from lobule.encoders import ENCODERS, EncoderEntry
from lobule.encoders.build import network_arguments
from lobule.encoders.load import open_encoder
from lobule.errors import ConfigError
from lobule.nets.scaling import InputScaling
from lobule.nets.teachers import Teacher, load_teacher_weights, teacher, timm_teacher

HALVINGS = 8
"""Bottleneck and decoder halve the sides of the finest map three times."""


def find_teacher(name: str, input_px: int, *, pretrained: bool = False, every_depth: bool = True) -> Teacher:
    """Build a teacher by name: an encoder of the table, or one of `nets.teachers`.

    Args:
        name: The name.
        input_px: Side of the images that it will see.
        pretrained: Load the published weights.
        every_depth: Use maps from all depths of a transformer of timm; earlier bundles did not.

    Raises:
        ConfigError: There is no such teacher, or it cannot see images of this size.
    """
    entry = ENCODERS.get(name)
    if entry is None:
        return teacher(name, pretrained=pretrained, every_depth=every_depth)
    frozen = _build(entry, input_px)
    if pretrained:
        load_encoder_weights(frozen, entry, "pretrained")
    return frozen


def load_encoder_weights(frozen: Teacher, entry: EncoderEntry, weights: str) -> None:
    """Load published weights or those of a file, after the checks of the encoder, into its teacher."""
    tensors = open_encoder(entry.name, weights).weights
    prefix = (
        "model." if any(name.startswith("backbone.model.") for name in frozen.stages.state_dict()) else ""
    )
    load_teacher_weights(frozen, {prefix + name: tensor for name, tensor in tensors.items()})


def _build(entry: EncoderEntry, input_px: int) -> Teacher:
    arguments = network_arguments(entry)
    arguments.pop("num_classes")
    if not entry.any_size:
        _refuse_other_grids(entry, input_px)
    scaling = InputScaling(entry.mean, entry.std)
    return timm_teacher(entry.name, entry.network.timm, scaling, {}, pretrained=False, **arguments)


def _refuse_other_grids(entry: EncoderEntry, input_px: int) -> None:
    """A transformer keeps its own grid of patches, since no rule says how to resample its positions."""
    assert entry.network.tokens is not None
    patch = next(side for side in (8, 14, 16) if (entry.input_px // side) ** 2 <= entry.network.tokens)
    if entry.input_px % (HALVINGS * patch):
        raise ConfigError(
            f"the encoder '{entry.name}' cannot be a teacher",
            expected=f"an input whose side is a multiple of {HALVINGS * patch} px, {HALVINGS} patches",
            actual=f"an encoder that accepts {entry.input_px} px only",
            remedy="Use an encoder with patches of 14 px, or a convolutional one",
        )
    if input_px != entry.input_px:
        raise ConfigError(
            f"the encoder '{entry.name}' sees images of {entry.input_px} px only",
            actual=f"input={input_px}",
            remedy=f"Pass --set input={entry.input_px}",
        )
