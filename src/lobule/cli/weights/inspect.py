"""`lobule weights inspect`: show the contents of a weights file without running its code."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import click

from lobule.bundles import first_line
from lobule.cli.base import CommandOutput, format_fields, lobule_command, table
from lobule.cli.weights.catalog import CATALOG, hashes
from lobule.cli.weights.pickles import read_imports
from lobule.errors import BundleError
from lobule.files import not_readable


@lobule_command(
    "lobule weights inspect weights.safetensors", "lobule weights inspect checkpoint.pt --tensors 5"
)
@click.argument("file")
@click.option("--tensors", default=20, help="Number of tensors to list; -1 lists all.")
def command(file: str, tensors: int) -> CommandOutput:
    """Show tensors, shapes, hash and origin of a weights file.

    For a safetensors file, only the header is read. For a torch checkpoint, the imports of its pickle are
    listed first, and then it is loaded as weights only. No code in the file is run.
    """
    path = Path(file)
    try:
        sha256, git_blob = hashes(path)
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise not_readable(error, path) from error
    data: dict[str, Any] = {"file": file, "bytes": path.stat().st_size}
    data |= {"sha256": sha256, "git_blob": git_blob}
    data["origin"] = next((w.name for w in CATALOG if w.genuine(sha256, git_blob)), None)
    is_torch = zipfile.is_zipfile(path) or head[:1] == b"\x80" or path.suffix in TORCH_SUFFIXES
    data |= describe_torch(path) if is_torch else describe_safetensors(path)
    return CommandOutput(data, as_text(data, tensors))


TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl")


def describe_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 - not a mapping
            tensors = [
                {"name": name, "shape": list(tensor.get_shape()), "dtype": tensor.get_dtype()}
                for name, tensor in slices
            ]
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"neither a safetensors file nor a torch checkpoint: {error}",
            subject=path,
            remedy="Pass a .safetensors, .pt or .pth file",
        ) from error
    description = {"format": "safetensors", "metadata": dict(metadata), "tensors": tensors}
    return description | {"imports": [], "imports_certain": True}


def describe_torch(path: Path) -> dict[str, Any]:
    pickle_imports = read_imports(path)
    imports = {"imports": sorted(pickle_imports.names), "imports_certain": pickle_imports.certain}
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        return {"format": "torchscript", "metadata": {}, "tensors": [], **imports}
    import torch

    try:
        loaded = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        raise BundleError(
            "cannot be loaded as weights only",
            subject=path,
            actual=f"{first_line(error)}; its pickle imports {pickle_imports.sentence()}",
            remedy="Do not load it; ask its authors for a safetensors file",
        ) from error
    tensors = [
        {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors_in(loaded)
    ]
    return {"format": "torch", "metadata": {}, "tensors": tensors, **imports}


def tensors_in(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor in nested mappings and lists with its dotted name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{prefix}{key}.")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{prefix}{index}.")
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        yield prefix.rstrip("."), value


def as_text(data: dict[str, Any], most: int) -> str:
    tensors = data["tensors"]
    parameters = sum(prod(tensor["shape"]) for tensor in tensors)
    lines = [
        ("file", data["file"]),
        ("format", data["format"]),
        ("origin", data["origin"] or "not in the list of published files"),
        ("sha256", data["sha256"]),
        ("git blob", data["git_blob"]),
        ("tensors", f"{len(tensors)} with {parameters:,} numbers"),
    ]
    if data["format"] == "torchscript":
        lines.append(("warning", "TorchScript can run code: load it only if you trust its authors"))
    if data["imports"]:
        lines.append(("imports", ", ".join(data["imports"])))
    if not data["imports_certain"]:
        lines.append(("warning", "further imports of its pickle cannot be determined: do not load it"))
    lines += [(f"metadata {key}", value) for key, value in data["metadata"].items()]
    shown = tensors if most < 0 else tensors[:most]
    text = format_fields(lines)
    if shown:
        rows = [(t["name"], " × ".join(map(str, t["shape"])) or "scalar", t["dtype"]) for t in shown]
        text += "\n\n" + table(("tensor", "shape", "type"), rows)
        if len(shown) < len(tensors):
            text += f"\n… and {len(tensors) - len(shown)} more (--tensors -1 lists all)"
    return text
