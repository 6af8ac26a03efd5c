"""The contract between a method and the scanner.

A method's `steps` yields passes and receives what each gave; a pass is a list of fields and the kind of
store it fills. The engine buckets fields by shape, reads them, runs `forward`, stores, and skips what is
already stored. `steps` must be deterministic: it is replayed on resume.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
from lobule.errors import ConfigError
from lobule.geometry import Box, Lattice, Size
from lobule.grid import Cells, MapGrid
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.tissue import TissueConfig

if TYPE_CHECKING:
    import torch

Pixels = NDArray[Any]
"""(height, width, channels): uint8 RGB of a slide, or float32 of an exam's view."""

Store = MapReader | TableReader
"""What a pass filled, given back to `steps`."""


class ImageSource(Protocol):
    """An image of a case, or anything laid over it, that fields are read from. `Slide` is one."""

    @property
    def size(self) -> Size: ...

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice: ...

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels: ...


@dataclass(frozen=True)
class ScanOptions:
    """What a user may ask of a scan. Everything here but `budget` may change the result."""

    stride: int | None = None
    """Lattice pixels between cells of a map; None is the method's own."""
    refine: bool = False
    """Scan coarsely first, then densify where it may matter."""
    budget: float | None = None
    """Seconds a case may take for refining."""
    upsample: bool = False
    """Allow a finer µm/px than the slide has."""
    tissue: TissueConfig | None = field(default_factory=TissueConfig)
    """How tissue is found; None looks everywhere."""
    mpp: float | None = None
    """µm/px of cases that do not say it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of one method, as `--set key=value` gives them."""


@dataclass(frozen=True)
class Tissue:
    """Where tissue is: a mask and the level-0 pixels of one of its pixels."""

    mask: Cells
    l0_step: tuple[float, float]
    notes: tuple[str, ...] = ()
    """Sentences for the result, such as that the detection met damaged tiles."""


class OpenCase(Protocol):
    """A case as `steps` sees it: its images, its tissue and what was asked."""

    @property
    def case(self) -> Case: ...

    @property
    def options(self) -> ScanOptions: ...

    @property
    def engine(self) -> EngineSettings: ...

    @property
    def images(self) -> Mapping[str, ImageSource]: ...

    def tissue(self, image: str = "slide") -> Tissue: ...

    def earlier(self) -> Iterator[Case]:
        """The cases before this one in the cohort, whichever shard scans them."""
        ...

    def seconds_left(self) -> float:
        """What remains of the budget; infinite without one."""
        ...


@dataclass(frozen=True)
class EngineSettings:
    """Fixed when a scan begins, recorded, and reused on resume."""

    precision: str = "float32"
    device: str = "cpu"
    batch: int = 16
    """Fields that are computed together; short batches are padded to it."""
    cells: int = 1
    """Cells a side that a field of a dense map computes."""
    lanes: int = 1
    """Batches in the model at once."""
    lane_threads: int = 1
    channels_last: bool = True

    def deciding(self) -> dict[str, Any]:
        """The settings on which the last bits of a score depend; kept with results and reused on resume."""
        return {name: value for name, value in self.__dict__.items() if name not in ("device", "lanes")}


@dataclass(frozen=True, eq=False)
class Fields:
    """A list of fields as columns, in the order they are computed."""

    images: tuple[str, ...]
    """Names of the images that fields are read from; `image` indexes them."""
    lattices: tuple[Lattice, ...]
    """One an image."""
    image: NDArray[np.int16]
    boxes: NDArray[np.int64]
    """(n, 4): x, y, width, height in pixels of the image's lattice."""
    grid_indices: NDArray[np.int32] | None = None
    """(n, 2): field row and column, for maps."""
    params: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Numbers that go to `forward` beside the pixels, one row a field."""
    sizes: NDArray[np.int64] | None = None
    """(n, 2): width and height of a field as its image gives it, where the image resizes what lies in the
    box; None is the box's own."""

    def __len__(self) -> int:
        return len(self.boxes)

    def box(self, index: int) -> Box:
        x, y, width, height = (int(value) for value in self.boxes[index])
        return Box(x, y, width, height)

    def lattice_of(self, index: int) -> Lattice:
        return self.lattices[int(self.image[index])]

    def image_of(self, index: int) -> str:
        return self.images[int(self.image[index])]

    def l0_box(self, index: int) -> Box:
        return self.lattice_of(index).to_l0(self.box(index))

    def shapes(self) -> NDArray[np.int64]:
        """(n, 2) heights and widths: fields of one batch share them."""
        return self.boxes[:, [3, 2]] if self.sizes is None else self.sizes[:, [1, 0]]


@dataclass(frozen=True, eq=False)
class MapSpec:
    """A map to fill: its geometry, its classes and which cells are wanted."""

    grid: MapGrid
    classes: tuple[str, ...]
    required: Cells
    glass: Cells
    """Cells known to hold no tissue; what is neither wanted nor glass stays pending."""
    image: str = "slide"
    scattered: bool = False
    """Every field is a chunk of its own, in any order; chunks without a field are never written."""


@dataclass(frozen=True)
class TableSpec:
    """A table to fill: one row a field, with the columns that `forward` returns."""

    part_rows: int = 1024


@dataclass(frozen=True, eq=False)
class Pass:
    """One run of the model over a list of fields."""

    name: str
    fields: Fields
    store: MapSpec | TableSpec
    batch: int | None = None
    """Fields computed together, where the pass needs another number than the engine's."""
    channels: Mapping[str, ImageSource] = field(default_factory=dict)
    """Further images read at each field's box and given to `forward` by name, such as an earlier map."""
    sources: Mapping[str, ImageSource] = field(default_factory=dict)
    """What this pass reads in place of the case's image of the same name: that image prepared for the model,
    perhaps with what earlier passes gave. Boxes stay in the image's frame."""
    go_on: Callable[[], bool] | None = None
    """Asked before each batch is read; once it says no, the rest of the pass stays pending."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What `forward` gets: pixels on the device, and each field's numbers."""

    pixels: torch.Tensor
    """(fields, height, width, channels), uint8 or float32."""
    params: Mapping[str, torch.Tensor]
    channels: Mapping[str, torch.Tensor]


class Predictor(Protocol):
    """A trained model, ready for the scanner."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the images of a case in the frame that the method works in."""
        ...

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        """Choose field size and batch so that one lane's activations fit into `room` bytes."""
        ...

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        """Put everything that `forward` will need on its device in its precision, before lanes begin."""
        ...

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        """A pass name and a batch of made-up pixels, for measuring the model alone."""
        ...

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        """What to run next, given what came back."""
        ...

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        """The model. A map pass returns `map` (fields, classes, cells, cells); a table pass its columns."""
        ...


def map_pass(
    name: str,
    grid: MapGrid,
    classes: tuple[str, ...],
    wanted: Cells,
    glass: Cells,
    *,
    image: str = "slide",
    promise: NDArray[np.float32] | None = None,
    **more: Any,
) -> Pass:
    """A pass that fills a map: fields row by row, wherever a cell is wanted.

    With `promise` (one number a field of the grid) fields come by descending promise instead.
    """
    places = grid.fields_over(wanted)
    if promise is not None:
        places = places[np.argsort(-promise[places[:, 0], places[:, 1]], kind="stable")]
    side = grid.field_side
    step = grid.stride * grid.cells
    start = grid.first_start
    boxes = np.empty((len(places), 4), np.int64)
    boxes[:, 0] = start + step * places[:, 1].astype(np.int64)
    boxes[:, 1] = start + step * places[:, 0].astype(np.int64)
    boxes[:, 2:] = side
    fields = Fields((image,), (grid.lattice,), np.zeros(len(places), np.int16), boxes, places)
    return Pass(name, fields, MapSpec(grid, classes, wanted, glass, image, promise is not None), **more)


@dataclass(frozen=True)
class MapChannel:
    """A finished map read as an image: each pixel takes the score of the cell that holds its centre."""

    reader: MapReader
    class_name: str | None = None

    @property
    def size(self) -> Size:
        x, y = self.reader.info.l0_stride
        return Size(round(self.reader.info.columns * x), round(self.reader.info.rows * y))

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice:
        raise ConfigError("a map has no lattice of its own: it is read on that of its image")

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels:
        info = self.reader.info
        rows = _cells_under(box.y, box.height, float(lattice.step_y) / info.l0_stride[1])
        columns = _cells_under(box.x, box.width, float(lattice.step_x) / info.l0_stride[0])
        inside_rows = (rows >= 0) & (rows < info.rows)
        inside_columns = (columns >= 0) & (columns < info.columns)
        out = np.zeros((box.height, box.width, 1), np.float32)
        if not (inside_rows.any() and inside_columns.any()):
            return out
        block_rows = slice(int(rows[inside_rows][0]), int(rows[inside_rows][-1]) + 1)
        block_columns = slice(int(columns[inside_columns][0]), int(columns[inside_columns][-1]) + 1)
        scores = self.reader.read(block_rows, block_columns)[0]
        index = -1 if self.class_name is None else info.classes.index(self.class_name)
        picked = scores[index][rows[inside_rows] - block_rows.start]
        picked = picked[:, columns[inside_columns] - block_columns.start]
        out[np.ix_(inside_rows, inside_columns)] = picked[..., None]
        return out


def _cells_under(start: int, length: int, cells_per_pixel: float) -> NDArray[np.int64]:
    cells: NDArray[np.int64] = np.floor((start + np.arange(length) + 0.5) * cells_per_pixel).astype(np.int64)
    return cells
