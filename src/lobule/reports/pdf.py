"""PDF files from the pages of reports, by WeasyPrint (extra `report`)."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lobule.errors import MissingExtra, UsageError


def need_pdf() -> None:
    """Raise an error if PDF files cannot be written; call it before pages are made.

    Raises:
        MissingExtra: WeasyPrint is not installed.
        UsageError: The system has no Pango.
    """
    if find_spec("weasyprint") is None:
        raise MissingExtra("report", "Writing PDF")
    if (problem := pango_problem()) is not None:
        raise UsageError(
            "WeasyPrint cannot be used", actual=problem,
            remedy="Install Pango, for example with: apt-get install libpango-1.0-0 libpangoft2-1.0-0",
        )  # fmt: skip


def pango_problem() -> str | None:
    """Return why WeasyPrint cannot load the libraries of the system, or None if it can."""
    try:
        _weasyprint()
    except OSError as error:
        return next(iter(str(error).splitlines()), "a library is missing")
    return None


def write_pdf(html: str, path: Path) -> None:
    """Write a page as PDF. Nothing is fetched from the network."""
    weasyprint = _weasyprint()
    logging.getLogger("weasyprint").setLevel(logging.ERROR)
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    fetcher = weasyprint.urls.URLFetcher(allowed_protocols=["data"], allow_redirects=False)
    weasyprint.HTML(string=html, url_fetcher=fetcher).write_pdf(str(path))


def _weasyprint() -> Any:
    """Import WeasyPrint without its change of Pillow, which lets every reader accept truncated files."""
    from PIL import ImageFile

    accepted = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import weasyprint
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = accepted
    return weasyprint
