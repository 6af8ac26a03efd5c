"""Reads images from DICOMweb servers (QIDO-RS and WADO-RS), and stores objects there (STOW-RS).

A slide is named by the URL of its series, and a view of an exam by the URL of its instance:

    https://HOST/dicom-web/studies/STUDY/series/SERIES
    https://HOST/dicom-web/studies/STUDY/series/SERIES/instances/INSTANCE

Only the server of the URL is contacted: redirections to other addresses are errors, and links in answers are
followed only if they begin with the address of the server. Failed requests are repeated with increasing
pauses. Passwords come from `~/.netrc`, tokens from `LOBULE_DICOMWEB_TOKEN`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lobule.errors import UsageError

_URL = re.compile(
    r"(?P<root>https?://[^?#]+?)/studies/(?P<study>[0-9.]{1,64})/series/(?P<series>[0-9.]{1,64})"
    r"(/instances/(?P<instance>[0-9.]{1,64}))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class DicomwebUrl:
    """The URL of a series or of an instance."""

    root: str
    study: str
    series: str
    instance: str | None = None

    @property
    def series_path(self) -> str:
        return f"/studies/{self.study}/series/{self.series}"

    @property
    def path(self) -> str:
        return self.series_path if self.instance is None else f"{self.series_path}/instances/{self.instance}"

    def __str__(self) -> str:
        return f"{self.root}{self.path}"


def is_dicomweb_url(path: str) -> bool:
    """Whether a path is the URL of a series or an instance on a DICOMweb server."""
    return path[:4].lower() == "http" and _URL.fullmatch(path) is not None


def parse_url(url: str) -> DicomwebUrl:
    """Split the URL of a series or an instance.

    Raises:
        UsageError: The URL has another form.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError(
            "this is not the URL of a DICOMweb series or instance",
            subject=url,
            expected="https://HOST/…/studies/UID/series/UID, optionally with /instances/UID",
        )
    return DicomwebUrl(match["root"], match["study"], match["series"], match["instance"])
