// Mammograms on the screen with their full bit depth: integer textures, windowed by the graphics processor.

import type { Affine } from "./affine";
import { compile, GL_OPTIONS } from "./painter";

export interface GreyImage {
  width: number;
  height: number;
  values: Uint16Array;
}

export interface GreyFrame {
  image: GreyImage;
  /** Device pixels to pixels of the image. */
  inverse: Affine;
  /** Left, top, width and height of the pane in device pixels. */
  pane: [number, number, number, number];
  centre: number;
  width: number;
  invert: boolean;
  /** Centre and radius of the magnifier in device pixels; none if the radius is 0. */
  lens: [number, number, number];
}

export interface GreyPainter {
  readonly name: "webgl" | "canvas";
  readonly canvas: HTMLCanvasElement;
  clear(): void;
  paint(frame: GreyFrame): void;
}

const LENS = 2.5;

const VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0, 0.0, 1.0); }`;

const FRAGMENT = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D;
uniform usampler2D image; uniform mat3 inverse; uniform vec2 size; uniform float canvasHeight;
uniform float centre, width; uniform bool invert; uniform vec3 lens; uniform int levels;
out vec4 result;
float at(ivec2 index, int lod) {
  ivec2 last = textureSize(image, lod) - 1;
  return float(texelFetch(image, clamp(index, ivec2(0), last), lod).r);
}
void main() {
  vec2 px = vec2(gl_FragCoord.x, canvasHeight - gl_FragCoord.y);
  float zoom = 1.0;
  float distanceToLens = distance(px, lens.xy);
  bool magnified = lens.z > 0.0 && distanceToLens < lens.z;
  if (magnified) { px = lens.xy + (px - lens.xy) / ${LENS.toFixed(1)}; zoom = ${LENS.toFixed(1)}; }
  vec2 position = (inverse * vec3(px, 1.0)).xy;
  if (lens.z > 0.0 && abs(distanceToLens - lens.z) < 1.5) { result = vec4(0.9, 0.75, 0.2, 1.0); return; }
  if (any(lessThan(position, vec2(0.0))) || any(greaterThanEqual(position, size))) {
    result = vec4(invert ? vec3(1.0) : vec3(0.0), 1.0);
    return;
  }
  float pixels = length(inverse[0].xy) / zoom;
  int lod = clamp(int(floor(log2(max(pixels, 1.0)))), 0, levels - 1);
  float value;
  if (pixels < 0.5) value = at(ivec2(floor(position)), 0);
  else {
    vec2 p = position / float(1 << lod) - 0.5;
    ivec2 first = ivec2(floor(p));
    vec2 f = p - vec2(first);
    value = mix(mix(at(first, lod), at(first + ivec2(1, 0), lod), f.x),
                mix(at(first + ivec2(0, 1), lod), at(first + ivec2(1, 1), lod), f.x), f.y);
  }
  float grey = clamp((value - centre) / width + 0.5, 0.0, 1.0);
  result = vec4(vec3(invert ? 1.0 - grey : grey), 1.0);
}`;

class GlGrey implements GreyPainter {
  readonly name = "webgl";
  private program: WebGLProgram;
  private textures = new Map<GreyImage, { texture: WebGLTexture; levels: number }>();

  constructor(
    readonly canvas: HTMLCanvasElement,
    private gl: WebGL2RenderingContext,
  ) {
    this.program = compile(gl, VERTEX, FRAGMENT);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  }

  clear(): void {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0, 0, 0, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  paint(frame: GreyFrame): void {
    const gl = this.gl;
    const { texture, levels } = this.texture(frame.image);
    gl.useProgram(this.program);
    const at = (name: string) => gl.getUniformLocation(this.program, name);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    const [a, b, c, d, e, f] = frame.inverse;
    gl.uniformMatrix3fv(at("inverse"), false, [a, b, 0, c, d, 0, e, f, 1]);
    gl.uniform2f(at("size"), frame.image.width, frame.image.height);
    gl.uniform1f(at("canvasHeight"), this.canvas.height);
    gl.uniform1f(at("centre"), frame.centre);
    gl.uniform1f(at("width"), frame.width);
    gl.uniform1i(at("invert"), Number(frame.invert));
    gl.uniform3f(at("lens"), ...frame.lens);
    gl.uniform1i(at("levels"), levels);
    gl.uniform1i(at("image"), 0);
    const [left, top, width, height] = frame.pane;
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(left, this.canvas.height - top - height, width, height);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  private texture(image: GreyImage) {
    const gl = this.gl;
    const cached = this.textures.get(image);
    if (cached) return cached;
    const texture = gl.createTexture()!;
    gl.bindTexture(gl.TEXTURE_2D, texture);
    let level: GreyImage = image, levels = 0;
    for (; ; level = halved(level)) {
      gl.texImage2D(gl.TEXTURE_2D, levels++, gl.R16UI, level.width, level.height, 0, gl.RED_INTEGER, gl.UNSIGNED_SHORT, level.values);
      if (Math.max(level.width, level.height) < 256 || Math.min(level.width, level.height) < 2) break;
    }
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAX_LEVEL, levels - 1);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST_MIPMAP_NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    const entry = { texture, levels };
    this.textures.set(image, entry);
    return entry;
  }
}

function halved({ width, height, values }: GreyImage): GreyImage {
  const [w, h] = [Math.floor(width / 2), Math.floor(height / 2)];
  const out = new Uint16Array(w * h);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      const at = 2 * y * width + 2 * x;
      out[y * w + x] = (values[at] + values[at + 1] + values[at + width] + values[at + width + 1] + 2) >> 2;
    }
  return { width: w, height: h, values: out };
}

/** Without WebGL: the same picture, windowed by the processor at a reduced size. */
class CanvasGrey implements GreyPainter {
  readonly name = "canvas";
  private pictures = new Map<GreyImage, { key: string; picture: HTMLCanvasElement; small: GreyImage }>();

  constructor(
    readonly canvas: HTMLCanvasElement,
    private context: CanvasRenderingContext2D,
  ) {}

  clear(): void {
    this.context.setTransform(1, 0, 0, 1, 0, 0);
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  paint(frame: GreyFrame): void {
    const { context } = this;
    const picture = this.picture(frame);
    const [a, , , d, e, f] = frame.inverse;
    const scale = frame.image.width / picture.width;
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.beginPath();
    context.rect(...frame.pane);
    context.clip();
    context.setTransform(scale / a, 0, 0, scale / d, -e / a, -f / d);
    context.drawImage(picture, 0, 0);
    context.restore();
  }

  private picture({ image, centre, width, invert }: GreyFrame): HTMLCanvasElement {
    const key = `${centre} ${width} ${invert}`;
    const cached = this.pictures.get(image);
    if (cached?.key === key) return cached.picture;
    let small = cached?.small ?? image;
    while (Math.max(small.width, small.height) > 1500) small = halved(small);
    const picture = cached?.picture ?? document.createElement("canvas");
    Object.assign(picture, { width: small.width, height: small.height });
    const target = picture.getContext("2d")!;
    const data = target.createImageData(small.width, small.height);
    for (let i = 0; i < small.values.length; i++) {
      const grey = Math.min(1, Math.max(0, (small.values[i] - centre) / width + 0.5));
      data.data.fill(Math.round(255 * (invert ? 1 - grey : grey)), 4 * i, 4 * i + 3);
      data.data[4 * i + 3] = 255;
    }
    target.putImageData(data, 0, 0);
    this.pictures.set(image, { key, picture, small });
    return picture;
  }
}

export function createGreyPainter(plain: boolean, onLost: () => void): GreyPainter {
  const canvas = document.createElement("canvas");
  const gl = plain ? null : canvas.getContext("webgl2", { ...GL_OPTIONS, alpha: false });
  if (gl) {
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      onLost();
    });
    try {
      return new GlGrey(canvas, gl);
    } catch (error) {
      console.warn("WebGL 2 cannot be used:", error);
      return createGreyPainter(true, onLost);
    }
  }
  return new CanvasGrey(canvas, canvas.getContext("2d")!);
}
