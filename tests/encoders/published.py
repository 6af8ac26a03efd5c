"""Small checkpoints with the tensor names of published ones, and the features that they should give.

Names, order and shapes are written from the descriptions of the published networks, and the forward pass is
written here in plain tensor operations, so neither depends on the key maps or on timm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lobule.encoders import ENCODERS, EncoderEntry

SMALL_WIDTH = {384: 24, 768: 48, 1024: 64, 1280: 80, 1536: 96}
SMALL_DEPTH = {12: 2, 24: 3, 32: 4, 40: 5}
HEADS = 4


@dataclass(frozen=True)
class Layout:
    """A transformer as its publication describes it."""

    naming: str
    width: int
    depth: int
    patch: int
    registers: int = 0
    swiglu: bool = False
    layer_scale: bool = True
    table: str = "class and patches"
    """Rows of the position table: "class and patches", "patches" or "all"."""
    grid: int = 16
    """Rows and columns of the position table."""
    antialias: bool | None = None
    """How the table is resampled to 224 px; None if it is not."""
    with_mean: bool = False
    head: tuple[int, ...] = ()

    @property
    def hidden(self) -> int:
        return (int(4 * self.width * 2 / 3) + 7) // 8 * 8 if self.swiglu else 4 * self.width

    @property
    def out(self) -> int:
        return self.head[-1] if self.head else self.width * (2 if self.with_mean else 1)


def layout(naming: str, width: int, depth: int, patch: int, registers: int = 0, **arguments: Any) -> Layout:
    arguments.setdefault("grid", 224 // patch)
    return Layout(naming, SMALL_WIDTH[width], SMALL_DEPTH[depth], patch, registers, **arguments)


PATCHES = {"table": "patches"}
LAYOUTS = {
    "uni": layout("timm", 1024, 24, 16),
    "uni2-h": layout("timm", 1536, 24, 14, 8, swiglu=True, **PATCHES),
    "virchow": layout("timm", 1280, 32, 14, swiglu=True, with_mean=True),
    "virchow2": layout("timm", 1280, 32, 14, 4, swiglu=True, with_mean=True, table="all"),
    "h-optimus-0": layout("timm", 1536, 40, 14, 4, swiglu=True, **PATCHES),
    "h-optimus-1": layout("timm", 1536, 40, 14, 4, swiglu=True, **PATCHES),
    "h0-mini": layout("timm", 768, 12, 14, 4, swiglu=True, with_mean=True, **PATCHES),
    "prov-gigapath": layout("timm", 1536, 40, 16, swiglu=True),
    "gigapath-flash": layout("timm", 384, 12, 16, swiglu=True),
    "phikon": layout("vit", 768, 12, 16, layer_scale=False),
    "phikon-v2": layout("dinov2", 1024, 24, 16),
    "midnight-12k": layout(
        "dinov2", 1536, 40, 14, swiglu=True, with_mean=True, grid=37, antialias=False
    ),
    "openmidnight": layout("native", 1536, 40, 14, 4, swiglu=True),
    "hibou-b": layout("dinov2", 768, 12, 14, 4, swiglu=True),
    "hibou-l": layout("dinov2", 1024, 24, 14, 4, swiglu=True),
    "kaiko-vits16": layout("timm", 384, 12, 16, layer_scale=False),
    "kaiko-vits8": layout("timm", 384, 12, 8, layer_scale=False),
    "kaiko-vitb16": layout("timm", 768, 12, 16, layer_scale=False),
    "kaiko-vitb8": layout("timm", 768, 12, 8, layer_scale=False),
    "kaiko-vitl14": layout("native", 1024, 24, 14, 4, grid=37, antialias=True),
    "lunit-vits16": layout("timm", 384, 12, 16, layer_scale=False),
    "lunit-vits8": layout("timm", 384, 12, 8, layer_scale=False),
    "gpfm": layout("native", 1024, 24, 14),
    "keep": layout("keep", 1024, 24, 16, head=(40, 40)),
}  # fmt: skip
"""Every transformer of the table. Widths and depths are reduced, in the order of the published ones."""


def small_entry(name: str) -> EncoderEntry:
    """The entry of an encoder with a network of the reduced size."""
    entry, reduced = ENCODERS[name], LAYOUTS[name]
    sizes = {"embed_dim": reduced.width, "depth": reduced.depth, "num_heads": HEADS}
    ratio = reduced.hidden * (2 if reduced.swiglu else 1) / reduced.width
    arguments = {**entry.network.arguments, **sizes, "mlp_ratio": ratio + 1e-9}
    network = replace(entry.network, arguments=arguments, head=reduced.head)
    return replace(entry, network=network, width=reduced.out)


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a transformer by meaning."""

    layout: Layout
    cls: Tensor
    positions: Tensor
    registers: Tensor
    patch: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]
    blocks: list[dict[str, tuple[Tensor, Tensor]]]
    scales: list[tuple[Tensor, Tensor]]
    head: list[tuple[Tensor, Tensor]]


def random_weights(of: Layout, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    def layer(out: int, into: int) -> tuple[Tensor, Tensor]:
        return values(out, into), values(out)

    def norm() -> tuple[Tensor, Tensor]:
        return 1 + values(of.width), values(of.width)

    rows = {"patches": 0, "class and patches": 1, "all": 1 + of.registers}[of.table] + of.grid**2
    d, hidden = of.width, of.hidden
    blocks = [
        {
            "norm1": norm(), "query": layer(d, d), "key": layer(d, d), "value": layer(d, d),
            "proj": layer(d, d), "norm2": norm(),
            "fc1": layer(2 * hidden if of.swiglu else hidden, d), "fc2": layer(d, hidden),
        }
        for _ in range(of.depth)
    ]  # fmt: skip
    widths = (d, *of.head)
    return Weights(
        of,
        values(1, 1, d),
        values(1, rows, d),
        values(1, of.registers, d),
        (values(d, 3, of.patch, of.patch), values(d)),
        norm(),
        blocks,
        [(values(d), values(d)) for _ in range(of.depth)],
        [layer(out, into) for into, out in zip(widths, of.head, strict=False)],
    )


# -- the published names ------------------------------------------------------------------------------------


def checkpoint(weights: Weights) -> dict[str, Any]:
    """The tensors by the names of the publication, with those that the encoder does not use."""
    return NAMINGS[weights.layout.naming](weights)


def _both(name: str, layer: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.weight": layer[0], f"{name}.bias": layer[1]}


def _timm(weights: Weights, prefix: str = "") -> dict[str, Any]:
    of = weights.layout
    tensors = {"cls_token": weights.cls, "pos_embed": weights.positions}
    if of.registers:
        tensors["reg_token"] = weights.registers
    tensors |= _both("patch_embed.proj", weights.patch) | _both("norm", weights.norm)
    for number, block in enumerate(weights.blocks):
        base = f"blocks.{number}."
        for name, published in (("norm1", "norm1"), ("norm2", "norm2"), ("proj", "attn.proj")):
            tensors |= _both(base + published, block[name])
        tensors |= _both(base + "attn.qkv", _stacked(block))
        tensors |= _both(base + "mlp.fc1", block["fc1"]) | _both(base + "mlp.fc2", block["fc2"])
        if of.layer_scale:
            first, second = weights.scales[number]
            tensors |= {base + "ls1.gamma": first, base + "ls2.gamma": second}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _stacked(block: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    names = ("query", "key", "value")
    return torch.cat([block[name][0] for name in names]), torch.cat([block[name][1] for name in names])


def _native(weights: Weights) -> dict[str, Any]:
    tensors = {"mask_token": torch.zeros(1, weights.layout.width)}
    for name, tensor in _timm(weights).items():
        published = name.replace("reg_token", "register_tokens")
        if weights.layout.swiglu:
            published = published.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        tensors[published] = tensor
    return tensors


def gpfm_release(weights: Weights) -> dict[str, Any]:
    """The file of GPFM's release: blocks in chunks, under `teacher`, with a head."""
    teacher = {"backbone.mask_token": torch.zeros(1, 4), "dino_head.mlp.0.weight": torch.zeros(2, 2)}
    for name, tensor in _timm(weights).items():
        teacher["backbone." + name.replace("blocks.", "blocks.0.")] = tensor
    return {"teacher": teacher}


def _transformers(weights: Weights, of_block: Callable[[int], dict[str, Tensor]]) -> dict[str, Any]:
    tensors = {
        "embeddings.cls_token": weights.cls,
        "embeddings.mask_token": torch.zeros(1, weights.layout.width),
        "embeddings.position_embeddings": weights.positions,
    }
    if weights.layout.registers:
        tensors["embeddings.register_tokens"] = weights.registers
    tensors |= _both("embeddings.patch_embeddings.projection", weights.patch)
    tensors |= _both("layernorm", weights.norm)
    for number, block in enumerate(weights.blocks):
        base = f"encoder.layer.{number}."
        for name in ("query", "key", "value"):
            tensors |= _both(f"{base}attention.attention.{name}", block[name])
        tensors |= _both(f"{base}attention.output.dense", block["proj"])
        tensors |= {base + name: tensor for name, tensor in of_block(number).items()}
    return tensors


def _dinov2(weights: Weights) -> dict[str, Any]:
    names = ("weights_in", "weights_out") if weights.layout.swiglu else ("fc1", "fc2")

    def of_block(number: int) -> dict[str, Tensor]:
        block = weights.blocks[number]
        tensors = _both("norm1", block["norm1"]) | _both("norm2", block["norm2"])
        tensors |= _both(f"mlp.{names[0]}", block["fc1"]) | _both(f"mlp.{names[1]}", block["fc2"])
        first, second = weights.scales[number]
        return tensors | {"layer_scale1.lambda1": first, "layer_scale2.lambda1": second}

    return _transformers(weights, of_block)


def _vit(weights: Weights) -> dict[str, Any]:
    def of_block(number: int) -> dict[str, Tensor]:
        block = weights.blocks[number]
        return (
            _both("layernorm_before", block["norm1"])
            | _both("layernorm_after", block["norm2"])
            | _both("intermediate.dense", block["fc1"])
            | _both("output.dense", block["fc2"])
        )

    width = weights.layout.width
    pooler = _both("pooler.dense", (torch.zeros(width, width), torch.zeros(width)))
    return {**_transformers(weights, of_block), **pooler}


def _keep(weights: Weights) -> dict[str, Any]:
    tensors = {
        name.replace("ls1.gamma", "ls1.weight").replace("ls2.gamma", "ls2.weight"): tensor
        for name, tensor in _timm(weights, "visual.").items()
    }
    tensors |= _both("visual_head.0", weights.head[0]) | _both("visual_head.2", weights.head[1])
    return {
        **tensors,
        "text.embeddings.word_embeddings.weight": torch.zeros(3, 2),
        "logit_scale": torch.ones([]),
    }


NAMINGS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "timm": _timm, "native": _native, "dinov2": _dinov2, "vit": _vit, "keep": _keep,
}  # fmt: skip


# -- the published computation ------------------------------------------------------------------------------


def features(weights: Weights, images: Tensor) -> Tensor:
    """The features of scaled images (N, 3, 224, 224), from the description of the network."""
    tokens = all_tokens(weights, images)
    pooled = tokens[:, 0]
    if weights.layout.with_mean:
        pooled = torch.cat([pooled, tokens[:, 1 + weights.layout.registers :].mean(dim=1)], dim=1)
    for number, (matrix, bias) in enumerate(weights.head):
        pooled = F.gelu(pooled) if number else pooled
        pooled = pooled @ matrix.T + bias
    return pooled


def all_tokens(weights: Weights, images: Tensor) -> Tensor:
    of = weights.layout
    count = len(images)
    patches = F.conv2d(images, *weights.patch, stride=of.patch).flatten(2).transpose(1, 2)
    positions = _at_224(weights)
    cls, registers = weights.cls.expand(count, -1, -1), weights.registers.expand(count, -1, -1)
    if of.table == "patches":
        tokens = torch.cat([cls, registers, patches + positions], dim=1)
    elif of.table == "all":
        tokens = torch.cat([cls, registers, patches], dim=1) + positions
    else:
        both = torch.cat([cls, patches], dim=1) + positions
        tokens = torch.cat([both[:, :1], registers, both[:, 1:]], dim=1)
    for block, scales in zip(weights.blocks, weights.scales, strict=True):
        tokens = _block(of, block, scales, tokens)
    return F.layer_norm(tokens, (of.width,), *weights.norm, eps=1e-6)


def _at_224(weights: Weights) -> Tensor:
    of = weights.layout
    if of.antialias is None:
        return weights.positions
    prefix, patches = weights.positions[:, :1], weights.positions[:, 1:]
    maps = patches.transpose(1, 2).reshape(1, of.width, of.grid, of.grid)
    side = 224 // of.patch
    maps = F.interpolate(maps, (side, side), mode="bicubic", align_corners=False, antialias=of.antialias)
    return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)


def _block(
    of: Layout, block: dict[str, tuple[Tensor, Tensor]], scales: tuple[Tensor, Tensor], tokens: Tensor
) -> Tensor:
    first, second = scales if of.layer_scale else (torch.ones(of.width), torch.ones(of.width))
    normed = F.layer_norm(tokens, (of.width,), *block["norm1"], eps=1e-6)
    query, key, value = (
        (normed @ block[name][0].T + block[name][1]).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for name in ("query", "key", "value")
    )
    attention = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = (attention @ value).transpose(1, 2).flatten(2)
    tokens = tokens + first * (mixed @ block["proj"][0].T + block["proj"][1])
    normed = F.layer_norm(tokens, (of.width,), *block["norm2"], eps=1e-6)
    hidden = normed @ block["fc1"][0].T + block["fc1"][1]
    if of.swiglu:
        gate, other = hidden.chunk(2, dim=-1)
        hidden = gate * gate.sigmoid() * other
    else:
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return tokens + second * (hidden @ block["fc2"][0].T + block["fc2"][1])
