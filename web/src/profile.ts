// The ICC profile of a slide, applied to every tile with a table from stored colours to sRGB.

import type OpenSeadragon from "openseadragon";
import { getBytes } from "./api";

/** Colours per side of the server's table, and of the finer one that is looked up here. */
const GRID = 33, FINE = 128;

/** Colours by red, green and blue, 7 bits each, as the pixels of a canvas store them. */
export type ColourTable = Uint32Array;

export async function loadProfile(caseId: string): Promise<ColourTable> {
  return refine(new Uint8Array(await getBytes(`cases/${caseId}/colours`)));
}

/** Interpolate the server's table once, so that each pixel is one look-up. */
export function refine(grid: Uint8Array): ColourTable {
  const alongBlue = stretch(Float32Array.from(grid), GRID * GRID, 3);
  const alongGreen = stretch(alongBlue, GRID, FINE * 3);
  const colours = stretch(alongGreen, 1, FINE * FINE * 3);
  const table = new Uint32Array(FINE ** 3);
  const bytes = new Uint8Array(table.buffer);
  for (let i = 0, at = 0; i < bytes.length; i += 4, at += 3) {
    for (let c = 0; c < 3; c++) bytes[i + c] = colours[at + c] + 0.5;
    bytes[i + 3] = 255;
  }
  return table;
}

/** Interpolate the middle axis of an array of outer × GRID × inner values to FINE positions. */
function stretch(values: Float32Array, outer: number, inner: number): Float32Array {
  const out = new Float32Array(outer * FINE * inner);
  for (let i = 0; i < FINE; i++) {
    // The centre of the two stored values that share an entry.
    const at = ((2 * i + 0.5) / 255) * (GRID - 1);
    const low = Math.min(GRID - 2, Math.floor(at)), part = at - low;
    for (let o = 0; o < outer; o++) {
      const from = (o * GRID + low) * inner, to = (o * FINE + i) * inner;
      for (let j = 0; j < inner; j++) out[to + j] = values[from + j] + part * (values[from + inner + j] - values[from + j]);
    }
  }
  return out;
}

export function applyProfile(table: ColourTable, pixels: Uint8ClampedArray): void {
  const colours = new Uint32Array(pixels.buffer, pixels.byteOffset, pixels.length / 4);
  for (let i = 0, at = 0; i < colours.length; i++, at += 4)
    colours[i] = table[((pixels[at] >> 1) << 14) | ((pixels[at + 1] >> 1) << 7) | (pixels[at + 2] >> 1)];
}

interface TileEvent {
  getData(type: string): Promise<CanvasRenderingContext2D | undefined>;
  setData(value: CanvasRenderingContext2D, type: string): Promise<void>;
  outdated(): Promise<boolean>;
}

/** Apply a profile to the tiles of a viewer, as long as `enabled` says so. */
export function correctTiles(viewer: OpenSeadragon.Viewer, table: ColourTable, enabled: () => boolean): void {
  const handler = async (event: unknown) => {
    const tile = event as TileEvent;
    if (!enabled()) return;
    const context = await tile.getData("context2d");
    if (!context || (await tile.outdated())) return;
    const image = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
    applyProfile(table, image.data);
    context.putImageData(image, 0, 0);
    await tile.setData(context, "context2d");
  };
  (viewer as unknown as { addHandler(name: string, handler: (event: unknown) => Promise<void>): void }).addHandler("tile-invalidated", handler);
  void viewer.requestInvalidate();
}
