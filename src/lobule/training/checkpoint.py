"""Checkpoints: tensors as safetensors, everything else as JSON. Nothing in them is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lobule.bundles import write_tensors
from lobule.errors import ResultsError
from lobule.files import read_json, write_json
from lobule.fingerprints import fingerprint

STATE = "state.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training."""

    contents: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def of(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, with the prefix removed."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.tensors.items()
            if name.startswith(prefix)
        }


def write_checkpoint(folder: Path, checkpoint: Checkpoint, name: str) -> None:
    """Write the tensors, then `state.json`, which makes the new checkpoint the valid one."""
    path = folder / f"{name}.safetensors"
    write_tensors(path, checkpoint.tensors)
    state = {"tensors": path.name, "hash": fingerprint(path), **checkpoint.contents}
    write_json(folder / STATE, state)
    for other in folder.glob("*.safetensors"):
        if other != path:
            other.unlink()


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in a folder, or None. A damaged checkpoint raises `ResultsError`."""
    if not (folder / STATE).exists():
        return None
    state = read_json(folder / STATE)
    path = folder / str(state.get("tensors", ""))
    try:
        is_intact = path.name == state["tensors"] and fingerprint(path) == state["hash"]
        tensors = load_file(path) if is_intact else {}
    except (OSError, KeyError, SafetensorError) as error:
        raise ResultsError("the checkpoint is damaged", subject=path, actual=str(error)) from error
    if not is_intact:
        raise ResultsError(
            "the checkpoint is damaged", subject=path, remedy="Start the training over with --fresh"
        )
    return Checkpoint(state, tensors)
