"""The page of one case: the highest-scoring fields, the map, the findings and how they were made."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lobule.errors import LobuleError
from lobule.exports.case import ExportCase
from lobule.exports.export import CaseOutput
from lobule.exports.options import ExportOptions
from lobule.files import write_text
from lobule.findings import Finding
from lobule.reports import pictures
from lobule.reports.case_tables import (
    calibration_section,
    failures_section,
    findings_section,
    provenance,
    run_seconds,
    scores_section,
)
from lobule.reports.page import (
    data_uri,
    fields_table,
    figure,
    html_page,
    number,
    research_use,
    table,
    text,
)
from lobule.reports.pdf import write_pdf
from lobule.reports.pictures import Field
from lobule.results import MapReader
from lobule.results.map_check import maps_to_draw
from lobule.server.map_tiles import highest_cells
from lobule.slides.slide import Slide

FIELDS = 10
FOLDER = "cases"
MISUSE = (
    "This report shows the output of a research model. It is not a medical device. Do not use it to "
    "diagnose, to choose a treatment, or to set aside a slide or an exam without reading it. A score is "
    "not a probability of disease unless the section on calibration says so. The absence of findings does "
    "not mean the absence of cancer. The model may fail on scanners, stains, tissue and populations that "
    "it was not trained on."
)


def write(case: ExportCase, folder: Path, options: ExportOptions, *, pdf: bool = False) -> CaseOutput:
    """Write the page of a case, and the same page as PDF."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    html, notes = case_page(case, options)
    write_text(target / f"{case.file_name}.html", html)
    if pdf:
        write_pdf(html, target / f"{case.file_name}.pdf")
    summary = {
        "findings": case.finding_count,
        "seconds": run_seconds(case),
        "page": f"{FOLDER}/{case.file_name}.html",
        **_row_values(case),
    }
    return CaseOutput(tuple(notes), summary)


def _row_values(case: ExportCase) -> dict[str, Any]:
    row = case.entry.row
    return {} if row is None else {"label": row.label, "site": row.site, "split": row.split}


def case_page(case: ExportCase, options: ExportOptions) -> tuple[str, list[str]]:
    """Return the page of a case, and notes about what it lacks."""
    notes: list[str] = []
    if case.kind == "exam":
        from lobule.reports.exam import exam_sections

        opening = list(exam_sections(case, notes))
    else:
        opening = list(_slide_sections(case, options, notes))
    sections = [
        research_use(),
        fields_table(_heading(case, options)),
        *opening,
        "<h2>Findings</h2>",
        findings_section(case, options),
        "<h2>Scores</h2>",
        scores_section(case),
        "<h2>Calibration</h2>",
        calibration_section(case),
        "<h2>What failed and what is missing</h2>",
        failures_section(case, notes),
        "<h2>How it was made</h2>",
        fields_table(provenance(case)),
        "<h2>What this must not be used for</h2>",
        f"<p>{text(MISUSE)}</p>",
    ]
    return html_page(f"Case {case.name}", sections), notes


def _heading(case: ExportCase, options: ExportOptions) -> Iterator[tuple[str, object]]:
    row = case.entry.row
    yield "status", case.status
    if options.show_patients:
        yield "patient", case.patient
    if row is not None:
        yield "label in the cohort", row.label
        yield "site", row.site
    yield "kind", case.kind
    yield "scores", ", ".join(f"{name} {value:.3f}" for name, value in case.result["scores"].items())
    yield "findings", f"{case.finding_count:,}"


# -- slides -------------------------------------------------------------------------------------------------


def _slide_sections(case: ExportCase, options: ExportOptions, notes: list[str]) -> Iterator[str]:
    frame = case.frames.get("slide")
    fields = highest_fields(case, options)
    slide = _open(case, notes)
    reader, hidden = map_to_draw(case, options)
    if hidden is not None:
        notes.append(hidden)
    try:
        yield "<h2>The highest-scoring fields</h2>"
        yield _field_figures(slide, fields, notes)
        yield "<h2>The slide and its map</h2>"
        size = (frame.size.width, frame.size.height) if frame is not None and frame.size else None
        if size is None and slide is not None:
            size = (slide.size.width, slide.size.height)
        if size is None and reader is not None:
            info = reader.info
            size = (round(info.columns * info.l0_stride[0]), round(info.rows * info.l0_stride[1]))
        yield (
            "<p>Neither the slide nor a map is there.</p>"
            if size is None
            else _map_figures(case, slide, size, fields, options, notes)
        )
    finally:
        if slide is not None:
            slide.close()


def _open(case: ExportCase, notes: list[str]) -> Slide | None:
    frame = case.frames.get("slide")
    if frame is None or frame.path is None:
        return None
    try:
        mpp = None if case.entry.row is None else case.entry.row.mpp
        return pictures.opened_slide(frame.path, mpp)
    except LobuleError as error:
        notes.append(f"The slide cannot be read: {error.problem}.")
        return None


def map_to_draw(case: ExportCase, options: ExportOptions) -> tuple[MapReader | None, str | None]:
    """Return the map of a slide, or the reason why it must not be drawn."""
    hidden = maps_to_draw(case.folder)[1]
    return (case.map(options), None) if hidden is None else (None, hidden)


def highest_fields(case: ExportCase, options: ExportOptions) -> list[Field]:
    """Return the findings with the highest scores or, without findings, the highest cells of the map."""
    numbered = (pair for pair in case.findings(options, "slide") if pair[1].score == pair[1].score)
    findings = heapq.nlargest(FIELDS, numbered, key=lambda pair: (pair[1].score, -pair[0]))
    if findings:
        return [
            Field(rank, finding.l0_x, finding.l0_y, finding.score, finding)
            for rank, (_, finding) in enumerate(findings, 1)
        ]
    reader, _ = map_to_draw(case, options)
    if reader is None:
        return []
    x_stride, y_stride = reader.info.l0_stride
    cells = highest_cells(reader, len(reader.info.classes) - 1, FIELDS)
    return [
        Field(rank, int((column + 0.5) * x_stride), int((row + 0.5) * y_stride), score)
        for rank, (row, column, score) in enumerate(cells, 1)
    ]


def _field_figures(slide: Slide | None, fields: list[Field], notes: list[str]) -> str:
    if not fields:
        return "<p>There is neither a finding nor a scored cell to show.</p>"
    if slide is None:
        rows = [[str(f.number), number(f.score), f"{f.l0_x:,}, {f.l0_y:,}"] for f in fields]
        return "<p>The slide is gone, so its fields cannot be shown.</p>" + table(
            ["number", "score", "x, y in level-0 pixels"], rows, numeric=(0, 1)
        )
    figures = []
    for field in fields:
        try:
            pixels, width_um = pictures.field_picture(slide, field)
        except LobuleError as error:
            notes.append(f"Field {field.number} cannot be read: {error.problem}.")
            continue
        caption = f"<b>{field.number}</b>, score {number(field.score)}{_size(field.finding)}<br>"
        caption += f"{width_um:,.0f} µm wide, bar {pictures.bar_um(width_um):g} µm"
        figures.append(figure(pixels, caption, f"Field {field.number}, score {number(field.score)}"))
    kind = "findings" if fields[0].finding is not None else "cells of the map; there are no findings"
    return f"<p class=note>The {len(fields)} highest {kind}.</p><div class=fields>{''.join(figures)}</div>"


def _size(finding: Finding | None) -> str:
    return "" if finding is None or finding.size_um is None else f", {finding.size_um:,.0f} µm"


def _map_figures(
    case: ExportCase,
    slide: Slide | None,
    size: tuple[int, int],
    fields: list[Field],
    options: ExportOptions,
    notes: list[str],
) -> str:
    reader, hidden = map_to_draw(case, options)
    try:
        plain, mapped = pictures.slide_pictures(slide, reader, size, fields)
    except LobuleError as error:
        notes.append(f"The slide cannot be drawn: {error.problem}.")
        plain, mapped = pictures.slide_pictures(None, reader, size, fields)
    figures = []
    if plain is not None:
        figures.append(figure(plain, f"{size[0]:,} × {size[1]:,} pixels", f"The slide of {case.name}"))
    if mapped is not None:
        name = "" if reader is None else f"Scores of the class {text(reader.info.classes[-1])}; "
        legend = (
            f"0 <img src='{data_uri(pictures.ramp_picture())}' alt='light to dark' "
            "style='display:inline;vertical-align:middle;height:.7em;width:8em'> 1"
        )
        subject = "slide" if reader is None else "map"
        caption = "The numbers are those of the fields above."
        if reader is not None:
            caption = f"{name}{legend}. {caption}"
        figures.append(figure(mapped, caption, f"The {subject} of {case.name} with numbered fields"))
    if hidden is not None:
        return f"<div class=pair>{''.join(figures)}</div><p class=note>{text(hidden)}</p>"
    counts = "" if reader is None else _cell_counts(case, reader.info.name)
    return f"<div class=pair>{''.join(figures)}</div>{counts}"


def _cell_counts(case: ExportCase, name: str) -> str:
    cells = next((entry["cells"] for entry in case.result["maps"] if entry["name"] == name), None)
    if cells is None:
        return ""
    shown = ", ".join(f"{count:,} {state}" for state, count in cells.items())
    return f"<p class=note>Cells of the map: {shown}.</p>"
