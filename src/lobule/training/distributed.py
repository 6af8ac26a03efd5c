"""Ranks: the processes of one training. torchrun starts several; otherwise there is only one.

Every rank runs the same code on its share of each batch. Only the first rank validates, mines hard negatives
and writes files. It sends the outcome to the other ranks, so that all continue in the same way. All ranks
need access to the same slides and the same folder.
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

Value = TypeVar("Value")

EXCHANGE_TIMEOUT = timedelta(days=7)
"""How long a rank waits for the others: the first one may mine a large cohort for days, and torchrun ends the
others if it dies."""


@dataclass(frozen=True)
class Ranks:
    """The number of this process among the processes of a training."""

    rank: int = 0
    """Number of the process among all processes, from 0."""
    count: int = 1
    local: int = 0
    """Number of the process among those on this machine; it uses the GPU with this number."""
    local_count: int = 1
    """Number of processes on this machine."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in one exchange; changes them in place."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """Call `compute` on the first rank only, and return its value on every rank."""
        if self.count == 1:
            return compute()
        broadcast_values: list[Any] = [compute() if self.first else None]
        torch.distributed.broadcast_object_list(broadcast_values)
        first_value: Value = broadcast_values[0]
        return first_value

    def from_all(self, value: Value) -> list[Value]:
        """Send the value of this rank to the others, and return the values of all ranks in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every rank has called this method."""
        if self.count > 1:
            self.from_all(None)


def is_first_rank() -> bool:
    """Whether this process is the first rank, according to the environment that torchrun sets."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Connect to the other processes that torchrun started, and yield the rank of this process."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if not torch.distributed.is_initialized():
        backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backends, timeout=EXCHANGE_TIMEOUT)
        # The group is kept until the process ends. Connecting a second time could use an outdated address.
        atexit.register(torch.distributed.destroy_process_group)
    local, local_count = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    yield Ranks(torch.distributed.get_rank(), count, local, max(1, local_count))
