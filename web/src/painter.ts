// The overlay of a slide: maps, findings and outlines, drawn by WebGL 2 or, without it, on a 2D canvas.

import type { Affine } from "./affine";
import { CanvasPainter } from "./canvaspainter";
import { colourTable } from "./colours";
import { largestBin, mostPerBin, type PointTile } from "./findingtiles";
import { OUTSIDE, SCORED, type MapTile, type TileQuad } from "./maptiles";
import {
  QUAD_VERTEX,
  mapFragment,
  type MapFeature,
  POINT_VERTEX,
  POINT_FRAGMENT,
  LINE_VERTEX,
  LINE_FRAGMENT,
} from "./shaders";

/** Shaders smooth edges themselves: several samples per pixel would cost a multiple without a graphics processor. */
export const GL_OPTIONS: WebGLContextAttributes = {
  antialias: false, depth: false, stencil: false, premultipliedAlpha: true, preserveDrawingBuffer: true,
};

export interface Style {
  opacity: number;
  threshold: number;
  gamma: number;
  colours: string;
  low: number;
  high: number;
  smooth: boolean;
  states: boolean;
  /** The scores are differences: the threshold applies to their magnitude. */
  diverging?: boolean;
}

export interface Line {
  points: number[][];
  colour: [number, number, number];
  width: number;
  dashed?: boolean;
}

export interface Frame {
  affine: Affine;
  maps: TileQuad[][];
  style: Style;
  points: PointTile[];
  selected: number | null;
  lines: Line[];
  dpr: number;
  /** Draw only in this rectangle of device pixels: left, top, width, height. */
  clip?: [number, number, number, number];
  /** Keep what is outside of the clip; otherwise it is cleared. */
  keepsRest?: boolean;
}

/** A graphics processor that has not reported the end of a frame after this time is asked for the next one all the same. */
const MOST_BUSY_MS = 1000;

export interface Painter {
  readonly name: "webgl" | "canvas";
  readonly canvas: HTMLCanvasElement;
  /** Whether the graphics processor has not yet finished the last frame. False after a second: some never report it. */
  readonly isBusy: boolean;
  paint(frame: Frame): void;
}

export function compile(gl: WebGL2RenderingContext, vertex: string, fragment: string): WebGLProgram {
  const program = gl.createProgram()!;
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]] as const) {
    const shader = gl.createShader(kind)!;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
      throw new Error(gl.getShaderInfoLog(shader) ?? "A shader was refused.");
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return program;
}

class GlPainter implements Painter {
  readonly name = "webgl";
  private maps = new Map<string, WebGLProgram>();
  private dots: WebGLProgram;
  private strokes: WebGLProgram;
  private textures = new Map<MapTile, { texture: WebGLTexture; isComplete: boolean }>();
  private buffers = new Map<PointTile, WebGLBuffer[]>();
  private colours: WebGLTexture;
  private colourName = "";
  private lineBuffer: WebGLBuffer;
  private fence: WebGLSync | null = null;
  private fencedAt = 0;

  constructor(
    readonly canvas: HTMLCanvasElement,
    private gl: WebGL2RenderingContext,
  ) {
    this.dots = compile(gl, POINT_VERTEX, POINT_FRAGMENT);
    this.strokes = compile(gl, LINE_VERTEX, LINE_FRAGMENT);
    this.colours = gl.createTexture()!;
    this.lineBuffer = gl.createBuffer()!;
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  }

  paint(frame: Frame): void {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0, 0, 0, 0);
    if (!frame.keepsRest) gl.clear(gl.COLOR_BUFFER_BIT);
    if (frame.clip) {
      const [left, top, width, height] = frame.clip;
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(left, this.canvas.height - top - height, width, height);
      if (frame.keepsRest) gl.clear(gl.COLOR_BUFFER_BIT);
    }
    this.setColours(frame.style.colours);
    this.paintMaps(frame);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.paintLines(frame);
    this.paintPoints(frame);
    this.forget(frame);
    if (this.fence) gl.deleteSync(this.fence);
    this.fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    this.fencedAt = performance.now();
    gl.flush();
  }

  get isBusy(): boolean {
    if (this.fence === null || this.gl.isContextLost() || performance.now() - this.fencedAt > MOST_BUSY_MS) return false;
    return this.gl.getSyncParameter(this.fence, this.gl.SYNC_STATUS) === this.gl.UNSIGNALED;
  }

  private begin(program: WebGLProgram, frame: Frame) {
    const gl = this.gl;
    gl.useProgram(program);
    const at = (name: string) => gl.getUniformLocation(program, name);
    const [a, b, c, d, e, f] = frame.affine;
    gl.uniformMatrix3fv(at("affine"), false, [a, b, 0, c, d, 0, e, f, 1]);
    gl.uniform2f(at("canvas"), this.canvas.width, this.canvas.height);
    gl.uniform1f(at("dpr"), frame.dpr);
    gl.uniform1i(at("colours"), 1);
    gl.uniform2f(at("domain"), frame.style.low, frame.style.high);
    gl.uniform1f(at("gamma"), frame.style.gamma);
    return at;
  }

  private paintMaps(frame: Frame): void {
    const gl = this.gl;
    gl.disable(gl.BLEND); // A finer map replaces the coarser one below it.
    gl.activeTexture(gl.TEXTURE0);
    frame.maps.forEach((quads, index) => {
      const texture = new Map(quads.map((quad) => [quad, this.texture(quad.tile)]));
      for (const isComplete of [true, false]) {
        const alike = quads.filter((quad) => texture.get(quad)!.isComplete === isComplete);
        if (!alike.length) continue;
        const at = this.begin(this.mapProgram(frame.style, index, isComplete), frame);
        gl.uniform1f(at("threshold"), frame.style.threshold);
        gl.uniform1f(at("opacity"), frame.style.opacity);
        gl.uniform1i(at("cells"), 0);
        for (const quad of alike) {
          gl.bindTexture(gl.TEXTURE_2D, texture.get(quad)!.texture);
          this.paintQuad(frame, quad, at);
        }
      }
    });
  }

  private paintQuad({ style }: Frame, { tile, ...quad }: TileQuad, at: (name: string) => WebGLUniformLocation | null): void {
    const gl = this.gl;
    const span = tile.high - tile.low, width = style.high - style.low;
    gl.uniform2f(at("texel"), 1 / tile.width, 1 / tile.height);
    gl.uniform2f(at("range"), tile.low, span);
    gl.uniform2f(at("position"), (tile.low - style.low) / width, span / width);
    gl.uniform4f(at("l0"), ...quad.l0);
    gl.uniform4f(at("area"), quad.left, quad.top, quad.right, quad.bottom);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  /** The program for the tiles of one map; `isComplete` if all of their cells have a score. */
  private mapProgram(style: Style, map: number, isComplete: boolean): WebGLProgram {
    const features: MapFeature[] = [];
    if (!isComplete) features.push("UNSCORED");
    if (!isComplete && style.states && map === 0) features.push("STATES");
    if (style.smooth) features.push("SMOOTHED");
    if (style.diverging) features.push("DIVERGING");
    else if (style.gamma !== 1) features.push("GAMMA");
    const key = features.join();
    const program = this.maps.get(key) ?? compile(this.gl, QUAD_VERTEX, mapFragment(features));
    this.maps.set(key, program);
    return program;
  }

  private paintPoints(frame: Frame): void {
    const gl = this.gl;
    const at = this.begin(this.dots, frame);
    gl.uniform1f(at("selected"), frame.selected ?? -1);
    gl.uniform1f(at("most"), mostPerBin(frame.points));
    for (const tile of frame.points) {
      gl.uniform1f(at("largest"), tile.kind === "bins" ? largestBin(tile, frame.affine, frame.dpr) : 0);
      this.pointBuffers(tile).forEach((buffer, index) => {
        gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
        gl.enableVertexAttribArray(index);
        gl.vertexAttribDivisor(index, 0);
        if (index === 3) gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
        else gl.vertexAttribPointer(index, 1, gl.FLOAT, false, 0, 0);
      });
      gl.drawArrays(gl.POINTS, 0, tile.count);
    }
    for (let index = 0; index < 4; index++) gl.disableVertexAttribArray(index);
  }

  private paintLines(frame: Frame): void {
    const gl = this.gl;
    const at = this.begin(this.strokes, frame);
    for (const { line, segments } of groupedSegments(frame.lines)) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.lineBuffer);
      gl.bufferData(gl.ARRAY_BUFFER, segments, gl.STREAM_DRAW);
      for (const index of [0, 1]) {
        gl.enableVertexAttribArray(index);
        gl.vertexAttribPointer(index, 2, gl.FLOAT, false, 16, 8 * index);
        gl.vertexAttribDivisor(index, 1);
      }
      gl.uniform1i(at("dashed"), Number(line.dashed ?? false));
      // A dark line below a bright one is visible on any background.
      for (const [extra, colour] of [[2, [0, 0, 0]], [0, line.colour]] as const) {
        gl.uniform1f(at("width"), (line.width + extra) * frame.dpr);
        gl.uniform3f(at("colour"), colour[0] / 255, colour[1] / 255, colour[2] / 255);
        gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, segments.length / 4);
      }
    }
    for (const index of [0, 1]) {
      gl.vertexAttribDivisor(index, 0);
      gl.disableVertexAttribArray(index);
    }
  }

  private setColours(name: string): void {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.colours);
    if (name === this.colourName) return;
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, colourTable(name));
    this.filter(gl.NEAREST);
    this.colourName = name;
  }

  private filter(filter: number): void {
    const gl = this.gl;
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, filter);
    for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
  }

  private texture(tile: MapTile): { texture: WebGLTexture; isComplete: boolean } {
    const gl = this.gl;
    let stored = this.textures.get(tile);
    if (!stored) {
      const { values, isComplete } = texels(tile);
      stored = { texture: gl.createTexture()!, isComplete };
      gl.bindTexture(gl.TEXTURE_2D, stored.texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, tile.width, tile.height, 0, gl.RGB, gl.UNSIGNED_BYTE, values);
      this.filter(gl.LINEAR);
      this.textures.set(tile, stored);
    }
    return stored;
  }

  private pointBuffers(tile: PointTile): WebGLBuffer[] {
    const gl = this.gl;
    let buffers = this.buffers.get(tile);
    if (!buffers) {
      buffers = [tile.x, tile.y, tile.score, tile.number].map((values) => {
        const buffer = gl.createBuffer()!;
        gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
        gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
        return buffer;
      });
      this.buffers.set(tile, buffers);
    }
    return buffers;
  }

  /** Free the memory of tiles that have not been in view for some time. */
  private forget(frame: Frame): void {
    if (this.textures.size > 300) {
      const used = new Set(frame.maps.flat().map((quad) => quad.tile));
      for (const [tile, { texture }] of this.textures)
        if (!used.has(tile)) {
          this.gl.deleteTexture(texture);
          this.textures.delete(tile);
        }
    }
    if (this.buffers.size > 100) {
      const used = new Set(frame.points);
      for (const [tile, buffers] of this.buffers)
        if (!used.has(tile)) {
          for (const buffer of buffers) this.gl.deleteBuffer(buffer);
          this.buffers.delete(tile);
        }
    }
  }
}

/** The cells of a tile as the shader reads them, and whether all cells within the map have a score. */
function texels(tile: MapTile): { values: Uint8Array; isComplete: boolean } {
  const count = tile.width * tile.height;
  const values = new Uint8Array(3 * count);
  let isComplete = true;
  for (let i = 0; i < count; i++) {
    const state = tile.cells[2 * i + 1];
    if (state === SCORED) {
      values[3 * i] = tile.cells[2 * i];
      values[3 * i + 1] = 255;
    } else if (state !== OUTSIDE) isComplete = false;
    values[3 * i + 2] = state;
  }
  return { values, isComplete };
}

/** The segments of all lines that look alike, as x0, y0, x1, y1 each: one draw call instead of one per line. */
function groupedSegments(lines: Line[]): { line: Line; segments: Float32Array }[] {
  const groups = new Map<string, { line: Line; values: number[] }>();
  for (const line of lines) {
    const key = `${line.colour.join()} ${line.width} ${line.dashed ?? false}`;
    const group = groups.get(key) ?? { line, values: [] };
    groups.set(key, group);
    for (let i = 1; i < line.points.length; i++)
      group.values.push(line.points[i - 1][0], line.points[i - 1][1], line.points[i][0], line.points[i][1]);
  }
  return [...groups.values()].filter((group) => group.values.length).map(({ line, values }) => ({ line, segments: Float32Array.from(values) }));
}

/** Return a painter on a new canvas: WebGL 2 unless it is absent or `plain` is set. */
export function createPainter(plain: boolean, onLost: () => void): Painter {
  const canvas = document.createElement("canvas");
  const gl = plain ? null : canvas.getContext("webgl2", GL_OPTIONS);
  if (gl) {
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      onLost();
    });
    try {
      return new GlPainter(canvas, gl);
    } catch (error) {
      console.warn("WebGL 2 cannot be used:", error);
      return createPainter(true, onLost);
    }
  }
  return new CanvasPainter(canvas, canvas.getContext("2d")!);
}
