"""A record of the patches of every batch: their slide, class and centre."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lobule.files import write_text
from lobule.training.patch_sampling import TUMOUR
from lobule.training.sampling import Draw, Samples, SampleStream

HEADER = "batch,case,class,l0_x,l0_y,hard\n"


class BatchRecord:
    """A stream of batches that writes each batch to a CSV file before the training uses it.

    When a training resumes, the rows after its last checkpoint are removed, because these batches are drawn
    again. The complete record is therefore that of an uninterrupted training.
    """

    def __init__(self, stream: SampleStream, path: Path) -> None:
        self._stream, self._path = stream, path
        self._next = 0
        self._has_header = False

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        if not self._has_header:
            write_text(self._path, HEADER)
            self._has_header = True
        samples = next(self._stream)
        rows = [self._row(self._next, draw) for draw in samples.draws]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(rows)
        self._next += 1
        return samples

    def _row(self, batch: int, draw: Draw) -> str:
        name = self._stream.pool.slides[draw.slide].case.id
        quoted = f'"{name}"' if "," in name else name
        label = "tumour" if draw.label == TUMOUR else "normal"
        return f"{batch},{quoted},{label},{draw.l0_x:.2f},{draw.l0_y:.2f},{int(draw.hard)}\n"

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of a checkpoint; later rows are removed."""
        self._stream.restore(state)
        self._next = int(state["next"])
        lines = self._path.read_text("utf-8").splitlines(keepends=True)[1:] if self._path.exists() else []
        earlier = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) < self._next]
        write_text(self._path, HEADER + "".join(earlier))
        self._has_header = True
