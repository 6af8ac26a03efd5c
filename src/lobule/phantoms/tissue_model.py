"""The tissues at each position and the nuclei in them, on a lattice of about 4 µm."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lobule.phantoms.layout import Layout, layout_of
from lobule.phantoms.noise import Reals, band_noise, bilinear, mixed, window
from lobule.phantoms.phantom import Lesion, SlidePhantom
from lobule.phantoms.structures import ZONE_UM

FAR = np.float32(-1000.0)


def coarse_step(mpp: float) -> int:
    """Pixels from one lattice point to the next: a power of two near 4 µm."""
    return int(min(16, max(1, 2 ** round(float(np.log2(4.0 / mpp))))))


@dataclass
class Fields:
    """Lattice values over a window. Distances are signed µm, positive inside; shares are 0 to 1."""

    x_um: Reals
    """(columns,)"""
    y_um: Reals
    """(rows,)"""
    layers: list[tuple[str, Reals, float]] = field(default_factory=list)
    """Backgrounds in the order they are laid: texture, distance inside, width of the border in µm."""
    nuclei: dict[str, Reals] = field(default_factory=dict)
    """Share of the candidate positions that hold a nucleus, for each kind."""
    turn: Reals | None = None
    """Direction of epithelial nuclei in [0, 1) of half a turn."""
    base: str = "stroma"


@lru_cache(maxsize=8)
def _mid_noise(step_um: float) -> dict[str, Reals]:
    waves = {"fine": 55.0, "cord": 80.0, "nest": 130.0, "band": 330.0, "gland": 75.0, "clump": 30.0}
    return {
        name: band_noise(1024, step_um, max(um, 2.5 * step_um), 100 + index, spread=0.4)
        for index, (name, um) in enumerate(waves.items())
    }


class TissueModel:
    """Everything that the pixels of a slide are painted from. Safe to share between threads."""

    def __init__(self, phantom: SlidePhantom) -> None:
        self.phantom = phantom
        self.layout: Layout = layout_of(phantom)
        self.step = coarse_step(phantom.mpp)
        self.step_um = self.step * phantom.mpp
        self._noise = _mid_noise(self.step_um)
        self._shift = {
            name: (mixed(phantom.seed, index, 5) % 1024, mixed(phantom.seed, index, 6) % 1024)
            for index, name in enumerate(self._noise)
        }

    def noise(self, name: str, column: int, row: int, shape: tuple[int, int]) -> Reals:
        dx, dy = self._shift[name]
        return window(self._noise[name], column + dx, row + dy, shape[1], shape[0])

    def zone(self, name: str, x_um: Reals, y_um: Reals) -> Reals:
        zone = self.layout.depth if name == "depth" else self.layout.zones[name]
        return bilinear(zone, x_um / np.float32(ZONE_UM), y_um[:, None] / np.float32(ZONE_UM))

    def ovals(self, kind: str, fields: Fields) -> Reals | None:
        """Depth inside the nearest oval of a kind; None if no oval touches the window."""
        ovals = self.layout.ovals.get(kind)
        if ovals is None:
            return None
        reach = ovals.reach + 40
        axes = ((ovals.x, fields.x_um), (ovals.y, fields.y_um))
        near = [(at + reach > float(um[0])) & (at - reach < float(um[-1])) for at, um in axes]
        hit = np.flatnonzero(near[0] & near[1])
        if not hit.size:
            return None
        depth = np.full((fields.y_um.size, fields.x_um.size), FAR, np.float32)
        for index in hit.tolist():
            i, j = (self._cells(at[index], reach[index], float(um[0])) for at, um in axes)
            window = depth[j, i]
            if window.size:
                one = ovals.depth(index, fields.x_um[None, i], fields.y_um[j, None])
                np.maximum(window, one, out=window)
        return depth

    def _cells(self, middle_um: float, reach_um: float, first_um: float) -> slice:
        """The lattice points within a distance of a position; `first_um` is the position of the first."""
        start = max(0, int((middle_um - reach_um - first_um) / self.step_um))
        return slice(start, int((middle_um + reach_um - first_um) / self.step_um) + 2)

    def fields(self, column: int, row: int, columns: int, rows: int) -> Fields:
        """The lattice from (column, row), `columns` by `rows` cells and so one point more each way."""
        shape = (rows + 1, columns + 1)
        x = (np.arange(column, column + shape[1]) * self.step_um).astype(np.float32)
        y = (np.arange(row, row + shape[0]) * self.step_um).astype(np.float32)
        fields = Fields(x, y)
        noise = {name: self.noise(name, column, row, shape) for name in self._noise}
        depth = self.zone("depth", fields.x_um, fields.y_um)
        if self.phantom.organ == "node":
            self._node(fields, noise, depth)
        else:
            self._breast(fields, noise, depth)
        fields.nuclei = {name: share * (depth > 0) for name, share in fields.nuclei.items()}
        return fields

    def _node(self, fields: Fields, noise: dict[str, Reals], depth: Reals) -> None:
        zone = self.zone("architecture", fields.x_um, fields.y_um)
        dense = self.zone("density", fields.x_um, fields.y_um)
        fatty = self.zone("fat", fields.x_um, fields.y_um)
        capsule = 42 + 14 * noise["band"] - depth
        fat = np.minimum((fatty - 1.15) * 260 + 12 * noise["nest"], depth - 130)
        septum = 5 - np.abs(noise["band"]) * 110 + 9 * dense
        stroma = np.maximum(np.maximum(capsule, septum), np.minimum(28 - np.abs(fat + 14), fat + 60))
        medulla = np.minimum((zone + 0.15) * 200, depth - 500)
        sinus = np.minimum(13 - np.abs(noise["nest"]) * 30, medulla)
        sinus = np.maximum(sinus, 12 - np.abs(depth - capsule - depth - 62 - 14 * noise["band"]))
        follicle, centre = self.ovals("follicle", fields), self.ovals("centre", fields)
        sheet, crowd = self.ovals("histiocytes", fields), self.ovals("dense", fields)
        follicle = FAR + 0 * depth if follicle is None else follicle + 6 * noise["fine"]
        centre = FAR + 0 * depth if centre is None else centre + 5 * noise["fine"]
        sheet = FAR + 0 * depth if sheet is None else sheet + 22 * noise["nest"] + 10 * noise["fine"]
        crowd = FAR + 0 * depth if crowd is None else crowd + 12 * noise["nest"]
        # small clusters of histiocytes lie anywhere in the paracortex
        sheet = np.maximum(sheet, np.minimum((noise["nest"] - 1.75) * 26, -follicle))
        sinus = np.minimum(sinus, -follicle)
        vessel = self.ovals("vessel", fields)
        fields.base = "lymph"
        fields.layers = [
            ("sinus", sinus, 8.0),
            ("centre", centre, 16.0),
            ("histiocytes", sheet, 12.0),
            ("stroma", stroma, 5.0),
            ("fat", fat, 4.0),
            *self._vessel_layers(vessel),
        ]
        fibrous, adipose = _share(stroma, 4), _share(fat, 4)
        solid = fibrous + adipose + (0 if vessel is None else _share(vessel + 5, 3))
        free = np.clip(1 - solid, 0, 1)
        loose = _share(sinus, 8)
        germ, hist = _share(centre, 22), _share(sheet, 12)
        packed = np.clip(0.72 + 0.27 * dense + 0.15 * noise["fine"], 0.3, 1.0)
        packed = np.maximum(packed, np.maximum(_share(follicle, 20), _share(crowd, 30)))
        firm = fibrous * (1 - _share(fat + 3, 4))
        tight = free * (1 - 0.8 * loose)
        fields.nuclei = {
            "lymphocyte": packed * tight * (1 - 0.8 * germ) * (1 - 0.85 * hist) + 0.03 * firm,
            "centroblast": tight * np.maximum(0.9 * germ, 0.08 + 0.05 * dense),
            "histiocyte": free * np.maximum(np.maximum(0.45 * loose, 0.92 * hist), 0.12 * germ),
            "fibroblast": 0.6 * firm + 0.1 * loose,
        }
        self._vessel_nuclei(fields, vessel)

    def _breast(self, fields: Fields, noise: dict[str, Reals], depth: Reals) -> None:
        fatty = self.zone("fat", fields.x_um, fields.y_um)
        dense = self.zone("density", fields.x_um, fields.y_um)
        fat = np.minimum(
            (fatty - (0.25 if self.phantom.scene in (None, "normal") else 0.8)) * 320
            + 26 * noise["nest"]
            + 10 * noise["fine"],
            depth - 20,
        )
        layers: list[tuple[str, Reals, float]] = []
        nuclei = {name: np.zeros_like(depth) for name in ("lymphocyte", "histiocyte", "epithelial", "tumour")}
        aggregate = (noise["nest"] + 0.5 * dense - 2.3) * 40
        crowd = self.ovals("dense", fields)
        if crowd is not None:
            aggregate = np.maximum(aggregate, crowd + 20 * noise["nest"] + 12 * noise["fine"])
        follicle, centre = self.ovals("follicle", fields), self.ovals("centre", fields)
        if follicle is not None:
            aggregate = np.maximum(aggregate, follicle + 10 * noise["fine"])
        sheet = self.ovals("histiocytes", fields)
        ring = FAR + 0 * depth
        turn_from = None
        vessel = self.ovals("vessel", fields)
        glands: list[tuple[str, Reals, float]] = []
        for kind, wall in (("duct", 17.0), ("acinus", 11.5), ("filled", 60.0), ("in-situ", 400.0)):
            inside = self.ovals(kind, fields)
            if inside is None:
                continue
            inside = inside + (1.0 if kind == "acinus" else 3.5) * noise["fine"]
            fat = np.minimum(fat, -inside - (40 if kind == "in-situ" else 22))
            aggregate = np.minimum(aggregate, -inside)
            vessel = None if vessel is None else np.minimum(vessel, -inside - 8)
            layer, lumen = self._gland(kind, inside, wall, noise, nuclei)
            glands += [("desmoplasia", inside + 9, 8.0), layer, ("plasma", lumen, 2.0)]
            if kind == "in-situ":
                glands.append(("necrosis", np.minimum(inside - 75, 60.0) + 18 * noise["fine"], 9.0))
            rim = np.minimum(inside, wall - inside)
            turn_from = inside if turn_from is None else np.maximum(turn_from, inside)
            ring = np.maximum(ring, rim)
        layers = [("lymph", aggregate, 24.0), ("fat", fat, 4.0)]
        if centre is not None:
            layers.insert(1, ("centre", centre, 18.0))
            nuclei["centroblast"] = 0.9 * _share(centre, 20)
        if sheet is not None:
            sheet = np.minimum(sheet + 20 * noise["nest"], -ring)
            layers.append(("histiocytes", sheet, 12.0))
            nuclei["histiocyte"] += 0.9 * _share(sheet, 10)
        fields.layers = [*layers, *glands, *self._vessel_layers(vessel)]
        gland = np.clip(_share(ring, 3) + (0 if turn_from is None else _share(turn_from, 4)), 0, 1)
        stroma = np.clip(1 - _share(fat, 4) - gland, 0, 1)
        nuclei["lymphocyte"] += (0.03 + 0.92 * _share(aggregate, 40)) * stroma
        nuclei["fibroblast"] = (0.34 + 0.1 * noise["fine"]) * stroma
        fields.nuclei = nuclei
        fields.base = "stroma"
        if turn_from is not None:
            gy, gx = np.gradient(turn_from)
            fields.turn = ((np.arctan2(gy, gx) / np.pi) % 1.0).astype(np.float32)
        self._vessel_nuclei(fields, vessel)

    def _gland(
        self, kind: str, inside: Reals, wall: float, noise: dict[str, Reals], nuclei: dict[str, Reals]
    ) -> tuple[tuple[str, Reals, float], Reals]:
        """Background and lumen of one kind of duct; adds its nuclei."""
        if kind == "in-situ":
            holes = np.minimum((noise["gland"] - 1.15) * 18, inside - 30)
            dead = _share(np.minimum(inside - 75, 60.0) + 18 * noise["fine"], 6)
            nuclei["tumour"] = np.maximum(
                nuclei["tumour"], _share(inside - 4, 3) * (1 - _share(holes, 3)) * (1 - 0.97 * dead)
            )
            nuclei["epithelial"] = np.maximum(nuclei["epithelial"], 0.5 * _share(4 - np.abs(inside - 1), 2))
            return ("tumour", inside, 3.0), holes
        if kind == "filled":
            lumen = np.minimum((noise["gland"] - 0.55) * 20, inside - 16)
        else:
            lumen = inside - wall
        nuclei["epithelial"] = np.maximum(
            nuclei["epithelial"], _share(inside - 1.5, 3) * (1 - _share(lumen + 4, 3))
        )
        return ("epithelium", inside, 3.0), lumen

    @staticmethod
    def _vessel_layers(vessel: Reals | None) -> list[tuple[str, Reals, float]]:
        if vessel is None:
            return []
        return [("muscle", vessel + 4.5, 3.0), ("plasma", vessel, 2.0)]

    @staticmethod
    def _vessel_nuclei(fields: Fields, vessel: Reals | None) -> None:
        if vessel is not None:
            clear = 1 - _share(vessel + 1, 3)
            fields.nuclei = {name: share * clear for name, share in fields.nuclei.items()}
            fields.nuclei["red-cell"] = 0.85 * _share(vessel - 3, 2)
            wall = _share(4 - np.abs(vessel + 2), 2)
            fields.nuclei["fibroblast"] = np.maximum(fields.nuclei["fibroblast"], 0.8 * wall)

    def nests(self, lesion: Lesion, column: int, row: int, shape: tuple[int, int]) -> tuple[Reals, Reals]:
        """Distance inside the nests of a lesion's tumour cells, and inside its gland lumens."""
        band = np.abs(self.noise("band", column, row, shape)) * 70 - 7
        fine = self.noise("fine", column, row, shape)
        lumen = np.full(shape, FAR, np.float32)
        if lesion.pattern == "solid":
            nest = band + 3 * fine
        elif lesion.pattern == "nests":
            nest = np.minimum(self.noise("nest", column, row, shape) * 22 + 9 + 4 * fine, band + 10)
        elif lesion.pattern == "cords":
            nest = 10.5 - np.abs(self.noise("cord", column, row, shape)) * 12 + 2 * fine
        else:
            gland = self.noise("gland", column, row, shape)
            nest = np.minimum(gland * 14 + 10, band + 8)
            lumen = (gland - 0.95) * 16
        return nest.astype(np.float32), lumen.astype(np.float32)


def _share(distance: Reals, width: float) -> Reals:
    """1 inside, 0 outside, and linear across a border of this width."""
    share: Reals = distance * np.float32(1 / width)
    share += np.float32(0.5)
    return np.clip(share, np.float32(0), np.float32(1), out=share)
