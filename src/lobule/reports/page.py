"""Building blocks of pages: self-contained HTML for light and dark screens, and for paper."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lobule.results.result import RESEARCH_USE

QUALITY = 82

STYLE = """
:root { color-scheme: light dark; --ink: #26242c; --paper: #fcfbf9; --faint: #67636f; --line: #d9d4cd;
  --code: #f0ede7; --first: #0072b2; --second: #c85200; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e5e0; --paper: #1b1a1f; --faint: #a9a5b0;
  --line: #3a3840; --code: #2a2830; --first: #56b4e9; --second: #f0924a; --warn: #f0b48a; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2.5rem auto; max-width: 66rem; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 44rem; margin: .5rem 0; } .note, figcaption { color: var(--faint); font-size: 13px; }
.use { border: 1px solid var(--line); border-left: 5px solid var(--second); padding: .45rem .8rem;
  margin: 1rem 0; max-width: none; font-weight: 600; }
.warning { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
td, th { padding: .3rem 1.1rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; font-size: 14px; } td small { color: var(--faint); white-space: nowrap; }
td.long { overflow-wrap: anywhere; }
table.fixed { table-layout: fixed; width: 100%; } table.fixed td { overflow-wrap: anywhere; font-size: 14px; }
tr.group th { padding-top: 1rem; } td.number { padding-left: 0; }
td.number, th.number { text-align: right; } td.open { color: var(--warn); }
figure { margin: 0; } img { display: block; border-radius: 4px; max-width: 100%; }
a { color: var(--first); }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em; }
code { background: var(--code); padding: .1em .35em; border-radius: 3px; font-size: 14px;
  overflow-wrap: anywhere; }
p.command { max-width: none; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.fields { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .9rem; }
.fields img { width: 100%; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; } .pair img { width: 100%; }
.views { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; } .views img { width: 100%; }
.bar { display: inline-block; width: 7rem; height: .6rem; border-radius: 3px; background: var(--line);
  margin-right: .6rem; border: 1px solid var(--faint); }
.bar span { display: block; height: 100%; background: var(--first); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem;
  color: var(--faint); font-size: 14px; }
@media (max-width: 40rem) { .bar { width: 3.2rem; margin-right: .4rem; } }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } .views { grid-template-columns: 1fr 1fr; } }
@page { margin: 16mm 14mm 18mm; @bottom-left { content: "RESEARCH_USE"; font: 8pt sans-serif; color: #444; }
  @bottom-right { content: counter(page) " of " counter(pages); font: 8pt sans-serif; color: #444; } }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #444; --line: #bbb;
    --code: #f2f2f2; --first: #004a75; --second: #8a3800; --warn: #6b2d00; }
  body { margin: 0; max-width: none; padding: 0; font-size: 10pt; } h1 { font-size: 17pt; }
  h2 { font-size: 12pt; margin: 14pt 0 4pt; break-after: avoid; } h3 { break-after: avoid; }
  .fields figcaption { font-size: 7pt; } tr.group { break-after: avoid; } h2.page { break-before: page; }
  table.fixed td { font-size: 8pt; }
  figure, tr, .use { break-inside: avoid; } td, th { padding: 2pt 8pt 2pt 0; font-size: 9pt; }
  thead { display: table-header-group; } p { max-width: none; } .scroll { overflow: visible; }
  .fields { grid-template-columns: repeat(5, 1fr); gap: 6pt; } .note, figcaption { font-size: 8pt; }
  .pair { grid-template-columns: 1fr 1fr; } .views { grid-template-columns: repeat(4, 1fr); }
  code { font-size: 8pt; background: none; padding: 0; } a { color: inherit; text-decoration: none; } }
""".replace("RESEARCH_USE", RESEARCH_USE.replace('"', ""))
"""The two colours of curves follow Okabe and Ito, so that colour-blind readers can distinguish them."""


def html_page(title: str, sections: Sequence[str], style: str = "") -> str:
    """Build a complete HTML file.

    Args:
        title: The title of the window and the heading of the page, as plain text.
        sections: HTML from top to bottom. The footer with the research-use line is added.
        style: CSS of this page alone.
    """
    head = (
        "<meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<style>{STYLE}{style}</style>"
    )
    body = "\n".join([f"<h1>{text(title)}</h1>", *sections, f"<footer>{escape(RESEARCH_USE)}</footer>"])
    return (
        f"<!doctype html><html lang=en><head><title>{text(title)}</title>{head}</head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def text(value: object) -> str:
    """Escape text for HTML. Control characters and lone surrogates are shown as escapes."""
    plain = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(value)
    )
    return escape(plain)


def image(pixels: NDArray[np.uint8], description: str) -> str:
    """Return an embedded picture; screen readers read its `description`."""
    return f"<img src='{data_uri(pixels)}' alt='{text(description)}'>"


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Return RGB (H, W, 3) or grey (H, W) pixels as a JPEG data URI."""
    plane = pixels[..., None] if pixels.ndim == 2 else pixels
    space = "GRAY" if plane.shape[2] == 1 else "RGB"
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(plane, dtype=np.uint8), QUALITY, space)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def words(value: object) -> str:
    """Format a value from JSON for people: names and values of dictionaries, lists with commas."""
    if isinstance(value, Mapping):
        filled = {name: item for name, item in value.items() if item not in (None, {}, [], "")}
        inner = ((name, item, isinstance(item, Mapping)) for name, item in filled.items())
        return "; ".join(
            f"{name}: {words(item)}" if nested else f"{name} {words(item)}" for name, item, nested in inner
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figure(pixels: NDArray[np.uint8], caption: str, description: str) -> str:
    return f"<figure>{image(pixels, description)}<figcaption>{caption}</figcaption></figure>"


def fields_table(rows: Mapping[str, object] | Iterable[tuple[str, object]]) -> str:
    """Build a table of names and values. Values are plain text; missing ones are left out."""
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    cells = [
        f"<tr><th>{text(name)}</th><td class=long>{text(words(value))}</td></tr>"
        for name, value in pairs
        if value not in (None, "", {}, [])
    ]
    return f"<div class=scroll><table>{''.join(cells)}</table></div>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Sequence[int] = (),
    widths: Sequence[str] = (),
) -> str:
    """Build a table from cells of HTML.

    Args:
        header: The names of the columns; empty for a table without them.
        rows: The cells. A row with a single cell is a heading over all columns.
        numeric: The columns that are aligned to the right.
        widths: CSS widths of the columns of a table that is as wide as the page; by default the cells decide.
    """

    def kind(index: int) -> str:
        return " class=number" if index in numeric else ""

    head = "".join(f"<th{kind(index)}>{cell}</th>" for index, cell in enumerate(header))

    def line(row: Sequence[str]) -> str:
        if len(row) == 1 and len(header) > 1:
            return f"<tr class=group><th colspan={len(header)}>{row[0]}</th></tr>\n"
        return "<tr>" + "".join(f"<td{kind(index)}>{cell}</td>" for index, cell in enumerate(row)) + "</tr>\n"

    columns = "".join(f"<col style='width:{width}'>" for width in widths)
    start = f"<table class=fixed><colgroup>{columns}</colgroup>" if widths else "<table>"
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<div class=scroll>{start}{head}<tbody>{''.join(map(line, rows))}</tbody></table></div>"


def research_use() -> str:
    return f"<p class=use>{escape(RESEARCH_USE)}</p>"


def number(value: Any, digits: int = 3) -> str:
    """Format a number; None becomes a dash."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def estimate_cell(estimate: Mapping[str, Any]) -> str:
    """Format a measure with its 95 % interval in small type, for a table cell."""
    from lobule.evaluation.summary import number as shown

    interval = ""
    if estimate["value"] is not None and estimate.get("low") is not None:
        interval = f" <small>{shown(estimate['low'], 2)} to {shown(estimate['high'], 2)}</small>"
    return shown(estimate["value"], 2) + interval


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Build a table of the duration of each step and the total."""
    rows = [(text(step), f"{duration:.0f} s") for step, duration in seconds.items()]
    return table((), [*rows, ("<b>total</b>", f"<b>{sum(seconds.values()):.0f} s</b>")])


def commands(lines: Sequence[str]) -> str:
    """Format command lines, one per paragraph."""
    return "".join(f"<p class=command><code>{text(line)}</code></p>" for line in lines)
