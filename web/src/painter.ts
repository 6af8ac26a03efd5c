// The overlay of a slide: maps, findings and outlines, drawn by WebGL 2 or, without it, on a 2D canvas.

import { colourTable, position } from "./colours";
import { FAILED, GLASS, PENDING, SCORED, type MapTile, type TileQuad } from "./maptiles";
import type { PointTile } from "./findingtiles";
import {
  QUAD_VERTEX,
  MAP_FRAGMENT,
  POINT_VERTEX,
  POINT_FRAGMENT,
  LINE_VERTEX,
  LINE_FRAGMENT,
} from "./shaders";

/** Level-0 pixels to device pixels: x' = a·x + c·y + e, y' = b·x + d·y + f. */
export type Affine = [number, number, number, number, number, number];

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
  /** Draw only in this rectangle of device pixels (left, top, width, height), and keep the rest. */
  clip?: [number, number, number, number];
}

export interface Painter {
  readonly name: "webgl" | "canvas";
  readonly canvas: HTMLCanvasElement;
  paint(frame: Frame): void;
}

const STATE_COLOURS: Record<number, [number, number, number, number]> = {
  [PENDING]: [110, 140, 190, 0.5],
  [GLASS]: [128, 128, 128, 0.3],
  [FAILED]: [220, 40, 160, 0.75],
};

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
  private maps: WebGLProgram;
  private dots: WebGLProgram;
  private strokes: WebGLProgram;
  private textures = new Map<MapTile, WebGLTexture>();
  private buffers = new Map<PointTile, WebGLBuffer[]>();
  private colours: WebGLTexture;
  private colourName = "";
  private lineBuffer: WebGLBuffer;

  constructor(
    readonly canvas: HTMLCanvasElement,
    private gl: WebGL2RenderingContext,
  ) {
    this.maps = compile(gl, QUAD_VERTEX, MAP_FRAGMENT);
    this.dots = compile(gl, POINT_VERTEX, POINT_FRAGMENT);
    this.strokes = compile(gl, LINE_VERTEX, LINE_FRAGMENT);
    this.colours = gl.createTexture()!;
    this.lineBuffer = gl.createBuffer()!;
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  }

  paint(frame: Frame): void {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    if (frame.clip) {
      const [left, top, width, height] = frame.clip;
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(left, this.canvas.height - top - height, width, height);
    } else gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    this.setColours(frame.style.colours);
    this.paintMaps(frame);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.paintLines(frame);
    this.paintPoints(frame);
    this.forget(frame);
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
    const at = this.begin(this.maps, frame);
    const style = frame.style;
    gl.uniform1f(at("threshold"), style.threshold);
    gl.uniform1f(at("opacity"), style.opacity);
    gl.uniform1i(at("smoothed"), Number(style.smooth));
    gl.uniform1i(at("diverging"), Number(style.diverging ?? false));
    gl.uniform1i(at("cells"), 0);
    frame.maps.forEach((quads, index) => {
      gl.uniform1i(at("states"), Number(style.states && index === 0));
      for (const quad of quads) {
        gl.activeTexture(gl.TEXTURE0);
        gl.bindTexture(gl.TEXTURE_2D, this.texture(quad.tile));
        gl.uniform2f(at("range"), quad.tile.low, quad.tile.high);
        gl.uniform4f(at("l0"), ...quad.l0);
        gl.uniform4f(at("area"), quad.left, quad.top, quad.right, quad.bottom);
        gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
      }
    });
  }

  private paintPoints(frame: Frame): void {
    const gl = this.gl;
    const at = this.begin(this.dots, frame);
    gl.uniform1f(at("selected"), frame.selected ?? -1);
    for (const tile of frame.points) {
      gl.uniform1f(at("bins"), tile.kind === "bins" ? 1 : 0);
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
    this.nearest();
    this.colourName = name;
  }

  private nearest(): void {
    const gl = this.gl;
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
  }

  private texture(tile: MapTile): WebGLTexture {
    const gl = this.gl;
    let texture = this.textures.get(tile);
    if (!texture) {
      texture = gl.createTexture()!;
      gl.bindTexture(gl.TEXTURE_2D, texture);
      const { width, height, cells } = tile;
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RG8UI, width, height, 0, gl.RG_INTEGER, gl.UNSIGNED_BYTE, cells);
      this.nearest();
      this.textures.set(tile, texture);
    }
    return texture;
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
      for (const [tile, texture] of this.textures)
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

/** Slower, for browsers without WebGL 2 and after the graphics context was lost. */
class CanvasPainter implements Painter {
  readonly name = "canvas";
  private images = new Map<MapTile, { key: string; image: HTMLCanvasElement }>();

  constructor(
    readonly canvas: HTMLCanvasElement,
    private context: CanvasRenderingContext2D,
  ) {}

  paint(frame: Frame): void {
    const { context, canvas } = this;
    const clip = frame.clip ?? [0, 0, canvas.width, canvas.height];
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.beginPath();
    context.rect(...clip);
    context.clip();
    context.clearRect(...clip);
    context.imageSmoothingEnabled = false;
    frame.maps.forEach((quads, index) => {
      for (const quad of quads) this.paintTile(frame, quad, index === 0);
    });
    context.setTransform(1, 0, 0, 1, 0, 0);
    for (const line of frame.lines) this.paintLine(frame, line);
    const table = colourTable(frame.style.colours);
    for (const tile of frame.points) this.paintPoints(frame, tile, table);
    context.restore();
  }

  private paintTile(frame: Frame, quad: TileQuad, first: boolean): void {
    const { context } = this;
    const image = this.coloured(quad.tile, frame.style, first);
    context.setTransform(...frame.affine);
    const [left, top, right, bottom] = quad.l0;
    const width = quad.right - quad.left, height = quad.bottom - quad.top;
    context.drawImage(image, quad.left + 1, quad.top + 1, width, height, left, top, right - left, bottom - top);
  }

  private coloured(tile: MapTile, style: Style, first: boolean): HTMLCanvasElement {
    const key = JSON.stringify([style, first]);
    const cached = this.images.get(tile);
    if (cached?.key === key) return cached.image;
    const image = cached?.image ?? document.createElement("canvas");
    image.width = tile.width;
    image.height = tile.height;
    const target = image.getContext("2d")!;
    const data = target.createImageData(tile.width, tile.height);
    const table = colourTable(style.colours);
    for (let i = 0; i < tile.width * tile.height; i++) {
      const state = tile.cells[2 * i + 1];
      const score = tile.low + (tile.cells[2 * i] / 255) * (tile.high - tile.low);
      if (state === SCORED && (style.diverging ? Math.abs(score) : score) >= style.threshold) {
        const at = 4 * Math.round(255 * position(score, style.low, style.high, style.diverging ? 1 : style.gamma));
        data.data.set([table[at], table[at + 1], table[at + 2], 255 * style.opacity], 4 * i);
      } else if (state !== SCORED && style.states && first && STATE_COLOURS[state] && i % 2 === 0) {
        const [r, g, b, a] = STATE_COLOURS[state];
        data.data.set([r, g, b, 255 * a], 4 * i);
      }
    }
    target.putImageData(data, 0, 0);
    if (this.images.size > 300) this.images.clear();
    this.images.set(tile, { key, image });
    return image;
  }

  private paintLine(frame: Frame, line: Line): void {
    const { context } = this;
    context.beginPath();
    line.points.forEach((point, index) => {
      const [x, y] = apply(frame.affine, point[0], point[1]);
      if (index) context.lineTo(x, y);
      else context.moveTo(x, y);
    });
    context.setLineDash(line.dashed ? [6 * frame.dpr, 4 * frame.dpr] : []);
    for (const [extra, colour] of [[2, [0, 0, 0]], [0, line.colour]] as const) {
      context.lineWidth = (line.width + extra) * frame.dpr;
      context.strokeStyle = `rgb(${colour.join()})`;
      context.stroke();
    }
  }

  private paintPoints(frame: Frame, tile: PointTile, table: Uint8Array): void {
    const { context } = this;
    const { low, high, gamma } = frame.style;
    for (let i = 0; i < tile.count; i++) {
      const [x, y] = apply(frame.affine, tile.x[i], tile.y[i]);
      if (x < -20 || y < -20 || x > this.canvas.width + 20 || y > this.canvas.height + 20) continue;
      const chosen = tile.kind === "points" && tile.number[i] === frame.selected;
      const at = 4 * Math.round(255 * position(tile.score[i], low, high, gamma));
      const size = tile.kind === "bins" ? Math.min(36, 7 + 3 * Math.log(tile.number[i])) : chosen ? 16 : 9;
      context.beginPath();
      context.arc(x, y, (size / 2 - 1) * frame.dpr, 0, 7);
      context.fillStyle = chosen ? "rgb(255,217,0)" : `rgb(${table[at]},${table[at + 1]},${table[at + 2]})`;
      context.fill();
      context.setLineDash([]);
      context.lineWidth = 1.5 * frame.dpr;
      context.strokeStyle = "#fff";
      context.stroke();
    }
  }
}

export function apply([a, b, c, d, e, f]: Affine, x: number, y: number): [number, number] {
  return [a * x + c * y + e, b * x + d * y + f];
}

export function invert([a, b, c, d, e, f]: Affine): Affine {
  const determinant = a * d - b * c;
  const [ia, ib, ic, id] = [d / determinant, -b / determinant, -c / determinant, a / determinant];
  return [ia, ib, ic, id, -(ia * e + ic * f), -(ib * e + id * f)];
}

/** Return a painter on a new canvas: WebGL 2 unless it is absent or `plain` is set. */
export function createPainter(plain: boolean, onLost: () => void): Painter {
  const canvas = document.createElement("canvas");
  const gl = plain ? null : canvas.getContext("webgl2", { premultipliedAlpha: true, preserveDrawingBuffer: true });
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
