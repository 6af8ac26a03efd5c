"""Replicas compute the micro-batches of a step in parallel, one per core, and sum their gradients in order.

The threads that torch uses within a layer wait for each other in every layer, and threads that draw patches
delay them; replicas wait for each other only once per step. Each replica is a copy of the module that shares
its weights.

The result does not depend on the speed of the replicas, because each micro-batch has a seed for its random
numbers. It depends on their number, which by default is the number of cores: the loop divides a batch into as
many micro-batches as there are replicas, and a batch norm computes its mean and variance over one
micro-batch. Its running statistics are averaged over the replicas. A module without batch norms and dropout
learns the same with any number of replicas, up to rounding. To train the same model on machines with
different numbers of cores, set `TrainMachine.replicas`; a resumed training uses the number that it began
with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MicroBatch:
    """Some samples of a step, their weight in the loss of the step, and the seed for random numbers."""

    item: Any
    weight: float
    seed: int


def derive_seed(*numbers: int) -> int:
    """Return a seed that is a function of some numbers, such as (seed, step, rank, micro-batch)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


Compute = Callable[[nn.Module, Any], Tensor]


class Replicas:
    """Computes a module in training by one thread, or by several threads with a copy of the module each."""

    def __init__(self, module: nn.Module, count: int, threads: int = 1) -> None:
        self.module, self.count = module, count
        self._replicas = [_Replica(module) for _ in range(count)] if count > 1 else []
        self._executor = ThreadPoolExecutor(
            count, "replica", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._side_by_side = False

    def gradients(self, micro_batches: Sequence[MicroBatch], compute: Compute) -> Tensor:
        """Set the gradients of the module's parameters, and return the sum of the weighted losses."""
        self.module.zero_grad(set_to_none=True)
        if not self._replicas:
            return _sum([_run(self.module, micro_batch, compute) for micro_batch in micro_batches])
        shares = [micro_batches[number :: self.count] for number in range(self.count)]
        for replica in self._replicas:
            replica.begin(self.module)
        work = list(zip(self._replicas, shares, strict=True))
        if self._side_by_side:
            tasks = [self._executor.submit(replica.run, share, compute) for replica, share in work]
            losses = [task.result() for task in tasks]
        else:
            # Only a trial shows whether the module uses torch's global random generator, which all threads
            # share. If it does, the replicas have to run one after the other.
            tried = [
                self._executor.submit(replica.run_alone, share, compute).result() for replica, share in work
            ]
            self._side_by_side = not any(drew for _, drew in tried)
            losses = [loss for loss, _ in tried]
        self._gather([replica for replica, share in work if share])
        return _sum([loss for replica in losses for loss in replica])

    def _gather(self, replicas: Sequence[_Replica]) -> None:
        for parameter, *copies in zip(
            self.module.parameters(), *(replica.module.parameters() for replica in replicas), strict=True
        ):
            gradients = [
                copied_parameter.grad for copied_parameter in copies if copied_parameter.grad is not None
            ]
            if gradients:
                parameter.grad = _sum(gradients)
        for buffer, *copies in zip(
            self.module.buffers(), *(replica.module.buffers() for replica in replicas), strict=True
        ):
            buffer.copy_(_sum(copies) / len(copies) if buffer.is_floating_point() else copies[0])

    def close(self) -> None:
        self._executor.shutdown()


class _Replica:
    """The module of a replica: it shares the weights of the original, but not gradients and statistics."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        self.generator = torch.Generator()
        for local, original in zip(self.module.parameters(), module.parameters(), strict=True):
            local.data = original.data
        for parent in list(self.module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Dropout | nn.Dropout2d):
                    setattr(parent, name, _Dropout(child, self.generator))

    def begin(self, module: nn.Module) -> None:
        self.module.train(module.training)
        self.module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for local, original in zip(self.module.buffers(), module.buffers(), strict=True):
                local.copy_(original)

    def run(self, micro_batches: Sequence[MicroBatch], compute: Compute) -> list[Tensor]:
        losses = []
        for micro_batch in micro_batches:
            self.generator.manual_seed(micro_batch.seed)
            losses.append(_backward(self.module, micro_batch, compute))
        return losses

    def run_alone(self, micro_batches: Sequence[MicroBatch], compute: Compute) -> tuple[list[Tensor], bool]:
        """Do the same while no other replica runs, and return whether torch's global generator was used."""
        losses, drew = [], False
        for micro_batch in micro_batches:
            torch.manual_seed(micro_batch.seed)
            before = torch.get_rng_state()
            losses += self.run([micro_batch], compute)
            drew |= not torch.equal(before, torch.get_rng_state())
        return losses, drew


class _Dropout(nn.Module):
    """Dropout with a separate random generator, because all threads share the one of torch."""

    def __init__(self, like: nn.Dropout | nn.Dropout2d, generator: torch.Generator) -> None:
        super().__init__()
        self.p, self.whole_channels, self.generator = like.p, isinstance(like, nn.Dropout2d), generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shape = x.shape[:2] + (1,) * (x.ndim - 2) if self.whole_channels else x.shape
        mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(
            1 - self.p, generator=self.generator
        )
        return x * mask.div_(max(1 - self.p, torch.finfo(x.dtype).tiny))


def _run(module: nn.Module, micro_batch: MicroBatch, compute: Compute) -> Tensor:
    torch.manual_seed(micro_batch.seed)
    return _backward(module, micro_batch, compute)


def _backward(module: nn.Module, micro_batch: MicroBatch, compute: Compute) -> Tensor:
    loss = compute(module, micro_batch.item) * micro_batch.weight
    loss.backward()
    return loss.detach()


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Sum in the order of the list, which determines the last bits."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total
