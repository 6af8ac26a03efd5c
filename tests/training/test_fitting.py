"""The training loop: exact resume, agreement with textbook optimisers, and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lobule.errors import ConfigError, ModelError, ResultsError
from lobule.training import training_log
from lobule.training.checkpoint import STATE, read_checkpoint
from lobule.training.distributed import Ranks
from lobule.training.fitting import FitOptions, FitReport, Group, TrainMachine, fit

OPTIONS = FitOptions(steps=12, evaluate_every=4, checkpoint_every=3, log_every=2, patience=1, stop_after=9)


class Killed(Exception):
    """Stands for whatever ends a process between two steps."""


class Numbers:
    """A stream of batches that are a function of their number; may die on the way."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.next, self.dies_at = 0, dies_at

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self.next == self.dies_at:
            raise Killed
        generator = torch.Generator().manual_seed(self.next)
        self.next += 1
        x = torch.randn((4, 3, 8, 8), generator=generator)
        return x, (x.mean((1, 2, 3)) > 0).long()

    def state(self) -> dict[str, Any]:
        return {"next": self.next}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.next = int(state["next"])


def small_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).to(memory_format=torch.channels_last)


def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def falling(module: nn.Module) -> float:
    """A score that changes with the weights, so that the best is somewhere on the way."""
    return float(sum(value.sum() for value in module.parameters()))


def run(
    folder: Path, options: FitOptions = OPTIONS, dies_at: int | None = None
) -> tuple[nn.Module, FitReport]:
    net = small_net()
    trunk, head = list(net[0].parameters()) + list(net[1].parameters()), list(net[6].parameters())  # type: ignore[index]
    groups = [Group(trunk, 0.01), Group(head, 0.1)]
    report = fit(net, loss_of, Numbers(dies_at), options, folder, groups, validate=falling)
    return net, report


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "dies_at", "optimiser"),
    [
        ("plateau", 1, "sgd"),
        ("plateau", 5, "sgd"),
        ("plateau", 8, "sgd"),
        ("plateau", 11, "sgd"),
        ("cosine", 7, "sgd"),
        ("step", 4, "sgd"),
        ("constant", 8, "adam"),
    ],
)
def test_killed_training_resumes_to_identical_weights(
    tmp_path: Path, schedule: str, dies_at: int, optimiser: str
) -> None:
    options = replace(OPTIONS, schedule=schedule, optimiser=optimiser)  # type: ignore[arg-type]
    uninterrupted, report = run(tmp_path / "whole", options)
    with pytest.raises(Killed):
        run(tmp_path / "broken", options, dies_at)
    torch.manual_seed(99)  # whatever else the process did meanwhile
    resumed, again = run(tmp_path / "broken", options)
    assert same(uninterrupted, resumed)
    assert report == again
    assert (tmp_path / "whole" / "log.csv").read_bytes() == (tmp_path / "broken" / "log.csv").read_bytes()
    one, other = (read_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert one is not None
    assert other is not None
    assert one.contents == other.contents
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())
    # and once more, now that all is done
    assert same(uninterrupted, run(tmp_path / "whole", options)[0])


class Halves(Numbers):
    """The same batches, which can be computed in parts."""

    def __next__(self) -> Any:
        return _Divisible(*super().__next__())


class _Divisible(tuple[Tensor, Tensor]):
    def __new__(cls, x: Tensor, y: Tensor) -> _Divisible:
        return super().__new__(cls, (x, y))

    def __len__(self) -> int:
        return len(self[0])

    def divide(self, count: int) -> list[_Divisible]:
        return [_Divisible(x, y) for x, y in zip(self[0].chunk(count), self[1].chunk(count), strict=True)]


def test_resumed_training_uses_the_recorded_number_of_replicas(tmp_path: Path) -> None:
    def divided(folder: Path, replicas: int, dies_at: int | None = None) -> tuple[nn.Module, int]:
        net = small_net()
        groups = [Group(list(net.parameters()), 0.05)]
        report = fit(
            net,
            loss_of,
            Halves(dies_at),
            replace(OPTIONS, replicas=replicas),
            folder,
            groups,
            validate=falling,
        )
        return net, report.replicas

    two, replicas = divided(tmp_path / "two", 2)
    assert replicas == 2
    assert not same(two, divided(tmp_path / "one", 1)[0])
    with pytest.raises(Killed):
        divided(tmp_path / "broken", 2, dies_at=8)
    # on a machine with other cores
    resumed, replicas = divided(tmp_path / "broken", 1)
    assert replicas == 2 and same(two, resumed)
    assert TrainMachine(replicas=4).replicas_for(64) == 4
    assert TrainMachine(replicas=4).replicas_for(40) == 2
    assert TrainMachine(replicas=4).replicas_for(8) == 1


def test_tensorboard_events_equal_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Killed):
        run(tmp_path, dies_at=9)
    run(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    for column, name in ((1, "loss"), (2, "rate"), (3, "score")):
        expected = {int(row[0]): float(row[column]) for row in rows if row[column]}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(
            expected, rel=1e-4
        )


def test_missing_tensorboard_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training_log, "find_spec", lambda name: None)
    monkeypatch.setattr(training_log, "_logged_notes", [])
    with caplog.at_level("INFO", "lobule.train"):
        for _ in range(2):
            assert training_log.EventFile.opened(tmp_path, 0) is None
    assert [record.message for record in caplog.records] == [
        "no TensorBoard events are written: install lobule[tensorboard] to have them"
    ]


def test_steps_equal_an_explicit_sgd(tmp_path: Path) -> None:
    """Momentum 0.9 and weight decay on two accumulated batches, by the formula."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    xs = torch.randn(6, 5, 3, dtype=torch.float64)

    class Stream(Numbers):
        def __next__(self) -> Any:
            self.next += 1
            return xs[self.next - 1]

    options = FitOptions(steps=3, accumulate=2, schedule="cosine", weight_decay=0.1)
    fit(
        net,
        lambda m, x: (m(x) ** 2).mean(),
        Stream(),
        options,
        tmp_path,
        [Group(list(net.parameters()), 0.1)],
    )
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step, rate in enumerate([0.1, 0.1 * 0.75, 0.1 * 0.25]):
        gradient = [torch.zeros_like(weight), torch.zeros_like(bias)]
        for x in xs[2 * step : 2 * step + 2]:
            y = x @ weight.T + bias
            gradient[0] += (2 * y * x).mean(0, keepdim=True) / 2
            gradient[1] += (2 * y).mean(0) / 2
        for number, value in enumerate((weight, bias)):
            velocity[number] = 0.9 * velocity[number] + gradient[number] + 0.1 * value
            value -= rate * velocity[number]
    assert torch.allclose(net.weight, weight, atol=1e-12)
    assert torch.allclose(net.bias, bias, atol=1e-12)


def test_adam_equals_torch_adam(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, xs = nn.Linear(3, 1).double(), torch.randn(4, 5, 3, dtype=torch.float64)
    other = nn.Linear(3, 1).double()
    other.load_state_dict(net.state_dict())

    class Stream(Numbers):
        def __next__(self) -> Any:
            self.next += 1
            return xs[self.next - 1]

    adam_options = {"optimiser": "adam", "momentum": 0.5, "second_beta": 0.9, "weight_decay": 0.0}
    options = FitOptions(steps=4, schedule="constant", **adam_options)  # type: ignore[arg-type]
    fit(net, lambda m, x: (m(x) ** 2).mean(), Stream(), options, tmp_path, [Group([*net.parameters()], 0.1)])
    adam = torch.optim.Adam(other.parameters(), lr=0.1, betas=(0.5, 0.9))
    for x in xs:
        adam.zero_grad()
        (other(x) ** 2).mean().backward()
        adam.step()
    assert torch.equal(net.weight, other.weight)
    with pytest.raises(ConfigError, match="unknown optimiser 'lion'"):
        FitOptions(steps=1, optimiser="lion")  # type: ignore[arg-type]


def test_long_gradients_are_clipped(tmp_path: Path) -> None:
    """One step of plain SGD moves the weights by rate × the clipped norm."""
    moved = []
    for number, clip in enumerate((0.0, 0.01, 1e9)):
        net = small_net()
        before = torch.cat([value.detach().flatten() for value in net.parameters()])
        options = FitOptions(steps=1, momentum=0.0, weight_decay=0.0, clip=clip)
        groups = [Group(list(net.parameters()), 0.5)]
        fit(net, loss_of, Numbers(), options, tmp_path / str(number), groups)
        after = torch.cat([value.detach().flatten() for value in net.parameters()])
        moved.append(float((after - before).norm()))
    assert moved[0] == moved[2] > 0.05
    assert moved[1] == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_nan_loss_stops_and_keeps_the_last_valid_checkpoint(tmp_path: Path) -> None:
    def spoiled(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(module, batch) * (float("nan") if numbers.next > 7 else 1.0)

    numbers, net = Numbers(), small_net()
    groups = [Group(list(net.parameters()), 0.01)]
    with pytest.raises(ModelError, match="loss became nan at or before step 8"):
        fit(net, spoiled, numbers, OPTIONS, tmp_path, groups)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.contents["loop"]["step"] == 6
    assert all(value.isfinite().all() for value in checkpoint.tensors.values())


def test_nan_weights_are_never_saved(tmp_path: Path) -> None:
    """A finite loss may have a gradient that is NaN."""

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        value = loss_of(module, batch)
        calls.append(value)
        # the root of nothing is 0, and its slope is not a number
        return value + torch.sqrt(value - value) if len(calls) > 5 else value

    calls: list[Tensor] = []
    net = small_net()
    options = FitOptions(steps=20, evaluate_every=2, checkpoint_every=2, log_every=100, replicas=1)
    with pytest.raises(ModelError, match="NaN or infinite at step 6"):
        fit(net, loss, Numbers(), options, tmp_path, [Group(list(net.parameters()), 0.01)])
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.contents["loop"]["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint.tensors.values())


def test_the_rate_falls_at_plateaus_and_the_training_ends_early(tmp_path: Path) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.6, 0.7, 0.6, 0.6, 0.6])
    net, weights_by_evaluation = small_net(), []

    def validate(module: nn.Module) -> float:
        assert not module.training
        weights_by_evaluation.append({name: value.clone() for name, value in module.state_dict().items()})
        return next(scores)

    options = replace(OPTIONS, steps=99, evaluate_every=2, checkpoint_every=2, patience=2, stop_after=5)
    groups = [Group(list(net.parameters()), 0.01)]
    report = fit(net, loss_of, Numbers(), options, tmp_path, groups, validate=validate)
    assert (report.steps, report.best, report.best_step) == (14, 0.7, 4)
    assert all(torch.equal(value, weights_by_evaluation[1][name]) for name, value in net.state_dict().items())
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert [float(row[2]) for row in rows] == pytest.approx([0.01] * 4 + [0.001] * 2 + [0.0001])
    assert [row[3] for row in rows] == ["0.5", "0.7", "0.6", "0.6", "0.7", "0.6", "0.6"]


def test_different_settings_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, dies_at=8)
    with pytest.raises(ResultsError, match="different settings"):
        run(tmp_path, replace(OPTIONS, momentum=0.5))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    tensors = tmp_path / json.loads((tmp_path / STATE).read_text())["tensors"]
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(ResultsError, match="damaged"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="unknown schedule 'up'"):
        FitOptions(steps=1, schedule="up")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="patience must be at least 1"):
        FitOptions(steps=1, patience=0)


def test_the_log_grows_before_the_first_checkpoint(tmp_path: Path) -> None:
    options = replace(OPTIONS, evaluate_every=100, checkpoint_every=100, steps=100)
    with pytest.raises(Killed):
        run(tmp_path, options, dies_at=5)
    assert read_checkpoint(tmp_path) is None
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "4"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_does_not_exist_is_refused_and_not_replaced_by_the_cpu() -> None:
    with pytest.raises(ConfigError, match="the device 'cuda' cannot be used"):
        TrainMachine(device="cuda").resolved()
    assert TrainMachine(device="auto").resolved().device != "cuda"


def test_scans_of_a_training_use_all_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first card trains. Each process of a distributed training scans with its own card only."""
    monkeypatch.setattr("lobule.training.machine.choose_device", lambda name: name)
    machine = TrainMachine(device="cuda:2,cuda:0", precision="float32").resolved()
    assert (machine.device, machine.scan_devices) == ("cuda:2", "cuda:2,cuda:0")
    assert TrainMachine(device="auto", precision="float32").resolved().scan_devices == "auto"
    ranks = Ranks(count=2)
    assert TrainMachine(device="auto", precision="float32").resolved(ranks).scan_devices == ""


def test_training_on_the_cpu_keeps_freed_memory_for_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr("lobule.training.fitting.keep_freed_memory", lambda: calls.append("called"))
    run(tmp_path / "fit", replace(OPTIONS, steps=1))
    assert calls == ["called"]
