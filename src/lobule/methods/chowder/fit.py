"""Training one bag model with Adam on sampled or whole bags, which are read from disk when needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.config import Config
from lobule.methods.chowder.models import build
from lobule.nets.mil import Standardised

TILES_AT_ONCE = 20_000
"""Padded tiles that the model computes at once; larger batches are split."""
CACHE_SHARE = 0.8
"""Share of the memory limit for cached tiles; if they need more, they are read again at each use."""
VALIDATION_SEED = 0x7A11


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of every feature over the training tiles."""

    mean: Tensor
    std: Tensor


@dataclass
class Fitted:
    """A trained model and the history of its training."""

    model: Standardised
    epochs: int = 0
    val_auc: float | None = None
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        figures = {"epochs": self.epochs, "best_epoch": self.best_epoch, "val_auc": self.val_auc}
        return {**figures, "loss": self.losses[-1]}


class SampledTiles:
    """A fixed random sample of tiles from each bag, cached if it fits, otherwise read again at each use."""

    def __init__(self, bags: Sequence[Bag], tiles: int, seed: int, cache_bytes: int) -> None:
        self.bags = bags
        self._rows = [_sample_rows(len(bag), tiles, seed, bag.case.id) for bag in bags]
        size = sum(
            (len(bag) if rows is None else len(rows)) * bag.file.dim * np.dtype(bag.file.dtype).itemsize
            for bag, rows in zip(bags, self._rows, strict=True)
        )
        self._cache: dict[int, Tensor] | None = {} if size <= cache_bytes else None

    def __getitem__(self, number: int) -> Tensor:
        if self._cache is not None and number in self._cache:
            return self._cache[number]
        rows, bag = self._rows[number], self.bags[number]
        tiles = bag.take(rows) if rows is not None else torch.cat(list(bag.blocks()))
        if self._cache is not None:
            self._cache[number] = tiles
        return tiles


def _sample_rows(count: int, tiles: int, seed: int, name: str) -> NDArray[np.int64] | None:
    """The sorted indices of the sampled tiles of a bag; None means all tiles."""
    if tiles == 0 or count <= tiles:
        return None
    rng = np.random.default_rng([seed, *name.encode()])
    return np.sort(rng.choice(count, tiles, replace=False)).astype(np.int64)


def moments_of(bags: Sequence[Bag]) -> Moments:
    """Compute mean and standard deviation in one pass over every tile of every bag."""
    dim = bags[0].file.dim
    count, total, squares = 0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for bag in bags:
        for block in bag.blocks():
            values = block.double()
            count += len(values)
            total += values.sum(dim=0)
            squares += values.square().sum(dim=0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    # A constant feature has a standard deviation of 0; dividing by 1 avoids a division by zero.
    return Moments(mean.float(), std.where(std > 1e-6, torch.ones_like(std)).float())


def fit(
    config: Config,
    train: Sequence[Bag],
    val: Sequence[Bag],
    seed: int,
    *,
    device: str = "cpu",
    max_ram: int = 2 << 30,
    moments: Moments | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Train one model; with validation bags, return the weights of the epoch with the best validation.

    Args:
        config: The settings of the model.
        train: The training bags.
        val: The validation bags; if empty, the last weights are returned.
        seed: Seed of the weights, of the sampled tiles and of the order of the bags.
        device: The device to train on.
        max_ram: Memory limit in bytes; a share of it is used to cache tiles.
        moments: Mean and standard deviation to standardise features with; None leaves features unchanged.
        on_epoch: Called after each epoch with its number and loss.

    Raises:
        ModelError: The loss became NaN or infinite.
    """
    torch.manual_seed(seed)
    dim = train[0].file.dim
    model = Standardised(build(config, dim), dim)
    if moments is not None:
        model.mean.copy_(moments.mean)
        model.std.copy_(moments.std)
    model.to(device)
    train_tiles = SampledTiles(train, config.tiles, seed, int(max_ram * CACHE_SHARE))
    val_tiles = SampledTiles(val, config.tiles, VALIDATION_SEED, int(max_ram * CACHE_SHARE / 2))
    optimiser = torch.optim.Adam(
        model.parameters(), lr=config.setting("rate"), weight_decay=config.setting("decay")
    )
    rng = np.random.default_rng([seed, 0xBA6])
    weights = class_weights([bag.label for bag in train], config.balance)
    fitted = Fitted(model)
    best: dict[str, Tensor] = {}
    best_score = (-math.inf, -math.inf)
    for epoch in range(1, config.setting("epochs") + 1):
        model.train()
        order = rng.permutation(len(train))
        size = config.setting("batch")
        losses = [
            _step(model, optimiser, config, train_tiles, order[start : start + size], weights, device)
            for start in range(0, len(order), size)
        ]
        fitted.losses.append(float(np.mean(losses)))
        fitted.epochs = epoch
        if not math.isfinite(fitted.losses[-1]):
            raise ModelError(
                f"the loss became {fitted.losses[-1]} at epoch {epoch}",
                remedy="Use a lower learning rate: --set rate=X",
            )
        if on_epoch is not None:
            on_epoch(epoch, fitted.losses[-1])
        if val:
            score = _validate(model, val_tiles, device)
            if score > best_score:
                best_score, fitted.best_epoch, fitted.val_auc = score, epoch, score[0]
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            if config.patience and epoch - fitted.best_epoch >= config.patience:
                break
    if best:
        model.load_state_dict(best)
    model.cpu().eval()
    return fitted


def _step(
    model: Standardised,
    optimiser: torch.optim.Optimizer,
    config: Config,
    train_tiles: SampledTiles,
    numbers: NDArray[np.int64],
    weights: tuple[float, float],
    device: str,
) -> float:
    """Take one step on a batch of bags, in chunks that fit into memory, and return the loss of the batch."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for chunk in split_batch(numbers, [len(train_tiles.bags[n]) for n in numbers], config.tiles):
        features, mask = collate([train_tiles[int(n)] for n in chunk])
        labels = [train_tiles.bags[int(n)].label for n in chunk]
        logits = model(features.to(device), mask.to(device))["logit"]
        targets = torch.tensor(labels, dtype=logits.dtype, device=device)
        weight = torch.tensor([weights[label] for label in labels], dtype=logits.dtype, device=device)
        chunk_loss = nn.functional.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")
        loss = chunk_loss / len(numbers)
        loss.backward()
        total += float(loss.detach())
    if l2 := config.setting("l2"):
        penalty = l2 * model.model.penalty()
        penalty.backward()
        total += float(penalty.detach())
    optimiser.step()
    return total


def split_batch(numbers: NDArray[np.int64], sizes: Sequence[int], tiles: int) -> list[NDArray[np.int64]]:
    """Split a batch into chunks of at most `TILES_AT_ONCE` padded tiles."""
    chunks: list[list[int]] = [[]]
    longest = 0
    for number, size in zip(numbers, sizes, strict=True):
        used = min(size, tiles) if tiles else size
        if chunks[-1] and max(longest, used) * (len(chunks[-1]) + 1) > TILES_AT_ONCE:
            chunks.append([])
            longest = 0
        chunks[-1].append(int(number))
        longest = max(longest, used)
    return [np.array(chunk, np.int64) for chunk in chunks]


def collate(bags: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad bags to the length of the longest; return float32 features and a mask that is True for padding."""
    longest = max(len(bag) for bag in bags)
    features = torch.zeros(len(bags), longest, bags[0].shape[1])
    mask = torch.ones(len(bags), longest, dtype=torch.bool)
    for row, bag in enumerate(bags):
        features[row, : len(bag)] = bag
        mask[row, : len(bag)] = False
    return features, mask


def class_weights(labels: Sequence[int], balance: bool) -> tuple[float, float]:
    """Weights of a normal and a positive bag in the loss; `balance` gives both classes the same total."""
    if not balance:
        return 1.0, 1.0
    counts = np.bincount(labels, minlength=2)
    return len(labels) / (2.0 * counts[0]), len(labels) / (2.0 * counts[1])


def _validate(model: Standardised, val_tiles: SampledTiles, device: str) -> tuple[float, float]:
    """The validation AUC and the negative loss, which decides between epochs of equal AUC."""
    model.eval()
    logits = []
    with torch.inference_mode():
        for number in range(len(val_tiles.bags)):
            logits.append(float(model(val_tiles[number][None].to(device))["logit"]))
    labels = torch.tensor([bag.label for bag in val_tiles.bags], dtype=torch.float64)
    scores = torch.tensor(logits, dtype=torch.float64)
    loss = float(nn.functional.binary_cross_entropy_with_logits(scores, labels))
    return float(roc_auc_score(labels, scores)), -loss
