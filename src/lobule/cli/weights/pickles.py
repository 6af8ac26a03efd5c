"""List what a pickle would import, from its opcodes and without running them."""

from __future__ import annotations

import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

LARGEST_PICKLE = 256 << 20
MOST_OPCODES = 3_000_000
LEGACY_PICKLES = 5
"""Old torch checkpoints begin with this many pickles, followed by the numbers."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_UNKNOWN, _MARK = object(), object()
_TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING")


@dataclass
class Imports:
    """Names that loading a file would import, and reasons why the list may be incomplete."""

    names: set[str] = field(default_factory=set)
    doubts: set[str] = field(default_factory=set)
    """Reasons why some imports could not be determined; empty if the list is complete."""

    @property
    def certain(self) -> bool:
        return not self.doubts

    def sentence(self) -> str:
        """Describe the imports for an error message."""
        names = ", ".join(sorted(self.names)) or "nothing"
        if self.certain:
            return names
        return f"{names}; what else it imports cannot be determined ({'; '.join(sorted(self.doubts))})"


def read_imports(path: Path) -> Imports:
    """Collect the imports of all pickles in a torch checkpoint without running them."""
    imports = Imports()
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # loaders treat a file with another beginning as a bare pickle
            file.seek(0)
            _read_bare(file, imports)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                # Iterate over entries, not names: if two entries share a name, a loader may read either.
                for entry in archive.infolist():
                    if entry.filename.endswith(".pkl"):
                        with archive.open(entry) as stream:
                            _read_pickle(_Limited(stream), imports)
        except Exception as error:  # zipfile raises many types for damaged archives
            imports.doubts.add(f"the archive cannot be read: {str(error)[:80]}")
    return imports


def _read_bare(file: IO[bytes], imports: Imports) -> None:
    """Read the pickles at the beginning of a file that is not an archive."""
    stream = _Limited(file)
    is_legacy = _read_pickle(stream, imports)
    for _ in range(LEGACY_PICKLES - 1 if is_legacy else 0):
        _read_pickle(stream, imports)


class _Limited:
    """A stream that ends after `LARGEST_PICKLE` bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, LARGEST_PICKLE

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self._stream.readline(self._left)
        self._left -= len(data)
        return data


def _read_pickle(stream: _Limited, imports: Imports) -> bool:
    """Add the imports of one pickle, and return whether it is the magic number of an old checkpoint."""
    machine = _Machine(imports)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            if count >= MOST_OPCODES:
                imports.doubts.add("the pickle is too long")
                return False
            machine.step(opcode, argument)
    except Exception as error:  # pickletools raises many types for bytes that are not a pickle
        doubt = "the pickle is too long" if stream.exhausted else f"the pickle is damaged: {str(error)[:80]}"
        imports.doubts.add(doubt)
        return False
    return bool(machine.last == LEGACY_MAGIC)


class _Machine:
    """The stack and the memo of a pickle. Only text values are tracked."""

    def __init__(self, imports: Imports) -> None:
        self.imports = imports
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.last: Any = None

    def step(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            self.imports.names.add(str(argument).replace(" ", "."))
        elif name == "STACK_GLOBAL":
            self._import(*self.stack[-2:])
        elif name.startswith("EXT"):
            self.imports.doubts.add("it uses the extension registry")
        if name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif "PUT" in name:
            self.memo[int(argument)] = self.stack[-1]
        elif "GET" in name:
            self.stack.append(self.memo[int(argument)])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            self._replace(opcode, argument)

    def _import(self, module: Any, attribute: Any) -> None:
        if isinstance(module, str) and isinstance(attribute, str):
            self.imports.names.add(f"{module}.{attribute}")
        else:
            self.imports.doubts.add("an import name is computed while it loads")

    def _replace(self, opcode: Any, argument: Any) -> None:
        """Pop the arguments of an opcode and push its results."""
        takes = [item.name for item in opcode.stack_before]
        if "mark" in takes:
            while self.stack.pop() is not _MARK:
                pass
            takes = takes[: takes.index("mark")]
        for _ in takes:
            self.stack.pop()
        for item in opcode.stack_after:
            self.stack.append(_MARK if item.name == "mark" else self._value(opcode.name, argument))
        if opcode.name != "STOP":
            self.last = argument

    @staticmethod
    def _value(name: str, argument: Any) -> Any:
        if name not in _TEXT:
            return _UNKNOWN
        return argument.decode("latin-1") if isinstance(argument, bytes) else argument
