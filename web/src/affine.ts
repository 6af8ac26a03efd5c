// Affine transformations of positions.

/** x' = a·x + c·y + e, y' = b·x + d·y + f. */
export type Affine = [number, number, number, number, number, number];

export function apply([a, b, c, d, e, f]: Affine, x: number, y: number): [number, number] {
  return [a * x + c * y + e, b * x + d * y + f];
}

/** The affine that applies `second` first and `first` to its result. */
export function multiply(first: Affine, second: Affine): Affine {
  const [a, b] = apply([...first.slice(0, 4), 0, 0] as Affine, second[0], second[1]);
  const [c, d] = apply([...first.slice(0, 4), 0, 0] as Affine, second[2], second[3]);
  return [a, b, c, d, ...apply(first, second[4], second[5])];
}

export function invert([a, b, c, d, e, f]: Affine): Affine {
  const determinant = a * d - b * c;
  const [ia, ib, ic, id] = [d / determinant, -b / determinant, -c / determinant, a / determinant];
  return [ia, ib, ic, id, -(ia * e + ic * f), -(ib * e + id * f)];
}
