// The overlay of a slide on a 2D canvas, for browsers without WebGL 2 and after the graphics context was lost.

import { apply } from "./affine";
import { colourTable, position } from "./colours";
import { largestBin, mostPerBin, type PointTile } from "./findingtiles";
import { FAILED, GLASS, PENDING, SCORED, type MapTile, type TileQuad } from "./maptiles";
import type { Frame, Line, Painter, Style } from "./painter";

const STATE_COLOURS: Record<number, [number, number, number, number]> = {
  [PENDING]: [110, 140, 190, 0.5],
  [GLASS]: [128, 128, 128, 0.3],
  [FAILED]: [220, 40, 160, 0.75],
};

/** Whether a cell without a score has a colour: sparse dots for glass, diagonals for others. */
function inPattern(state: number, column: number, row: number): boolean {
  if (state === GLASS) return column % 4 === 0 && row % 4 === 0;
  return (column + row) % 3 === 0 || (state === FAILED && (column - row + 3000) % 3 === 0);
}

/** Slower, for browsers without WebGL 2 and after the graphics context was lost. */
export class CanvasPainter implements Painter {
  readonly name = "canvas";
  readonly isBusy = false;
  private images = new Map<MapTile, { key: string; image: HTMLCanvasElement }>();

  constructor(
    readonly canvas: HTMLCanvasElement,
    private context: CanvasRenderingContext2D,
  ) {}

  paint(frame: Frame): void {
    const { context, canvas } = this;
    const clip = frame.clip ?? [0, 0, canvas.width, canvas.height];
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (!frame.keepsRest) context.clearRect(0, 0, canvas.width, canvas.height);
    context.beginPath();
    context.rect(...clip);
    context.clip();
    context.clearRect(...clip);
    context.imageSmoothingEnabled = false;
    frame.maps.forEach((quads, index) => {
      for (const quad of quads) this.paintTile(frame, quad, index === 0);
    });
    context.setTransform(1, 0, 0, 1, 0, 0);
    for (const line of frame.lines) this.paintLine(frame, line);
    const table = colourTable(frame.style.colours);
    for (const tile of frame.points) this.paintPoints(frame, tile, table);
    context.restore();
  }

  private paintTile(frame: Frame, quad: TileQuad, first: boolean): void {
    const { context } = this;
    const image = this.coloured(quad.tile, frame.style, first);
    context.setTransform(...frame.affine);
    const [left, top, right, bottom] = quad.l0;
    const width = quad.right - quad.left, height = quad.bottom - quad.top;
    context.drawImage(image, quad.left + 1, quad.top + 1, width, height, left, top, right - left, bottom - top);
  }

  private coloured(tile: MapTile, style: Style, first: boolean): HTMLCanvasElement {
    const key = JSON.stringify([style, first]);
    const cached = this.images.get(tile);
    if (cached?.key === key) return cached.image;
    const image = cached?.image ?? document.createElement("canvas");
    image.width = tile.width;
    image.height = tile.height;
    const target = image.getContext("2d")!;
    const data = target.createImageData(tile.width, tile.height);
    const table = colourTable(style.colours);
    for (let i = 0; i < tile.width * tile.height; i++) {
      const state = tile.cells[2 * i + 1];
      const score = tile.low + (tile.cells[2 * i] / 255) * (tile.high - tile.low);
      if (state === SCORED && (style.diverging ? Math.abs(score) : score) >= style.threshold) {
        const at = 4 * Math.round(255 * position(score, style.low, style.high, style.diverging ? 1 : style.gamma));
        data.data.set([table[at], table[at + 1], table[at + 2], 255 * style.opacity], 4 * i);
      } else if (state !== SCORED && style.states && first && STATE_COLOURS[state] && inPattern(state, i % tile.width, Math.floor(i / tile.width))) {
        const [r, g, b, a] = STATE_COLOURS[state];
        data.data.set([r, g, b, 255 * a], 4 * i);
      }
    }
    target.putImageData(data, 0, 0);
    if (this.images.size > 300) this.images.clear();
    this.images.set(tile, { key, image });
    return image;
  }

  private paintLine(frame: Frame, line: Line): void {
    const { context } = this;
    context.beginPath();
    line.points.forEach((point, index) => {
      const [x, y] = apply(frame.affine, point[0], point[1]);
      if (index) context.lineTo(x, y);
      else context.moveTo(x, y);
    });
    context.setLineDash(line.dashed ? [6 * frame.dpr, 4 * frame.dpr] : []);
    for (const [extra, colour] of [[2, [0, 0, 0]], [0, line.colour]] as const) {
      context.lineWidth = (line.width + extra) * frame.dpr;
      context.strokeStyle = `rgb(${colour.join()})`;
      context.stroke();
    }
  }

  private paintPoints(frame: Frame, tile: PointTile, table: Uint8Array): void {
    const { context } = this;
    const { low, high, gamma } = frame.style;
    const most = mostPerBin(frame.points);
    const largest = largestBin(tile, frame.affine, frame.dpr);
    for (let i = 0; i < tile.count; i++) {
      const [x, y] = apply(frame.affine, tile.x[i], tile.y[i]);
      if (x < -20 || y < -20 || x > this.canvas.width + 20 || y > this.canvas.height + 20) continue;
      const chosen = tile.kind === "points" && tile.number[i] === frame.selected;
      const at = 4 * Math.round(255 * position(tile.score[i], low, high, gamma));
      const size = tile.kind === "bins" ? Math.max(6, (largest * Math.log(1 + tile.number[i])) / Math.log(1 + most)) : chosen ? 16 : 9;
      context.beginPath();
      context.arc(x, y, (size / 2 - 1) * frame.dpr, 0, 7);
      context.fillStyle = chosen ? "rgb(255,217,0)" : `rgb(${table[at]},${table[at + 1]},${table[at + 2]})`;
      context.fill();
      context.setLineDash([]);
      context.lineWidth = 1.5 * frame.dpr;
      context.strokeStyle = "#fff";
      context.stroke();
    }
  }
}
