"""Exports: results in the formats of other software. None of them needs torch or the bundle.

from lobule.exports import EXPORTS
from lobule.exports.run import export_results

export_results("results", "qupath", "overlays")
"""

from __future__ import annotations

from lobule.exports.export import EXPORTS, CaseOutput, Export, find_export
from lobule.exports.options import ExportOptions

__all__ = ["EXPORTS", "CaseOutput", "Export", "ExportOptions", "find_export"]
