// The address of a view: its position and how it is displayed, so that a colleague sees the same picture.

import { caseHash, parseRoute } from "./route";
import { change, settings, type Settings } from "./settings";

const NUMBERS = { opacity: "o", threshold: "t", gamma: "g" } as const;
const SWITCHES = ["heatmap", "states", "smooth", "points", "outlines", "truth", "tissue", "seen", "profile"] as const;

/** The settings of the display as values of an address. */
export function displayValues(): Record<string, string> {
  const values: Record<string, string> = { show: SWITCHES.filter((name) => settings[name]).join("-"), c: settings.colours };
  for (const [name, key] of Object.entries(NUMBERS)) values[key] = String(settings[name as keyof typeof NUMBERS]);
  return values;
}

/** Display as an address says; an address without these values changes nothing. */
export function applyDisplay(values: URLSearchParams): void {
  const chosen: Partial<Settings> = {};
  const shown = values.get("show")?.split("-");
  if (shown) for (const name of SWITCHES) chosen[name] = shown.includes(name);
  for (const [name, key] of Object.entries(NUMBERS)) {
    const value = numberOf(values, key);
    if (value !== undefined) chosen[name as keyof typeof NUMBERS] = value;
  }
  if (values.has("c")) chosen.colours = values.get("c")!;
  if (Object.keys(chosen).length) change(chosen);
}

export function numberOf(values: URLSearchParams, name: string): number | undefined {
  const value = Number(values.get(name));
  return values.has(name) && Number.isFinite(value) ? value : undefined;
}

/** Keep the address of the current view in the address bar. */
export function rememberView(id: string, values: Record<string, string>): void {
  const hash = caseHash(id, values);
  if (parseRoute().id === id && location.hash !== hash) history.replaceState(null, "", hash);
}

/** Call a function with the values of the address now and whenever another address of the same case is opened. */
export function onAddress(id: string, apply: (values: URLSearchParams) => void): () => void {
  const onHash = () => {
    const route = parseRoute();
    if (route.id === id) apply(route.view);
  };
  addEventListener("hashchange", onHash);
  onHash();
  return () => removeEventListener("hashchange", onHash);
}

export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
