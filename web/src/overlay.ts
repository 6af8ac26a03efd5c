// The canvas above a slide. It is painted larger than the slide's element, so that it can be moved with the slide
// while that is panned. It is painted again when its content has changed, when it was moved too far, and when the
// slide has come to rest. A slow graphics processor therefore does not paint maps and findings for every frame.

import { invert, multiply, type Affine } from "./affine";
import { createPainter, type Frame, type Painter } from "./painter";

/** The canvas extends beyond the element by about this many CSS pixels on each side. */
const MARGIN = 128;
/** A moved canvas is painted again when the slide has not moved for this time. */
const REST_MS = 120;
/** Loaded tiles are painted at most this often. */
const REFRESH_MS = 100;
const IDENTITY: Affine = [1, 0, 0, 1, 0, 0];

export interface OverlaySource {
  /** Level-0 pixels to CSS pixels of the element. */
  readonly affine: Affine;
  /** Width and height of the element in CSS pixels. */
  readonly size: [number, number];
  /** What to paint in the element and in a margin around it. */
  content(margin: number): Omit<Frame, "affine" | "dpr">;
}

export class Overlay {
  private painter: Painter;
  private isStale = true;
  /** The affine of the source when the canvas was painted. */
  private paintedWith: Affine = IDENTITY;
  private scheduled = 0;
  private resting = 0;
  private refreshing = 0;
  private paintedAt = 0;
  /** How often the canvas has been painted. */
  paints = 0;

  constructor(
    readonly element: HTMLElement,
    private source: OverlaySource,
    plain: boolean,
    /** Called when the graphics context was lost and another painter has replaced the first one. */
    private onReplaced: () => void,
  ) {
    this.painter = this.addPainter(plain);
  }

  get canvas(): HTMLCanvasElement {
    return this.painter.canvas;
  }

  get renderer(): Painter["name"] {
    return this.painter.name;
  }

  /** Whether the canvas shows the present content at its exact position. */
  get isSettled(): boolean {
    return !this.isStale && !this.scheduled && !this.resting && !this.refreshing && !this.painter.isBusy;
  }

  /** The content has changed: paint in the next frame. */
  repaint(): void {
    this.isStale = true;
    this.schedule();
  }

  /** More of the content was loaded: paint soon, but not for every tile. */
  refresh(): void {
    this.refreshing ||= window.setTimeout(() => this.repaint(), Math.max(0, this.paintedAt + REFRESH_MS - performance.now()));
  }

  /** The slide was drawn with another view: move or paint the canvas within the same frame. */
  follow(): void {
    clearTimeout(this.resting);
    this.resting = 0;
    const affine = this.source.affine;
    const change = multiply(affine, invert(this.paintedWith));
    if (!this.isStale && isShift(change)) {
      this.move(change);
      if (change[4] || change[5]) this.resting = window.setTimeout(() => this.repaint(), REST_MS);
    } else if (this.painter.isBusy) {
      // Show the last picture where it belongs, and try again in the next frame.
      this.move(change);
      this.schedule();
    } else this.paint(affine);
  }

  destroy(): void {
    cancelAnimationFrame(this.scheduled);
    clearTimeout(this.resting);
    clearTimeout(this.refreshing);
    this.scheduled = this.resting = this.refreshing = 0;
    this.isStale = false;
    this.painter.canvas.remove();
  }

  private addPainter(plain: boolean): Painter {
    const painter = createPainter(plain, () => {
      this.painter.canvas.remove();
      this.painter = this.addPainter(true);
      this.onReplaced();
      this.repaint();
    });
    painter.canvas.className = "overlay";
    this.element.append(painter.canvas);
    return painter;
  }

  private schedule(): void {
    this.scheduled ||= requestAnimationFrame(() => {
      this.scheduled = 0;
      if (this.element.isConnected) this.follow();
    });
  }

  /** Move the picture by whole device pixels, so that it stays sharp; other changes are approximate. */
  private move([a, b, c, d, e, f]: Affine): void {
    const dpr = devicePixelRatio, margin = this.margin;
    const whole = (value: number) => Math.round(value * dpr) / dpr;
    const x = e + margin - margin * (a + c), y = f + margin - margin * (b + d);
    this.canvas.style.transform = `matrix(${a}, ${b}, ${c}, ${d}, ${whole(x)}, ${whole(y)})`;
  }

  private get margin(): number {
    return Math.round(MARGIN * devicePixelRatio) / devicePixelRatio;
  }

  private paint(affine: Affine): void {
    const dpr = devicePixelRatio, margin = this.margin;
    const [width, height] = this.source.size.map((side) => Math.round((side + 2 * margin) * dpr));
    const { canvas } = this;
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      Object.assign(canvas.style, { width: `${width / dpr}px`, height: `${height / dpr}px`, left: `${-margin}px`, top: `${-margin}px` });
    }
    canvas.style.transform = "";
    const [a, b, c, d, e, f] = affine;
    this.painter.paint({ ...this.source.content(margin), affine: [a * dpr, b * dpr, c * dpr, d * dpr, (e + margin) * dpr, (f + margin) * dpr], dpr });
    clearTimeout(this.refreshing);
    this.refreshing = 0;
    this.paintedWith = affine;
    this.paintedAt = performance.now();
    this.isStale = false;
    this.paints++;
  }
}

/** Whether an affine moves the picture only, and not beyond its margin. */
function isShift([a, b, c, d, e, f]: Affine): boolean {
  const isNear = (value: number, other: number) => Math.abs(value - other) < 1e-7;
  return isNear(a, 1) && isNear(b, 0) && isNear(c, 0) && isNear(d, 1) && Math.max(Math.abs(e), Math.abs(f)) <= MARGIN;
}
