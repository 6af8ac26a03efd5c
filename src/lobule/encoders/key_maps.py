"""The names of tensors in published checkpoints, converted to those of timm's networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lobule.encoders.entry import Naming

Rules = tuple[tuple[str, str], ...]
"""Pairs of a pattern, which must match a whole name, and the name in timm."""

_LAYER = r"encoder\.layer\.(\d+)\."
_EMBEDDINGS: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)
_ATTENTION: Rules = (
    (_LAYER + r"attention\.attention\.query\.(weight|bias)", r"blocks.\1.attn.qkv.\2#0"),
    (_LAYER + r"attention\.attention\.key\.(weight|bias)", r"blocks.\1.attn.qkv.\2#1"),
    (_LAYER + r"attention\.attention\.value\.(weight|bias)", r"blocks.\1.attn.qkv.\2#2"),
    (_LAYER + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
)
_TIMM_VIT: Rules = (
    (r"(cls_token|pos_embed|reg_token|patch_embed\.proj\.(?:weight|bias)|norm\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
)
_NATIVE: Rules = (
    *_TIMM_VIT,
    (r"register_tokens", "reg_token"),
    (r"blocks\.(\d+)\.mlp\.w12\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
)


@dataclass(frozen=True)
class KeyMap:
    """Converts names of one kind of checkpoint."""

    rules: Rules
    dropped: str | None = None
    """Pattern of tensors that are not part of the encoder."""
    folds_class_position: bool = False
    """Whether the position table has a row for the class token although the network adds none to it.

    This is so in networks with register tokens: the row is added to the class token.
    """


KEY_MAPS: dict[Naming, KeyMap] = {
    "timm": KeyMap(((r"(?!fc\.|head\.|classifier\.)(.*)", r"\1"),), r"(fc|head|classifier)\..*"),
    "dinov2": KeyMap(
        (
            *_EMBEDDINGS,
            *_ATTENTION,
            (_LAYER + r"(norm1|norm2|mlp\.fc1|mlp\.fc2)\.(weight|bias)", r"blocks.\1.\2.\3"),
            (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (_LAYER + r"mlp\.weights_in\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
            (_LAYER + r"mlp\.weights_out\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        ),
        r"embeddings\.mask_token|pooler\..*",
        folds_class_position=True,
    ),
    "vit": KeyMap(
        (
            *_EMBEDDINGS,
            *_ATTENTION,
            (_LAYER + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
            (_LAYER + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
            (_LAYER + r"intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
            (_LAYER + r"output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        ),
        r"embeddings\.mask_token|pooler\..*",
    ),
    "native": KeyMap(_NATIVE, "mask_token", folds_class_position=True),
    "gpfm release": KeyMap(
        (
            (r"backbone\." + _TIMM_VIT[0][0], _TIMM_VIT[0][1]),
            (r"backbone\.blocks\.\d+\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)",
             r"blocks.\1.\2.\3"),
            (r"backbone\.blocks\.\d+\.(\d+)\.(ls[12]\.gamma)", r"blocks.\1.\2"),
        ),
        r"(backbone\.)?mask_token|.*dino_head.*",
    ),
    "keep": KeyMap(
        (
            (r"visual\.(.*\.ls[12])\.weight", r"\1.gamma"),
            (r"visual\.((?!.*\.ls[12]\.).*)", r"\1"),
            (r"visual_head\.(.*)", r"head.\1"),
        ),
        r"text\..*|logit_scale",
    ),
}  # fmt: skip
"""The naming of a checkpoint and its conversion. That of EfficientNet-Lite depends on the network."""

PREFIXES = ("module.", "model.", "vit.", "dinov2.", "dinov2_with_registers.")
"""Prefixes that libraries add to every name."""


@dataclass(frozen=True)
class Converted:
    """Tensors with timm's names, and the names that no rule covers."""

    tensors: dict[str, Tensor]
    not_used: tuple[str, ...] = field(default=())


def convert(naming: Naming, checkpoint: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Converted:
    """Convert the tensors of a checkpoint to timm's names.

    Args:
        naming: How the checkpoint names its tensors.
        checkpoint: The published tensors.
        expected: The tensors of the network, which may be without data.
    """
    checkpoint = _without_prefix(checkpoint)
    if naming == "efficientnet lite":
        return _converted(checkpoint, _lite_name(expected), r"_fc\..*")
    key_map = KEY_MAPS[naming]
    converted = _converted(checkpoint, lambda name: _renamed(key_map.rules, name), key_map.dropped)
    tensors = _concatenated(converted.tensors)
    if key_map.folds_class_position:
        tensors = _with_class_position_folded(tensors, expected)
    return Converted(tensors, converted.not_used)


def _without_prefix(checkpoint: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in PREFIXES:
        if checkpoint and all(name.startswith(prefix) for name in checkpoint):
            return {name.removeprefix(prefix): tensor for name, tensor in checkpoint.items()}
    return checkpoint


def _converted(
    checkpoint: Mapping[str, Tensor], rename: Callable[[str], str | None], dropped: str | None
) -> Converted:
    tensors: dict[str, Tensor] = {}
    not_used = []
    for name, tensor in checkpoint.items():
        if dropped is not None and re.fullmatch(dropped, name):
            continue
        new_name = rename(name)
        if new_name is None or new_name in tensors:
            not_used.append(name)
        else:
            tensors[new_name] = tensor
    return Converted(tensors, tuple(not_used))


def _renamed(rules: Rules, name: str) -> str | None:
    for pattern, new_name in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(new_name)
    return None


def _concatenated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join query, key and value, whose names end in `#0`, `#1` and `#2`, in this order."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        base, _, number = name.partition("#")
        if not number:
            joined[name] = tensor
        elif number == "0" and all(f"{base}#{other}" in tensors for other in "12"):
            joined[base] = torch.cat([tensors[f"{base}#{index}"] for index in range(3)])
    return joined


def _with_class_position_folded(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Add the first row of the position table to the class token if the network has registers."""
    if "reg_token" not in expected or not {"cls_token", "pos_embed"} <= set(tensors):
        return tensors
    positions = tensors["pos_embed"]
    if positions.ndim != 3 or tensors["cls_token"].shape != positions[:, :1].shape:
        return tensors
    folded = {"cls_token": tensors["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return {**tensors, **folded}


def _lite_name(expected: Collection[str]) -> Callable[[str], str | None]:
    """The names of `efficientnet_lite_pytorch`, whose blocks are numbered without stages."""
    stages = sorted(
        {tuple(map(int, name.split(".")[1:3])) for name in expected if name.startswith("blocks.")}
    )
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip

    def rename(name: str) -> str | None:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer = int(match[1]), match[2]
            names = first if number == 0 else other
            if number >= len(stages) or layer not in names:
                return None
            stage, block = stages[number]
            return f"blocks.{stage}.{block}.{names[layer]}.{match[3]}"
        layer, _, kind = name.partition(".")
        return f"{stem[layer]}.{kind}" if layer in stem else None

    return rename
