// Tiles of a score map: loaded when they come into view, kept as raw scores and states.

import { getBytes, query, retryDelay, type MapInfo } from "./api";

export const PENDING = 0, GLASS = 1, SCORED = 2, FAILED = 3;
/** State of the border cells that lie outside the map. */
export const OUTSIDE = 255;
const MOST_TILES = 400;

export interface MapTile {
  width: number;
  height: number;
  low: number;
  high: number;
  /** Score and state of each cell, alternating, with a border of one cell. */
  cells: Uint8Array;
  version: number;
}

export interface TileQuad {
  tile: MapTile;
  /** Position of the drawn area within the tile, in its cells without the border. */
  left: number;
  top: number;
  right: number;
  bottom: number;
  /** The same area in level-0 pixels. */
  l0: [number, number, number, number];
}

export class MapLayer {
  private tiles = new Map<string, MapTile>();
  /** The number of the latest request of each tile that is being loaded. */
  private loading = new Map<string, number>();
  private requests = 0;
  /** How often the request of a tile has failed since the last success. */
  private failures = new Map<string, number>();
  private waiting = new Set<string>();
  private versions = 0;

  constructor(
    readonly caseId: string,
    public info: MapInfo,
    public layer: number,
    private onLoad: () => void,
    /** Show the difference to this other result of the case, or to the truth. */
    readonly other: string | null = null,
  ) {}

  /** The loaded tiles that cover a level-0 box, each area once. Missing tiles are requested. */
  visible(box: [number, number, number, number], pxPerL0: number): TileQuad[] {
    const [strideX, strideY] = this.info.l0_stride;
    let level = 0;
    while (level < this.info.levels - 1 && strideX * 2 ** level * pxPerL0 < 1) level++;
    const side = this.info.tile;
    const [cellX, cellY] = [strideX * 2 ** level, strideY * 2 ** level];
    const columns = Math.ceil(this.info.columns / 2 ** level), rows = Math.ceil(this.info.rows / 2 ** level);
    const quads: TileQuad[] = [];
    const first = (low: number, cell: number) => Math.max(0, Math.floor(low / cell / side));
    const last = (high: number, cell: number, count: number) =>
      Math.min(Math.ceil(count / side) - 1, Math.floor(high / cell / side));
    for (let row = first(box[1], cellY); row <= last(box[3], cellY, rows); row++)
      for (let column = first(box[0], cellX); column <= last(box[2], cellX, columns); column++) {
        const left = column * side, top = row * side;
        const right = Math.min(left + side, columns), bottom = Math.min(top + side, rows);
        const loaded = this.nearest(level, column, row);
        if (loaded) {
          const scale = 2 ** -loaded.up;
          const [x, y] = [loaded.column * side, loaded.row * side];
          quads.push({
            tile: loaded.tile,
            left: left * scale - x, top: top * scale - y, right: right * scale - x, bottom: bottom * scale - y,
            l0: [left * cellX, top * cellY, right * cellX, bottom * cellY],
          });
        }
      }
    this.request(this.info.levels - 1, 0, 0);
    return quads;
  }

  private nearest(level: number, column: number, row: number) {
    this.request(level, column, row);
    for (let up = 0; level + up < this.info.levels; up++) {
      const [c, r] = [column >> up, row >> up];
      const tile = this.tiles.get(`${level + up}/${c}/${r}`);
      if (tile) return { tile, up, column: c, row: r };
    }
    return null;
  }

  private request(level: number, column: number, row: number): void {
    const key = `${level}/${column}/${row}`;
    if (this.tiles.has(key)) {
      const tile = this.tiles.get(key)!;
      this.tiles.delete(key);
      this.tiles.set(key, tile);
      return;
    }
    if (!this.waiting.has(key)) this.load(key, level, column, row);
  }

  private load(key: string, level: number, column: number, row: number): void {
    if (this.loading.has(key)) return;
    const number = ++this.requests;
    this.loading.set(key, number);
    const values = { name: this.info.name, layer: this.layer, level, column, row };
    const path = this.other === null ? `map?${query(values)}` : `difference?${query({ ...values, other: this.other })}`;
    getBytes(`cases/${this.caseId}/${path}`)
      .then((bytes) => {
        if (this.loading.get(key) !== number) return;
        this.tiles.set(key, parse(bytes, ++this.versions));
        this.failures.delete(key);
        while (this.tiles.size > MOST_TILES) this.tiles.delete(this.tiles.keys().next().value!);
        this.onLoad();
      })
      .catch(() => this.retryLater(key))
      .finally(() => {
        if (this.loading.get(key) === number) this.loading.delete(key);
      });
  }

  /** Request a tile again after some time if it is then in view. */
  private retryLater(key: string): void {
    const failures = this.failures.get(key) ?? 0;
    this.failures.set(key, failures + 1);
    this.waiting.add(key);
    setTimeout(() => {
      this.waiting.delete(key);
      this.onLoad();
    }, retryDelay(failures));
  }

  /** Load the tiles over a written chunk again. */
  refresh(chunkRow: number, chunkColumn: number): void {
    this.failures.clear();
    this.waiting.clear();
    const [height, width] = this.info.chunk;
    for (const key of [...this.tiles.keys()]) {
      const [level, column, row] = key.split("/").map(Number);
      const side = this.info.tile * 2 ** level;
      const overlaps = (low: number, size: number, index: number) =>
        low * size <= (index + 1) * side && (low + 1) * size >= index * side;
      if (overlaps(chunkRow, height, row) && overlaps(chunkColumn, width, column)) {
        // The old tile stays on the screen until the new one is there.
        this.loading.delete(key);
        this.load(key, level, column, row);
      }
    }
    this.request(this.info.levels - 1, 0, 0);
  }

  /** Score and state of the cell at a level-0 position, from the finest loaded tile. */
  valueAt(x: number, y: number): { score: number; state: number } | null {
    for (let level = 0; level < this.info.levels; level++) {
      const column = Math.floor(x / this.info.l0_stride[0] / 2 ** level);
      const row = Math.floor(y / this.info.l0_stride[1] / 2 ** level);
      const side = this.info.tile;
      const tile = this.tiles.get(`${level}/${Math.floor(column / side)}/${Math.floor(row / side)}`);
      if (!tile) continue;
      const at = 2 * (((row % side) + 1) * tile.width + (column % side) + 1);
      if (at < 0 || at >= tile.cells.length) return null;
      return { score: tile.low + (tile.cells[at] / 255) * (tile.high - tile.low), state: tile.cells[at + 1] };
    }
    return null;
  }

  get range(): [number, number] {
    const tile = this.tiles.values().next().value;
    return tile ? [tile.low, tile.high] : [0, 1];
  }
}

function parse(bytes: ArrayBuffer, version: number): MapTile {
  const view = new DataView(bytes);
  if (view.getUint32(0) !== 0x4c4d5431) throw new Error("This is not a map tile.");
  const width = view.getUint16(4, true), height = view.getUint16(6, true);
  const planes = new Uint8Array(bytes, 16);
  const count = width * height;
  const cells = new Uint8Array(2 * count);
  for (let i = 0; i < count; i++) {
    cells[2 * i] = planes[i];
    cells[2 * i + 1] = planes[count + i];
  }
  return { width, height, low: view.getFloat32(8, true), high: view.getFloat32(12, true), cells, version };
}
