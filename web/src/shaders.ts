// The WebGL2 programs of the painter: map cells, points of findings, and lines.

export const QUAD_VERTEX = `#version 300 es
uniform mat3 affine; uniform vec4 l0; uniform vec4 area; uniform vec2 canvas;
out vec2 cell;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  cell = mix(area.xy, area.zw, corner);
  vec2 px = (affine * vec3(mix(l0.xy, l0.zw, corner), 1.0)).xy;
  gl_Position = vec4(px.x / canvas.x * 2.0 - 1.0, 1.0 - px.y / canvas.y * 2.0, 0.0, 1.0);
}`;

/**
 * Texels are the score of a scored cell (else 0), 255 for a scored cell (else 0), and the cell's state. The names in
 * `#ifdef` are those of `mapFragment`: without a graphics processor, each line here costs milliseconds per frame.
 */
const MAP_FRAGMENT = `
precision highp float;
uniform sampler2D cells, colours;
uniform vec2 texel; // 1 / size of the tile
uniform vec2 range; // score = range.x + value * range.y
uniform vec2 position; // position in the colour map = position.x + value * position.y
uniform float threshold, gamma, opacity, dpr;
in vec2 cell; out vec4 result;
#ifdef STATES
vec4 pattern(uint state) {
  vec2 px = floor(gl_FragCoord.xy / dpr);
  float down = mod(px.x + px.y, 8.0), up = mod(px.x - px.y + 8000.0, 8.0);
  if (state == 0u && down < 2.0) return vec4(0.43, 0.55, 0.75, 0.5);
  if (state == 1u && mod(px.x, 8.0) < 1.0 && mod(px.y, 8.0) < 1.0) return vec4(0.5, 0.5, 0.5, 0.3);
  if (state == 3u && (down < 2.0 || up < 2.0)) return vec4(0.86, 0.16, 0.63, 0.75);
  return vec4(0.0);
}
#endif
void main() {
#if defined(UNSCORED) || !defined(SMOOTHED)
  vec3 here = texelFetch(cells, ivec2(cell) + 1, 0).rgb;
  float value = here.r;
#endif
#ifdef UNSCORED
  if (here.g == 0.0) {
#ifdef STATES
    vec4 colour = pattern(uint(here.b * 255.0 + 0.5));
    if (colour.a == 0.0) discard;
    result = vec4(colour.rgb * colour.a, colour.a);
    return;
#else
    discard;
#endif
  }
#endif
#ifdef SMOOTHED
  // Unscored cells count for nothing in both sums, so the quotient is the mean of the scored cells.
  vec2 sums = textureLod(cells, (cell + 1.0) * texel, 0.0).rg;
#ifdef UNSCORED
  value = sums.r / sums.g;
#else
  float value = sums.r / sums.g;
#endif
#endif
  float score = range.x + value * range.y;
  float t = clamp(position.x + value * position.y, 0.0, 1.0);
#ifdef DIVERGING
  score = abs(score);
#endif
#ifdef GAMMA
  t = pow(t, gamma);
#endif
  float alpha = score < threshold ? 0.0 : opacity;
  result = vec4(texelFetch(colours, ivec2(t * 255.0 + 0.5, 0), 0).rgb * alpha, alpha);
}`;

export type MapFeature = "STATES" | "UNSCORED" | "SMOOTHED" | "DIVERGING" | "GAMMA";

/** The fragment shader of maps with only the features that a tile needs. */
export function mapFragment(features: MapFeature[]): string {
  return `#version 300 es\n${features.map((name) => `#define ${name}\n`).join("")}${MAP_FRAGMENT}`;
}

export const POINT_VERTEX = `#version 300 es
uniform mat3 affine; uniform vec2 canvas; uniform float dpr, largest, most, selected; uniform vec2 domain; uniform float gamma;
uniform sampler2D colours;
layout(location = 0) in float x; layout(location = 1) in float y;
layout(location = 2) in float score; layout(location = 3) in uint number;
flat out vec3 fill; flat out float size;
void main() {
  vec2 px = (affine * vec3(x, y, 1.0)).xy;
  bool chosen = largest == 0.0 && float(number) == selected;
  float t = pow(clamp((score - domain.x) / (domain.y - domain.x), 0.0, 1.0), gamma);
  fill = chosen ? vec3(1.0, 0.85, 0.0) : texelFetch(colours, ivec2(t * 255.0 + 0.5, 0), 0).rgb;
  gl_Position = vec4(px.x / canvas.x * 2.0 - 1.0, 1.0 - px.y / canvas.y * 2.0, 0.0, 1.0);
  size = dpr * (largest > 0.0 ? max(6.0, largest * log(1.0 + float(number)) / log(1.0 + most)) : chosen ? 16.0 : 9.0);
  gl_PointSize = size;
}`;

export const POINT_FRAGMENT = `#version 300 es
precision highp float;
flat in vec3 fill; flat in float size; out vec4 result;
void main() {
  float r = length(gl_PointCoord * 2.0 - 1.0);
  float alpha = clamp((1.0 - r) * 0.5 * size, 0.0, 1.0);
  if (alpha == 0.0) discard;
  vec3 colour = r > 0.82 ? vec3(0.0) : r > 0.6 ? vec3(1.0) : fill;
  result = vec4(colour * alpha, alpha);
}`;

/** Lines are one pixel wider than stated, so that their edges can be smoothed. */
export const LINE_VERTEX = `#version 300 es
uniform mat3 affine; uniform vec2 canvas; uniform float width;
layout(location = 0) in vec2 from; layout(location = 1) in vec2 to;
out float along; out float aside;
void main() {
  vec2 a = (affine * vec3(from, 1.0)).xy, b = (affine * vec3(to, 1.0)).xy;
  vec2 direction = b - a; float size = max(length(direction), 1e-6);
  aside = (0.5 * width + 0.5) * (gl_VertexID < 2 ? 1.0 : -1.0);
  vec2 px = mix(a, b, float(gl_VertexID & 1)) + vec2(-direction.y, direction.x) / size * aside;
  along = float(gl_VertexID & 1) * size;
  gl_Position = vec4(px.x / canvas.x * 2.0 - 1.0, 1.0 - px.y / canvas.y * 2.0, 0.0, 1.0);
}`;

export const LINE_FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 colour; uniform bool dashed; uniform float dpr, width; in float along; in float aside; out vec4 result;
void main() {
  if (dashed && mod(along / dpr, 10.0) > 6.0) discard;
  float alpha = clamp(0.5 * width + 0.5 - abs(aside), 0.0, 1.0);
  result = vec4(colour * alpha, alpha);
}`;
