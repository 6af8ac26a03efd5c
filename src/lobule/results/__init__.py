"""Results of cases on disk: maps, tables, findings and `result.json`. Reading them does not need torch."""

from lobule.results.describe import describe
from lobule.results.folder import CaseFolder, Results, open_results
from lobule.results.maps import MapInfo, MapReader
from lobule.results.result import FailedField, Result
from lobule.results.store_copies import local_results
from lobule.results.tables import TableReader

__all__ = [
    "CaseFolder",
    "FailedField",
    "MapInfo",
    "MapReader",
    "Result",
    "Results",
    "TableReader",
    "describe",
    "local_results",
    "open_results",
]
