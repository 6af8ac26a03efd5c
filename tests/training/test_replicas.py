"""Replicas: the gradients equal those of one thread and do not depend on speed; dropout is reproducible."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lobule.training.replicas import MicroBatch, Replicas, _Dropout, derive_seed

X = torch.randn((12, 3, 9, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def replicas_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    all_replicas: list[Replicas] = []
    start = Replicas.__init__

    def noted(self: Replicas, *arguments: object) -> None:
        start(self, *arguments)  # type: ignore[arg-type]
        all_replicas.append(self)

    monkeypatch.setattr(Replicas, "__init__", noted)
    yield
    for replicas in all_replicas:
        replicas.close()


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.Linear(4 * 49, 2))


def loss_of(module: nn.Module, x: Tensor) -> Tensor:
    return (module(x) ** 2).mean()


def micro_batches(*edges: int, seed: int = 1) -> list[MicroBatch]:
    return [
        MicroBatch(X[a:b], (b - a) / 12, derive_seed(seed, number))
        for number, (a, b) in enumerate(pairwise(edges))
    ]


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("count", "edges"), [(1, (0, 12)), (2, (0, 6, 12)), (3, (0, 4, 8, 12)), (2, (0, 3, 6, 12))]
)
def test_gradients_are_those_of_the_whole_batch(count: int, edges: tuple[int, ...]) -> None:
    reference = net(nn.ReLU())
    loss_of(reference, X).backward()
    expected = gradients(reference)
    module = net(nn.ReLU())
    replicas = Replicas(module, count)
    for _ in range(3):  # the first step runs in turn, later ones side by side
        loss = replicas.gradients(micro_batches(*edges), loss_of)
        torch.testing.assert_close(loss, loss_of(reference, X).detach())
        torch.testing.assert_close(gradients(module), expected)
    with torch.no_grad():  # a step on the module's weights is a step on the replicas'
        for parameter in (*module.parameters(), *reference.parameters()):
            parameter.sub_(0.1)
    torch.testing.assert_close(
        replicas.gradients(micro_batches(*edges), loss_of), loss_of(reference, X).detach()
    )


def test_random_numbers_do_not_depend_on_thread_speed() -> None:
    def slowed(slow: int) -> list[Tensor]:
        module, outputs = net(nn.Dropout(0.5)), []
        replicas = Replicas(module, 2)

        def loss(replica_module: nn.Module, x: Tensor) -> Tensor:
            if torch.equal(x, X[6 * slow : 6 * slow + 6]):
                time.sleep(0.02)
            return loss_of(replica_module, x)

        for step in range(3):
            replicas.gradients(micro_batches(0, 6, 12, seed=step), loss)
            outputs += gradients(module)
        return outputs

    one, other = slowed(0), slowed(1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[4])


def test_module_without_the_global_generator_runs_side_by_side() -> None:
    module = net(nn.Dropout(0.5))
    replicas = Replicas(module, 2)
    for _ in range(2):
        replicas.gradients(micro_batches(0, 6, 12), loss_of)
    assert replicas._side_by_side


def test_module_that_uses_the_global_generator_runs_in_sequence() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    def run() -> list[Tensor]:
        module = net(Functional())
        replicas = Replicas(module, 2)
        for _ in range(2):
            replicas.gradients(micro_batches(0, 6, 12), loss_of)
        assert not replicas._side_by_side
        return gradients(module)

    first = run()
    torch.manual_seed(77)
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("like", [nn.Dropout(0.3), nn.Dropout2d(0.3)])
def test_dropout_drops_its_share_and_keeps_the_mean(like: nn.Dropout | nn.Dropout2d) -> None:
    dropout = _Dropout(like, torch.Generator().manual_seed(2))
    y = dropout(torch.ones(200, 30, 4, 4))
    assert (y == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert y.mean() == pytest.approx(1.0, abs=0.03)
    alike = (y == y[..., :1, :1]).flatten(2).all(-1)
    assert bool(alike.all()) == isinstance(like, nn.Dropout2d)
    dropout.eval()
    assert torch.equal(dropout(X), X)


def test_batch_norm_averages_the_statistics_of_micro_batches() -> None:
    module = net(nn.BatchNorm2d(4))
    Replicas(module, 2).gradients(micro_batches(0, 6, 12), loss_of)
    norm = module[1]
    features = module[0](X).detach()
    means = torch.stack([features[a:b].mean((0, 2, 3)) for a, b in ((0, 6), (6, 12))])
    torch.testing.assert_close(norm.running_mean, 0.1 * means.mean(0))
    assert int(norm.num_batches_tracked) == 1


def test_error_in_a_replica_is_raised() -> None:
    replicas = Replicas(net(), 2)
    replicas.gradients(micro_batches(0, 6, 12), loss_of)
    with pytest.raises(RuntimeError, match="shapes"):
        replicas.gradients([MicroBatch(X[:, :, :5], 1.0, 0)], loss_of)


def test_seeds_differ_with_every_number() -> None:
    assert len({derive_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64
    assert derive_seed(1, 2) == derive_seed(1, 2) < 2**63
