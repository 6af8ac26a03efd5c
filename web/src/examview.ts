// The four views of an exam on one canvas: chest walls together, equal millimetres, zoomed and moved together.

import { apply, invert, type Affine } from "./affine";
import { get, getBytes, query, type CaseDetail, type Finding, type ImageInfo, type TruthOutline } from "./api";
import { examLines } from "./examlines";
import { createGreyPainter, type GreyImage, type GreyPainter } from "./greyscale";
import { listen } from "./events";
import { MapLayer } from "./maptiles";
import { createPainter, type Painter } from "./painter";
import { onChange, settings } from "./settings";

/** Right breast on the left of the screen, as radiologists hang views. */
export const PANES = ["R-CC", "L-CC", "R-MLO", "L-MLO"];
const LENS_PX = 110;
/** Zoom at which a finding is shown, at least. */
const FINDING_ZOOM = 3;

/** An outline in the pixels of a view. */
export interface Outline {
  name: string;
  points: number[][];
}

interface Loaded {
  info: ImageInfo;
  image: GreyImage | null;
  problem: string;
}

/** The value as the file stores it, also where it is shown inverted. */
function storedValue(view: Loaded, index: number): number {
  const value = view.image!.values[index];
  return view.info.inverted_from ? view.info.inverted_from - value : value;
}

export class ExamView {
  readonly element: HTMLElement;
  grey: GreyPainter;
  private painter: Painter;
  private layers = new Map<string, MapLayer>();
  truth: TruthOutline[] = [];
  private stop: (() => void)[] = [];
  private scheduled = false;
  readonly views = new Map<string, Loaded>();
  /** Window: centre and width of the values between black and white. */
  centre = 2048;
  width = 4096;
  inverted = false;
  zoom = 1;
  /** The point at the centre of each pane: millimetres from the chest wall and below the image's centre. */
  pan: [number, number] | null = null;
  single: string | null = null;
  heatmap: string | null = null;
  lens = false;
  pointer: [number, number] | null = null;
  findings: Finding[] = [];
  /** The rings of the findings that have outlines, by their number. */
  readonly outlines = new Map<number, number[][][]>();
  selected: number | null = null;
  /** Outlines of reviews, and the one that is being drawn: its last point follows the pointer. */
  drawn: Outline[] = [];
  drawing: Outline | null = null;
  onUpdate: () => void = () => {};
  private paintListeners = new Set<() => void>();

  constructor(
    element: HTMLElement,
    readonly detail: CaseDetail,
  ) {
    this.element = element;
    const plain = location.search.includes("plain");
    this.grey = this.addGrey(plain);
    this.painter = this.addPainter(plain);
    for (const name of PANES) {
      const info = detail.images[name];
      if (info) this.views.set(name, { info, image: null, problem: info.missing ?? "" });
    }
    this.resetWindow();
    void this.load();
    const observer = new ResizeObserver(() => this.redraw());
    observer.observe(element);
    this.stop.push(() => observer.disconnect(), onChange(() => this.redraw()));
    this.stop.push(
      listen((event) => {
        if (event.kind !== "chunks" || event.case !== detail.id) return;
        for (const chunk of event.chunks) {
          const [name, row, column] = chunk.split("/");
          for (const layer of this.layers.values())
            if (encodeURIComponent(layer.info.name) === name) layer.refresh(Number(row), Number(column));
        }
      }),
    );
    if (detail.has_truth) void get<TruthOutline[]>(`cases/${detail.id}/truth`).then((truth) => { this.truth = truth; this.redraw(); });
  }

  destroy(): void {
    for (const stop of this.stop) stop();
    this.grey.canvas.remove();
    this.painter.canvas.remove();
  }

  private addGrey(plain: boolean): GreyPainter {
    const painter = createGreyPainter(plain, () => {
      this.grey.canvas.remove();
      this.grey = this.addGrey(true);
      this.redraw();
    });
    painter.canvas.className = "grey";
    this.element.prepend(painter.canvas);
    return painter;
  }

  private addPainter(plain: boolean): Painter {
    const painter = createPainter(plain, () => {
      this.painter.canvas.remove();
      this.painter = this.addPainter(true);
      this.redraw();
    });
    painter.canvas.className = "overlay";
    this.element.append(painter.canvas);
    return painter;
  }

  private async load(): Promise<void> {
    await Promise.all(
      [...this.views].map(async ([name, view]) => {
        if (view.problem) return;
        try {
          const bytes = await getBytes(`cases/${this.detail.id}/view?${query({ name })}`);
          view.image = { width: view.info.width, height: view.info.height, values: new Uint16Array(bytes) };
        } catch (error) {
          view.problem = error instanceof Error ? error.message : String(error);
        }
        this.redraw();
      }),
    );
  }

  async loadOutlines(): Promise<void> {
    for (const [image, { info }] of this.views) {
      const values = { image, x: 0, y: 0, width: info.width, height: info.height };
      const listed = await get<{ number: number; polygon: number[][][][] }[]>(`cases/${this.detail.id}/outlines?${query(values)}`);
      for (const { number, polygon } of listed) this.outlines.set(number, polygon.flat());
    }
    this.redraw();
  }

  /** The grades that have a heatmap. */
  grades(): string[] {
    return [...new Set(this.detail.maps.flatMap((map) => map.classes))];
  }

  /** Off, then each grade in turn. */
  nextHeatmap(): void {
    const grades = [null, ...this.grades()];
    this.showHeatmap(grades[(grades.indexOf(this.heatmap) + 1) % grades.length]);
  }

  showHeatmap(grade: string | null): void {
    this.heatmap = grade;
    this.layers.clear();
    for (const map of this.detail.maps)
      if (grade !== null && map.classes.includes(grade))
        this.layers.set(map.image, new MapLayer(this.detail.id, map, map.classes.indexOf(grade), () => this.redraw()));
    this.redraw();
  }

  resetWindow(): void {
    const infos = [...this.views.values()].map((view) => view.info);
    const high = Math.max(1, ...infos.map((info) => info.highest ?? 1));
    this.centre = high / 2;
    this.width = high;
    this.redraw();
  }

  setWindow(centre: number, width: number): void {
    this.centre = centre;
    this.width = Math.max(1, width);
    this.redraw();
  }

  reset(): void {
    this.zoom = 1;
    this.pan = null;
    this.single = null;
    this.redraw();
  }

  mm(name: string): number {
    const known = this.views.get(name)?.info.mm_per_px;
    const others = [...this.views.values()].map((view) => view.info.mm_per_px).find((value) => value);
    return known ?? others ?? 1;
  }

  /** CSS rectangle of a view: left, top, width, height. */
  pane(name: string): [number, number, number, number] {
    const { clientWidth: w, clientHeight: h } = this.element;
    if (this.single) return this.single === name ? [0, 0, w, h] : [0, 0, 0, 0];
    const index = PANES.indexOf(name);
    return [(index % 2) * (w / 2), Math.floor(index / 2) * (h / 2), w / 2, h / 2];
  }

  /** The point in the middle of each pane before anything was moved: chest walls together, or one view in the middle. */
  private get home(): [number, number] {
    const alone = this.single && this.views.get(this.single);
    if (alone) return [(alone.info.width * this.mm(this.single!)) / 2, 0];
    return [this.pane("L-CC")[2] / 2 / this.scale, 0];
  }

  /** CSS pixels per millimetre with which the largest view fits its pane. */
  get fit(): number {
    let fit = Infinity;
    for (const [name, { info }] of this.views) {
      const [, , width, height] = this.pane(name);
      if (width > 0 && info.width) fit = Math.min(fit, width / (info.width * this.mm(name)), height / (info.height * this.mm(name)));
    }
    return Number.isFinite(fit) ? fit : 1;
  }

  /** CSS pixels per millimetre. */
  get scale(): number {
    return this.fit * this.zoom;
  }

  /** Take over the scale in millimetres and the position of another exam. */
  follow(other: ExamView): void {
    const zoom = other.scale / this.fit;
    const same = this.zoom === zoom && this.pan?.join() === other.pan?.join() && this.single === other.single && this.inverted === other.inverted;
    this.single = other.single;
    this.zoom = other.scale / this.fit;
    this.pan = other.pan ? [...other.pan] : null;
    this.inverted = other.inverted;
    if (!same) this.redraw();
  }

  /** Pixels of a stored view to CSS pixels of the element; the chest wall is at the inner edge of the pane. */
  affine(name: string): Affine {
    const { info } = this.views.get(name)!;
    const [left, top, width, height] = this.pane(name);
    const [mm, scale] = [this.mm(name), this.scale];
    const toRight = name.startsWith("L");
    const [panX, panY] = this.pan ?? this.home;
    // u: millimetres from the chest wall. Column c of an image that points right is at u = c · mm.
    const stored = info.pointing === "left" ? -1 : 1;
    const direction = toRight ? 1 : -1;
    const a = stored * direction * mm * scale;
    const wall = left + width / 2 - direction * panX * scale;
    const e = stored === 1 ? wall : wall - a * info.width;
    const d = mm * scale;
    return [a, 0, 0, d, e, top + height / 2 - panY * scale - (d * info.height) / 2];
  }

  /** The view under a position, and the pixel of its stored image. */
  at(x: number, y: number): { name: string; column: number; row: number; value: number | null } | null {
    for (const [name, view] of this.views) {
      const [left, top, width, height] = this.pane(name);
      if (x < left || y < top || x >= left + width || y >= top + height) continue;
      const [column, row] = apply(invert(this.affine(name)), x, y).map(Math.floor);
      const inside = column >= 0 && row >= 0 && column < view.info.width && row < view.info.height;
      return { name, column, row, value: inside && view.image ? storedValue(view, row * view.info.width + column) : null };
    }
    return null;
  }

  scoreAt(x: number, y: number): number | null {
    const at = this.at(x, y);
    const value = at && this.layers.get(at.name)?.valueAt(at.column + 0.5, at.row + 0.5);
    return value && value.state === 2 ? value.score : null;
  }

  /** The middle of the first view on the screen, in CSS pixels. */
  get middle(): [number, number] {
    const name = this.single ?? [...this.views].find(([, view]) => view.image)?.[0] ?? "";
    const info = this.views.get(name)?.info;
    return info ? apply(this.affine(name), info.width / 2, info.height / 2) : [this.element.clientWidth / 2, this.element.clientHeight / 2];
  }

  moveBy(dx: number, dy: number, name?: string): void {
    const [panX, panY] = this.pan ?? this.home;
    const direction = (name ?? this.single ?? "L").startsWith("L") ? 1 : -1;
    this.pan = [panX - (direction * dx) / this.scale, panY - dy / this.scale];
    this.redraw();
  }

  /** Show the views with this many CSS pixels per millimetre, also if they become smaller than their panes. */
  setScale(pxPerMm: number): void {
    this.zoom = pxPerMm / this.fit;
    this.redraw();
  }

  zoomBy(factor: number, x?: number, y?: number): void {
    const at = x !== undefined && y !== undefined ? this.at(x, y) : null;
    const before = at && x !== undefined ? apply(invert(this.affine(at.name)), x, y!) : null;
    const kept: [number, number] = this.pan ?? this.home;
    const next = Math.min(60, Math.max(Math.min(1, this.zoom), this.zoom * factor));
    this.zoom = next;
    this.pan = next === 1 ? null : kept;
    if (before && at && this.pan) {
      const [nx, ny] = apply(this.affine(at.name), before[0], before[1]);
      this.moveBy(x! - nx, y! - ny, at.name);
    }
    this.redraw();
  }

  /** Go to a pixel of a view, which is the middle of its pane then. */
  flyTo(name: string, column: number, row: number): void {
    const info = this.views.get(name)?.info;
    if (!info) return;
    if (this.single !== name) this.single = null;
    this.zoom = Math.max(this.zoom, FINDING_ZOOM);
    const fromWall = info.pointing === "left" ? info.width - column : column;
    this.pan = [fromWall * this.mm(name), (row - info.height / 2) * this.mm(name)];
    this.redraw();
  }

  /** The pointer has moved. */
  aim(): void {
    const at = this.pointer && this.pixelAt(...this.pointer, this.drawing?.name);
    if (this.drawing && at) this.drawing.points[this.drawing.points.length - 1] = at.point;
    if (this.drawing || this.lens) this.redraw();
  }

  /** Set a corner of an outline where the pointer is. The first one decides the view. */
  addCorner(): void {
    const at = this.pointer && this.pixelAt(...this.pointer, this.drawing?.name);
    if (!at) return;
    const points = this.drawing?.points.slice(0, -1) ?? [];
    this.drawing = { name: at.name, points: [...points, at.point, at.point] };
    this.redraw();
  }

  removeCorner(): void {
    const points = this.drawing?.points ?? [];
    this.drawing = points.length > 2 ? { ...this.drawing!, points: [...points.slice(0, -2), points.at(-1)!] } : null;
    this.redraw();
  }

  stopDrawing(): void {
    this.drawing = null;
    this.redraw();
  }

  /** The outline in whole pixels, if it has enough points. */
  finishedOutline(): { image: string; polygon: number[][] } | null {
    const points = this.drawing?.points.slice(0, -1) ?? [];
    return points.length >= 3 ? { image: this.drawing!.name, polygon: points.map((point) => point.map(Math.round)) } : null;
  }

  private pixelAt(x: number, y: number, name?: string): { name: string; point: number[] } | null {
    const of = name ?? this.at(x, y)?.name;
    return of ? { name: of, point: apply(invert(this.affine(of)), x, y) } : null;
  }

  redraw(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      if (this.element.isConnected) this.paint();
    });
  }

  private paint(): void {
    const dpr = devicePixelRatio;
    const [w, h] = [Math.round(this.element.clientWidth * dpr), Math.round(this.element.clientHeight * dpr)];
    for (const canvas of [this.grey.canvas, this.painter.canvas])
      if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    this.grey.clear();
    for (const [name, view] of this.views) {
      const pane = this.pane(name).map((value) => Math.round(value * dpr)) as [number, number, number, number];
      if (pane[2] === 0) continue;
      const affine = this.affine(name).map((value) => value * dpr) as Affine;
      if (view.image) {
        const lens: [number, number, number] =
          this.lens && this.pointer ? [this.pointer[0] * dpr, this.pointer[1] * dpr, LENS_PX * dpr] : [0, 0, 0];
        this.grey.paint({ image: view.image, inverse: invert(affine), pane, centre: this.centre, width: this.width, invert: this.inverted, lens });
      }
      this.paintOverlay(name, affine, pane, dpr);
    }
    for (const listener of this.paintListeners) listener();
    this.onUpdate();
  }

  /** Call a function after every frame; the result stops it. */
  onPaint(listener: () => void): () => void {
    this.paintListeners.add(listener);
    return () => this.paintListeners.delete(listener);
  }

  private paintOverlay(name: string, affine: Affine, clip: [number, number, number, number], dpr: number): void {
    const layer = this.layers.get(name);
    const { info } = this.views.get(name)!;
    const maps = layer ? [layer.visible([0, 0, info.width, info.height], Math.hypot(affine[0], affine[1]))] : [];
    const [low, high] = layer?.range ?? [0, 1];
    this.painter.paint({ affine, maps, style: { ...settings, low, high, states: false }, points: [], selected: null, lines: examLines(this, name), dpr, clip, keepsRest: true });
  }
}
