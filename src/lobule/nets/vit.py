"""Vision transformers as tile encoders: pooled features and the tokens of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VitEncoder(nn.Module):
    """A transformer of timm whose normalised tokens are pooled into one vector."""

    def __init__(self, body: nn.Module, *, with_mean: bool = False, head: Sequence[int] = ()) -> None:
        """
        Args:
            body: A transformer of timm without its classifier.
            with_mean: Append the mean of the patch tokens to the class token.
            head: Widths of linear layers after the class token, with GELU between them.
        """
        super().__init__()
        transformer: Any = body
        self.body, self.with_mean = body, with_mean
        self.prefix = int(transformer.num_prefix_tokens)
        self.grid: tuple[int, int] = tuple(transformer.patch_embed.grid_size)
        """Rows and columns of the patch tokens."""
        self.token_width = int(transformer.num_features)
        widths = [self.token_width, *head]
        self.head = nn.Sequential()
        for number, (into, out) in enumerate(zip(widths, head, strict=False)):
            if number:
                self.head.append(nn.GELU())
            self.head.append(nn.Linear(into, out))

    @property
    def dim(self) -> int:
        """Number of pooled features."""
        if len(self.head):
            return int(self.head[-1].out_features)  # type: ignore[arg-type]
        return self.token_width * (2 if self.with_mean else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled images (N, 3, H, W) to features (N, dim)."""
        return self.pooled(self.all_tokens(x))

    def all_tokens(self, x: Tensor) -> Tensor:
        """(N, T, d): the normalised tokens, with class and register tokens first."""
        body: Any = self.body
        tokens: Tensor = body.forward_features(x)
        return tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        """The features from all tokens."""
        features = tokens[:, 0]
        if self.with_mean:
            features = torch.cat([features, tokens[:, self.prefix :].mean(dim=1)], dim=1)
        pooled: Tensor = self.head(features)
        return pooled


class WithTokens(nn.Module):
    """A transformer that returns its features and the tokens of its patches."""

    def __init__(self, encoder: VitEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, dim) and patch tokens (N, rows × columns, d)."""
        tokens = self.encoder.all_tokens(x)
        return self.encoder.pooled(tokens), tokens[:, self.encoder.prefix :]


def resampled_positions(positions: Tensor, grid: int, prefix: int, *, antialias: bool) -> Tensor:
    """A position table for another square grid, by bicubic interpolation.

    Args:
        positions: (1, prefix + old grid², d).
        grid: Rows and columns of the new grid.
        prefix: Rows of the table before those of the patches, which stay unchanged.
        antialias: timm resamples with antialias, transformers without.
    """
    old = round((positions.shape[1] - prefix) ** 0.5)
    patches = positions[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False, antialias=antialias)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    return torch.cat([positions[:, :prefix].float(), patches], dim=1)
