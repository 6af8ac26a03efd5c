// Keys of a page. A page's keys do not act while a person types in a field.

import { useEffect, useRef } from "preact/hooks";

export type Keys = Record<string, (event: KeyboardEvent) => void>;

/** The keys of everything on the page; what was added last comes first, so that Escape ends a mode before it leaves. */
const groups: { current: Keys }[] = [];

addEventListener("keydown", (event) => {
  const target = event.target as HTMLElement;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !/^(range|checkbox)$/.test((target as HTMLInputElement).type);
  if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
  if (typing) {
    target.blur();
    return;
  }
  const isSlider = target.tagName === "INPUT" && event.key.startsWith("Arrow");
  const isButton = (/^(BUTTON|A)$/.test(target.tagName) && event.key === "Enter") || (/^(BUTTON|INPUT)$/.test(target.tagName) && event.key === " ");
  const action = groups.findLast((keys) => keys.current[event.key])?.current[event.key];
  const isScrolled = target.getAttribute("role") === "tabpanel" && !event.shiftKey && /^(Arrow(Up|Down)|Page|Home|End)/.test(event.key);
  if (!action || isSlider || isButton || isScrolled) return;
  event.preventDefault();
  action(event);
});

export function useKeys(keys: Keys): void {
  const current = useRef(keys);
  current.current = keys;
  useEffect(() => {
    groups.push(current);
    return () => void groups.splice(groups.indexOf(current), 1);
  }, []);
}
