"""The layers of the package: a file imports only from rows above its own, and no imports form a cycle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lobule

SOURCE = Path(lobule.__file__).parent

ORDER: list[list[str]] = [
    ["units", "errors", "geometry", "settings", "allocator", "raw_files"],
    ["resize", "tissue", "color", "grid", "stitch", "findings", "augment", "nets", "losses", "measures"],
    ["dicomweb", "object_stores", "object_folder", "files", "hdf5", "pickles", "fingerprints", "cohort",
     "slides", "mammograms", "annotations", "phantoms", "bundles", "imagenet", "encoders", "results",
     "reviews", "features", "layouts", "audit"],
    ["scanning", "training"],
    ["methods"],
    ["server", "evaluation", "exports", "reports"],
    ["cluster"],
    ["api", "budget", "comparison", "cli"],
    ["testing"],
]  # fmt: skip
"""The packages of `lobule` in rows, from the basic types down to the command line and the conformance suites.

A package may import packages of earlier rows, and those that are listed before it in its own row.
"""

HOME_OF_LIBRARY: dict[str, set[str]] = {
    "openslide": {"slides/openslide.py", "cli/doctor.py"},
    "tifffile": {"slides/tiff.py", "slides/tiff_metadata.py"},
    "wsidicom": {"slides/dicom.py", "slides/dicom_web.py"},
    "pydicom": {
        "mammograms/dicom.py",
        "mammograms/dicom_pixels.py",
        "mammograms/dicom_rules.py",
        "mammograms/dicom_header.py",
        "slides/dicom_series.py",
        "slides/dicom_web.py",
        "annotations/dicom.py",
        "dicomweb/server.py",
        "dicomweb/images.py",
        "exports/dicom_slide.py",
        "exports/dicom_source.py",
        "exports/store.py",
        "exports/dicom_ann.py",
        "exports/dicom_pm.py",
        "exports/dicom_seg.py",
        "exports/dicom_sr.py",
        "exports/dicom_exam.py",
        "exports/dicom_cad_sr.py",
        "exports/dicom_gsps.py",
    },
    "h5py": {"features/hdf5.py", "hdf5.py"},
    "obstore": {"object_stores.py", "object_folder.py"},
    "requests": {"dicomweb/server.py"},
    "ray": {"cluster/session.py"},
}
"""Libraries that read files or run clusters, and the files that may import them. Phantoms write, too."""

NO_TORCH = {
    "units", "errors", "geometry", "settings", "allocator", "resize", "tissue", "color", "grid", "findings",
    "measures", "dicomweb", "files", "fingerprints", "cohort", "slides", "mammograms", "annotations",
    "phantoms", "hdf5", "pickles", "results", "reviews", "layouts", "audit", "features", "server",
    "evaluation", "exports", "reports", "cli",
}  # fmt: skip


def module_names() -> dict[str, Path]:
    names = {}
    for path in sorted(SOURCE.rglob("*.py")):
        path_parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(path_parts[:-1] if path_parts[-1] == "__init__" else path_parts)] = path
    return names


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Dotted names of every import in a file, also those inside functions, as written."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, not relative"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def rank(module: str) -> tuple[int, int]:
    for row, modules in enumerate(ORDER):
        if module in modules:
            return row, modules.index(module)
    raise AssertionError(f"lobule.{module} is in no layer: add it to ORDER and to docs/architecture.md")


def imports_of_lobule(path: Path, names: dict[str, Path]) -> set[str]:
    imported = set()
    for name in imports_of(path):
        if name.startswith("lobule."):
            tail = name.removeprefix("lobule.")
            while tail and tail not in names:
                tail = tail.rpartition(".")[0]
            if tail:
                imported.add(tail)
    return imported


def test_the_lists_name_only_what_exists() -> None:
    ordered_packages = {name for row in ORDER for name in row}
    packages = {name.split(".")[0] for name in module_names() if name and name != "__main__"}
    assert ordered_packages == packages
    assert packages >= NO_TORCH
    for homes in HOME_OF_LIBRARY.values():
        assert all((SOURCE / home).is_file() for home in homes), homes


def test_the_architecture_page_lists_every_package() -> None:
    page = SOURCE.parents[1] / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the source")
    table = re.search(r"## Layers\n(.*?)\n`import lobule`", page.read_text("utf-8"), re.DOTALL)
    assert table is not None
    documented_names = set(re.findall(r"`([a-z0-9_]+)`", table[1]))
    assert {name for row in ORDER for name in row} <= documented_names


def test_a_file_imports_only_from_above() -> None:
    names = module_names()
    wrong = []
    for module, path in names.items():
        if module in ("", "__main__"):
            continue
        mine = module.split(".")[0]
        for other in imports_of_lobule(path, names):
            theirs = other.split(".")[0]
            if theirs != mine and not rank(theirs) < rank(mine):
                wrong.append(f"{module} imports {other}")
            if mine == "methods" and theirs == "methods" and other != module:
                ours, its = module.split(".")[1:2], other.split(".")[1:2]
                if its and ours != its:
                    wrong.append(f"method {module} imports method {other}")
            if mine in ("server", "exports", "reports") and theirs == "methods":
                wrong.append(f"{module} imports {other}: finished results are served without methods")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_import_cycles() -> None:
    names = module_names()
    graph = {module: imports_of_lobule(path, names) - {module} for module, path in names.items() if module}
    for module in graph:  # A package may import its own modules, which is not a cycle.
        if names[module].name == "__init__.py":
            graph[module] = {other for other in graph[module] if not other.startswith(module + ".")}
        graph[module] = {o for o in graph[module] if not module.startswith(o + ".")}
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                walk(other, [*trail, module])
            done.add(module)

    for module in graph:
        walk(module, [])


def test_each_file_reading_library_has_one_home() -> None:
    wrong = []
    for path in module_names().values():
        relative_path = path.relative_to(SOURCE).as_posix()
        for library, homes in HOME_OF_LIBRARY.items():
            used = any(name == library or name.startswith(library + ".") for name in imports_of(path))
            if used and relative_path not in homes and not relative_path.startswith("phantoms/"):
                wrong.append(f"{relative_path} imports {library}; only {', '.join(sorted(homes))} may")
    assert not wrong, "\n".join(wrong)


def test_rows_without_torch_do_not_import_it() -> None:
    wrong = []
    for module, path in module_names().items():
        if module.split(".")[0] in NO_TORCH and not module.startswith("cli."):
            torchy = {"torch", "torchvision", "timm"}
            if any(name.split(".")[0] in torchy for name in imports_of(path)):
                wrong.append(module)
    assert not wrong, f"these import torch: {wrong}"


def test_importing_lobule_loads_no_torch() -> None:
    code = "import sys, lobule, lobule.cli; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
