// Display settings: kept in the browser between visits, changed without a request to the server.

import { useEffect, useState } from "preact/hooks";

export interface Settings {
  theme: "system" | "light" | "dark";
  heatmap: boolean;
  /** Mark all findings of an exam, not only the chosen one. */
  examFindings: boolean;
  opacity: number;
  threshold: number;
  gamma: number;
  colours: string;
  states: boolean;
  smooth: boolean;
  points: boolean;
  outlines: boolean;
  truth: boolean;
  seen: boolean;
  /** Outline the tissue: the map cells that are not glass. */
  tissue: boolean;
  /** Convert the colours of the slide by its ICC profile. */
  profile: boolean;
  person: string;
}

const DEFAULTS: Settings = {
  theme: "system",
  heatmap: true,
  examFindings: false,
  opacity: 0.6,
  threshold: 0.2,
  gamma: 1,
  colours: "viridis",
  states: true,
  smooth: true,
  points: true,
  outlines: true,
  truth: false,
  seen: false,
  tissue: false,
  profile: true,
  person: "",
};

const KEY = "lobule-settings";
const listeners = new Set<() => void>();

function load(): Settings {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Settings>;
    const known = Object.entries(stored).filter(([name, value]) => typeof value === typeof DEFAULTS[name as keyof Settings]);
    return { ...DEFAULTS, ...Object.fromEntries(known), examFindings: false };
  } catch {
    return { ...DEFAULTS };
  }
}

export let settings = load();

export function change(values: Partial<Settings>): void {
  settings = { ...settings, ...values };
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Private windows may have no storage; the settings then last as long as the page.
  }
  if ("theme" in values) applyTheme();
  for (const listener of listeners) listener();
}

/** Raise or lower a setting between 0 and 1. */
export function nudge(name: "opacity" | "threshold", by: number): void {
  change({ [name]: Math.min(1, Math.max(0, Math.round((settings[name] + by) * 100) / 100)) });
}

export function onChange(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function useSettings(): Settings {
  const [, update] = useState(0);
  useEffect(() => onChange(() => update((count) => count + 1)), []);
  return settings;
}

export function applyTheme(): void {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = settings.theme === "system" ? (dark ? "dark" : "light") : settings.theme;
}
