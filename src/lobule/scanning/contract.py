"""The interface between a method and the scanner.

A `Predictor` opens the images of a case, and its generator `steps` says what to compute: it fills maps and
tables with `yield from fill_map(...)` and `yield from fill_table(...)`, reads what was computed, and returns
the result. Each of these is a pass over a list of fields. The scanner groups fields by shape, reads them,
calls `forward` of the predictor's `Model` and stores the outputs; fields that are already stored are skipped.
`steps` must be deterministic, because it is replayed when a scan is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lobule.cohort import Case
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


class PixelSource(Protocol):
    """Pixels that fields are read from, in the frame of an image."""

    def read_lattice(self, lattice: Lattice, box: Box) -> Pixels: ...


class ImageSource(PixelSource, Protocol):
    """An image of a case, such as a `Slide`."""

    @property
    def size(self) -> Size: ...

    def lattice(
        self, *, mpp: float | None = None, level: int | None = None, upsample: bool = False
    ) -> Lattice: ...


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
        """Return the remaining seconds of the budget. Without a budget, they are infinite."""
        ...


OPENVINO = "openvino"
NOT_DECIDING = ("device", "devices", "replicas", "int8_folder")
"""Engine settings that do not change scores, so that a scan may be resumed with others."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings that are chosen when a scan begins, recorded, and reused when it is resumed."""

    precision: str = "float32"
    runtime: str = "torch"
    """The library that computes the networks on a CPU: torch or openvino."""
    device: str = "cpu"
    batch: int = 16
    """Fields that are computed together; short batches are padded to it."""
    cells: int = 1
    """Cells per side that one field of a dense map computes."""
    replicas: int = 1
    """Batches that each device computes at the same time."""
    devices: tuple[str, ...] = ()
    """Several CUDA cards of one scan, with `device` first; empty for one device."""
    pieces: int = 1
    """Pieces in which a batch is computed, because the memory of a device was exhausted once."""
    jpeg_decoder: str = "cpu"
    """What decodes the JPEG tiles of slides: cpu (libjpeg-turbo) or nvimagecodec."""
    replica_threads: int = 1
    channels_last: bool = True
    int8_folder: str = ""
    """Folder of the int8 models of a quantised bundle; empty for other bundles."""

    def deciding(self) -> dict[str, Any]:
        """Return the settings that the last bits of a score depend on. They are stored with the results."""
        settings = {name: value for name, value in self.__dict__.items() if name not in NOT_DECIDING}
        for name, default in (("pieces", 1), ("jpeg_decoder", "cpu")):
            if settings[name] == default:  # Results stay as they were before there were these settings.
                del settings[name]
        return settings

    @property
    def workers(self) -> int:
        """The number of batches that all devices compute at the same time."""
        return self.replicas * max(1, len(self.devices))


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

    chunk_rows: int = 1024
    """Rows of a chunk, which is written when all of its rows are computed."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One run of the model over a list of fields."""

    key: Any
    """Says what to compute: a value of the method, such as a frozen dataclass, that `forward` receives."""
    name: str
    """Name of the map or table, for people and files."""
    fields: Fields
    store: MapSpec | TableSpec
    batch: int | None = None
    """Fields per batch; None uses the number in the engine settings."""
    sources: Mapping[str, PixelSource] = field(default_factory=dict)
    """Images that replace the case's images of the same name in this pass, for example an image prepared for
    the model with the output of an earlier pass. Boxes stay in the frame of the original image."""
    go_on: Callable[[], bool] | None = None
    """Called before each batch is read. Once it returns False, the remaining fields stay pending."""
    preliminary: Mapping[str, float] = field(default_factory=dict)
    """The scores of the case after the passes before this one, shown to people who watch the scan."""


T = TypeVar("T")
Steps = Generator[Pass, Store, T]
"""A generator that yields passes, receives the store that each pass filled, and finally returns a `T`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of `forward`: pixels on the device, and the numbers that belong to each field."""

    pixels: torch.Tensor
    """(fields, height, width, channels), uint8 or float32."""
    params: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Model(Protocol):
    """The networks of a predictor: they choose a batch, move to a device and compute batches of fields.

    A scan with several GPUs copies the model with `copy.deepcopy` for each of them, before it is moved.

    A model may have a method `free_originals`. A scan calls it when the model has its final form and device:
    the model may then free what `forward` does not need, and must restore it when it is moved again. It
    returns whether it frees memory during its first batches.
    """

    def choose_batch(self, engine: EngineSettings, max_bytes: int, options: ScanOptions) -> EngineSettings:
        """Choose the field and batch size so that the activations of a replica fit in `max_bytes`."""
        ...

    def move_to_device(self, engine: EngineSettings, options: ScanOptions) -> None:
        """Move everything that `forward` needs to the device, in its precision, before any replica starts."""
        ...

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[Any, Batch]:
        """Return a pass key and a batch of random pixels, for measuring the speed of the model alone."""
        ...

    def forward(self, key: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Compute a batch of the pass that has this key.

        Returns:
            For a map pass, `map` with the shape (fields, classes, cells, cells). For a table pass, the
            columns.
        """
        ...


class Predictor(Protocol):
    """A trained model, ready for the scanner."""

    @property
    def model(self) -> Model: ...

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """Open the images of a case in the coordinate frame that the method works in."""
        ...

    def steps(self, case: OpenCase) -> Steps[Result]:
        """Fill the maps and tables that the result needs, and return the result."""
        ...


def fill_map(
    key: Any,
    name: str,
    grid: MapGrid,
    classes: tuple[str, ...],
    required: Cells,
    glass: Cells | None = None,
    *,
    image: str = "slide",
    promise: NDArray[np.float32] | None = None,
    params: Callable[[NDArray[np.int32]], Mapping[str, NDArray[Any]]] | None = None,
    pixel_size: Size | None = None,
    batch: int | None = None,
    sources: Mapping[str, PixelSource] | None = None,
    go_on: Callable[[], bool] | None = None,
    preliminary: Mapping[str, float] | None = None,
) -> Steps[MapReader]:
    """Fill a map with every field that contains a required cell, and return its reader.

    Args:
        key: The value that `Model.forward` receives.
        name: Name of the map.
        grid: Geometry of the map and of its fields.
        classes: Names of the classes.
        required: Cells that have to be scored.
        glass: Cells known to contain no tissue; by default, all that are not required.
        image: Name of the image that fields are read from.
        promise: One number per field of the grid. Fields are computed in descending order of it; without it,
            they are computed row by row.
        params: Receives the grid rows and columns (n, 2) of the fields, and returns `Fields.params`.
        pixel_size: Size of the pixels that `sources` return for every field, if it is not that of the box.
        batch: Fields per batch; None uses the number in the engine settings.
        sources: Images that replace the case's images of the same name.
        go_on: Called before each batch is read; once it returns False, the remaining cells stay pending.
        preliminary: Scores of the case before this pass, shown while the pass runs.
    """
    grid_indices = grid.fields_over(required)
    if promise is not None:
        order = np.argsort(-promise[grid_indices[:, 0], grid_indices[:, 1]], kind="stable")
        grid_indices = grid_indices[order]
    count = len(grid_indices)
    fields = Fields(
        (image,),
        (grid.lattice,),
        np.zeros(count, np.int16),
        grid.field_boxes(grid_indices),
        grid_indices,
        {} if params is None else params(grid_indices),
        None if pixel_size is None else np.tile(np.array([[*pixel_size]], np.int64), (count, 1)),
    )
    glass = ~required if glass is None else glass
    spec = MapSpec(grid, classes, required, glass, image, scattered=promise is not None)
    map_pass = Pass(key, name, fields, spec, batch, sources or {}, go_on, preliminary or {})
    return cast(MapReader, (yield map_pass))


def fill_table(
    key: Any,
    name: str,
    fields: Fields,
    *,
    chunk_rows: int = 1024,
    batch: int | None = None,
    sources: Mapping[str, PixelSource] | None = None,
) -> Steps[TableReader]:
    """Fill a table with one row per field, and return its reader.

    Args:
        key: The value that `Model.forward` receives.
        name: Name of the table.
        fields: The fields, in the order of the rows.
        chunk_rows: Rows of a chunk, which is written when all of its rows are computed.
        batch: Fields per batch; None uses the number in the engine settings.
        sources: Images that replace the case's images of the same name.
    """
    return cast(TableReader, (yield Pass(key, name, fields, TableSpec(chunk_rows), batch, sources or {})))
