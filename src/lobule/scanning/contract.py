"""The interface between a method and the scanner.

The `steps` generator of a method yields passes and receives the store that each pass filled. A pass is a list
of fields and a specification of the store. The scanner groups fields by shape, reads them, runs `forward` and
stores the outputs; fields that are already stored are skipped. `steps` must be deterministic, because it is
replayed when a scan is resumed.
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
"""The map or table that a pass filled; it is sent back to `steps`."""


class ImageSource(Protocol):
    """An image that fields are read from, such as a `Slide` or a map in the frame of a slide."""

    @property
    def size(self) -> Size: ...

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice: ...

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels: ...


@dataclass(frozen=True)
class ScanOptions:
    """Options of a scan. All of them except `budget` may change the result."""

    stride: int | None = None
    """Lattice pixels between cells of a map; None uses the default of the method."""
    refine: bool = False
    """Scan with a coarse stride first, then with a finer one where it may matter."""
    budget: float | None = None
    """Seconds per case for refining."""
    upsample: bool = False
    """Allow a finer µm/px than the slide has."""
    tissue: TissueConfig | None = field(default_factory=TissueConfig)
    """Settings of the tissue detection; None scans the whole slide."""
    mpp: float | None = None
    """µm/px of cases whose files do not state it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Options of one method, as `--set key=value` gives them."""


@dataclass(frozen=True)
class Tissue:
    """A tissue mask, and the size of one mask pixel in level-0 pixels (x, y)."""

    mask: Cells
    l0_step: tuple[float, float]
    notes: tuple[str, ...] = ()
    """Sentences for the result, for example that the detection met damaged tiles."""


class OpenCase(Protocol):
    """A case as `steps` sees it: its images, its tissue, and the options of the scan."""

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
        """Return the cases before this one in the cohort, regardless of which shard scans them."""
        ...

    def seconds_left(self) -> float:
        """Return the remaining seconds of the budget; infinity if there is none."""
        ...


@dataclass(frozen=True)
class EngineSettings:
    """Settings that are chosen when a scan begins, recorded, and reused when it is resumed."""

    precision: str = "float32"
    device: str = "cpu"
    batch: int = 16
    """Fields that are computed together; short batches are padded to it."""
    cells: int = 1
    """Cells per side that one field of a dense map computes."""
    replicas: int = 1
    """Batches that the model computes at the same time."""
    replica_threads: int = 1
    channels_last: bool = True

    def deciding(self) -> dict[str, Any]:
        """Return the settings that the last bits of a score depend on. They are stored with the results."""
        return {name: value for name, value in self.__dict__.items() if name not in ("device", "replicas")}


@dataclass(frozen=True, eq=False)
class Fields:
    """A list of fields, stored as columns, in the order in which they are computed."""

    images: tuple[str, ...]
    """Names of the images that fields are read from; `image` indexes them."""
    lattices: tuple[Lattice, ...]
    """One lattice per image."""
    image: NDArray[np.int16]
    boxes: NDArray[np.int64]
    """(n, 4): x, y, width, height in pixels of the image's lattice."""
    grid_indices: NDArray[np.int32] | None = None
    """(n, 2): field row and column, for maps."""
    params: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Numbers that `forward` receives along with the pixels, one row per field."""
    sizes: NDArray[np.int64] | None = None
    """(n, 2): width and height of the pixels that the image returns, if it resizes the contents of the box;
    None if it does not."""

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
        """Return the heights and widths (n, 2). All fields of a batch have the same shape."""
        return self.boxes[:, [3, 2]] if self.sizes is None else self.sizes[:, [1, 0]]


@dataclass(frozen=True, eq=False)
class MapSpec:
    """Specification of a map to fill: its geometry, its classes and the required cells."""

    grid: MapGrid
    classes: tuple[str, ...]
    required: Cells
    glass: Cells
    """Cells known to contain no tissue. Cells that are neither required nor glass stay pending."""
    image: str = "slide"
    scattered: bool = False
    """Whether fields come in any order. Then each field is a separate chunk, and chunks without a field are
    never written."""


@dataclass(frozen=True)
class TableSpec:
    """Specification of a table to fill: one row per field, with the columns that `forward` returns."""

    part_rows: int = 1024


@dataclass(frozen=True, eq=False)
class Pass:
    """One run of the model over a list of fields."""

    name: str
    fields: Fields
    store: MapSpec | TableSpec
    batch: int | None = None
    """Fields per batch; None uses the number in the engine settings."""
    channels: Mapping[str, ImageSource] = field(default_factory=dict)
    """Further images, such as an earlier map. They are read at the box of each field and passed to `forward`
    by name."""
    sources: Mapping[str, ImageSource] = field(default_factory=dict)
    """Images that replace the case's images of the same name in this pass, for example an image prepared for
    the model with the output of an earlier pass. Boxes stay in the frame of the original image."""
    go_on: Callable[[], bool] | None = None
    """Called before each batch is read. Once it returns False, the remaining fields stay pending."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of `forward`: pixels on the device, and the numbers that belong to each field."""

    pixels: torch.Tensor
    """(fields, height, width, channels), uint8 or float32."""
    params: Mapping[str, torch.Tensor]
    channels: Mapping[str, torch.Tensor]


class Predictor(Protocol):
    """A trained model, ready for the scanner."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the images of a case in the coordinate frame that the method works in."""
        ...

    def choose_batch(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        """Choose the field size and the batch size so that the activations of a replica fit in
        `room` bytes.
        """
        ...

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        """Move everything that `forward` needs to the device, in its precision, before any replica starts."""
        ...

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        """Return a pass name and a batch of random pixels, for measuring the speed of the model alone."""
        ...

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        """Yield each pass to run, receive the store that it filled, and finally return the result."""
        ...

    def forward(self, name: str, batch: Batch) -> dict[str, torch.Tensor]:
        """Run the model on a batch of the pass `name`.

        Returns:
            For a map pass, `map` with the shape (fields, classes, cells, cells). For a table pass, the
            columns.
        """
        ...


def map_pass(
    name: str,
    grid: MapGrid,
    classes: tuple[str, ...],
    required: Cells,
    glass: Cells,
    *,
    image: str = "slide",
    promise: NDArray[np.float32] | None = None,
    **pass_options: Any,
) -> Pass:
    """Return a pass that fills a map, with every field that contains a required cell.

    Args:
        name: Name of the pass and of the map.
        grid: Geometry of the map and of its fields.
        classes: Names of the classes.
        required: Cells that have to be scored.
        glass: Cells known to contain no tissue.
        image: Name of the image that fields are read from.
        promise: One number per field of the grid. Fields are computed in descending order of it; without it,
            they are computed row by row.
        **pass_options: Further fields of `Pass`.
    """
    field_indices = grid.fields_over(required)
    if promise is not None:
        field_indices = field_indices[
            np.argsort(-promise[field_indices[:, 0], field_indices[:, 1]], kind="stable")
        ]
    side = grid.field_side
    step = grid.stride * grid.cells
    start = grid.first_start
    boxes = np.empty((len(field_indices), 4), np.int64)
    boxes[:, 0] = start + step * field_indices[:, 1].astype(np.int64)
    boxes[:, 1] = start + step * field_indices[:, 0].astype(np.int64)
    boxes[:, 2:] = side
    fields = Fields((image,), (grid.lattice,), np.zeros(len(field_indices), np.int16), boxes, field_indices)
    return Pass(
        name, fields, MapSpec(grid, classes, required, glass, image, promise is not None), **pass_options
    )


@dataclass(frozen=True)
class MapChannel:
    """A finished map that is read like an image: each pixel has the score of the cell under its centre."""

    reader: MapReader
    class_name: str | None = None

    @property
    def size(self) -> Size:
        x, y = self.reader.info.l0_stride
        return Size(round(self.reader.info.columns * x), round(self.reader.info.rows * y))

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice:
        raise ConfigError("a map does not define a lattice: read it on the lattice of its image")

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
