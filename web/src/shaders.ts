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

export const MAP_FRAGMENT = `#version 300 es
precision highp float; precision highp usampler2D;
uniform usampler2D cells; uniform sampler2D colours; uniform vec2 range; uniform vec2 domain;
uniform float threshold, gamma, opacity, dpr; uniform bool smoothed, states, diverging;
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
  if ((diverging ? abs(score) : score) < threshold) { result = vec4(0.0); return; }
  float t = pow(clamp((score - domain.x) / (domain.y - domain.x), 0.0, 1.0), diverging ? 1.0 : gamma);
  result = vec4(texture(colours, vec2((t * 255.0 + 0.5) / 256.0, 0.5)).rgb * opacity, opacity);
}`;

export const POINT_VERTEX = `#version 300 es
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

export const POINT_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D colours; in float t; in float chosen; out vec4 result;
void main() {
  float r = 2.0 * length(gl_PointCoord - 0.5);
  if (r > 1.0) discard;
  vec3 fill = texture(colours, vec2((t * 255.0 + 0.5) / 256.0, 0.5)).rgb;
  vec3 colour = r > 0.82 ? vec3(0.0) : r > 0.6 ? vec3(1.0) : (chosen > 0.0 ? vec3(1.0, 0.85, 0.0) : fill);
  result = vec4(colour, 1.0);
}`;

export const LINE_VERTEX = `#version 300 es
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

export const LINE_FRAGMENT = `#version 300 es
precision highp float;
uniform vec3 colour; uniform bool dashed; uniform float dpr; in float along; out vec4 result;
void main() {
  if (dashed && mod(along / dpr, 10.0) > 6.0) discard;
  result = vec4(colour, 1.0);
}`;
