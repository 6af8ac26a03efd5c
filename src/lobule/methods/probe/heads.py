"""The heads: each is fitted to rows of tokens, stored as tensors, and scores rows on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.methods.probe.config import Config

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]

VOTE_TEMPERATURE = 0.07
"""Nearest neighbours vote with the weight exp(similarity / temperature), as in DINO (arXiv 2104.14294)."""
LEARNING_RATE = 0.1


class LinearHead(nn.Module):
    """Logistic regression. The standardisation of the tokens is part of its weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, rows: Tensor) -> Tensor:
        return torch.sigmoid(rows @ self.weight + self.bias)


class NeighbourHead(nn.Module):
    """The share of tumour among the most similar tokens of a bank, by cosine of standardised tokens."""

    mean: Tensor
    spread: Tensor
    bank: Tensor
    labels: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, bank: Tensor, labels: Tensor, neighbours: int) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("spread", spread), ("bank", bank), ("labels", labels)):
            self.register_buffer(name, value.float())
        self.neighbours = min(neighbours, len(labels))

    def forward(self, rows: Tensor) -> Tensor:
        rows = nn.functional.normalize((rows - self.mean) / self.spread, dim=1)
        similarity, index = (rows @ self.bank.T).topk(self.neighbours, dim=1)
        votes = torch.exp((similarity - similarity[:, :1]) / VOTE_TEMPERATURE)
        return (votes * self.labels[index]).sum(dim=1) / votes.sum(dim=1)


class BoostedHead(nn.Module):
    """Boosted trees of equal depth; a branch that ends early has the same value in all leaves below it."""

    feature: Tensor
    threshold: Tensor
    value: Tensor

    def __init__(self, feature: Tensor, threshold: Tensor, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("feature", feature.long())
        self.register_buffer("threshold", threshold.float())
        self.register_buffer("value", value.float())
        self.depth = int(value.shape[1]).bit_length() - 1

    def forward(self, rows: Tensor) -> Tensor:
        node = torch.zeros((len(self.feature), len(rows)), dtype=torch.long, device=rows.device)
        columns = torch.arange(len(rows), device=rows.device)
        for _ in range(self.depth):
            goes_right = rows[columns, self.feature.gather(1, node)] > self.threshold.gather(1, node)
            node = 2 * node + 1 + goes_right.long()
        leaf = node - (self.value.shape[1] - 1)
        return torch.sigmoid(self.value.gather(1, leaf).sum(dim=0))


def fit_head(config: Config, rows: Rows, labels: Labels, seed: int) -> nn.Module:
    """Fit the head of the settings to tokens (n, d) and their classes."""
    fits = {"linear": _fit_linear, "knn": _fit_neighbours, "boosted": _fit_boosted}
    return fits[config.head](config, rows, labels, seed).eval()


def load_head(config: Config, tensors: Mapping[str, Tensor], width: int) -> nn.Module:
    """Restore a head from the tensors of a bundle.

    Raises:
        ModelError: The tensors do not fit the head or the tokens.
    """
    try:
        head: nn.Module
        if config.head == "linear":
            head = LinearHead(tensors["weight"], tensors["bias"])
            fits = tensors["weight"].shape == (width,) and tensors["bias"].shape == ()
        elif config.head == "knn":
            mean, spread = tensors["mean"], tensors["spread"]
            head = NeighbourHead(mean, spread, tensors["bank"], tensors["labels"], config.neighbours)
            count = len(tensors["labels"])
            fits = tensors["bank"].shape == (count, width) and tensors["mean"].shape == (width,)
            fits = fits and tensors["spread"].shape == (width,) and count > 0
        else:
            head = BoostedHead(tensors["feature"], tensors["threshold"], tensors["value"])
            fits = _trees_fit(tensors, width)
    except (KeyError, IndexError) as error:
        raise ModelError(
            f"the weights do not contain the head '{config.head}'", actual=", ".join(tensors)
        ) from error
    if not fits:
        raise ModelError(
            f"the weights of the head '{config.head}' do not fit the tokens",
            expected=f"tokens of {width} numbers",
            actual=", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()),
        )
    return head.eval()


def _trees_fit(tensors: Mapping[str, Tensor], width: int) -> bool:
    feature, threshold, value = (tensors[name] for name in ("feature", "threshold", "value"))
    leaves = value.shape[1]
    inside = bool(((feature >= 0) & (feature < width)).all())
    is_power_of_two = leaves >= 2 and not leaves & (leaves - 1)
    same = feature.shape == threshold.shape == (len(value), leaves - 1)
    return inside and is_power_of_two and same and len(value) > 0


def _moments(rows: Rows) -> tuple[Rows, Rows]:
    return rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6).astype(np.float32)


def _fit_linear(config: Config, rows: Rows, labels: Labels, seed: int) -> nn.Module:
    from sklearn.linear_model import LogisticRegression

    mean, spread = _moments(rows)
    strength = 1 / max(config.penalty, 1e-9)
    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit((rows - mean) / spread, labels)
    weight = model.coef_[0] / spread
    bias = float(model.intercept_[0] - weight @ mean)
    return LinearHead(torch.from_numpy(np.asarray(weight, np.float32)), torch.tensor(bias))


def _fit_neighbours(config: Config, rows: Rows, labels: Labels, seed: int) -> nn.Module:
    mean, spread = _moments(rows)
    rng = np.random.default_rng([seed, 0xB4])
    chosen = []
    for label in (0, 1):
        of_class = np.flatnonzero(labels == label)
        chosen.append(np.sort(rng.permutation(of_class)[: config.bank // 2]))
    index = np.concatenate(chosen)
    bank = torch.from_numpy((rows[index] - mean) / spread)
    tensors = (torch.from_numpy(mean), torch.from_numpy(spread), nn.functional.normalize(bank, dim=1))
    return NeighbourHead(*tensors, torch.from_numpy(labels[index]), config.neighbours)


def _fit_boosted(config: Config, rows: Rows, labels: Labels, seed: int) -> nn.Module:
    import lightgbm

    parameters = {
        "objective": "binary", "learning_rate": LEARNING_RATE, "max_depth": config.depth,
        "num_leaves": 1 << config.depth, "seed": seed, "num_threads": 1, "deterministic": True,
        "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    data = lightgbm.Dataset(rows, labels, params={"num_threads": 1, "verbosity": -1})
    model = lightgbm.train(parameters, data, config.trees)
    trees = [tree["tree_structure"] for tree in model.dump_model()["tree_info"]]
    return BoostedHead(*complete_trees(trees, config.depth))


def complete_trees(trees: list[dict[str, Any]], depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Trees of LightGBM as arrays of complete trees: features, thresholds and values of the leaves."""
    inner, leaves = (1 << depth) - 1, 1 << depth
    feature = np.zeros((len(trees), inner), np.int64)
    threshold = np.full((len(trees), inner), np.inf, np.float32)
    value = np.zeros((len(trees), leaves), np.float32)

    def fill(tree: int, node: int, structure: Mapping[str, Any]) -> None:
        if node >= inner:
            value[tree, node - inner] = structure["leaf_value"]
            return
        if "split_feature" in structure:
            feature[tree, node] = structure["split_feature"]
            threshold[tree, node] = _not_above(float(structure["threshold"]))
            below = structure["left_child"], structure["right_child"]
        else:
            below = structure, structure
        fill(tree, 2 * node + 1, below[0])
        fill(tree, 2 * node + 2, below[1])

    for number, structure in enumerate(trees):
        fill(number, 0, structure)
    return torch.from_numpy(feature), torch.from_numpy(threshold), torch.from_numpy(value)


def _not_above(threshold: float) -> np.float32:
    """The largest float32 that is not above a threshold, so that float32 values compare as in LightGBM."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))
