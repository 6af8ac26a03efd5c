// The cross that the keyboard moves over an image, as the mouse moves its pointer.

/** Steps of the cross in CSS pixels. */
const STEP = 10;

/** A position in CSS pixels of the image's element; `isCross` if the keyboard has moved it there. */
export interface Pointer {
  x: number;
  y: number;
  isCross: boolean;
}

/** The pointer one step further, or the cross in the middle if there is no pointer. */
export function movedCross(pointer: Pointer | null, size: [number, number], dx = 0, dy = 0): Pointer {
  const [x, y] = pointer ? [pointer.x + STEP * dx, pointer.y + STEP * dy] : [Math.round(size[0] / 2), Math.round(size[1] / 2)];
  return { x: Math.min(size[0] - 1, Math.max(0, x)), y: Math.min(size[1] - 1, Math.max(0, y)), isCross: true };
}

/** What to do while lengths are measured or an outline is drawn. */
export function ModeText({ mode }: { mode: "measure" | "draw" }) {
  return (
    <>
      {mode === "measure" ? "Measure: click two points" : "Draw: click the corners, then press "}
      {mode === "draw" && <kbd>Enter</kbd>}. By keyboard: <kbd>⇧ arrows</kbd> move the cross, <kbd>Space</kbd> sets a point, <kbd>⌫</kbd> removes the last one. <kbd>Esc</kbd> ends.
    </>
  );
}

export function Cross({ pointer }: { pointer: Pointer | null }) {
  return pointer?.isCross ? <div class="cross" style={{ left: `${pointer.x}px`, top: `${pointer.y}px` }} /> : null;
}
