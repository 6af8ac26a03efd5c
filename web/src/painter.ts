// The overlay of a slide: maps, findings and outlines, drawn by WebGL 2 or, without it, on a 2D canvas.

import { colourTable, position } from "./colours";
import { FAILED, GLASS, PENDING, SCORED, type MapTile, type TileQuad } from "./maptiles";
import type { PointTile } from "./findingtiles";

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

const QUAD_VERTEX = `#version 300 es
uniform mat3 affine; uniform vec4 l0; uniform vec4 area; uniform vec2 canvas;
out vec2 cell;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  cell = mix(area.xy, area.zw, corner);
  vec2 px = (affine * vec3(mix(l0.xy, l0.zw, corner), 1.0)).xy;
  gl_Position = vec4(px.x / canvas.x * 2.0 - 1.0, 1.0 - px.y / canvas.y * 2.0, 0.0, 1.0);
}`;

const MAP_FRAGMENT = `#version 300 es
precision highp float; precision highp usampler2D;
uniform usampler2D cells; uniform sampler2D colours; uniform vec2 range; uniform vec2 domain;
uniform float threshold, gamma, opacity, dpr; uniform bool smoothed, states;
in vec2 cell; out vec4 result;
uvec2 at(ivec2 index) { return texelFetch(cells, index, 0).rg; }
vec4 pattern(uint state) {
  vec2 px = floor(gl_FragCoord.xy / dpr);
  float down = mod(px.x + px.y, 8.0), up = mod(px.x - px.y + 8000.0, 8.0);
  if (state == 0u && down < 2.0) return vec4(0.43, 0.55, 0.75, 0.5);
  if (state == 1u && mod(px.x, 8.0) < 1.0 && mod(px.y, 8.0) < 1.0) return vec4(0.5, 0.5, 0.5, 0.3);
  if (state == 3u && (down < 2.0 || up < 2.0)) return vec4(0.86, 0.16, 0.63, 0.75);
  return vec4(0.0);
}
void main() {
  ivec2 index = ivec2(floor(cell)) + 1;
  uvec2 here = at(index);
  if (here.g != 2u) {
    vec4 colour = states ? pattern(here.g) : vec4(0.0);
    if (colour.a == 0.0) discard;
    result = vec4(colour.rgb * colour.a, colour.a);
    return;
  }
  float value = float(here.r);
  if (smoothed) {
    vec2 position = cell + 0.5;
    ivec2 first = ivec2(floor(position));
    vec2 f = position - vec2(first);
    float sum = 0.0, weight = 0.0;
    for (int dy = 0; dy < 2; dy++) for (int dx = 0; dx < 2; dx++) {
      uvec2 near = at(first + ivec2(dx, dy));
      float w = (dx == 1 ? f.x : 1.0 - f.x) * (dy == 1 ? f.y : 1.0 - f.y);
      if (near.g == 2u) { sum += w * float(near.r); weight += w; }
    }
    if (weight > 0.0) value = sum / weight;
  }
  float score = range.x + value / 255.0 * (range.y - range.x);
  if (score < threshold) { result = vec4(0.0); return; }
  float t = pow(clamp((score - domain.x) / (domain.y - domain.x), 0.0, 1.0), gamma);
  result = vec4(texture(colours, vec2((t * 255.0 + 0.5) / 256.0, 0.5)).rgb * opacity, opacity);
}`;

const POINT_VERTEX = `#version 300 es
uniform mat3 affine; uniform vec2 canvas; uniform float dpr, bins, selected; uniform vec2 domain; uniform float gamma;
layout(location = 0) in float x; layout(location = 1) in float y;
layout(location = 2) in float score; layout(location = 3) in uint number;
out float t; out float chosen;
void main() {
  vec2 px = (affine * vec3(x, y, 1.0)).xy;
  chosen = bins == 0.0 && float(number) == selected ? 1.0 : 0.0;
  t = pow(clamp((score - domain.x) / (domain.y - domain.x), 0.0, 1.0), gamma);
  gl_Position = vec4(px.x / canvas.x * 2.0 - 1.0, 1.0 - px.y / canvas.y * 2.0, 0.0, 1.0);
  gl_PointSize = dpr * (bins > 0.0 ? clamp(7.0 + 3.0 * log(float(number)), 7.0, 36.0) : 9.0 + 7.0 * chosen);
}`;

const POINT_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D colours; in float t; in float chosen; out vec4 result;
void main() {
  float r = 2.0 * length(gl_PointCoord - 0.5);
  if (r > 1.0) discard;
  vec3 fill = texture(colours, vec2((t * 255.0 + 0.5) / 256.0, 0.5)).rgb;
  vec3 colour = r > 0.82 ? vec3(0.0) : r > 0.6 ? vec3(1.0) : (chosen > 0.0 ? vec3(1.0, 0.85, 0.0) : fill);
  result = vec4(colour, 1.0);
}`;

const LINE_VERTEX = `#version 300 es
uniform mat3 affine; uniform vec2 canvas; uniform float width;
layout(location = 0) in vec2 from; layout(location = 1) in vec2 to;
out float along;
void main() {
  vec2 a = (affine * vec3(from, 1.0)).xy, b = (affine * vec3(to, 1.0)).xy;
  vec2 direction = b - a; float size = max(length(direction), 1e-6);
  vec2 side = vec2(-direction.y, direction.x) / size * width * 0.5;
  vec2 px = mix(a, b, float(gl_VertexID & 1)) + side * (gl_VertexID < 2 ? 1.0 : -1.0);
  along = float(gl_VertexID & 1) * size;
  gl_Position = vec4(px.x / canvas.x * 2.0 - 1.0, 1.0 - px.y / canvas.y * 2.0, 0.0, 1.0);
}`;

const LINE_FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 colour; uniform bool dashed; uniform float dpr; in float along; out vec4 result;
void main() {
  if (dashed && mod(along / dpr, 10.0) > 6.0) discard;
  result = vec4(colour, 1.0);
}`;

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
    for (const line of frame.lines) {
      if (line.points.length < 2) continue;
      gl.bindBuffer(gl.ARRAY_BUFFER, this.lineBuffer);
      gl.bufferData(gl.ARRAY_BUFFER, Float32Array.from(line.points.flat()), gl.STREAM_DRAW);
      for (const index of [0, 1]) {
        gl.enableVertexAttribArray(index);
        gl.vertexAttribPointer(index, 2, gl.FLOAT, false, 8, 8 * index);
        gl.vertexAttribDivisor(index, 1);
      }
      gl.uniform1i(at("dashed"), Number(line.dashed ?? false));
      // A dark line below a bright one is visible on any background.
      for (const [extra, colour] of [[2, [0, 0, 0]], [0, line.colour]] as const) {
        gl.uniform1f(at("width"), (line.width + extra) * frame.dpr);
        gl.uniform3f(at("colour"), colour[0] / 255, colour[1] / 255, colour[2] / 255);
        gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, line.points.length - 1);
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
      if (state === SCORED && score >= style.threshold) {
        const at = 4 * Math.round(255 * position(score, style.low, style.high, style.gamma));
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
