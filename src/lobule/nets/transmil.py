"""The body of TransMIL (Shao et al., NeurIPS 2021), written from the paper: Nyström attention and PPEG.

A bag becomes a square sequence with a class token before it; two layers of Nyström attention (Xiong et
al., AAAI 2021) with a pyramid position encoding between them; the class token comes out.
"""

from __future__ import annotations

from math import ceil, sqrt

import torch
from torch import Tensor, nn

PSEUDO_INVERSE_STEPS = 6
RESIDUAL_KERNEL = 33
PYRAMID_KERNELS = (7, 5, 3)


def pseudo_inverse(matrix: Tensor, steps: int = PSEUDO_INVERSE_STEPS) -> Tensor:
    """Moore-Penrose inverses of (..., m, m) by the third-order iteration of Nyströmformer: products only."""
    absolute = matrix.abs()
    largest = absolute.sum(dim=-1).amax(dim=-1) * absolute.sum(dim=-2).amax(dim=-1)
    inverse = matrix.transpose(-1, -2) / largest[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(steps):
        product = matrix @ inverse
        inner = 7 * identity - product
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ inner))
    return inverse


def segment_means(sequence: Tensor, segments: int) -> Tensor:
    """(heads, n, d) to (heads, segments, d): means of runs of neighbours as even as n allows."""
    heads, n, d = sequence.shape
    segment_of = torch.arange(n, device=sequence.device) * segments // n
    sums = sequence.new_zeros(heads, segments, d).index_add(1, segment_of, sequence)
    return sums / torch.bincount(segment_of, minlength=segments)[:, None]


class NystromAttention(nn.Module):
    """Self-attention over n tokens through m landmarks, in time and memory n·m; exact where n ≤ m."""

    def __init__(self, dim: int, heads: int, landmarks: int) -> None:
        super().__init__()
        self.heads = heads
        self.landmarks = landmarks
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        kernel = RESIDUAL_KERNEL
        self.value_residual = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) to (n, dim), and the attention (n,) that token 0 pays to each, averaged over the heads."""
        n, dim = tokens.shape
        q, k, v = self.to_qkv(tokens).view(n, 3, self.heads, dim // self.heads).permute(1, 2, 0, 3)
        q = q * (dim // self.heads) ** -0.5
        if n <= self.landmarks:
            attention = (q @ k.transpose(1, 2)).softmax(dim=-1)
            mixed, first = attention @ v, attention[:, 0]
        else:
            q_marks, k_marks = segment_means(q, self.landmarks), segment_means(k, self.landmarks)
            to_marks = (q @ k_marks.transpose(1, 2)).softmax(dim=-1)
            between = pseudo_inverse((q_marks @ k_marks.transpose(1, 2)).softmax(dim=-1))
            from_marks = (q_marks @ k.transpose(1, 2)).softmax(dim=-1)
            mixed = (to_marks @ between) @ (from_marks @ v)
            first = ((to_marks[:, :1] @ between) @ from_marks)[:, 0]
        merged = mixed.permute(1, 0, 2).reshape(n, dim)
        values = v.permute(0, 2, 1).reshape(1, dim, n)
        merged = merged + self.value_residual(values)[0].T
        return self.to_out(merged), first.mean(dim=0)


class PyramidPositionEncoding(nn.Module):
    """PPEG: the tiles as a square image, plus its depth-wise convolutions of three sizes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) for kernel in PYRAMID_KERNELS
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(1 + side², dim); the class token is unchanged."""
        token, tiles = tokens[:1], tokens[1:]
        side = round(sqrt(len(tiles)))
        image = tiles.T.reshape(1, -1, side, side)
        encoded = image + sum(convolution(image) for convolution in self.convolutions)
        return torch.cat([token, encoded.reshape(tokens.shape[1], -1).T])


class TransMilBody(nn.Module):
    """One bag (n, d), n ≥ 1, to its class token (embed,) and the attention (n,) paid to its tiles."""

    def __init__(self, dim: int, embed: int, heads: int, landmarks: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, embed), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, embed) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(embed) for _ in range(3))
        self.attentions = nn.ModuleList(NystromAttention(embed, heads, landmarks) for _ in range(2))
        self.positions = PyramidPositionEncoding(embed)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        n = len(bag)
        tiles = self.embed(bag)
        repeated = ceil(sqrt(n)) ** 2 - n
        tokens = torch.cat([self.class_token, tiles, tiles[:repeated]])
        mixed, _ = self.attentions[0](self.norms[0](tokens))
        tokens = self.positions(tokens + mixed)
        mixed, attention = self.attentions[1](self.norms[1](tokens))
        token = self.norms[2](tokens + mixed)[0]
        per_tile = attention[1 : n + 1].clone()
        per_tile[:repeated] += attention[n + 1 :]
        return token, per_tile
