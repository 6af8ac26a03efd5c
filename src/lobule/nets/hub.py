"""A short attempt to reach the Hugging Face hub; its own client repeats failed requests for half a minute."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_TIMEOUT = 5.0
"""Seconds without an answer after which the hub counts as unreachable."""
ADDRESS = "https://huggingface.co"


def client() -> Any:
    """Return the module `huggingface_hub` with its telemetry switched off."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub.constants
    import huggingface_hub.errors

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # it may have been imported before
    return huggingface_hub


def why_unreachable() -> str | None:
    """Why no connection to the hub is possible; None if one is, or if a proxy stands between."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or ADDRESS)
    host, port = address.hostname or "", address.port or {"http": 80}.get(address.scheme, 443)
    proxies = getproxies()
    if (address.scheme in proxies or "all" in proxies) and not proxy_bypass(f"{host}:{port}"):
        return None
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT).close()
    except OSError as error:
        return f"{host}, port {port}, cannot be reached: {error.strerror or error}"
    return None


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Inside, the client of the hub uses only its cache if the hub cannot be reached.

    Raises:
        ConnectionError: The hub cannot be reached, and the file is not in the cache.
    """
    constants = client().constants
    reason = None if constants.HF_HUB_OFFLINE else why_unreachable()
    if reason is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:  # the client raises many undocumented types
        raise ConnectionError(reason) from error
    finally:
        constants.HF_HUB_OFFLINE = False
