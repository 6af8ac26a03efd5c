"""The devices of a scan: which cards take part, the model on each of them, and cards that fail.

A scan uses one device, or several CUDA cards. All cards compute fields and batches of the same size, in the
form that was measured on the slowest of them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lobule.errors import ConfigError, ModelError
from lobule.scanning.contract import Batch, EngineSettings, Model, ScanOptions
from lobule.scanning.device import choose_device
from lobule.scanning.form_cache import device_model
from lobule.scanning.loader import LoadedBatch

log = logging.getLogger("lobule.scan")

FREE_SHARE = 0.5
"""`auto` leaves out a card of which less than this share is free, because another program computes on it."""


@dataclass(eq=False)
class Card:
    """A device with its copy of the model. The replicas of a device share it."""

    device: str
    model: Model
    error: str = ""
    """The error with which the card was lost; empty while it computes."""

    frees_originals: bool = False
    """Whether the model frees memory while it computes its first batches."""

    pins_memory: bool = True
    """Whether batches and outputs are copied through pinned memory, so that copying overlaps computing."""

    @property
    def name(self) -> str:
        """The device and the kind of card, for messages."""
        return named(self.device)

    def is_lost(self) -> bool:
        """Whether the device failed and is left out."""
        return bool(self.error)

    def compute(self, key: Any, batch: LoadedBatch, stream: Any) -> dict[str, NDArray[Any]]:
        """Compute a batch on this device.

        Args:
            key: The key of the pass.
            batch: The batch, on the host.
            stream: The stream of the replica; None except on a CUDA card.

        Returns:
            The outputs, on the host.
        """
        with torch.inference_mode():
            if stream is None:
                outputs = self.model.forward(key, to_device(batch, self.device))
                return {name: _stored(tensor).cpu().numpy() for name, tensor in outputs.items()}
            with torch.cuda.stream(stream):
                outputs = self.model.forward(key, to_device(batch, self.device, self.pins_memory))
                host = {
                    name: _stored(tensor).to("cpu", non_blocking=self.pins_memory)
                    for name, tensor in outputs.items()
                }
                stream.synchronize()
                return {name: tensor.numpy() for name, tensor in host.items()}


COMPACT = (torch.int8, torch.float16)
"""Formats in which a model may return columns of a table to store them in less space than float32."""


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in COMPACT else tensor.float()


def to_device(batch: LoadedBatch, device: str, pinned: bool = True) -> Batch:
    """Return a batch as tensors on the device. On a GPU, pinned memory lets the copy overlap computation."""

    def move(array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if device.startswith("cuda"):
            return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
        return tensor.to(device)

    return Batch(move(batch.pixels), {name: move(values) for name, values in batch.params.items()})


def new_stream(device: str) -> Any:
    """Return the stream of a replica on a CUDA card; None on other devices."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize(device)  # Another stream moved the weights to the device.
    return torch.cuda.Stream(device)


def named(device: str) -> str:
    """Return a device with its kind of card, for messages."""
    try:
        return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
    except RuntimeError:  # A card that was lost may not even tell its name.
        return device


def choose_devices(requested: str = "auto") -> tuple[str, ...]:
    """Return the devices of a scan, the slowest first.

    Args:
        requested: A device; several CUDA cards, separated by commas; or "auto" for every visible card, or
            the best other device.

    Raises:
        ConfigError: A device does not exist, is named twice, or is not a CUDA card like the others.
    """
    if requested == "auto":
        devices = _usable_cards() if torch.cuda.is_available() else ()
        return _slowest_first(devices) or (choose_device("auto"),)
    names = [name.strip() for name in requested.split(",")]
    if len(names) == 1:
        return (choose_device(names[0]),)
    devices = tuple(choose_device("cuda:0" if name == "cuda" else name) for name in names)
    if not_cuda := [device for device in devices if not device.startswith("cuda:")]:
        raise ConfigError(
            "several devices of a scan must be CUDA cards",
            expected="such as --device cuda:0,cuda:2",
            actual=", ".join(not_cuda),
        )
    if twice := [device for device in dict.fromkeys(devices) if devices.count(device) > 1]:
        raise ConfigError(f"the device '{twice[0]}' is named twice", actual=requested)
    return _slowest_first(devices)


def _usable_cards() -> tuple[str, ...]:
    """Return the visible cards that can compute, but none that another program uses, unless all are."""
    visible = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if len(visible) == 1:
        return tuple(visible)
    working = [card for card in visible if responds(card)]
    idle = [card for card in working if _free_share(card) >= FREE_SHARE] or working
    for card in visible:
        if card not in idle:
            reason = "another program uses its memory" if card in working else "it does not compute"
            log.warning("%s is left out because %s; --device names cards explicitly", named(card), reason)
    return tuple(idle)


def _free_share(card: str) -> float:
    free, total = torch.cuda.mem_get_info(card)
    return free / total


def _slowest_first(devices: Sequence[str]) -> tuple[str, ...]:
    """Sort cards so that the model is measured on the oldest and smallest one, and warn about mixed kinds."""
    if len(devices) < 2:
        return tuple(devices)

    def speed(card: str) -> tuple[int, int, int, int]:
        card_properties = torch.cuda.get_device_properties(card)
        return (
            card_properties.major,
            card_properties.minor,
            card_properties.multi_processor_count,
            card_properties.total_memory,
        )

    kinds = {device_model(device) for device in devices}
    if len(kinds) > 1:
        log.warning(
            "The cards are of different kinds (%s): the last bits of a score may depend on the card. "
            "Name cards of one kind with --device for results that do not", ", ".join(sorted(kinds)),
        )  # fmt: skip
    return tuple(sorted(devices, key=speed))


class Cards:
    """The devices of a scan, with a copy of the model for each."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.all: list[Card] = []

    def copy_model(self, devices: Sequence[str]) -> tuple[str, ...]:
        """Copy the model for each device but the first, which uses the model itself.

        It is copied before it is moved anywhere, as some forms of a network cannot be copied.

        Returns:
            The devices; only the first if the model cannot be copied.
        """
        try:
            copies = [copy.deepcopy(self.model) for _ in devices[1:]]
        except (TypeError, RuntimeError) as error:  # A lock or a file; a tensor that torch does not copy.
            log.warning(
                "The model cannot be copied to other cards (%s: %s), so only %s computes. The method has to "
                "be changed so that `copy.deepcopy` of its model works",
                type(error).__name__, error, named(devices[0]),
            )  # fmt: skip
            log.debug("copying the model failed", exc_info=True)
            devices, copies = devices[:1], []
        self.all = [Card(*pair) for pair in zip(devices, (self.model, *copies), strict=True)]
        return tuple(devices)

    def move_copies(self, engine: EngineSettings, options: ScanOptions) -> None:
        """Move the copies to their devices. The model itself is on the first device already.

        Raises:
            ModelError: The model cannot be moved to one of the cards.
        """
        for card in self.all[1:]:
            try:
                card.model.move_to_device(replace(engine, device=card.device), options)
            except RuntimeError as error:
                raise ModelError(
                    f"the model cannot be moved to {card.name}",
                    actual=str(error).splitlines()[0],
                    remedy="Name the other cards with --device",
                ) from error

    def free_originals(self) -> None:
        """Let each model that can do so free the weights from which its networks on the device were made."""
        for card in self.all:
            free = getattr(card.model, "free_originals", None)
            card.frees_originals = free is not None and free()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device is exhausted. Libraries on top of CUDA report it in other words."""
    texts = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED", "MPS backend out of memory")
    is_reported = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return isinstance(error, torch.OutOfMemoryError) or is_reported


def is_device_error(error: BaseException) -> bool:
    """Whether an error comes from a device or its driver, and not from the code of a model."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


def responds(device: str) -> bool:
    """Whether a device still computes. After an error that destroyed its context, every call fails."""
    try:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return float(torch.ones(1, device=device) + 1) == 2
    except RuntimeError:
        return False
