// The lines over a slide: tissue, truth, outlines of findings, what was measured and what is being drawn.

import type { TileQuad } from "./maptiles";
import type { Line } from "./painter";
import type { Settings } from "./settings";
import type { SlideView } from "./slideview";
import { tissueLines } from "./tissue";

type Colour = [number, number, number];
const TRUTH: Colour = [60, 220, 120];
const TISSUE: Colour = [225, 200, 255];
const OUTLINE: Colour = [0, 200, 255];
const CHOSEN: Colour = [255, 217, 0];
const DRAWN: Colour = [255, 110, 180];
const DRAWING: Colour = [255, 110, 180];
const MEASURED: Colour = [255, 255, 255];

/** `tissue` are the map cells in view whose tissue is outlined. */
export function slideLines(view: SlideView, shown: Settings, tissue: TileQuad[]): Line[] {
  const lines: Line[] = tissueLines(tissue).map((points) => ({ points, colour: TISSUE, width: 2 }));
  if (shown.truth)
    for (const outline of view.truth)
      for (const ring of outline.rings) lines.push({ points: closed(ring), colour: TRUTH, width: 2, dashed: true });
  if (shown.outlines)
    for (const [number, polygons] of view.outlines) {
      const isChosen = number === view.selected;
      for (const ring of polygons.flat()) lines.push({ points: closed(ring), colour: isChosen ? CHOSEN : OUTLINE, width: isChosen ? 3 : 2 });
    }
  for (const ring of view.drawn) lines.push({ points: closed(ring), colour: DRAWN, width: 2 });
  if (view.measured.length) lines.push({ points: view.measured, colour: MEASURED, width: 3 });
  if (view.drawing.length) lines.push({ points: view.drawing, colour: DRAWING, width: 3 });
  return lines;
}

export function closed(ring: number[][]): number[][] {
  return [...ring, ring[0]];
}
