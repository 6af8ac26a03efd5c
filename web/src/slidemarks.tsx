// What lies over a slide beside its overlay: the scale bar, and the map of what was viewed.

import { useEffect, useRef } from "preact/hooks";
import type { Pointer } from "./cross";
import { count, length, roundLength, score } from "./format";
import { settings } from "./settings";
import type { SlideView } from "./slideview";

/** µm/px of a 1× objective. */
export const UM_AT_1X = 10;
/** Tissue that was viewed with this objective or more is counted separately. */
const MAGNIFIED = 10;
const STATES = ["not scored yet", "glass", "", "failed"];

/** Magnification, what is under the pointer, the measured length, and the number of findings. */
export function Readout(props: { view: SlideView; isOpen: boolean; mpp: number | null; pointer: Pointer | null; total: number }) {
  const { view, mpp, pointer } = props;
  const cursor = pointer && props.isOpen ? view.under(pointer.x, pointer.y) : null;
  return (
    <div class="readout">
      {props.isOpen && mpp && <span>{magnification(UM_AT_1X / (view.view.scale * mpp))}</span>}
      {cursor && <span class="coordinates" title="Copy: y, or the right mouse button">{Math.round(cursor.x)}, {Math.round(cursor.y)} px</span>}
      {cursor && cursor.score !== null && <span>score {score(cursor.score)}</span>}
      {cursor && cursor.score === null && cursor.state !== null && STATES[cursor.state] && <span>{STATES[cursor.state]}</span>}
      {view.measured.length === 2 && <strong>{measured(view.measured, mpp)}</strong>}
      {props.total > 0 && settings.points && <span>{findingsInView(view.inView.findings, props.total)}</span>}
    </div>
  );
}

/** Tiles of findings extend beyond the screen, so the number includes findings a little outside it. */
function findingsInView(number: number, total: number): string {
  if (number === total) return count(total, "finding");
  return `${number.toLocaleString("en")} of ${count(total, "finding")} in or near the view`;
}

function magnification(value: number): string {
  return `${value >= 10 ? Math.round(value) : value.toPrecision(2)}×`;
}

function measured([a, b]: [number, number][], mpp: number | null): string {
  const px = Math.hypot(a[0] - b[0], a[1] - b[1]);
  return mpp ? length(px * mpp) : `${Math.round(px)} px`;
}

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
      const darkness = Math.min(1, Math.max(0.25, Math.log2(32 / (scale * mpp)) / 5));
      context.fillStyle = `rgba(0, 158, 115, ${darkness})`;
      context.fillRect(column, row, 1, 1);
    }
  });
  if (!shown) return null;
  const mpp = view.image.mpp?.[0];
  let tissue = 0, viewed = 0, magnified = 0;
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      if (hasTissue(view, column, row)) {
        tissue++;
        const scale = view.seen.get(`${column},${row}`);
        if (scale !== undefined) viewed++;
        if (scale !== undefined && mpp && scale * mpp <= UM_AT_1X / MAGNIFIED) magnified++;
      }
  const percent = (cells: number) => `${Math.round((100 * cells) / Math.max(1, tissue))} %`;
  return (
    <figure class="seen">
      <canvas ref={canvas} width={columns} height={rows} style={{ backgroundImage: `url(api/cases/${view.detail.id}/thumbnail)` }} />
      <figcaption data-viewed={viewed} data-tissue={tissue} data-magnified={magnified}>
        Tissue viewed: {percent(viewed)}{mpp && <><br />at {MAGNIFIED}× or more (darker): {percent(magnified)}</>}
      </figcaption>
    </figure>
  );
}

/** Whether a square of the map of viewed areas has tissue: a map cell that is not glass. Without a map, all have. */
function hasTissue({ layers: [layer], seenSide: side }: SlideView, column: number, row: number): boolean {
  if (!layer) return true;
  const steps = [0.1, 0.3, 0.5, 0.7, 0.9];
  const states = steps.flatMap((y) => steps.map((x) => layer.valueAt((column + x) * side, (row + y) * side)?.state));
  return states.some((state) => state !== undefined && state !== 1 && state !== 255);
}
