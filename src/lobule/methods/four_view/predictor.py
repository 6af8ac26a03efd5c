"""The four-view classifier for the scanner: patches make heatmaps, windows features, heads scores."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lobule.bundles import Bundle
from lobule.cohort import Case
from lobule.engines.passes import (
    Batch,
    EngineSettings,
    ImageSource,
    OpenCase,
    Pass,
    ScanOptions,
    Store,
    TableSpec,
    map_pass,
)
from lobule.engines.placement import activation_bytes, largest_cells, placed
from lobule.errors import CaseError, LobuleError, ModelError
from lobule.findings import Finding, components
from lobule.grid import MapGrid
from lobule.mammograms.views import angle_of
from lobule.methods.four_view.config import Config
from lobule.methods.four_view.crop import Window
from lobule.methods.four_view.images import ExamView, Heatmaps, HeatmapView, InputView, PatchView
from lobule.methods.four_view.patches import BENIGN, MALIGNANT, PatchGrid, heatmap_of
from lobule.methods.four_view.plan import (
    Turn,
    distinct,
    fields_of,
    open_views,
    patch_frame,
    shapes,
    turns,
    window_pass,
)
from lobule.methods.four_view.scores import Features, Heads, exam_result, scored_rows
from lobule.methods.four_view.streams import Shapes, draw_grid, patches_stream
from lobule.nets.four_view import TARGETS, ImageWise, ResNet22, ViewWise, patch_densenet
from lobule.results.maps import MapReader
from lobule.results.result import Result
from lobule.results.tables import TableReader
from lobule.stitch import State

PATCH_PREFIX = "patch."
"""Where a bundle's weights hold the patch network."""
GRADES = ("benign", "malignant")
HEADROOM = 2.0
PATCHES = 8
"""Patches in the time and room of a window."""
BATCH_ON_GPU = 8
SAMPLE_SIDE = 512
"""Pixels a side of the made-up window that the model is measured on."""
HEATMAP_CELLS = 64


class FourViewPredictor:
    """Either variant of the classifier, with or without its patch network."""

    classes = TARGETS

    def __init__(self, config: Config, net: ViewWise | ImageWise, patch_net: nn.Module | None = None) -> None:
        self.config = config
        self.trunks: dict[str, ResNet22] = {"CC": net.four_view_resnet.cc, "MLO": net.four_view_resnet.mlo}
        self.patch_net = patch_net
        self.heads = Heads(net)
        self._placed: dict[str, nn.Module] = {}
        self._engine = EngineSettings()
        self._shapes: dict[tuple[str, ...], Shapes] = {}

    # -- what the scanner asks ----------------------------------------------------------------------------

    def images(self, case: Case, options: ScanOptions) -> Mapping[str, ImageSource]:
        """The exam's images by view, alternates numbered; which are needed is up to the variant."""
        config = self.config.set(options.settings)
        if case.kind != "exam":
            raise CaseError(
                "this model reads exams",
                subject=case.path,
                expected="files of the views in the columns l_cc, r_cc, l_mlo, r_mlo",
                found=f"a case of kind {case.kind}",
            )
        images = open_views(case, config)
        self._shapes[case.paths] = shapes(images)
        return images

    def settle(self, engine: EngineSettings, room: int, options: ScanOptions) -> EngineSettings:
        """As many windows at once as fit; a CPU, whose lanes run at once, computes one by one."""
        one = 0
        for angle, trunk in self.trunks.items():
            one = max(one, activation_bytes(trunk, *self.config.size(angle), self.config.channels))
        preferred = 1 if engine.device == "cpu" else BATCH_ON_GPU
        batch = largest_cells(
            lambda windows: int(windows * HEADROOM * one), room, preferred=preferred, what="batch of windows"
        )
        return replace(engine, batch=batch)

    def place(self, engine: EngineSettings, options: ScanOptions) -> None:
        self._engine = engine
        self._placed = {angle: placed(trunk, engine) for angle, trunk in self.trunks.items()}
        if self.patch_net is not None:
            self._placed["patches"] = placed(self.patch_net, engine)

    def sample(self, engine: EngineSettings, options: ScanOptions) -> tuple[str, Batch]:
        height, width = (min(SAMPLE_SIDE, length) for length in self.config.size("L-CC"))
        shape = (engine.batch, height, width, self.config.channels)
        pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
        return "windows L-CC", Batch(torch.from_numpy(pixels).to(engine.device), {}, {})

    def steps(self, case: OpenCase) -> Generator[Pass, Store, Result]:
        config = self.config.set(case.options.settings)
        rng = self._patches_rng(case, config)
        features = Features(config.windows)
        findings: list[Finding] = []
        for turn in turns(case, config):
            heatmaps: Heatmaps | None = None
            sources: dict[str, ImageSource] = {}
            if isinstance(turn.image, ExamView):
                if config.heatmaps:
                    # drawn for every image in turn, also where none of its windows is read
                    grid = draw_grid(turn.image.crop.window.shape, rng or _anew(config), config)
                if not turn.epochs:
                    continue
                if config.heatmaps:
                    heatmaps = yield from self._heatmaps(turn, grid, case.engine, config)
                    findings += yield from self._kept(turn, heatmaps, config)
                sources[turn.name] = InputView(turn.image, config.size(turn.image.view), heatmaps)
            store = yield window_pass(turn, config, sources)
            assert isinstance(store, TableReader)
            features.take(turn.image.view, turn.epochs, store)
        return exam_result(config, self.heads, features, case.images, findings)

    def forward(self, name: str, batch: Batch) -> dict[str, Tensor]:
        kind, _, image = name.partition(" ")
        if kind == "heatmap":
            means = nn.functional.avg_pool2d(batch.pixels.permute(0, 3, 1, 2), self.config.heatmap_cell)
            # of a cell that hangs over the edge, what is inside counts
            return {"map": means[:, :2] / means[:, 2:].clamp_min(1e-6)}
        dtype = torch.bfloat16 if self._engine.precision == "bfloat16" else torch.float32
        x = batch.pixels.permute(0, 3, 1, 2).to(dtype)
        if kind == "patches":
            logits = self._placed["patches"](x.expand(-1, 3, -1, -1))
            return {"scores": torch.softmax(logits.float(), dim=1)}
        seen = self._placed[angle_of(image.partition(" ")[0])](x)
        return {"features": seen.float().mean(dim=(2, 3))}

    # -- heatmaps -----------------------------------------------------------------------------------------

    def _patches_rng(self, case: OpenCase, config: Config) -> random.Random | None:
        """The stream of an exam's patch grids; None where every image begins anew."""
        if not config.heatmaps or config.variant == "image_wise":
            return None
        return patches_stream(config, case.earlier(), lambda other: self._shapes_of(other, config))

    def _shapes_of(self, case: Case, config: Config) -> Shapes:
        """Sizes of an earlier exam's cropped images; read again only where this process has not seen it."""
        if case.paths not in self._shapes:
            try:
                self._shapes[case.paths] = shapes(open_views(case, config))
            except (LobuleError, OSError):
                self._shapes[case.paths] = []
        return self._shapes[case.paths]

    def _heatmaps(
        self, turn: Turn, grid: PatchGrid, engine: EngineSettings, config: Config
    ) -> Generator[Pass, Store, Heatmaps]:
        """The patch network over one image. Patches without any breast are all the same: one is computed."""
        assert isinstance(turn.image, ExamView)
        source = PatchView(turn.image, patch_frame(turn.image, config))
        rows, row_of = distinct(grid, source.pixels)
        corners = list(grid.corners())
        boxes = np.empty((len(rows), 4), np.int64)
        for index, row in enumerate(rows):
            top, left = corners[row]
            box = source.frame.to_l0(Window(top, top + grid.patch, left, left + grid.patch))
            boxes[index] = box.x, box.y, box.width, box.height
        store = yield Pass(
            f"patches {turn.name}",
            fields_of(turn, boxes),
            TableSpec(part_rows=8 * PATCHES),
            batch=engine.batch * PATCHES,
            sources={turn.name: source},
        )
        assert isinstance(store, TableReader)
        scored = scored_rows(store, "scores")
        if len(scored) < len(rows):
            raise ModelError(f"{len(rows) - len(scored)} patches of {turn.name} could not be scored")
        scores = np.stack([scored[int(row)] for row in row_of])
        benign, malignant = (
            heatmap_of(turn.image.crop.window.shape, grid, scores[:, index]) for index in (BENIGN, MALIGNANT)
        )
        if source.frame.mirrored != turn.image.frame.mirrored:
            benign, malignant = benign[:, ::-1], malignant[:, ::-1]
        return benign, malignant

    def _kept(self, turn: Turn, heatmaps: Heatmaps, config: Config) -> Generator[Pass, Store, list[Finding]]:
        """The heatmaps as a map over the stored image, for viewers, and what stands out in them."""
        assert isinstance(turn.image, ExamView)
        lattice = turn.image.lattice()
        grid = MapGrid(lattice, config.heatmap_cell, config.heatmap_cell, HEATMAP_CELLS)
        window, cell = turn.image.crop.window, config.heatmap_cell
        wanted = np.zeros((grid.rows, grid.columns), np.bool_)
        wanted[
            window.top // cell : -(-window.bottom // cell), window.left // cell : -(-window.right // cell)
        ] = True
        store = yield map_pass(
            f"heatmap {turn.name}",
            grid,
            GRADES,
            wanted,
            ~wanted,
            image=turn.name,
            batch=1,
            sources={turn.name: HeatmapView(turn.image, heatmaps)},
        )
        assert isinstance(store, MapReader)
        scores, states = store.read()
        found = []
        for layer, grade in zip(scores, GRADES, strict=True):
            scored = np.where(states == State.SCORED, layer, np.float32(0))
            label = f"{turn.name} {grade}"
            found += components(
                scored, cell, mpp=lattice.mpp, threshold=config.finding_threshold, label=label
            )
        return found


def _anew(config: Config) -> random.Random:
    return random.Random(config.seed)


def build(config: Config) -> tuple[ViewWise | ImageWise, nn.Module | None]:
    """The networks of a configuration, with fresh weights; the second paints heatmaps."""
    net = (ViewWise if config.variant == "view_wise" else ImageWise)(config.channels, widths=config.widths)
    if not config.heatmaps:
        return net, None
    patch_net = patch_densenet(
        growth=config.patch_growth, blocks=config.patch_blocks, first_width=config.patch_first_width
    )
    return net, patch_net


def load(bundle: Bundle, *, trust: bool = False) -> FourViewPredictor:
    """A four-view bundle as a predictor; its weights are plain tensors, so `trust` is not needed."""
    config = Config.from_dict(bundle.config)
    net, patch_net = build(config)
    weights = bundle.weights()
    patch = {k.removeprefix(PATCH_PREFIX): v for k, v in weights.items() if k.startswith(PATCH_PREFIX)}
    own = {k: v for k, v in weights.items() if not k.startswith(PATCH_PREFIX)}
    try:
        net.load_state_dict(own)
        if patch_net is not None:
            patch_net.load_state_dict(patch)
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the nets",
            subject=bundle.path,
            expected=f"those of a {config.variant} classifier of {config.channels} channels",
            found=str(error),
        ) from error
    return FourViewPredictor(config, net.eval(), None if patch_net is None else patch_net.eval())


def weights_of(net: nn.Module, patch_net: nn.Module | None) -> dict[str, Tensor]:
    """The tensors of a bundle: the classifier's under its own names, the patch network's under a prefix."""
    weights = dict(net.state_dict())
    if patch_net is not None:
        weights |= {PATCH_PREFIX + name: tensor for name, tensor in patch_net.state_dict().items()}
    return weights
