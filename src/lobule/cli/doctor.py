"""`lobule doctor`: check this machine and its libraries, or check files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from lobule.cli.base import CommandOutput, format_fields, lobule_command, note, table


@dataclass(frozen=True)
class Floor:
    """The lowest accepted version of a library and the reason; `extra` is the optional dependency group."""

    name: str
    least: str
    why: str
    extra: str | None = None


FLOORS = (
    Floor("openslide-python", "1.4", "the first version that installs the OpenSlide library"),
    Floor("openslide-bin", "4.0.0.6", "carries patched libtiff, libjpeg-turbo and OpenJPEG"),
    Floor("tifffile", "2024.8.10", "older versions read some tiled files incorrectly"),
    Floor("imagecodecs", "2024.6.1", "before 2023.9.18 crafted images run code (CVE-2023-4863)"),
    Floor("pillow", "12.3.0", "older versions write out of bounds (CVE-2026-25990, CVE-2026-59199)"),
    Floor("simplejpeg", "1.8", "decodes JPEG at reduced sizes"),
    Floor("wsidicom", "0.36", "reads DICOM slides"),
    Floor("numpy", "2.0", "array computations"),
    Floor("zarr", "3.0.8", "maps on disk"),
    Floor("h5py", "3.11", "feature files"),
    Floor("safetensors", "0.4.5", "weights files that cannot run code"),
    Floor("torch", "2.11", "before 2.10 crafted weights break weights_only (CVE-2026-24747)"),
    Floor("torchvision", "0.26", "backbones"),
    Floor("timm", "1.0.9", "backbones"),
    Floor("lightgbm", "4.5", "the classifier of rakhlin"),
    Floor("pydicom", "3.0.1", "mammograms", "mammography"),
    Floor("python-gdcm", "3.0.24", "older versions read out of bounds (CVE-2024-22373)", "mammography"),
    Floor("pylibjpeg-openjpeg", "2.3", "JPEG 2000 mammograms", "mammography"),
)  # fmt: skip
"""The libraries that are checked, with versions below which a vulnerability or a defect is known."""

CODECS = ("JPEG8", "LJPEG", "JPEGLS", "JPEG2K", "JPEGXL", "JPEGXR", "WEBP", "LZW", "DEFLATE", "ZSTD")


@lobule_command("lobule doctor", "lobule doctor slide.tif")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--accelerators/--no-accelerators", default=True, help="Ask torch for its accelerators (takes seconds)."
)
def command(paths: tuple[str, ...], accelerators: bool) -> CommandOutput:
    """Check this machine and its libraries, or check the given files.

    Without files, compare the versions of the libraries with known vulnerabilities, and show codecs, the
    cores, memory and disk space that this process may use, accelerators, and the folders of pretrained
    weights. With files, open each one and read samples of it.
    """
    if paths:
        from lobule.cli.checkup import as_text, check_file

        reports = [check_file(path) for path in paths]
        failed = sum(not report["ok"] for report in reports)
        return CommandOutput({"files": reports}, "\n".join(map(as_text, reports)), failed)
    note("Checking libraries and accelerators …")
    data = machine_report(accelerators)
    failed = sum(library["state"] == "old" for library in data["libraries"])
    return CommandOutput(data, machine_text(data), failed)


# -- the machine --------------------------------------------------------------------------------------------


def machine_report(ask_torch: bool) -> dict[str, Any]:
    from lobule.cli import machine

    return {
        "libraries": libraries(),
        "openslide_library": openslide_library(),
        "codecs": codecs(),
        "libturbojpeg": libturbojpeg(),
        "pango": pango(),
        "cores": machine.cores(),
        "memory": machine.memory(),
        "disk": machine.disk(),
        "accelerators": machine.accelerators() if ask_torch else None,
        "weights": machine.weight_caches(),
    }


def libraries(floors: Sequence[Floor] = FLOORS) -> list[dict[str, Any]]:
    entries = []
    for floor in floors:
        try:
            installed = version(floor.name)
        except PackageNotFoundError:
            installed = None
        state = "missing" if installed is None else "old" if older(installed, floor.least) else "ok"
        entries.append({**asdict(floor), "version": installed, "state": state})
    return entries


def older(installed: str, least: str) -> bool:
    """Return whether a version is older than another; only their numbers are compared."""
    return _numbers(installed) < _numbers(least)


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(digits) for digits in re.findall(r"\d+", re.split(r"[+a-z]", text, maxsplit=1)[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def openslide_library() -> str | None:
    try:
        import openslide
    except (ImportError, OSError):
        return None
    return str(openslide.__library_version__)


def codecs() -> dict[str, bool]:
    try:
        import imagecodecs
    except ImportError:
        return dict.fromkeys(CODECS, False)
    return {name: bool(getattr(imagecodecs, name).available) for name in CODECS}


def pango() -> str | None:
    """Return why `lobule report --pdf` cannot work, or None if it can or WeasyPrint is not installed."""
    from importlib.util import find_spec

    from lobule.reports.pdf import pango_problem

    return None if find_spec("weasyprint") is None else pango_problem()


def libturbojpeg() -> str | None:
    try:
        from lobule.slides import libturbojpeg as turbo
    except ImportError:
        return None
    library = turbo.library()
    return None if library is None else library.path


def machine_text(data: dict[str, Any]) -> str:
    faulty = [library for library in data["libraries"] if library["state"] != "ok"]
    good = len(data["libraries"]) - len(faulty)
    core, memory, disk = data["cores"], data["memory"], data["disk"]
    available, missing = (
        [c for c, here in data["codecs"].items() if here is state] for state in (True, False)
    )
    share = f" (container: {core['container']:g})" if core["container"] else ""
    limit = f" (container: {_size(memory['container'])})" if memory["container"] else ""
    lines = [
        ("libraries", f"{good} of {len(data['libraries'])} up to date"),
        ("OpenSlide", data["openslide_library"] or "the OpenSlide library cannot be loaded"),
        ("codecs", ", ".join(available) or "none"),
        *([("", f"missing: {', '.join(missing)}")] if missing else ()),
        ("libturbojpeg", data["libturbojpeg"] or "none: JPEG tiles are read slightly slower"),
        *(
            [("Pango", f"cannot be loaded, so PDF cannot be written: {data['pango']}")]
            if data["pango"]
            else ()
        ),
        ("cores", f"{core['usable']:g} usable of {core['machine']}{share}"),
        ("memory", f"{_size(memory['available'])} free of {_size(memory['machine'])}{limit}"),
        ("disk", f"{_size(disk['free'])} free at {disk['folder']}"),
    ]
    if data["accelerators"] is not None:
        lines.append(("computing", accelerator_text(data["accelerators"])))
    caches = [f"{_size(cache['bytes'])} of {cache['of']} in {cache['folder']}" for cache in data["weights"]]
    text = format_fields([*lines, ("weights", "\n".join(caches))])
    if faulty:
        rows = [(w["name"], w["version"] or "missing", w["least"], remedy_of(w)) for w in faulty]
        text += "\n\n" + table(("library", "here", "least", "reason and remedy"), rows)
    return text


def remedy_of(library: dict[str, Any]) -> str:
    is_extra = library["state"] == "missing" and library["extra"]
    package = f"'lobule[{library['extra']}]'" if is_extra else f"-U {library['name']}"
    return f"{library['why']}; pip install {package}"


def accelerator_text(accelerators: dict[str, Any]) -> str:
    if "error" in accelerators:
        return f"torch does not work: {accelerators['error']}"
    devices = [
        device["name"]
        + (f", {_size(device['memory'])}" if device["memory"] else "")
        + (", bfloat16" if device["bf16"] else "")
        for device in accelerators["devices"]
    ]
    cpu = f"CPU ({accelerators['cpu']}), {accelerators['threads']} threads; torch {accelerators['torch']}"
    return "\n".join([*devices, cpu if devices else f"{cpu}; no accelerator"])


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
