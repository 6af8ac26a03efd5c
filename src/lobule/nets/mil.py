"""Slide classifiers over bags of tile features, all under one interface.

`forward(features (B, N, d), mask (B, N) or None)` with mask True for padding returns a dictionary:
`logit` (B,), NaN for a bag without a tile; `tile_scores` (B, N), 0 at padding; `evidence` (B, N), what of a
tile can be compared between bags; `tissue` (B,), False for such a bag; and whatever else a model has to
show. Scores are computed in float32 at least, also under autocast.

A bag that is too large to hold goes through in pieces: `of_tiles` of each piece, then `of_outputs` of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lobule.nets.pooling import extremes, masked_mean, masked_softmax, unless_empty, valid_tiles
from lobule.nets.transmil import TransMilBody


class BagModel(nn.Module, ABC):
    """The interface of all bag models, with the shared masking and precision."""

    in_pieces = True
    """Whether `of_tiles` reduces each tile to a few numbers; otherwise it returns the features."""

    def forward(self, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        valid = valid_tiles(features, mask)
        # padding may contain anything, even NaN, and must not reach a gradient
        features = features.where(valid[..., None], features.new_zeros(()))
        with torch.autocast(features.device.type, enabled=False):
            return self._finished(self.of_bags(features, valid), valid)

    def of_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """The result of `forward` for one bag (1, n, d), computed from the outputs (n, k) of `of_tiles`."""
        valid = torch.ones((1, len(outputs)), dtype=torch.bool, device=outputs.device)
        return self._finished(self.of_bag(outputs[None], valid), valid)

    def _finished(self, out: dict[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
        out["logit"] = unless_empty(out["logit"], valid)
        out["tile_scores"] = out["tile_scores"] * valid
        out["evidence"] = out.get("evidence", out["tile_scores"]) * valid
        out["tissue"] = valid.any(dim=1)
        return out

    def of_bags(self, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """`logit` and `tile_scores`, from features whose padding is zero."""
        return self.of_bag(self.of_tiles(features), valid)

    def of_tiles(self, features: Tensor) -> Tensor:
        """(…, d) to (…, k): everything that the bag needs from each tile; the scores by default."""
        scores: Tensor = self.get_submodule("scorer")(features)
        return scores

    @abstractmethod
    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """`logit` and `tile_scores` from (B, N, k)."""

    def penalty(self) -> Tensor:
        """The squared norm of the tile scorer without biases; CHOWDER adds half of it to its loss."""
        return sum((w.square().sum() for w in self.tile_weights()), start=torch.zeros(()))

    def tile_weights(self) -> Sequence[Tensor]:
        """The weights of the linear layers of the tile scorer, if the model has one."""
        layers = self.get_submodule("scorer").modules() if "scorer" in self._modules else ()
        return [layer.weight for layer in layers if isinstance(layer, nn.Linear)]


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

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        scores = outputs[..., 0]
        ends = extremes(scores, valid, self.r)
        # converted weights may expect descending order, with the minimum last
        bottom = ends.bottom if self.bottom == "minimum first" else ends.bottom.flip(1)
        z = torch.cat([ends.top, bottom], dim=1)
        return {
            "logit": self.head(z)[:, 0],
            "tile_scores": scores,
            "z": z,
            "top_index": ends.top_index,
            "bottom_index": ends.bottom_index,
        }


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

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        scores = outputs[..., 0]
        ends = extremes(scores, valid, self.r)
        total = ends.top.sum(dim=1) + ends.bottom.sum(dim=1)
        return {
            "logit": total / self.r if self.form == "mean" else total,
            "tile_scores": scores,
            "top_index": ends.top_index,
            "bottom_index": ends.bottom_index,
        }


class MeanPool(BagModel):
    """A linear unit of the mean feature. Tile scores are the unit of each tile; their mean is the logit."""

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

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        # the unit is linear: the mean of its scores is its score of the mean
        return {"logit": masked_mean(outputs, valid)[:, 0], "tile_scores": outputs[..., 0]}


class MaxPool(BagModel):
    """The highest linear score of a tile."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scorer = nn.Linear(dim, 1)

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        scores = outputs[..., 0]
        ends = extremes(scores, valid, 1)
        return {"logit": ends.top[:, 0], "tile_scores": scores, "top_index": ends.top_index}


class MaxFeatures(BagModel):
    """A linear unit of the element-wise maximum of the features.

    A tile's score is its share of the logit: the weighted features in which it is the first maximum. Most
    tiles have no share, so the map shows the logit of a bag that contains only this tile. A bag cannot be
    divided, because a maximum is taken of each feature.
    """

    in_pieces = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scorer = nn.Linear(dim, 1)

    def of_tiles(self, features: Tensor) -> Tensor:
        return features

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        if outputs.shape[1] == 0:
            scores = outputs.new_zeros(valid.shape)
            return {"logit": outputs.new_zeros(len(outputs)), "tile_scores": scores, "evidence": scores}
        lowest = torch.finfo(outputs.dtype).min
        pooled, tile_of_feature = outputs.masked_fill(~valid[..., None], lowest).max(dim=1)
        pooled = pooled.where(valid.any(dim=1, keepdim=True), pooled.new_zeros(()))
        shares = (pooled * self.scorer.weight[0]).detach()
        tile_scores = outputs.new_zeros(valid.shape).scatter_add(1, tile_of_feature, shares)
        evidence = self.scorer(outputs)[..., 0]
        logit = self.scorer(pooled)[:, 0]
        return {"logit": logit, "tile_scores": tile_scores, "evidence": evidence, "pooled": pooled}


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
        raw = self._raw(embedded)
        attention = masked_softmax(raw, valid)
        pooled = torch.einsum("bn,bnd->bd", attention, embedded)
        logit = self.head(pooled)[:, 0]
        return {"logit": logit, "tile_scores": attention, "evidence": raw, "pooled": pooled}

    def of_tiles(self, features: Tensor) -> Tensor:
        """The raw attention of each tile, and the output of the head for that tile alone."""
        embedded = self.embed(features)
        return torch.stack([self._raw(embedded), self.head(embedded)[..., 0]], dim=-1)

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        raw = outputs[..., 0]
        attention = masked_softmax(raw, valid)
        # the head is linear, so the mean of its outputs is its output for the mean
        logit = (attention * outputs[..., 1]).sum(dim=1)
        return {"logit": logit, "tile_scores": attention, "evidence": raw}

    def _raw(self, embedded: Tensor) -> Tensor:
        gated = torch.tanh(self.content(embedded)) * torch.sigmoid(self.gate(embedded))
        attention: Tensor = self.attention(gated)[..., 0]
        return attention


class TransMil(BagModel):
    """TransMIL (Shao et al., NeurIPS 2021); a tile's score is the attention that the class token pays it.

    Each bag is computed alone and without padding, because the tiles form a square and a padded bag would
    form another square. A bag cannot be divided.
    """

    in_pieces = False

    def __init__(self, dim: int, *, embed: int = 512, heads: int = 8, landmarks: int = 256) -> None:
        super().__init__()
        self.body = TransMilBody(dim, embed, heads, landmarks)
        self.head = nn.Linear(embed, 1)

    def of_tiles(self, features: Tensor) -> Tensor:
        return features

    def of_bag(self, outputs: Tensor, valid: Tensor) -> dict[str, Tensor]:
        logits = outputs.new_zeros(len(outputs))
        tile_scores = outputs.new_zeros(valid.shape)
        for row, (bag, real) in enumerate(zip(outputs, valid, strict=True)):
            if real.any():
                token, attention = self.body(bag[real])
                logits = logits.index_put((torch.tensor([row], device=bag.device),), self.head(token))
                tile_scores[row, real] = attention.detach()
        # attention sums to 1; multiplied by the number of tiles, an even share is 1
        evidence = tile_scores * valid.sum(dim=1, keepdim=True)
        return {"logit": logits, "tile_scores": tile_scores, "evidence": evidence}


class Standardised(nn.Module):
    """A bag model whose features are standardised with the mean and spread of the training tiles."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: BagModel, dim: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.model(self._scaled(features), mask)
        return outputs

    def of_tiles(self, features: Tensor) -> Tensor:
        return self.model.of_tiles(self._scaled(features))

    def _scaled(self, features: Tensor) -> Tensor:
        return (features.to(self.mean.dtype) - self.mean) / self.std
