// Tiles of findings: single points where few are in view, counts and maxima otherwise.

import type { Affine } from "./affine";
import { getBytes, query, retryDelay } from "./api";

export interface PointTile {
  kind: "points" | "bins";
  count: number;
  /** Number of findings: that of the points, or the sum over the bins. */
  findings: number;
  x: Float32Array;
  y: Float32Array;
  score: Float32Array;
  /** Row in the findings table, or number of findings in the bin. */
  number: Uint32Array;
  label: Uint8Array;
  /** The largest number of findings in a bin; 1 for points. */
  most: number;
  /** The area of the tile in level-0 pixels: left, top and side. */
  area: [number, number, number];
}

/** Bins per side of a tile. */
export const BINS = 64;
const MOST_TILES_IN_VIEW = 12;
/** Tiles are at least this large on the screen, so that the bins of a row are circles that can be told apart. */
const SMALLEST_TILE_PX = 768;
const MOST_TILES = 200;

/** The largest diameter of a bin's circle in CSS pixels: circles of neighbouring bins do not overlap. */
export function largestBin(tile: PointTile, [a, b]: Affine, dpr: number): number {
  const binPx = (tile.area[2] / BINS) * Math.hypot(a, b) / dpr;
  return Math.min(36, Math.max(9, 0.95 * binPx));
}

/** The largest number of findings in a bin of these tiles. */
export function mostPerBin(tiles: PointTile[]): number {
  return tiles.reduce((most, tile) => Math.max(most, tile.most), 1);
}

export class FindingLayer {
  private tiles = new Map<string, PointTile>();
  private loading = new Set<string>();
  /** How often the request of a tile has failed. */
  private failures = new Map<string, number>();
  private onFirst: () => void = () => {};
  /** Resolves when a tile was received, or could not be. */
  readonly first = new Promise<void>((done) => (this.onFirst = done));

  constructor(
    readonly caseId: string,
    readonly image: string,
    readonly tileSide: number,
    readonly levels: number,
    readonly size: [number, number],
    private onLoad: () => void,
    /** Only findings of this class. */
    readonly label: string | null = null,
  ) {}

  /** Use the tile that covers all findings, which the server has sent with their number. */
  putTop(base64: string): void {
    const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
    const level = this.levels - 1;
    this.tiles.set(`${level}/0/0`, parse(bytes.buffer, this.tileSide * 2 ** level, 0, 0));
    this.onFirst();
  }

  /** The finest level whose tiles are large enough on the screen. */
  level(box: [number, number, number, number], pxPerL0: number): number {
    let level = 0;
    const isDense = () => this.tileSide * 2 ** level * pxPerL0 < SMALLEST_TILE_PX || this.count(box, level) > MOST_TILES_IN_VIEW;
    while (level < this.levels - 1 && isDense()) level++;
    return level;
  }

  /** The loaded tiles of a level that a box touches. Missing tiles are requested. */
  visible(box: [number, number, number, number], level: number): PointTile[] {
    const [left, top, right, bottom] = this.cover(box, level);
    const tiles: PointTile[] = [];
    for (let row = top; row <= bottom; row++)
      for (let column = left; column <= right; column++) {
        const key = `${level}/${column}/${row}`;
        const tile = this.tiles.get(key);
        if (tile) tiles.push(tile);
        else this.load(key, level, column, row);
      }
    return tiles;
  }

  private count(box: [number, number, number, number], level: number): number {
    const [left, top, right, bottom] = this.cover(box, level);
    return Math.max(0, right - left + 1) * Math.max(0, bottom - top + 1);
  }

  /** First and last column and row of the tiles that a box touches: left, top, right, bottom. */
  private cover(box: [number, number, number, number], level: number): [number, number, number, number] {
    const side = this.tileSide * 2 ** level;
    const first = (low: number) => Math.max(0, Math.floor(low / side));
    const last = (high: number, size: number) => Math.min(Math.floor((size - 1) / side), Math.floor(high / side));
    return [first(box[0]), first(box[1]), last(box[2], this.size[0]), last(box[3], this.size[1])];
  }

  private load(key: string, level: number, column: number, row: number): void {
    if (this.loading.has(key)) return;
    this.loading.add(key);
    const values = { image: this.image, level, column, row, ...(this.label === null ? {} : { label: this.label }) };
    getBytes(`cases/${this.caseId}/finding-tile?${query(values)}`)
      .then((bytes) => {
        this.tiles.set(key, parse(bytes, this.tileSide * 2 ** level, column, row));
        while (this.tiles.size > MOST_TILES) this.tiles.delete(this.tiles.keys().next().value!);
        this.loading.delete(key);
        this.onLoad();
      })
      .catch(() => this.retryLater(key))
      .finally(() => this.onFirst());
  }

  /** Request a tile again after some time if it is then in view. */
  private retryLater(key: string): void {
    const failures = this.failures.get(key) ?? 0;
    this.failures.set(key, failures + 1);
    setTimeout(() => {
      this.loading.delete(key);
      this.onLoad();
    }, retryDelay(failures));
  }
}

function parse(bytes: ArrayBuffer, side: number, column: number, row: number): PointTile {
  const view = new DataView(bytes);
  const magic = view.getUint32(0), count = view.getUint32(4, true);
  let at = 8;
  const take = <T>(size: number, build: (start: number) => T): T => {
    const start = at;
    at += size * count;
    return build(start);
  };
  if (magic === 0x4c465031) {
    const number = take(4, (start) => new Uint32Array(bytes, start, count));
    const x = Float32Array.from(take(4, (start) => new Int32Array(bytes, start, count)));
    const y = Float32Array.from(take(4, (start) => new Int32Array(bytes, start, count)));
    const score = take(4, (start) => new Float32Array(bytes, start, count));
    const label = take(1, (start) => new Uint8Array(bytes, start, count));
    return { kind: "points", count, findings: count, x, y, score, number, label, most: 1, area: [column * side, row * side, side] };
  }
  if (magic !== 0x4c464231) throw new Error("This is not a tile of findings.");
  const number = take(4, (start) => new Uint32Array(bytes, start, count));
  const score = take(4, (start) => new Float32Array(bytes, start, count));
  const binX = take(1, (start) => new Uint8Array(bytes, start, count));
  const binY = take(1, (start) => new Uint8Array(bytes, start, count));
  const binSide = side / BINS;
  const x = Float32Array.from(binX, (value) => column * side + (value + 0.5) * binSide);
  const y = Float32Array.from(binY, (value) => row * side + (value + 0.5) * binSide);
  const findings = number.reduce((sum, value) => sum + value, 0);
  return { kind: "bins", count, findings, x, y, score, number, label: new Uint8Array(count), most: number.reduce((most, value) => Math.max(most, value), 1), area: [column * side, row * side, side] };
}
