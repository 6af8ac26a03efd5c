// What lies over a slide beside its overlay: the scale bar, and the map of what was viewed.

import { useEffect, useRef } from "preact/hooks";
import { length, roundLength } from "./format";
import type { SlideView } from "./slideview";

export function ScaleBar({ mpp, scale }: { mpp: number | null; scale: number }) {
  if (!mpp) return <div class="scale-bar" title="The file does not state its µm/px">µm/px unknown</div>;
  const um = roundLength(160 * scale * mpp);
  return (
    <div class="scale-bar" style={{ width: `${um / scale / mpp}px` }} data-um={um}>{length(um)}</div>
  );
}

/** Which of the slide was on the screen: darker where it was magnified more. */
export function SeenMap({ view, shown }: { view: SlideView; shown: boolean }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const columns = Math.ceil(view.image.width / view.seenSide), rows = Math.ceil(view.image.height / view.seenSide);
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context) return;
    context.clearRect(0, 0, columns, rows);
    const mpp = view.image.mpp?.[0] ?? 0.5;
    for (const [key, scale] of view.seen) {
      const [column, row] = key.split(",").map(Number);
      const magnified = Math.min(1, Math.max(0.25, Math.log2(32 / (scale * mpp)) / 5));
      context.fillStyle = `rgba(0, 158, 115, ${magnified})`;
      context.fillRect(column, row, 1, 1);
    }
  });
  if (!shown) return null;
  let tissue = 0, viewed = 0;
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      if (view.hasTissue(column, row)) {
        tissue++;
        if (view.seen.has(`${column},${row}`)) viewed++;
      }
  return (
    <figure class="seen">
      <canvas ref={canvas} width={columns} height={rows} style={{ backgroundImage: `url(api/cases/${view.detail.id}/thumbnail)` }} />
      <figcaption data-viewed={viewed} data-tissue={tissue}>viewed: {Math.round((100 * viewed) / Math.max(1, tissue))} % of the tissue</figcaption>
    </figure>
  );
}
