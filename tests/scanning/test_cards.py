"""Several cards in one scan, cards that fail in the middle of it, and the choice of cards.

The tests need no GPU. Replicas on a CPU take the place of cards, and functions of `torch.cuda` are replaced
where a test depends only on what they return.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lobule.errors import ConfigError
from lobule.results import open_results
from lobule.results.folder import CaseFolder
from lobule.results.runs import read_runs
from lobule.scanning import cards, engine, pipeline
from lobule.scanning.contract import Batch, EngineSettings, ScanOptions
from lobule.scanning.loader import LoadedBatch
from lobule.scanning.scan import Machine, ScanReport, scan
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    MeanPredictor,
    TwoPassPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)

MACHINE = Machine(
    device="cpu", precision="float32", batch=3, cells=3, readers=2, replicas=1, channels_last=True
)
GONE = "CUDA error: unspecified launch failure"


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "one.tif", pixels_of(700, 600))


@pytest.fixture
def use_cards(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let scans use so many stand-ins of cards."""

    def use(count: int) -> None:
        monkeypatch.setattr(engine, "choose_devices", lambda _: ("cpu",) * count)

    return use


class CardModel(TwoPassPredictor):
    """A model whose copies know which card they are on, and record what they computed.

    A card in `failures` raises its errors, one for each batch, and computes afterwards.
    """

    def __init__(self, failures: Mapping[int, list[Exception]] | None = None) -> None:
        super().__init__()
        self.number = 0
        self.shared = SharedRecord({k: list(v) for k, v in (failures or {}).items()})

    def __deepcopy__(self, memo: Any) -> CardModel:
        copied = CardModel()
        copied.shared = self.shared
        self.shared.cards += 1
        copied.number = self.shared.cards
        return copied

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.pixels.any():  # The batch for choosing the form is black.
            self.shared.meet(self.number)
            with self.shared.lock:
                if errors := self.shared.failures.get(self.number):
                    raise errors.pop(0)
                self.shared.computed.append((self.number, len(batch.pixels)))
        return super().forward(key, batch)


class SharedRecord:
    """What the copies of a model have in common."""

    def __init__(self, failures: dict[int, list[Exception]]) -> None:
        self.failures, self.cards = failures, 0
        self.computed: list[tuple[int, int]] = []
        self.lock = threading.Lock()
        self._met: set[int] = set()
        self._all_met = threading.Event()

    def meet(self, number: int) -> None:
        """Wait until every card has its first batch, so that none computes the whole scan alone."""
        with self.lock:
            self._met.add(number)
            if len(self._met) > self.cards:
                self._all_met.set()
        assert self._all_met.wait(60)


def run(model: CardModel, slide: Path, out: Path, **options: Any) -> ScanReport:
    return scan(model, BUNDLE, cohort_of(slide), out, EVERYWHERE, MACHINE, **options)


def stores(root: Path) -> dict[str, bytes]:
    """The maps and tables of a results folder."""
    return {name: data for name, data in tree(root).items() if "/maps/" in name or "/tables/" in name}


def result_of(root: Path) -> dict[str, Any]:
    (folder,) = open_results(root).cases()
    assert folder.result is not None
    return folder.result


# -- several cards -------------------------------------------------------------------------------------------


def test_cards_share_the_fields_and_give_the_bytes_of_one_card(
    slide: Path, tmp_path: Path, use_cards: Callable[[int], None]
) -> None:
    run(CardModel(), slide, tmp_path / "one")
    use_cards(3)
    model = CardModel()
    report = run(model, slide, tmp_path / "several")
    assert dict(report.counts) == {"complete": 1}
    assert {number for number, _ in model.shared.computed} == {0, 1, 2}
    one, several = tree(tmp_path / "one"), tree(tmp_path / "several")
    assert {k: v for k, v in one.items() if k != "scan.json"} == {
        k: v for k, v in several.items() if k != "scan.json"
    }
    settings = [json.loads(files["scan.json"]) for files in (one, several)]
    assert settings[1].pop("cards") == {"measured": "cpu", "all": ["cpu"] * 3}
    assert settings[0] == settings[1]
    assert read_runs(tmp_path / "several")[0].data["machine"]["devices"] == ["cpu"] * 3


def test_a_scan_of_one_card_is_resumed_with_several(
    slide: Path, tmp_path: Path, use_cards: Callable[[int], None]
) -> None:
    run(CardModel(), slide, tmp_path / "whole")
    run(CardModel(), slide, tmp_path / "resumed")
    (folder,) = (tmp_path / "resumed" / "cases").iterdir()
    (folder / "result.json").unlink()
    for chunk in sorted(folder.glob("maps/*/state/c/*/*"))[1:]:
        chunk.unlink()
    use_cards(2)
    model = CardModel()
    run(model, slide, tmp_path / "resumed")
    assert {number for number, _ in model.shared.computed} == {0, 1}
    assert tree(tmp_path / "resumed") == tree(tmp_path / "whole")


@pytest.mark.parametrize("attribute", [threading.Lock(), torch.ones(1, requires_grad=True) * 2])
def test_a_model_that_cannot_be_copied_uses_one_card(
    caplog: pytest.LogCaptureFixture, attribute: object
) -> None:
    class Uncopied(MeanPredictor):
        def __init__(self) -> None:
            super().__init__()
            self.attribute = attribute

    both = cards.Cards(Uncopied())
    assert both.copy_model(("cpu", "cpu")) == ("cpu",)
    assert [card.device for card in both.all] == ["cpu"] and "cannot be copied" in caplog.text


@pytest.mark.parametrize("pins_memory", [True, False])
def test_outputs_avoid_pinned_memory_after_a_card_was_lost(
    pins_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []

    class Output:
        """A tensor on a card: a copy to the host that does not block uses pinned memory."""

        dtype = torch.int8

        def to(self, device: str, non_blocking: bool) -> torch.Tensor:
            copies.append((device, non_blocking))
            return torch.ones(1)

    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    stream = SimpleNamespace(synchronize=lambda: None)
    model = SimpleNamespace(forward=lambda key, batch: {"map": Output()})
    card = cards.Card("cpu", model, pins_memory=pins_memory)  # type: ignore[arg-type]
    batch = LoadedBatch(np.arange(1), np.zeros((1, 2, 2, 3), np.uint8), {}, {})
    assert card.compute("mean", batch, stream)["map"].tolist() == [1]
    assert copies == [("cpu", pins_memory)]


def test_a_defect_in_the_copying_of_a_model_is_not_hidden() -> None:
    class Defective(MeanPredictor):
        def __deepcopy__(self, memo: dict[int, object]) -> Defective:
            raise AttributeError("no attribute 'net'")

    with pytest.raises(AttributeError, match="no attribute 'net'"):
        cards.Cards(Defective()).copy_model(("cpu", "cpu"))


# -- cards that fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.AcceleratorError(GONE), RuntimeError(GONE)], ids=["new", "old"])
def test_the_others_compute_the_batch_of_a_lost_card(
    slide: Path,
    tmp_path: Path,
    use_cards: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    run(CardModel(), slide, tmp_path / "one")
    use_cards(3)
    monkeypatch.setattr(pipeline, "responds", lambda _: False)
    model = CardModel({1: [error]})
    report = run(model, slide, tmp_path / "lost")
    assert dict(report.counts) == {"complete": 1}
    assert {number for number, _ in model.shared.computed} == {0, 2}, "the lost card computed again"
    assert stores(tmp_path / "lost") == stores(tmp_path / "one")
    assert report.counters.lost_devices == 1
    assert read_runs(tmp_path / "lost")[0].data["lost_devices"] == 1
    assert "left out" in caplog.text and GONE in caplog.text


def test_a_card_that_still_answers_is_kept_after_one_error(
    slide: Path, tmp_path: Path, use_cards: Callable[[int], None]
) -> None:
    use_cards(2)
    model = CardModel({1: [RuntimeError(GONE)]})
    report = run(model, slide, tmp_path / "r")
    assert dict(report.counts) == {"complete": 1} and report.counters.lost_devices == 0
    assert {number for number, _ in model.shared.computed} == {0, 1}


def test_a_batch_that_fails_on_two_cards_fails_its_case(
    slide: Path, tmp_path: Path, use_cards: Callable[[int], None]
) -> None:
    use_cards(2)
    errors: list[Exception] = [RuntimeError(GONE) for _ in range(1000)]
    report = run(CardModel({0: errors, 1: errors}), slide, tmp_path / "r")
    assert dict(report.counts) == {"failed": 1} and GONE in report.failed["one"]
    assert "device_lost" not in result_of(tmp_path / "r")


def test_without_any_card_the_case_fails_and_the_next_run_completes_it(
    tmp_path: Path, use_cards: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = [write_slide(tmp_path / f"s{n}.tif", pixels_of(700, 600, n)) for n in range(4)]
    cohort, options = cohort_of(*slides), EVERYWHERE
    scan(CardModel(), BUNDLE, cohort, tmp_path / "whole", options, MACHINE)
    use_cards(2)
    monkeypatch.setattr(pipeline, "responds", lambda _: False)
    failing = CardModel({0: [RuntimeError(GONE)], 1: [RuntimeError(GONE)]})
    report = scan(failing, BUNDLE, cohort, tmp_path / "r", options, MACHINE)
    assert report.counts["failed"] >= 1 and report.counts["unfinished"] >= 1
    assert report.counts["failed"] + report.counts["unfinished"] == 4
    assert all("no device of the scan computes any more" in cause for cause in report.failed.values())
    assert all("same command again" in cause for cause in report.failed.values())
    resumed = scan(CardModel(), BUNDLE, cohort, tmp_path / "r", options, MACHINE)
    assert dict(resumed.counts) == {"complete": 4}
    assert stores(tmp_path / "r") == stores(tmp_path / "whole")


def test_halved_batches_are_recorded_and_followed_by_every_card_and_by_the_next_run(
    slide: Path, tmp_path: Path, use_cards: Callable[[int], None]
) -> None:
    use_cards(2)
    model = CardModel({1: [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]})
    report = run(model, slide, tmp_path / "r")
    assert dict(report.counts) == {"complete": 1} and report.counters.batch_halvings == 1
    assert open_results(tmp_path / "r").settings["engine"]["pieces"] == 2
    assert result_of(tmp_path / "r")["engine"]["pieces"] == 2
    # A later run begins with the recorded pieces.
    (folder,) = (tmp_path / "r" / "cases").iterdir()
    CaseFolder(folder).clear()
    again = CardModel()
    run(again, slide, tmp_path / "r")
    maps = [size for _, size in again.shared.computed]
    assert max(maps) == 2, "batches of three fields are computed in pieces of two and one"


@pytest.mark.parametrize(
    ("error", "is_memory", "is_device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True, True),
        (RuntimeError("MPS backend out of memory"), True, False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_devices_are_recognised(error: Exception, is_memory: bool, is_device: bool) -> None:
    assert (cards.is_out_of_memory(error), cards.is_device_error(error)) == (is_memory, is_device)


# -- the choice of cards -------------------------------------------------------------------------------------


@pytest.fixture
def machine_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace `torch.cuda` by a machine with cards: (name, multiprocessors, free and total GiB)."""

    def install(*kinds: tuple[str, int, int, int], broken: tuple[int, ...] = ()) -> None:
        def index(device: Any) -> int:
            return torch.device(device).index or 0

        def properties(device: Any) -> SimpleNamespace:
            name, processors, _, total = kinds[index(device)]
            return SimpleNamespace(
                name=name, major=9, minor=0, multi_processor_count=processors, total_memory=total << 30
            )

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: kinds[index(device)][0])
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device: tuple(n << 30 for n in kinds[index(device)][2:])
        )
        monkeypatch.setattr(cards, "responds", lambda device: index(device) not in broken)
        monkeypatch.setattr(cards, "choose_device", lambda name: name)

    return install


BIG, SMALL = ("big", 132, 130, 140), ("small", 60, 70, 80)


def test_auto_uses_every_visible_card(
    machine_with: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    machine_with(BIG, BIG, BIG)
    assert cards.choose_devices("auto") == ("cuda:0", "cuda:1", "cuda:2")
    machine_with(BIG)
    assert cards.choose_devices("auto") == ("cuda:0",)
    assert not caplog.text


def test_auto_leaves_out_cards_that_are_busy_or_broken(
    machine_with: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    busy = ("big", 132, 20, 140)
    machine_with(BIG, busy, BIG, BIG, broken=(2,))
    assert cards.choose_devices("auto") == ("cuda:0", "cuda:3")
    assert "cuda:1 (big) is left out because another program uses its memory" in caplog.text
    assert "cuda:2 (big) is left out because it does not compute" in caplog.text
    machine_with(busy, busy)
    assert cards.choose_devices("auto") == ("cuda:0", "cuda:1"), "all are busy, so none is left out"


def test_the_slowest_of_different_cards_comes_first(
    machine_with: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    machine_with(BIG, BIG, SMALL)
    assert cards.choose_devices("cuda:0,cuda:2") == ("cuda:2", "cuda:0")
    assert "different kinds (cuda big, cuda small)" in caplog.text


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("cuda:0,cuda:0", "'cuda:0' is named twice"),
        ("cuda,cuda:0", "'cuda:0' is named twice"),
        ("cuda:1,cpu", r"must be CUDA cards.*Found cpu"),
        ("cpu,mps", r"must be CUDA cards.*Found cpu, mps"),
    ],
)
def test_a_wrong_list_of_devices_is_refused(
    machine_with: Callable[..., None], requested: str, message: str
) -> None:
    machine_with(BIG, BIG)
    with pytest.raises(ConfigError, match=message):
        cards.choose_devices(requested)


@pytest.mark.parametrize("requested", ["cuda:7", "cpu,cuda:7", "gpu", "cuda:0,,cuda:1"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has cards")
def test_an_unknown_device_is_refused_with_those_that_exist(requested: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used.*devices: cpu"):
        cards.choose_devices(requested)


def test_the_smallest_free_memory_decides_the_sizes_for_all_cards(
    machine_with: Callable[..., None], slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lobule.scanning.device import DEVICE_SHARE

    machine_with(BIG, ("big", 132, 90, 140))
    limits: list[int] = []

    class Stopped(Exception):
        pass

    class Curious(MeanPredictor):
        def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> Any:
            limits.append(max_bytes)
            raise Stopped

    machine = Machine(device="cuda:0,cuda:1", replicas=2)
    with pytest.raises(Stopped):
        scan(Curious(), BUNDLE, cohort_of(slide), tmp_path / "r", EVERYWHERE, machine)
    assert limits == [int(DEVICE_SHARE * (90 << 30)) // 2]
