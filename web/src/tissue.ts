// The outline of the tissue: the edges between map cells with tissue and cells that are glass.

import { FAILED, GLASS, OUTSIDE, SCORED, type MapTile, type TileQuad } from "./maptiles";

type Edges = [number, number, number, number][];

/** Edges of each tile in its cells, computed once. */
const computed = new WeakMap<MapTile, Edges>();

/** The edges as lines in level-0 pixels, for each tile in view once. */
export function tissueLines(quads: TileQuad[]): number[][][] {
  const lines: number[][][] = [];
  const done = new Set<MapTile>();
  for (const { tile, left, top, right, bottom, l0 } of quads) {
    if (done.has(tile)) continue;
    done.add(tile);
    const width = (l0[2] - l0[0]) / (right - left), height = (l0[3] - l0[1]) / (bottom - top);
    const [x, y] = [l0[0] - left * width, l0[1] - top * height];
    for (const [x0, y0, x1, y1] of edgesOf(tile)) lines.push([[x + x0 * width, y + y0 * height], [x + x1 * width, y + y1 * height]]);
  }
  return lines;
}

function edgesOf(tile: MapTile): Edges {
  let edges = computed.get(tile);
  if (!edges) {
    edges = [...runs(tile, false), ...runs(tile, true)];
    computed.set(tile, edges);
  }
  return edges;
}

/** Edges below each row of cells, or to the right of each column; neighbouring ones are one line. */
function runs(tile: MapTile, isVertical: boolean): Edges {
  const [lines, cells] = isVertical ? [tile.width - 2, tile.height - 2] : [tile.height - 2, tile.width - 2];
  const state = (line: number, cell: number) => {
    const [row, column] = isVertical ? [cell, line] : [line, cell];
    return tile.cells[2 * ((row + 1) * tile.width + column + 1) + 1];
  };
  const edges: Edges = [];
  for (let line = -1; line < lines; line++) {
    let start = -1;
    for (let cell = 0; cell <= cells; cell++) {
      const isEdge = cell < cells && divides(state(line, cell), state(line + 1, cell));
      if (isEdge && start < 0) start = cell;
      if (!isEdge && start >= 0) {
        edges.push(isVertical ? [line + 1, start, line + 1, cell] : [start, line + 1, cell, line + 1]);
        start = -1;
      }
    }
  }
  return edges;
}

/** Cells that the scan has not reached may be either, so they have no edge. */
function divides(a: number, b: number): boolean {
  return (isTissue(a) && isGlass(b)) || (isGlass(a) && isTissue(b));
}

function isTissue(state: number): boolean {
  return state === SCORED || state === FAILED;
}

function isGlass(state: number): boolean {
  return state === GLASS || state === OUTSIDE;
}
