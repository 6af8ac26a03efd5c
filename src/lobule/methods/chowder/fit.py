"""Fitting one bag model: Adam over bags that are drawn from or whole, read from disk as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lobule.errors import ModelError
from lobule.methods.chowder.bags import Bag
from lobule.methods.chowder.config import Config, build
from lobule.nets.mil import Standardised

TILES_AT_ONCE = 20_000
"""Padded tiles in the model at a time; a batch of larger bags goes through in parts."""
HELD_SHARE = 0.8
"""Of the memory ceiling, for drawn tiles that are held; more than that is read anew at each use."""
VALIDATION_DRAW = 0x7A11


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and spread of every feature over the training tiles."""

    mean: Tensor
    std: Tensor


@dataclass
class Fitted:
    """A fitted model and how it went."""

    model: Standardised
    epochs: int = 0
    val_auc: float | None = None
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)


class Drawn:
    """Some tiles of each bag, the same at every use: held where they fit, else read from disk again."""

    def __init__(self, bags: Sequence[Bag], tiles: int, seed: int, room: int) -> None:
        self.bags = bags
        self._rows = [_draw(len(bag), tiles, seed, bag.case.id) for bag in bags]
        size = sum(
            (len(bag) if rows is None else len(rows)) * bag.file.dim * np.dtype(bag.file.dtype).itemsize
            for bag, rows in zip(bags, self._rows, strict=True)
        )
        self._held: dict[int, Tensor] | None = {} if size <= room else None

    def __getitem__(self, number: int) -> Tensor:
        if self._held is not None and number in self._held:
            return self._held[number]
        rows, bag = self._rows[number], self.bags[number]
        tiles = bag.take(rows) if rows is not None else torch.cat(list(bag.blocks()))
        if self._held is not None:
            self._held[number] = tiles
        return tiles


def _draw(count: int, tiles: int, seed: int, name: str) -> NDArray[np.int64] | None:
    """Which tiles of a bag are used, in the order of the bag; None is all of them."""
    if tiles == 0 or count <= tiles:
        return None
    rng = np.random.default_rng([seed, *name.encode()])
    return np.sort(rng.choice(count, tiles, replace=False)).astype(np.int64)


def moments_of(bags: Sequence[Bag]) -> Moments:
    """One pass over every tile of every bag."""
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
    # a feature that never changes says nothing, and must not be divided by nothing
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
    tell: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Fit one model; with validation bags the epoch that told them best is kept.

    `tell` is given each epoch and its loss.
    """
    torch.manual_seed(seed)
    dim = train[0].file.dim
    model = Standardised(build(config, dim), dim)
    if moments is not None:
        model.mean.copy_(moments.mean)
        model.std.copy_(moments.std)
    model.to(device)
    drawn = Drawn(train, config.tiles, seed, int(max_ram * HELD_SHARE))
    looked = Drawn(val, config.tiles, VALIDATION_DRAW, int(max_ram * HELD_SHARE / 2))
    optimiser = torch.optim.Adam(model.parameters(), lr=config.own("rate"), weight_decay=config.own("decay"))
    rng = np.random.default_rng([seed, 0xBA6])
    weights = class_weights([bag.label for bag in train], config.balance)
    fitted = Fitted(model)
    best: dict[str, Tensor] = {}
    best_score = (-math.inf, -math.inf)
    for epoch in range(1, config.own("epochs") + 1):
        model.train()
        order = rng.permutation(len(train))
        size = config.own("batch")
        losses = [
            _step(model, optimiser, config, drawn, order[start : start + size], weights, device)
            for start in range(0, len(order), size)
        ]
        fitted.losses.append(float(np.mean(losses)))
        fitted.epochs = epoch
        if not math.isfinite(fitted.losses[-1]):
            raise ModelError(f"the loss is {fitted.losses[-1]} at epoch {epoch}", remedy="Use a lower rate")
        if tell is not None:
            tell(epoch, fitted.losses[-1])
        if val:
            score = _validated(model, looked, device)
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
    drawn: Drawn,
    numbers: NDArray[np.int64],
    weights: tuple[float, float],
    device: str,
) -> float:
    """One step over a batch of bags, its gradient summed over parts that fit; the loss of the batch."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for part in in_parts(numbers, [len(drawn.bags[n]) for n in numbers], config.tiles):
        features, mask = collate([drawn[int(n)] for n in part])
        labels = [drawn.bags[int(n)].label for n in part]
        logits = model(features.to(device), mask.to(device))["logit"]
        wanted = torch.tensor(labels, dtype=logits.dtype, device=device)
        weight = torch.tensor([weights[label] for label in labels], dtype=logits.dtype, device=device)
        each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")
        loss = each / len(numbers)
        loss.backward()
        total += float(loss.detach())
    if l2 := config.own("l2"):
        penalty = l2 * model.model.penalty()
        penalty.backward()
        total += float(penalty.detach())
    optimiser.step()
    return total


def in_parts(numbers: NDArray[np.int64], sizes: Sequence[int], tiles: int) -> list[NDArray[np.int64]]:
    """A batch cut where its padded tiles would be too many to hold at once."""
    parts: list[list[int]] = [[]]
    longest = 0
    for number, size in zip(numbers, sizes, strict=True):
        used = min(size, tiles) if tiles else size
        if parts[-1] and max(longest, used) * (len(parts[-1]) + 1) > TILES_AT_ONCE:
            parts.append([])
            longest = 0
        parts[-1].append(int(number))
        longest = max(longest, used)
    return [np.array(part, np.int64) for part in parts]


def collate(bags: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Bags padded to the longest, as float32, and the mask that is True for padding."""
    longest = max(len(bag) for bag in bags)
    features = torch.zeros(len(bags), longest, bags[0].shape[1])
    mask = torch.ones(len(bags), longest, dtype=torch.bool)
    for row, bag in enumerate(bags):
        features[row, : len(bag)] = bag
        mask[row, : len(bag)] = False
    return features, mask


def class_weights(labels: Sequence[int], balance: bool) -> tuple[float, float]:
    """Of a normal and of a positive bag in the loss; both classes weigh the same with `balance`."""
    if not balance:
        return 1.0, 1.0
    counts = np.bincount(labels, minlength=2)
    return len(labels) / (2.0 * counts[0]), len(labels) / (2.0 * counts[1])


def _validated(model: Standardised, looked: Drawn, device: str) -> tuple[float, float]:
    """The AUC, and where that is even the loss decides: both the higher the better."""
    model.eval()
    logits = []
    with torch.inference_mode():
        for number in range(len(looked.bags)):
            logits.append(float(model(looked[number][None].to(device))["logit"]))
    labels = torch.tensor([bag.label for bag in looked.bags], dtype=torch.float64)
    found = torch.tensor(logits, dtype=torch.float64)
    loss = float(nn.functional.binary_cross_entropy_with_logits(found, labels))
    return float(roc_auc_score(labels, found)), -loss
