"""Building blocks of the demo pages: a self-contained HTML file for light and dark screens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lobule.results.result import RESEARCH_USE

STYLE = """
:root { color-scheme: light dark; --ink: #26242c; --paper: #fcfbf9; --faint: #67636f; --line: #e4e0da;
  --code: #f0ede7; --first: #0072b2; --second: #c85200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e5e0; --paper: #1b1a1f; --faint: #a9a5b0;
  --line: #3a3840; --code: #2a2830; --first: #56b4e9; --second: #f0924a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2.5rem auto; max-width: 66rem; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
p { max-width: 44rem; margin: .5rem 0; } .note, figcaption { color: var(--faint); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
td, th { padding: .3rem 1.1rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: 14px; } td small { color: var(--faint); white-space: nowrap; }
figure { margin: 0; } img { display: block; border-radius: 4px; max-width: 100%; }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em; }
code { background: var(--code); padding: .1em .35em; border-radius: 3px; font-size: 14px;
  overflow-wrap: anywhere; }
p.command { max-width: none; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem;
  color: var(--faint); font-size: 14px; }
"""
"""The two curve colours follow Okabe and Ito, so that colour-blind readers can distinguish them."""


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
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections, f"<footer>{escape(RESEARCH_USE)}</footer>"])
    return f"<!doctype html><html lang=en><title>{escape(title)}</title>{head}\n{body}\n</html>\n"


def image(pixels: Any, description: str) -> str:
    """Return an embedded picture; screen readers read its `description`."""
    from lobule.methods.scannet.gallery import inline_jpeg

    return f"<img src='{inline_jpeg(pixels, quality=80)}' alt='{escape(description)}'>"


def estimate_cell(estimate: Mapping[str, Any]) -> str:
    """Format a measure with its 95 % interval in small type, for a table cell."""
    from lobule.evaluation.summary import number

    interval = ""
    if estimate["value"] is not None and estimate.get("low") is not None:
        interval = f" <small>{number(estimate['low'], 2)} to {number(estimate['high'], 2)}</small>"
    return number(estimate["value"], 2) + interval


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table of cells that are HTML. It scrolls if it is wider than the screen."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in ([head] if head else []) + lines)
    return f"<div class=scroll><table>{body}</table></div>"


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Build a table of the duration of each step and the total."""
    rows = [(escape(step), f"{duration:.0f} s") for step, duration in seconds.items()]
    return table((), [*rows, ("<b>total</b>", f"<b>{sum(seconds.values()):.0f} s</b>")])


def commands(lines: Sequence[str]) -> str:
    """Format command lines, one per paragraph."""
    return "".join(f"<p class=command><code>{escape(line)}</code></p>" for line in lines)
