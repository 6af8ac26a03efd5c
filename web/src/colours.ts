// Colour maps that people with colour blindness can read, as tables of 256 colours.

const STOPS: Record<string, string> = {
  cividis:
    "00224e002a5f0031701a386f2a3f6d38476c434e6c4d556c575d6d61656f6a6c717374757d7c78868379918b789b9476a59c74b0a571bcae6cc6b667d2c060dec958e9d34ef6dd3ffee838",
  viridis:
    "440154471063481f70472d7b4439834046883b528b365d8d31688e2c728e287c8e24868e21918c1f9a8a20a48628ae8035b77948c16e5ec96275d05490d743addc30c8e020e5e419fde725",
  magma:
    "000004050416100b2d1d11472c115f3f0f7251127c601880721f81832681932b80a5317eb73779c73d73d8456ce75263f1605df8745cfc8961fd9b6bfeb078fec488fed799fdebacfcfdbf",
};

export const COLOUR_MAPS = Object.keys(STOPS);

/** For differences: blue below zero, white at zero, orange above. It is chosen by the page, not by a person. */
export const DIFFERENCE = "difference";
STOPS[DIFFERENCE] = "0530612166ac4393c392c5ded1e5f0f7f7f7fee6cefdae6bf16913d948017f2704";

export function colourTable(name: string): Uint8Array {
  const text = STOPS[name] ?? STOPS.cividis;
  const stops = Array.from({ length: text.length / 6 }, (_, i) =>
    [0, 2, 4].map((offset) => parseInt(text.slice(6 * i + offset, 6 * i + offset + 2), 16)),
  );
  const table = new Uint8Array(4 * 256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++)
      table[4 * i + c] = Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]));
    table[4 * i + 3] = 255;
  }
  return table;
}

/** Position of a score in the colour map, 0 to 1. */
export function position(score: number, low: number, high: number, gamma: number): number {
  return Math.min(1, Math.max(0, (score - low) / (high - low))) ** gamma;
}
