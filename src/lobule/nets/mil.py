"""Slide classifiers over bags of tile features, all under one interface.

`forward(features (B, N, d), mask (B, N) or None)` with mask True for padding returns a dictionary:
`logit` (B,), NaN for a bag without a tile; `tile_scores` (B, N), 0 at padding; `tissue` (B,), False for
such a bag; and whatever else a model has to show. Scores are computed in float32 at least, also under
autocast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lobule.nets.pooling import extremes, masked_mean, masked_softmax, unless_empty, valid_tiles
from lobule.nets.transmil import TransMilBody


class BagModel(nn.Module, ABC):
    """The interface: what is common is the masking, the precision and the shape of the answer."""

    def forward(self, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        valid = valid_tiles(features, mask)
        # padding may hold anything, NaN included, and must not reach a gradient
        features = features.where(valid[..., None], features.new_zeros(()))
        with torch.autocast(features.device.type, enabled=False):
            out = self.of_bags(features, valid)
        out["logit"] = unless_empty(out["logit"], valid)
        out["tile_scores"] = out["tile_scores"] * valid
        out["tissue"] = valid.any(dim=1)
        return out

    @abstractmethod
    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """`logit` and `tile_scores`, from features whose padding is zero."""

    def penalty(self) -> Tensor:
        """The squared norm of what scores a tile; CHOWDER adds 0.5 of it to its loss. Biases are left out."""
        return sum((w.square().sum() for w in self.tile_weights()), start=torch.zeros(()))

    def tile_weights(self) -> Sequence[Tensor]:
        return ()


def sigmoid_mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with a sigmoid (and dropout) after each but the last, whose single output is bare."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.Sigmoid()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Chowder(BagModel):
    """CHOWDER: a shared tile scorer, the R highest and R lowest scores, and an MLP over them.

    The defaults are the published form (linear scorer, head 200-100, dropout); `chowder_modern` the later
    one.
    """

    def __init__(
        self,
        dim: int,
        r: int = 5,
        *,
        tile_hidden: Sequence[int] = (),
        head_hidden: Sequence[int] = (200, 100),
        dropout: float = 0.5,
        bottom: Literal["minimum first", "descending"] = "minimum first",
    ) -> None:
        super().__init__()
        self.r = r
        self.bottom = bottom
        self.scorer = sigmoid_mlp([dim, *tile_hidden, 1])
        self.head = sigmoid_mlp([2 * r, *head_hidden, 1], dropout)

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        scores = self.scorer(features)[..., 0]
        ends = extremes(scores, valid, self.r)
        # foreign weights may expect the bottom of one descending sort: its minimum last
        bottom = ends.bottom if self.bottom == "minimum first" else ends.bottom.flip(1)
        z = torch.cat([ends.top, bottom], dim=1)
        return {
            "logit": self.head(z)[:, 0],
            "tile_scores": scores,
            "z": z,
            "top_index": ends.top_index,
            "bottom_index": ends.bottom_index,
        }

    def tile_weights(self) -> Sequence[Tensor]:
        return [layer.weight for layer in self.scorer if isinstance(layer, nn.Linear)]


def chowder_modern(dim: int, r: int = 10) -> Chowder:
    """The later form: scorer d-128-1, ten of each end, head 128-64, no dropout; Xavier weights."""
    model = Chowder(dim, r, tile_hidden=(128,), head_hidden=(128, 64), dropout=0.0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


class Weldon(BagModel):
    """The mean (or the sum, as first published) of the R highest plus that of the R lowest linear scores.

    The slots that a bag of fewer than R tiles leaves empty count as zeros, so the sum is R times the mean.
    """

    def __init__(self, dim: int, r: int = 10, *, form: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.r = r
        self.form = form
        self.scorer = nn.Linear(dim, 1)

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        scores = self.scorer(features)[..., 0]
        ends = extremes(scores, valid, self.r)
        total = ends.top.sum(dim=1) + ends.bottom.sum(dim=1)
        return {
            "logit": total / self.r if self.form == "mean" else total,
            "tile_scores": scores,
            "top_index": ends.top_index,
            "bottom_index": ends.bottom_index,
        }

    def tile_weights(self) -> Sequence[Tensor]:
        return [self.scorer.weight]


class MeanPool(BagModel):
    """A linear unit of the mean feature; tile scores are the unit of each tile, and average to the logit."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scorer = nn.Linear(dim, 1)

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        pooled = masked_mean(features, valid)
        return {
            "logit": self.scorer(pooled)[:, 0],
            "tile_scores": self.scorer(features)[..., 0],
            "pooled": pooled,
        }

    def tile_weights(self) -> Sequence[Tensor]:
        return [self.scorer.weight]


class MaxPool(BagModel):
    """The highest linear score."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scorer = nn.Linear(dim, 1)

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        scores = self.scorer(features)[..., 0]
        ends = extremes(scores, valid, 1)
        return {"logit": ends.top[:, 0], "tile_scores": scores, "top_index": ends.top_index}

    def tile_weights(self) -> Sequence[Tensor]:
        return [self.scorer.weight]


class GatedAttention(BagModel):
    """Gated attention (ABMIL: Ilse, Tomczak and Welling, ICML 2018); a tile's score is its attention."""

    def __init__(self, dim: int, *, embed: int = 512, attention: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, embed), nn.ReLU(), nn.Dropout(dropout))
        self.content = nn.Linear(embed, attention)
        self.gate = nn.Linear(embed, attention)
        self.attention = nn.Linear(attention, 1)
        self.head = nn.Linear(embed, 1)

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        embedded = self.embed(features)
        gated = torch.tanh(self.content(embedded)) * torch.sigmoid(self.gate(embedded))
        attention = masked_softmax(self.attention(gated)[..., 0], valid)
        pooled = torch.einsum("bn,bnd->bd", attention, embedded)
        return {"logit": self.head(pooled)[:, 0], "tile_scores": attention, "pooled": pooled}


class TransMil(BagModel):
    """TransMIL (Shao et al., NeurIPS 2021); a tile's score is the attention that the class token pays it.

    Each bag goes through by itself, without its padding: the tiles are laid out as a square, and a padded bag
    would make another square.
    """

    def __init__(self, dim: int, *, embed: int = 512, heads: int = 8, landmarks: int = 256) -> None:
        super().__init__()
        self.body = TransMilBody(dim, embed, heads, landmarks)
        self.head = nn.Linear(embed, 1)

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        logits = features.new_zeros(len(features))
        tile_scores = features.new_zeros(valid.shape)
        for row, (bag, real) in enumerate(zip(features, valid, strict=True)):
            if real.any():
                token, attention = self.body(bag[real])
                logits = logits.index_put((torch.tensor([row], device=bag.device),), self.head(token))
                tile_scores[row, real] = attention.detach()
        return {"logit": logits, "tile_scores": tile_scores}


BAG_MODELS: dict[str, Callable[..., BagModel]] = {
    "chowder": Chowder,
    "chowder_modern": chowder_modern,
    "weldon": Weldon,
    "mean_pool": MeanPool,
    "max_pool": MaxPool,
    "abmil": GatedAttention,
    "transmil": TransMil,
}
"""Each builder takes the feature length first, then its own options by name."""
