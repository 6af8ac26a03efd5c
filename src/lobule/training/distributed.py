"""Ranks: the processes of one training, as torchrun starts them; a training started plainly is its only one.

Every rank runs the same code on its share of each batch. The first alone validates, mines and writes; what it
finds the others are told, so that all take the same turns. They see the same slides and the same folder.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Made")

PATIENCE = timedelta(days=7)
"""How long the others wait for the first, which may mine a large cohort; torchrun ends them if it dies."""


@dataclass(frozen=True)
class Ranks:
    """Which process of a training this is, and of how many."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Its number on this machine: it takes the accelerator of that number."""
    local_count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its mean over the ranks, in one exchange."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first rank makes, on every rank."""
        if self.count == 1:
            return make()
        message: list[Any] = [make() if self.first else None]
        torch.distributed.broadcast_object_list(message)
        value: Value = message[0]
        return value

    def from_all(self, value: Value) -> list[Value]:
        """The value of every rank, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.count > 1:
            self.from_all(None)


def is_first_rank() -> bool:
    """Whether this process is the one that speaks, by torchrun's environment."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """This process among those that torchrun started with it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if not torch.distributed.is_initialized():
        both = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(both, timeout=PATIENCE)
        # kept until the process ends: who joins again may be told where another listened the last time
        atexit.register(torch.distributed.destroy_process_group)
    local, local_count = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    yield Ranks(torch.distributed.get_rank(), count, local, max(1, local_count))
