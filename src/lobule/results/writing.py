"""Writes the findings of a case as Parquet and CSV, and summarises its maps for `result.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lobule.files import write_bytes
from lobule.findings import Finding
from lobule.results.folder import CaseFolder
from lobule.results.maps import MapReader

FINDINGS = ("findings.parquet", "findings.csv")


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Write `findings.parquet`, and `findings.csv` without the outlines."""
    from lobule.results.findings_table import findings_tables

    tables = findings_tables(findings)
    for name, data in zip(FINDINGS, tables, strict=True):
        write_bytes(folder / name, data, flush_folder=name == FINDINGS[-1])


def map_summaries(folder: CaseFolder, opened: Mapping[str, MapReader] | None = None) -> list[dict[str, Any]]:
    """Return the description of each map for `result.json`.

    Args:
        folder: The folder of the case.
        opened: Readers of maps that are already open, by name.
    """
    opened = opened or {}
    readers = {name: opened.get(name) or MapReader(path) for name, path in folder.map_paths().items()}
    return [
        {**reader.info.to_dict(), "name": name, "cells": reader.counts()} for name, reader in readers.items()
    ]
