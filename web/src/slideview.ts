// One slide on the screen: OpenSeadragon for the image, one canvas above it for maps, findings and outlines.

import { apply, invert, type Affine } from "./affine";
import OpenSeadragon from "openseadragon";
import { get, query, type CaseDetail, type FindingsPage, type ImageInfo, type TruthOutline } from "./api";
import { FindingLayer, type PointTile } from "./findingtiles";
import { MapLayer } from "./maptiles";
import { Overlay, type OverlaySource } from "./overlay";
import type { Frame } from "./painter";
import { slideLines } from "./slidelines";
import { DIFFERENCE } from "./colours";
import { correctTiles, loadProfile } from "./profile";
import { onChange, settings, type Settings } from "./settings";
import { blankSource, tileSource } from "./tilesource";
import { listen } from "./events";

export interface Cursor {
  x: number;
  y: number;
  score: number | null;
  state: number | null;
}

/** The list of findings is requested after their first tiles, and at most this much later. */
const FIRST_FINDINGS_MS = 500;

export interface View {
  /** Centre in level-0 pixels, level-0 pixels per screen pixel, and rotation in degrees. */
  x: number;
  y: number;
  scale: number;
  rotation: number;
}

/** Longest side of the small picture of the whole slide. */
const NAVIGATOR_PX = 170;
export class SlideView implements OverlaySource {
  readonly viewer: OpenSeadragon.Viewer;
  readonly image: ImageInfo;
  readonly overlay: Overlay;
  layers: MapLayer[] = [];
  private findings: FindingLayer | null = null;
  /** The outlines of findings in and near the view, by their number. */
  outlines = new Map<number, number[][][][]>();
  private outlineBox = "";
  truth: TruthOutline[] = [];
  private stop: (() => void)[] = [];
  private missedChunks = new Set<string>();
  private seenCells = new Map<string, number>();
  selected: number | null = null;
  measured: [number, number][] = [];
  drawing: number[][] = [];
  drawn: number[][][] = [];
  className: string;
  /** Only findings of this class are shown; all if it is null. */
  findingClass: string | null = null;
  /** Another result of the case, or "truth", whose difference to this result the map shows. */
  comparedWith: string | null = null;
  /** Called when the view, the note or the number of findings in view has changed. */
  onUpdate: () => void = () => {};

  constructor(
    readonly element: HTMLElement,
    readonly detail: CaseDetail,
    public page: FindingsPage,
    readonly imageName = "slide",
    /** Settings of this view alone. */
    readonly overrides: Partial<Settings> = {},
  ) {
    this.image = detail.images[imageName] ?? Object.values(detail.images)[0] ?? { width: 1000, height: 1000 };
    this.className = this.classes().at(-1) ?? "";
    this.viewer = new OpenSeadragon.Viewer({
      element,
      drawer: "canvas",
      tileSources: this.image.levels?.length ? tileSource(detail.id, this.image) : blankSource(this.image),
      showNavigationControl: false,
      showNavigator: Boolean(this.image.levels?.length),
      navigatorPosition: "BOTTOM_RIGHT",
      ...navigatorSize(this.image.width, this.image.height),
      navigatorAutoFade: false,
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.35,
      springStiffness: 9,
      maxZoomPixelRatio: 8,
      minZoomImageRatio: 0.5,
      visibilityRatio: 0.2,
      imageLoaderLimit: 12,
      tileRetryMax: 4,
      tileRetryDelay: 1500,
      maxTilesPerFrame: 12,
      maxImageCacheCount: 600,
      imageSmoothingEnabled: true,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      keyboardNavEnabled: false,
      crossOriginPolicy: false,
    } as unknown as OpenSeadragon.Options);
    this.overlay = new Overlay(this.viewer.canvas, this, location.search.includes("plain"), () => this.onUpdate());
    this.setMaps(detail);
    this.showFindings(null);
    if (this.image.profile?.applied)
      void loadProfile(detail.id).then((table) => {
        for (const viewer of [this.viewer, (this.viewer as unknown as { navigator?: OpenSeadragon.Viewer }).navigator])
          if (viewer) correctTiles(viewer, table, () => settings.profile);
      }, () => {});
    const viewer = this.viewer as OpenSeadragon.Viewer & { addHandler(name: string, handler: () => void): void };
    viewer.addHandler("update-viewport", () => this.follow());
    for (const name of ["resize", "open"]) viewer.addHandler(name, () => this.redraw());
    for (const name of ["animation-finish", "open"]) viewer.addHandler(name, () => this.onSettled());
    viewer.addHandler("open", () => this.home(true));
    // OpenSeadragon draws a visible slide without tiles again in every frame.
    if (!this.image.levels?.length) viewer.addHandler("open", () => this.viewer.world.getItemAt(0).setOpacity(0));
    let profile = settings.profile;
    this.stop.push(
      onChange(() => {
        if (profile !== settings.profile && this.image.profile?.applied) void this.viewer.requestInvalidate();
        profile = settings.profile;
        this.redraw();
      }),
      listen((event) => {
        if (event.kind === "chunks" && event.case === detail.id) void this.onChunks(event.chunks);
      }),
    );
    const onVisible = () => {
      if (document.hidden || !this.missedChunks.size) return;
      const chunks = [...this.missedChunks];
      this.missedChunks.clear();
      void this.onChunks(chunks);
    };
    document.addEventListener("visibilitychange", onVisible);
    this.stop.push(() => document.removeEventListener("visibilitychange", onVisible));
    if (detail.has_truth) void get<TruthOutline[]>(`cases/${detail.id}/truth`).then((truth) => { this.truth = truth; this.redraw(); });
  }

  destroy(): void {
    for (const stop of this.stop) stop();
    this.overlay.destroy();
    this.viewer.destroy();
  }

  classes(): string[] {
    return [...new Set(this.detail.maps.filter((map) => map.image === this.imageName).flatMap((map) => map.classes))];
  }

  /** Show the maps of a class, coarse ones below fine ones; of a difference, the finest one alone. */
  setMaps(detail: CaseDetail, className = this.className): void {
    this.className = className || (detail.maps.flatMap((map) => map.classes).at(-1) ?? "");
    const maps = detail.maps
      .filter((map) => map.image === this.imageName && map.classes.includes(this.className))
      .sort((a, b) => b.l0_stride[0] - a.l0_stride[0]);
    this.layers = (this.comparedWith === null ? maps : maps.slice(-1)).map((map) => {
      const layer = map.classes.indexOf(this.className);
      const same = (one: MapLayer) => one.info.name === map.name && one.layer === layer && one.other === this.comparedWith;
      return this.layers.find(same) ?? new MapLayer(detail.id, map, layer, () => this.overlay.refresh(), this.comparedWith);
    });
    this.redraw();
  }

  /** Show the difference to another result or to the truth; null shows the scores again. */
  compare(other: string | null): void {
    this.comparedWith = other;
    this.setMaps(this.detail);
  }

  /** Show these findings of the case. */
  setFindings(page: FindingsPage): void {
    if (page === this.page) return;
    this.page = page;
    this.outlineBox = "";
    this.showFindings(null);
    void this.loadOutlines();
  }

  /** Show the findings of one class, or all. */
  showFindings(label: string | null): void {
    this.findingClass = label;
    const meta = this.page.images[this.imageName];
    const size: [number, number] = [this.image.width, this.image.height];
    this.findings = meta ? new FindingLayer(this.detail.id, this.imageName, meta.tile_side, meta.levels, size, () => this.overlay.refresh(), label) : null;
    if (meta?.top && label === null) this.findings?.putTop(meta.top);
    this.redraw();
  }

  /** Resolves when the first findings can be drawn, or after a moment if there are none to draw. */
  firstFindings(): Promise<unknown> {
    return Promise.race([this.findings?.first, new Promise((done) => setTimeout(done, FIRST_FINDINGS_MS))]);
  }

  /** Show the whole slide: the area with pixels, if the file states it. */
  home(immediately = false): void {
    const [x, y, width, height] = this.bounds;
    const w = this.image.width;
    this.viewer.viewport.fitBounds(new OpenSeadragon.Rect(x / w, y / w, width / w, height / w), immediately);
  }

  private get bounds(): [number, number, number, number] {
    return this.image.bounds ?? [0, 0, this.image.width, this.image.height];
  }

  /** Whether the whole slide is in view. */
  get showsAll(): boolean {
    const [x, y, width, height] = this.bounds;
    const [left, top, right, bottom] = this.box(2);
    return left <= x && top <= y && right >= x + width && bottom >= y + height;
  }

  private async onChunks(chunks: string[]): Promise<void> {
    if (document.hidden) {
      // A tab in the background loads nothing until it is looked at.
      for (const chunk of chunks) this.missedChunks.add(chunk);
      return;
    }
    const names = new Set(this.layers.map((layer) => encodeURIComponent(layer.info.name)));
    if (chunks.some((chunk) => !names.has(chunk.split("/")[0]))) {
      const detail = await get<CaseDetail>(`cases/${this.detail.id}`);
      this.detail.maps = detail.maps;
      this.setMaps(detail);
    }
    for (const chunk of chunks) {
      const [name, row, column] = chunk.split("/");
      this.layers.find((layer) => encodeURIComponent(layer.info.name) === name)?.refresh(Number(row), Number(column));
    }
    this.redraw();
  }

  /** Level-0 pixels to CSS pixels of the viewer. */
  get affine(): Affine {
    const viewport = this.viewer.viewport;
    const [w, h] = [this.image.width, this.image.height];
    const at = (x: number, y: number) => viewport.pixelFromPoint(new OpenSeadragon.Point(x / w, y / w), true);
    const [p0, px, py] = [at(0, 0), at(w, 0), at(0, h)];
    const affine: Affine = [(px.x - p0.x) / w, (px.y - p0.y) / w, (py.x - p0.x) / h, (py.y - p0.y) / h, p0.x, p0.y];
    if (viewport.getFlip()) {
      affine[0] = -affine[0];
      affine[2] = -affine[2];
      affine[4] = viewport.getContainerSize().x - affine[4];
    }
    return affine;
  }

  toImage(x: number, y: number): [number, number] {
    return apply(invert(this.affine), x, y);
  }

  get size(): [number, number] {
    const { x, y } = this.viewer.viewport.getContainerSize();
    return [x, y];
  }

  /** The level-0 box around the visible area and a margin in CSS pixels. */
  box(margin = 0): [number, number, number, number] {
    const [width, height] = this.size;
    const [left, top, right, bottom] = [-margin, -margin, width + margin, height + margin];
    const corners = [[left, top], [right, top], [left, bottom], [right, bottom]].map(([cx, cy]) => this.toImage(cx, cy));
    const xs = corners.map((corner) => corner[0]), ys = corners.map((corner) => corner[1]);
    return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  }

  get view(): View {
    const size = this.viewer.viewport.getContainerSize();
    const [x, y] = this.toImage(size.x / 2, size.y / 2);
    const [a, b] = this.affine;
    return { x, y, scale: 1 / Math.hypot(a, b), rotation: this.viewer.viewport.getRotation() };
  }

  setView(view: Partial<View>, immediately = false): void {
    const viewport = this.viewer.viewport;
    if (view.rotation !== undefined) viewport.setRotation(view.rotation, immediately);
    if (view.scale !== undefined) {
      const zoom = this.image.width / view.scale / viewport.getContainerSize().x;
      viewport.zoomTo(zoom, undefined, immediately);
    }
    if (view.x !== undefined && view.y !== undefined)
      viewport.panTo(new OpenSeadragon.Point(view.x / this.image.width, view.y / this.image.width), immediately);
    viewport.applyConstraints(immediately);
  }

  /** Go to a level-0 position so that about `side` level-0 pixels are visible. */
  flyTo(x: number, y: number, side = 1200): void {
    const size = this.viewer.viewport.getContainerSize();
    this.setView({ x, y, scale: Math.max(0.5, side / Math.min(size.x, size.y)) });
  }

  /** Paint the overlay again. */
  redraw(): void {
    this.overlay.repaint();
  }

  private follow(): void {
    this.overlay.follow();
    this.onUpdate();
  }

  /** CSS pixels per level-0 pixel. */
  private get pxPerL0(): number {
    const [a, b] = this.affine;
    return Math.hypot(a, b);
  }

  private get findingLevel(): number {
    return this.findings?.level(this.box(), this.pxPerL0) ?? 0;
  }

  /** The loaded tiles of findings in view. */
  get findingTiles(): PointTile[] {
    const isShown = { ...settings, ...this.overrides }.points && this.viewer.viewport;
    return isShown && this.findings ? this.findings.visible(this.box(), this.findingLevel) : [];
  }

  get inView(): { findings: number; kind: "points" | "bins" } {
    const tiles = this.findingTiles;
    return { findings: tiles.reduce((sum, tile) => sum + tile.findings, 0), kind: tiles[0]?.kind ?? "points" };
  }

  content(margin: number): Omit<Frame, "affine" | "dpr"> {
    const box = this.box(margin);
    const pxPerL0 = this.pxPerL0;
    const shown = { ...settings, ...this.overrides };
    const quads = (layer: MapLayer) => layer.visible(box, pxPerL0 * devicePixelRatio);
    const maps = shown.heatmap ? this.layers.map(quads) : [];
    // The coarsest map covers all of the tissue.
    const tissue = shown.tissue && this.layers.length ? (maps[0] ?? quads(this.layers[0])) : [];
    const points = shown.points && this.findings ? this.findings.visible(box, this.findingLevel) : [];
    const [low, high] = this.layers[0]?.range ?? [0, 1];
    const diverging = this.comparedWith !== null;
    const style = { ...shown, low, high, diverging, colours: diverging ? DIFFERENCE : shown.colours };
    this.onUpdate();
    return { maps, style, points, selected: this.selected, lines: slideLines(this, shown, tissue) };
  }

  private onSettled(): void {
    void this.loadOutlines();
    this.markSeen();
    this.onUpdate();
  }

  private async loadOutlines(): Promise<void> {
    if (!this.findings || this.findingLevel > 0) return; // Where findings are counted in bins, outlines are too small.
    const [left, top, right, bottom] = this.box().map(Math.round);
    const key = [left, top, right, bottom].join();
    if (key === this.outlineBox) return;
    this.outlineBox = key;
    const margin = Math.max(right - left, bottom - top);
    const values = { image: this.imageName, x: left - margin, y: top - margin, width: right - left + 2 * margin, height: bottom - top + 2 * margin };
    try {
      const listed = await get<{ number: number; polygon: number[][][][] }[]>(`cases/${this.detail.id}/outlines?${query(values)}`);
      if (this.outlineBox !== key) return;
      this.outlines = new Map(listed.map((one) => [one.number, one.polygon]));
      this.redraw();
    } catch {
      this.outlineBox = "";
    }
  }

  /** Remember which squares were on the screen, and at what magnification. */
  private markSeen(): void {
    const side = this.seenSide;
    const scale = this.view.scale;
    const [left, top, right, bottom] = this.box();
    for (let row = Math.max(0, Math.ceil(top / side)); (row + 1) * side <= bottom; row++)
      for (let column = Math.max(0, Math.ceil(left / side)); (column + 1) * side <= right; column++) {
        const key = `${column},${row}`;
        this.seenCells.set(key, Math.min(scale, this.seenCells.get(key) ?? Infinity));
      }
  }

  get seenSide(): number {
    return Math.max(256, Math.max(this.image.width, this.image.height) / 256);
  }

  get seen(): ReadonlyMap<string, number> {
    return this.seenCells;
  }

  at(clientX: number, clientY: number): Cursor {
    const bounds = this.viewer.canvas.getBoundingClientRect();
    return this.under(clientX - bounds.left, clientY - bounds.top);
  }

  /** What is under a position in CSS pixels of the viewer. */
  under(left: number, top: number): Cursor {
    const [x, y] = this.toImage(left, top);
    const values = this.layers.map((layer) => layer.valueAt(x, y)).filter((value) => value !== null);
    const value = values.findLast((one) => one.state === 2) ?? values.at(0);
    return { x, y, score: value && value.state === 2 ? value.score : null, state: value?.state ?? null };
  }

  get scoreRange(): [number, number] {
    return this.layers[0]?.range ?? [0, 1];
  }

  get hasMaps(): boolean {
    return this.layers.length > 0;
  }
}

/** A navigator with the shape of the slide. */
function navigatorSize(width: number, height: number): object {
  const scale = NAVIGATOR_PX / Math.max(width, height);
  const px = (length: number) => `${Math.max(40, Math.round(length * scale))}px`;
  return { navigatorWidth: px(width), navigatorHeight: px(height) };
}
