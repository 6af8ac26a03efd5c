// Small components that several pages use.

import { score } from "./format";
import { change, useSettings } from "./settings";

export function Brand() {
  return <a class="brand" href="#/" title="All cases">Lobule</a>;
}

export function ThemeButton() {
  useSettings();
  const dark = document.documentElement.dataset.theme === "dark";
  return (
    <button onClick={() => change({ theme: dark ? "light" : "dark" })} title="Light or dark (D)" aria-label={dark ? "Light theme" : "Dark theme"}>
      {dark ? "☀" : "☾"}
    </button>
  );
}

export function Slider(props: {
  name: string; value: number; min: number; max: number; step: number; text: string; onInput: (value: number) => void;
}) {
  return (
    <label class="slider">
      <span>{props.name}</span>
      <input type="range" min={props.min} max={props.max} step={props.step} value={props.value} aria-label={props.name}
        onInput={(event) => props.onInput(Number(event.currentTarget.value))} />
      <output>{props.text}</output>
    </label>
  );
}

export function Switch(props: { name: string; hint?: string; on: boolean; onChange: (on: boolean) => void }) {
  return (
    <label class="switch">
      <input type="checkbox" checked={props.on} onChange={(event) => props.onChange(event.currentTarget.checked)} />
      <span>{props.name}</span>
      {props.hint && <kbd>{props.hint}</kbd>}
    </label>
  );
}

/** The tabs of a panel. Arrows go from tab to tab while one of them has the focus. */
export function Tabs<Name extends string>(props: { names: readonly Name[]; chosen: Name; text?: (name: Name) => string; onChoose: (name: Name) => void }) {
  const { names, chosen } = props;
  const onKeyDown = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.stopPropagation();
    const index = (names.indexOf(chosen) + by + names.length) % names.length;
    props.onChoose(names[index]);
    (event.currentTarget as HTMLElement).querySelectorAll("button")[index].focus();
  };
  return (
    <nav class="tabs" role="tablist" title="Next tab: q" onKeyDown={onKeyDown}>
      {names.map((name) => (
        <button key={name} role="tab" aria-selected={chosen === name} tabIndex={chosen === name ? 0 : -1} onClick={() => props.onChoose(name)}>
          {props.text?.(name) ?? name}
        </button>
      ))}
    </nav>
  );
}

export function next<Name>(names: readonly Name[], chosen: Name, by = 1): Name {
  return names[(names.indexOf(chosen) + by + names.length) % names.length];
}

/** A text whose parts in backticks are code. */
export function withCode(text: string) {
  return text.split("`").map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part));
}

export function Scores({ scores }: { scores: Record<string, number> }) {
  const entries = Object.entries(scores);
  return (
    <span class="scores">
      {entries.slice(0, 4).map(([name, value]) => <span key={name}>{name} <strong>{score(value)}</strong></span>)}
    </span>
  );
}
