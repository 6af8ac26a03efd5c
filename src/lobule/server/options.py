"""The options of the server."""

from __future__ import annotations

from dataclasses import dataclass

from lobule.server.gate import LOOPBACK


@dataclass(frozen=True)
class ServerOptions:
    """How the server behaves towards clients."""

    hosts: frozenset[str] = LOOPBACK
    token: str | None = None
    show_patients: bool = False
    show_labels: bool = False
    """Serve the label and macro images of slides, which may show names of patients."""
