"""The sections of a case's page that are tables: findings, scores, calibration, failures and provenance."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

from lobule.errors import LobuleError
from lobule.exports.case import ExportCase
from lobule.exports.options import ExportOptions
from lobule.files import read_json
from lobule.findings import Finding
from lobule.reports.page import fields_table, number, table, text, words
from lobule.server.details import STANDARD_FIELDS

MOST_FINDINGS = 50
MOST_FAILED = 20


def findings_section(case: ExportCase, options: ExportOptions) -> str:
    """Return the table of the findings with the highest scores."""
    highest = heapq.nlargest(
        MOST_FINDINGS, case.findings(options), key=lambda pair: (_rank(pair[1].score), -pair[0])
    )
    if not highest:
        return "<p>There are no findings.</p>"
    reviews = case.reviews_of_findings
    rows = [
        _finding_row(case, rank, index, finding, reviews) for rank, (index, finding) in enumerate(highest, 1)
    ]
    header = ["", "score", "label", "class", "size, µm", "area, mm²", "x, y", "review"]
    left_out = case.finding_count - len(highest)
    remainder = (
        f"<p class=note>{left_out:,} findings with lower scores are not listed.</p>" if left_out > 0 else ""
    )
    # Columns without a value in any row, such as the sizes of findings of an exam, are left out.
    filled = [index for index in range(len(header)) if any(row[index] not in ("", "–") for row in rows)]
    numeric = [position for position, index in enumerate(filled) if index in (0, 1, 4, 5)]
    shown = [[row[index] for index in filled] for row in rows]
    return table([header[index] for index in filled], shown, numeric) + remainder


def _rank(score: float) -> float:
    return score if score == score else float("-inf")


def _finding_row(
    case: ExportCase, rank: int, index: int, finding: Finding, reviews: Mapping[int, list[str]]
) -> list[str]:
    frame = case.frames.get(finding.image)
    mpp = None if frame is None else frame.mpp
    position = f"{finding.l0_x:,}, {finding.l0_y:,} px"
    if mpp is not None:
        position = f"{finding.l0_x * mpp.x / 1000:.2f}, {finding.l0_y * mpp.y / 1000:.2f} mm"
    if finding.image != "slide":
        position = f"{text(finding.image)}: {position}"
    area = None if finding.area_um2 is None else finding.area_um2 * 1e-6
    return [
        str(rank),
        number(finding.score),
        text(finding.label or case.label),
        text(finding.lesion_class or "–"),
        number(finding.size_um, 0),
        number(area, 3),
        position,
        text("; ".join(reviews.get(index, []))),
    ]


def scores_section(case: ExportCase) -> str:
    """Return the table of the scores, with their spread where the result states it."""
    scores = case.result["scores"]
    if not scores:
        return "<p>There are no scores.</p>"
    raw = case.result.get("raw_scores") or {}
    rows = [
        [text(name), f"<span class=bar><span style='width:{_share(value):.0%}'></span></span>{value:.4f}",
         number(raw.get(name), 4)]
        for name, value in scores.items()
    ]  # fmt: skip
    header = ["score", "value", *(["before calibration"] if raw else [])]
    spread: Any = case.result.get("spread") or {}
    measures = list(next(iter(spread.values()))) if _is_by_score(spread) else []
    for row, name in zip(rows, scores, strict=True):
        row[2:] = [*(row[2:] if raw else []), *(number(spread.get(name, {}).get(one)) for one in measures)]
    shown = table([*header, *map(text, measures)], rows, range(len(header), len(header) + len(measures)))
    further_values = {name: value for name, value in case.result.items() if _is_spread(name) and not measures}
    if measures:
        return shown + "<p class=note>The spread is that over windows, models or draws of the scan.</p>"
    return shown + (
        fields_table(further_values) if further_values else "<p class=note>The result states no spread.</p>"
    )


def _is_spread(name: str) -> bool:
    return "spread" in name or "interval" in name


def _is_by_score(spread: Any) -> bool:
    """Whether a result states the same measures of spread for each of its scores."""
    return isinstance(spread, Mapping) and bool(spread) and all(map(_is_measures, spread.values()))


def _is_measures(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, int | float) for one in value.values())


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def calibration_section(case: ExportCase) -> str:
    """Say whether the scores are calibrated, and which thresholds the case has reached."""
    above = case.result.get("above_thresholds")
    if not above:
        return "<p>The scores are not calibrated: they rank cases, and are not probabilities.</p>"
    rows = [
        [text(name), text(point), "reached" if reached else "not reached"]
        for name, points in above.items()
        for point, reached in points.items()
    ]
    return "<p>The scores were calibrated on labelled cases of a site.</p>" + table(
        ["score", "threshold for", "this case"], rows
    )


def failures_section(case: ExportCase, notes: list[str]) -> str:
    """Return the notes about a case, and the fields that failed."""
    sentences = [*case.notes(), *notes, *map(str, case.result.get("notes") or [])]
    blocks = [f"<p>{text(sentence)}</p>" for sentence in dict.fromkeys(sentences)]
    failed = [entry for entry in case.result.get("failed") or [] if isinstance(entry, dict)]
    if failed:
        rows = [
            [text(entry.get("image")), text(entry.get("l0_box")), text(entry.get("cause"))]
            for entry in failed[:MOST_FAILED]
        ]
        blocks.append(table(["image", "level-0 box", "cause"], rows))
        if len(failed) > MOST_FAILED:
            blocks.append(f"<p class=note>And {len(failed) - MOST_FAILED:,} more.</p>")
    return "".join(blocks) or "<p>Nothing failed, and nothing is missing.</p>"


def bundle_fields(bundle: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield what identifies the model."""
    yield "method", bundle.get("method")
    yield "bundle", bundle.get("fingerprint")
    yield "classes", ", ".join(map(str, bundle.get("classes") or []))


def provenance(case: ExportCase) -> Iterator[tuple[str, object]]:
    """Yield what produced a result: bundle, versions, settings and the hashes of the input."""
    result = case.result
    yield from bundle_fields(result.get("bundle") or {})
    yield "Lobule", result.get("lobule")
    yield "computed with", _pairs(result.get("engine"))
    try:
        source = case.library.sources[case.entry.source]
        yield (
            "options of the scan",
            _pairs((source.results.settings if source.results else {}).get("options")),
        )
    except LobuleError as error:
        yield "options of the scan", f"cannot be read: {error.problem}"
    for name, recorded in (result.get("images") or {}).items():
        mpp = recorded.get("mpp")
        origin = f" ({recorded['mpp_source']})" if recorded.get("mpp_source") else ""
        stated = [
            recorded.get("format"),
            "{:,} × {:,} px".format(*recorded["size"]) if recorded.get("size") else None,
            None if mpp is None else f"{mpp[0]:.4g} µm/px{origin}",
        ]
        yield f"image {name}", ", ".join(filter(None, stated))
    for index, digest in enumerate((result.get("input") or {}).values(), 1):
        yield f"hash of input file {index}", digest
    yield "seconds", run_seconds(case)
    details = {
        name: value for name, value in result.items() if name not in STANDARD_FIELDS and not _is_spread(name)
    }
    yield (
        "further values",
        _pairs({k: v for k, v in details.items() if not isinstance(v, dict | list) or len(str(v)) < 400}),
    )


def _pairs(values: Any) -> str:
    if not isinstance(values, Mapping):
        return ""
    return words(values)


def run_seconds(case: ExportCase) -> float | None:
    """Return how long the scan of a case took, as its last run recorded it."""
    try:
        seconds = read_json(case.folder.path / "run.json")["seconds"]
    except (LobuleError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, int | float) else None
