"""Finds the published file of an encoder: in a Python package, in a cache, on the hub, or at an address."""

from __future__ import annotations

import os
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from lobule.encoders.entry import EncoderEntry
from lobule.errors import ConfigError, MissingExtra
from lobule.files import MIB, make_folder, write_atomic
from lobule.nets.hub import client, why_unreachable

TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""
STARTER = "starter"
"""The extra that installs the packages with weights."""


def locate(entry: EncoderEntry) -> Path:
    """The local path of the published file, which is downloaded if it is not in a cache.

    Raises:
        ConfigError: The file cannot be downloaded, or access to it is denied. The message names the file.
        MissingExtra: The Python package that contains the file is not installed.
    """
    if entry.published.package is not None:
        return _in_package(entry)
    if entry.published.url is not None:
        return _at_address(entry)
    return _on_hub(entry)


def _in_package(entry: EncoderEntry) -> Path:
    """The file inside an installed package. The package is not imported."""
    assert entry.published.package is not None
    spec = find_spec(entry.published.package)
    for folder in () if spec is None else (spec.submodule_search_locations or ()):
        path = Path(folder) / entry.published.file
        if path.is_file():
            return path
    raise MissingExtra(STARTER, f"the encoder '{entry.name}'")


def download_folder() -> Path:
    """The cache folder of files that are not on the hub: that of torch, which `lobule weights list` shows."""
    home = Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch"))
    return home / "hub" / "checkpoints"


def _at_address(entry: EncoderEntry) -> Path:
    path = download_folder() / entry.published.file
    if path.is_file():
        return path
    assert entry.published.url is not None
    with write_atomic(make_folder(path.parent) / path.name) as temporary_path:
        try:
            _download(entry.published.url, temporary_path)
        except (OSError, ValueError) as error:
            copying = f"download {path.name} from this address. Copy it to {path.parent} on this machine, or"
            raise _not_downloaded(entry, error, copying) from error
    return path


def _download(url: str, path: Path) -> None:
    """Download a file in blocks. A connection that ends too early is an error."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        announced = answer.headers.get("Content-Length")
        while block := answer.read(MIB):
            file.write(block)
        if announced is not None and file.tell() != int(announced):
            raise ValueError(f"the download ended after {file.tell():,} of {int(announced):,} bytes")


HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""The usual files of the hub. If a repository does not have one of them, the other is used."""


def _on_hub(entry: EncoderEntry) -> Path:
    """The file in the cache of the hub, or downloaded with the access rights of the user."""
    hub, published = client(), entry.published
    alternatives = [file for file in HUB_FILES if published.file in HUB_FILES and file != published.file]
    names = {"repo_id": published.repository, "revision": published.revision}
    for file in (published.file, *alternatives):
        cached = hub.try_to_load_from_cache(filename=file, **names)
        if isinstance(cached, str) and Path(cached).is_file():
            return Path(cached)
    if not hub.constants.HF_HUB_OFFLINE and (reason := why_unreachable()):
        raise _hub_error(entry, ConnectionError(reason))
    for file in (published.file, *alternatives):
        try:
            endpoint = os.environ.get("HF_ENDPOINT")
            return Path(hub.hf_hub_download(filename=file, endpoint=endpoint, **names))
        except Exception as error:  # the download code raises many undocumented types
            if (
                isinstance(error, hub.errors.RemoteEntryNotFoundError)
                and file not in alternatives
                and alternatives
            ):
                continue
            raise _hub_error(entry, error) from error
    raise AssertionError("a file is returned or an error is raised")


def _hub_error(entry: EncoderEntry, error: Exception) -> ConfigError:
    published = entry.published
    if type(error).__name__ == "GatedRepoError" or _status(error) in (401, 403):
        return _denied(entry, error)
    copied = f"hf download {published.repository} {published.file}"
    if published.revision is not None:
        copied += f" --revision {published.revision}"
    copying = f"open this address or run `{copied}`. Copy the file to this machine and"
    return _not_downloaded(entry, error, copying)


def _status(error: BaseException) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _denied(entry: EncoderEntry, error: BaseException) -> ConfigError:
    page = f"https://huggingface.co/{entry.published.repository}"
    return ConfigError(
        f"access to the weights of '{entry.name}' is denied",
        subject=entry.published.address,
        actual=_first_line(error),
        remedy=f"Accept the terms of the authors at {page}, and log in with `hf auth login`",
    )


def _not_downloaded(entry: EncoderEntry, error: BaseException, copying: str) -> ConfigError:
    file = Path(entry.published.file).name
    return ConfigError(
        f"the weights of '{entry.name}' cannot be downloaded",
        subject=entry.published.address,
        actual=_first_line(error),
        remedy=f"On a machine with a network, {copying} pass it with --encoder {entry.name} --weights {file}",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
