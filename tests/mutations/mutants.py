"""Every small fault that the campaign can put into a source file, and a fixed random choice among them.

A mutant replaces one operator, constant or condition. The rest of the file keeps its text, so that a
surviving mutant can be shown as a one-line difference.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "lobule"

MODULES = (
    "measures", "grid.py", "stitch.py", "results", "findings", "cohort", "tissue.py", "slides",
    "scanning", "training",
    "nets", "bundles.py", "annotations",
)  # fmt: skip
"""Files and folders of `src/lobule` that the campaign covers."""

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "+"),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One small fault: the bytes from `start` to `stop` of a file are replaced."""

    module: str
    """Path relative to `src/lobule`."""
    line: int
    start: int
    stop: int
    original: str
    replacement: str

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}: {self.original!r} → {self.replacement!r} (byte {self.start})"

    def apply(self, source: bytes) -> bytes:
        """The text of the file with the fault in it."""
        if source[self.start : self.stop].decode() != self.original:
            raise ValueError(f"{self.name}: the file has changed since the mutant was made")
        return source[: self.start] + self.replacement.encode() + source[self.stop :]


def covered_files(source: Path = SOURCE) -> list[str]:
    """Every file of the covered modules, relative to `src/lobule`, in order."""
    files: list[Path] = []
    for name in MODULES:
        path = source / name
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [str(file.relative_to(source)) for file in files]


def mutants_of(module: str, source: bytes) -> list[Mutant]:
    """Every mutant of one file, in the order of its text."""
    tree = ast.parse(source)
    offsets = _line_offsets(source)

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return offsets[node.lineno] + node.col_offset, offsets[node.end_lineno] + node.end_col_offset

    mutants = set()
    for node in _runtime_nodes(tree):
        for start, stop, replacement in _faults(node, source, span):
            line = source.count(b"\n", 0, start) + 1
            mutants.add(Mutant(module, line, start, stop, source[start:stop].decode(), replacement))
    return sorted(mutants, key=lambda mutant: (mutant.start, mutant.stop, mutant.replacement))


def choose_mutants(count: int, seed: int, source: Path = SOURCE) -> list[Mutant]:
    """A fixed random sample of all mutants; the same source, count and seed give the same mutants."""
    every = [
        mutant
        for module in covered_files(source)
        for mutant in mutants_of(module, (source / module).read_bytes())
    ]
    return random.Random(seed).sample(every, min(count, len(every)))


def _line_offsets(source: bytes) -> list[int]:
    """Offset of each line; the first entry is unused because lines count from 1."""
    offsets = [0, 0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    return offsets


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes whose value matters when the program runs: not annotations, decorators or assertions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            children = value if isinstance(value, list) else [value]
            pending += [child for child in children if isinstance(child, ast.AST) and not _is_inert(child)]


def _is_inert(node: ast.AST) -> bool:
    """Whether a node only serves readers, type checkers or error messages."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.Call) and _is_message(node)


def _is_message(call: ast.Call) -> bool:
    """A call of a logger, or one that makes an error."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("warning", "info", "debug", "cast") or name.endswith(("Error", "Damaged"))


def _faults(node: ast.AST, source: bytes, span: object) -> Iterator[tuple[int, int, str]]:
    """Start, stop and replacement of each fault of one node."""
    assert callable(span)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
            yield from _operator(source, span(left)[1], span(right)[0], *COMPARISONS[type(operator)])
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _has_text(node):
        yield from _operator(source, span(node.left)[1], span(node.right)[0], *ARITHMETIC[type(node.op)])
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield (*span(node), _other_constant(node.value))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield (*span(node), source[slice(*span(node.operand))].decode())
    elif isinstance(node, ast.BoolOp):
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from _operator(source, span(left)[1], span(right)[0], *words)
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Constant):
        start, stop = span(node.test)
        yield start, stop, f"(not ({source[start:stop].decode()}))"


def _operator(source: bytes, start: int, stop: int, old: str, new: str) -> Iterator[tuple[int, int, str]]:
    """The fault that exchanges the one operator between two operands; none where a comment is in between."""
    between = source[start:stop].decode()
    if between.count(old) == 1 and "#" not in between:
        position = start + len(between[: between.index(old)].encode())
        yield position, position + len(old), new


def _other_constant(value: float) -> str:
    if isinstance(value, bool):
        return str(not value)
    return str(value + 1) if isinstance(value, int) else repr(value * 1.5 + 0.25)


def _has_text(node: ast.BinOp) -> bool:
    sides: Sequence[ast.expr] = (node.left, node.right)
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )
