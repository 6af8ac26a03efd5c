"""A cache of networks that were converted to OpenVINO, in the user's cache folder.

A converted network consists of an XML file with its layers and a BIN file with its weights. A third file has
the hash of both: OpenVINO does not notice changed weights, and the scores would be wrong.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lobule import __version__
from lobule.errors import LobuleError, ResultsError
from lobule.fingerprints import cache_folder, digest_of
from lobule.results.locks import lock_file
from lobule.scanning.openvino_conversion import convert, last_line, save_model
from lobule.scanning.openvino_library import core, openvino

log = logging.getLogger("lobule.scan")


def converted(net: nn.Module, digest: str, shape: tuple[int, ...]) -> Any:
    """Return the float32 model of a network for one input shape, from the cache if it is there.

    Args:
        net: The network.
        digest: The hash of the network.
        shape: The shape of the input.

    Raises:
        ResultsError: The model cannot be stored, not even in the folder for temporary files.
        Exception: OpenVINO cannot convert the network; it raises many undocumented types.
    """
    key = f"{digest} {shape} {openvino().__version__} {torch.__version__} {__version__}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    with _cached_file(f"{name}.xml") as path:
        if path is not None and (stored := _stored_model(path)) is not None:
            return stored
        model = convert(net, shape)
        if path is not None:
            try:
                return _store(model, path)
            except (OSError, RuntimeError) as error:
                _warn_not_cached(last_line(error))
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _store(model, Path(folder) / f"{name}.xml")
    except (OSError, RuntimeError) as error:
        raise ResultsError(
            "a network that was converted to OpenVINO cannot be stored, neither in the cache folder nor in "
            "the folder for temporary files",
            actual=last_line(error),
            remedy="Free some space, name other folders with LOBULE_CACHE and TMPDIR, or start a new scan "
            "with --runtime torch",
        ) from error


@contextmanager
def _cached_file(name: str) -> Iterator[Path | None]:
    """Lock a file of the cache and yield its path, or yield None if the cache cannot be used."""
    path = None
    with ExitStack() as stack:
        try:
            path = cache_folder() / "openvino" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path.with_suffix(".lock")))
        except (OSError, LobuleError, RuntimeError) as error:
            path = None
            _warn_not_cached(str(error))
        yield path


@cache
def _warn_not_cached(reason: str) -> None:
    """Warn once, not for every network and input shape."""
    log.warning("Networks that were converted to OpenVINO cannot be cached: %s", reason)


def _stored_model(path: Path) -> Any:
    """Return the model in the cache, or None if it is missing or damaged."""
    hash_file = path.with_suffix(".sha256")
    if not hash_file.exists():
        return None
    try:
        if hash_file.read_text(encoding="utf-8") == _hash(path):
            return core().read_model(path)
        problem = "its hash differs"
    except (OSError, RuntimeError, ValueError) as error:
        problem = last_line(error)
    log.warning("%s: the cached network is damaged and is converted again: %s", path, problem)
    return None


def _store(model: Any, path: Path) -> Any:
    """Store a model and read it again: a stored model may be compiled to other operations."""
    path.with_suffix(".sha256").unlink(missing_ok=True)
    save_model(model, path)
    stored = core().read_model(path)
    path.with_suffix(".sha256").write_text(_hash(path), encoding="utf-8")
    return stored


def _hash(path: Path) -> str:
    """Return the SHA-256 of the XML file and of the BIN file."""
    hashes = []
    for suffix in (".xml", ".bin"):
        with path.with_suffix(suffix).open("rb") as file:
            hashes.append(digest_of(file))
    return " ".join(hashes)
