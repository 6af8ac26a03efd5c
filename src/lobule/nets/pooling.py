"""Selection of the highest and lowest scores of padded bags, by stated rules for small bags and ties."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_TILE = -1
"""The index of a slot that no tile fills."""


@dataclass(frozen=True)
class Extremes:
    """The R highest and R lowest scores of each bag.

    A bag of n < R tiles fills n slots and leaves zeros, which carry no gradient, in the rest; one of R ≤ n
    < 2R has tiles in both groups. Of equal scores the lower tile index comes first.
    """

    top: Tensor
    """(B, R), highest first."""
    bottom: Tensor
    """(B, R), lowest first."""
    top_index: Tensor
    """(B, R) indices of the tiles in the bag; NO_TILE for empty slots."""
    bottom_index: Tensor


def valid_tiles(features: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N) bool, True where a tile is real. `mask` is True for padding."""
    if mask is None:
        return torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    return ~mask.bool()


def extremes(scores: Tensor, valid: Tensor, r: int) -> Extremes:
    """`scores` and `valid` are (B, N); padding never competes."""
    top, top_index = _first(scores, valid, r, descending=True)
    bottom, bottom_index = _first(scores, valid, r, descending=False)
    return Extremes(top, bottom, top_index, bottom_index)


def _first(scores: Tensor, valid: Tensor, r: int, *, descending: bool) -> tuple[Tensor, Tensor]:
    loser = float("-inf") if descending else float("inf")
    # torch.topk does not define the order of ties; a stable sort does
    order = scores.detach().masked_fill(~valid, loser).sort(dim=1, descending=descending, stable=True).indices
    order = order[:, :r]
    order = torch.nn.functional.pad(order, (0, r - order.shape[1]))
    filled = torch.arange(r, device=scores.device) < valid.sum(dim=1, keepdim=True)
    if scores.shape[1] == 0:
        return scores.new_zeros(scores.shape[0], r), torch.full_like(order, NO_TILE)
    values = scores.gather(1, order).where(filled, scores.new_zeros(()))
    return values, order.where(filled, torch.full_like(order, NO_TILE))


def masked_mean(features: Tensor, valid: Tensor) -> Tensor:
    """(B, N, d) to (B, d), over the real tiles only; zeros for an empty bag."""
    real_features = features.where(valid[..., None], features.new_zeros(()))
    return real_features.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)


def masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Weights (B, N) that sum to 1 over the real tiles; all zero for an empty bag."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~valid, lowest).softmax(dim=1) * valid


def unless_empty(logit: Tensor, valid: Tensor) -> Tensor:
    """NaN for bags without a tile, because without tissue there is no prediction."""
    return logit.where(valid.any(dim=1), logit.new_full((), float("nan")))
