// The canvas above a slide. It is larger than the slide's element, so that it can be moved with the slide while that
// is panned. It is painted again when its content has changed and when it was moved too far: the visible area at
// once, and the margin when the slide has come to rest. A computer without a graphics processor therefore does not
// paint maps and findings for every frame.

import { invert, multiply, type Affine } from "./affine";
import { createPainter, type Frame, type Painter } from "./painter";

/** The canvas extends beyond the element by about this many CSS pixels on each side. */
const MARGIN = 128;
/** A canvas that was moved, or whose margin is missing, is painted when nothing has changed for this time. */
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
  /** How far the picture can be moved, in CSS pixels: 0 if its margin is not painted. */
  private reach = 0;
  private scheduled = 0;
  private resting = 0;
  private refreshing = 0;
  private paintedAt = 0;
  /** The affine of the source when it was last drawn. */
  private followed: Affine = IDENTITY;
  private isDestroyed = false;
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
    if (this.isDestroyed) return; // Requests of a slide that was left are answered later.
    this.isStale = true;
    this.schedule();
  }

  /** More of the content was loaded: paint soon, but not for every tile. */
  refresh(): void {
    if (this.isDestroyed) return;
    this.refreshing ||= window.setTimeout(() => this.repaint(), Math.max(0, this.paintedAt + REFRESH_MS - performance.now()));
  }

  /** The slide was drawn with another view: move or paint the canvas within the same frame. */
  follow(): void {
    const affine = this.source.affine;
    // OpenSeadragon may draw a slide that rests in every frame, for example one without tiles: it rests all the same.
    if (this.isStale || affine.some((value, index) => value !== this.followed[index])) this.cancelRest();
    this.followed = affine;
    const change = multiply(affine, invert(this.paintedWith));
    const distance = isShift(change) ? Math.max(Math.abs(change[4]), Math.abs(change[5])) : Infinity;
    if (!this.isStale && distance <= this.reach) {
      this.move(change);
      if (distance > 0 || !this.reach) this.paintAtRest();
    } else if (this.painter.isBusy) {
      // Show the last picture where it belongs, and try again in the next frame.
      this.move(change);
      this.schedule();
    } else {
      this.paint(affine, distance > 0 && distance <= 2 * this.margin);
      if (!this.reach) this.paintAtRest();
    }
  }

  destroy(): void {
    this.isDestroyed = true;
    cancelAnimationFrame(this.scheduled);
    this.cancelRest();
    clearTimeout(this.refreshing);
    this.scheduled = this.refreshing = 0;
    this.isStale = false;
    this.painter.canvas.remove();
  }

  private addPainter(plain: boolean): Painter {
    const painter = createPainter(plain, () => {
      if (this.isDestroyed) return;
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

  private paintAtRest(): void {
    this.resting ||= window.setTimeout(() => {
      this.resting = 0;
      if (this.painter.isBusy || !this.element.isConnected) this.paintAtRest();
      else this.paint(this.source.affine, true);
    }, REST_MS);
  }

  private cancelRest(): void {
    clearTimeout(this.resting);
    this.resting = 0;
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

  private paint(affine: Affine, withMargin: boolean): void {
    const dpr = devicePixelRatio, margin = this.margin;
    const [width, height] = this.source.size.map((side) => Math.round((side + 2 * margin) * dpr));
    const { canvas } = this;
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
      Object.assign(canvas.style, { width: `${width / dpr}px`, height: `${height / dpr}px`, left: `${-margin}px`, top: `${-margin}px` });
    }
    canvas.style.transform = "";
    const [a, b, c, d, e, f] = affine;
    const border = Math.round(margin * dpr);
    this.painter.paint({
      ...this.source.content(withMargin ? margin : 0),
      affine: [a * dpr, b * dpr, c * dpr, d * dpr, (e + margin) * dpr, (f + margin) * dpr],
      clip: withMargin ? undefined : [border, border, width - 2 * border, height - 2 * border],
      dpr,
    });
    clearTimeout(this.refreshing);
    this.refreshing = 0;
    this.paintedWith = affine;
    this.paintedAt = performance.now();
    this.reach = withMargin ? margin : 0;
    this.isStale = false;
    this.paints++;
  }
}

/** Whether an affine only moves the picture. */
function isShift([a, b, c, d]: Affine): boolean {
  return Math.max(Math.abs(a - 1), Math.abs(b), Math.abs(c), Math.abs(d - 1)) < 1e-7;
}
