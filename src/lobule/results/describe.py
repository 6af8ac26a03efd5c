"""Describes a results folder: finished cases, failed cases with causes, and cases that are still missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lobule.errors import DamagedResults, LobuleError
from lobule.results.folder import CaseFolder, Results, open_results
from lobule.results.preliminary import preliminary_scores
from lobule.results.result import COMPLETE, FAILED, PARTIAL, UNSCORED

ORDER = (COMPLETE, PARTIAL, FAILED, UNSCORED, "unfinished", "not started")


def describe(path: str | Path) -> tuple[dict[str, Any], str]:
    """Describe a results folder, also while the scan is still running.

    Returns:
        The description as a JSON-compatible dictionary, and as text.
    """
    results, damage = Results(Path(path)), {}
    try:
        settings = open_results(path).settings
    except DamagedResults as error:  # The cases can still be shown.
        settings, damage = {}, {"error": f"damaged: {error}"}
    cases = [_case(case) for case in results.cases()]
    counts = _counts(cases, [str(name) for name in settings.get("cases", [])])
    data = {
        "path": str(results.path),
        "bundle": settings.get("bundle", {}),
        "options": settings.get("options", {}),
        "counts": counts,
        "cases": cases,
        "research_use": settings.get("research_use"),
        **damage,
    }
    data = _printable(data)
    return data, _text(results, data)


def _counts(cases: list[dict[str, Any]], planned: list[str]) -> dict[str, int]:
    """Return the number of cases in each status that occurs, in the usual order."""
    totals = Counter(case["status"] for case in cases)
    started = {case["case"] for case in cases}
    totals["not started"] = sum(name not in started for name in planned)
    return {status: totals[status] for status in ORDER if totals[status]}


def _printable(value: Any) -> Any:
    """Escape control characters and lone surrogates, which names from other systems may contain."""
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    escaped = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in value)
    return "".join(escaped)


def _case(case: CaseFolder) -> dict[str, Any]:
    summary: dict[str, Any] = {"case": case.case_id, "status": "unfinished", "maps": {}}
    try:
        result = case.result
        if result is None:
            summary["maps"] = {name: reader.counts() for name, reader in case.maps.items()}
            summary["preliminary_scores"] = preliminary_scores(case)
            return summary
    except LobuleError as error:  # The other cases are still shown.
        return {**summary, "error": f"damaged: {error}"}
    except Exception as error:  # Damaged files may raise any error.
        return {**summary, "error": f"damaged: {type(error).__name__}: {str(error)[:300]}"}
    summary["status"] = str(result["status"])
    summary["scores"] = result["scores"]
    summary["findings"] = result["findings"]["count"]
    summary["maps"] = {entry["name"]: entry["cells"] for entry in result["maps"]}
    summary["failed_fields"] = len(result.get("failed", []))
    summary["notes"] = result["notes"]
    if result.get("error"):
        summary["error"] = result["error"]["message"]
    return summary


def _text(results: Results, data: dict[str, Any]) -> str:
    method = data["bundle"].get("method", "?")
    shares = ", ".join(f"{data['counts'][status]} {status}" for status in ORDER if status in data["counts"])
    lines = [f"results   {results.path}", f"method    {method}", f"cases     {shares or 'none'}"]
    if "error" in data:
        lines.append(f"settings  {data['error']}")
    rows = []
    for case in data["cases"]:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in case.get("scores", {}).items())
        rows.append((case["case"], case["status"], scores, str(case.get("findings", "")), _remark(case)))
    if rows:
        header = ("case", "status", "scores", "findings", "remarks")
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]
        padded = [[*map(str.ljust, row[:4], widths), row[4]] for row in [header, *rows]]
        lines += ["", *("  ".join(row).rstrip() for row in padded)]
    lines += ["", data["research_use"] or ""]
    return "\n".join(lines).rstrip()


def _remark(case: dict[str, Any]) -> str:
    if "error" in case:
        return str(case["error"])
    if case["status"] == UNSCORED:
        return "; ".join(map(str, case["notes"]))
    remarks = []
    if case.get("failed_fields"):
        remarks.append(f"{case['failed_fields']} fields failed")
    if case["status"] == "unfinished":
        for name, cells in case["maps"].items():
            done = cells["scored"] + cells["failed"]
            remarks.append(f"{name}: {done:,} cells scored, {cells['pending']:,} pending")
        if scores := case.get("preliminary_scores"):
            remarks.append(
                "preliminary " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            )
    return "; ".join(remarks)
