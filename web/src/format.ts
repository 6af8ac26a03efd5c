// Numbers and words as people read them.

export function score(value: number): string {
  return Number.isFinite(value) ? value.toFixed(3) : "–";
}

export function length(um: number): string {
  return um >= 1000 ? `${trim(um / 1000)} mm` : `${trim(um)} µm`;
}

export function area(um2: number): string {
  return um2 >= 1e5 ? `${trim(um2 / 1e6)} mm²` : `${trim(um2)} µm²`;
}

export function trim(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString("en");
}

/** The largest of 1, 2 and 5 times a power of ten that is at most `value`. */
export function roundLength(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return ([5, 2, 1].find((step) => step * power <= value) ?? 1) * power;
}

export function word(name: string): string {
  return name.replaceAll("_", " ");
}

export function count(number: number, noun: string): string {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** A number of things; large numbers are rounded, such as 1.2M, because their space is narrow. */
export function shortCount(value: number): string {
  return value < 10_000 ? value.toLocaleString("en") : value.toLocaleString("en", { notation: "compact" });
}
