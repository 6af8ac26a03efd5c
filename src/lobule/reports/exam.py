"""The opening of an exam's page: four views with and without heatmaps, and the scores of each breast."""

from __future__ import annotations

from collections.abc import Iterator

from lobule.errors import LobuleError
from lobule.exports.case import ExportCase
from lobule.reports import pictures
from lobule.reports.page import figure, number, table, text
from lobule.results import MapReader

ORDER = ("R-CC", "L-CC", "R-MLO", "L-MLO")
"""The order in which readers hang the views: the right breast on the left."""
GRADES = ("malignant", "benign")


def exam_sections(case: ExportCase, notes: list[str]) -> Iterator[str]:
    """Yield the scores of the breasts and the pictures of the views."""
    yield "<h2>Scores of the breasts</h2>"
    yield breast_scores(case)
    yield "<h2>Views</h2>"
    yield _views(case, notes)


def breast_scores(case: ExportCase) -> str:
    scores, row = case.result["scores"], case.entry.row
    labels = {} if row is None else row.breast_labels
    rows = []
    for side in ("right", "left"):
        cells = [f"{side} breast"]
        for grade in GRADES:
            score = scores.get(f"{side}_{grade}")
            share = 0.0 if score is None else min(1.0, max(0.0, score))
            cells.append(f"<span class=bar><span style='width:{share:.0%}'></span></span>{number(score)}")
            is_present = labels.get(f"{side}_{grade}")
            cells.append("not known" if is_present is None else "present" if is_present else "absent")
        rows.append(cells)
    return table(["", "malignant", "truth", "benign", "truth"], rows)


def _views(case: ExportCase, notes: list[str]) -> str:
    plain, heated = [], []
    for name in sorted(case.frames, key=_position):
        frame = case.frames[name]
        if frame.path is None:
            plain.append(f"<figure><figcaption>{text(name)}: the file is gone</figcaption></figure>")
            heated.append("<figure></figure>")
            continue
        try:
            view, under_heat = pictures.view_pictures(frame.path, name, _heatmap(case, name))
        except LobuleError as error:
            notes.append(f"The view {name} cannot be read: {error.problem}.")
            continue
        plain.append(figure(view, text(name), f"{name} view"))
        if under_heat is not None:
            heated.append(figure(under_heat, f"{text(name)}, heatmap", f"{name} view under its heatmap"))
    present = {name.partition(" ")[0] for name in case.frames}
    notes += [f"The exam has no view {view}." for view in ORDER if view not in present]
    legend = (
        "<p class=note>Red: the heatmap of malignancy, from 0.3 (clear) to 1 (full).</p>" if heated else ""
    )
    return f"<div class=views>{''.join(plain)}</div>{legend}<div class=views>{''.join(heated)}</div>"


def _position(name: str) -> tuple[int, str]:
    view = name.partition(" ")[0]
    return (ORDER.index(view) if view in ORDER else len(ORDER), name)


def _heatmap(case: ExportCase, image: str) -> MapReader | None:
    """Return the heatmap of a view; its last class is malignancy."""
    readers = [reader for reader in case.maps.values() if reader.info.image == image]
    return readers[0] if readers else None
