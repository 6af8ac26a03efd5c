// The overlay that lists the keys.

import { useEffect, useRef } from "preact/hooks";

const SECTIONS: [string, [string, string][]][] = [
  ["Everywhere", [["?", "this list"], ["D", "light or dark"], ["Esc", "close, or back to the cases"]]],
  ["Cases", [["↑ ↓", "choose a case"], ["Enter", "open it"], ["/", "search"], ["s", "sort by the next column"], ["S", "reverse the order"]]],
  ["Slide", [
    ["arrows", "move"], ["+ −", "zoom"], ["0", "whole slide"], ["1 … 4", "5×, 10×, 20×, 40×"], ["r R", "rotate by 90°"], ["f", "flip"],
    ["F", "full screen"], ["n N", "next or previous finding"], ["g", "gallery of the highest fields"], ["h", "heatmap"], ["[ ]", "opacity"],
    [", .", "threshold"], ["c", "next colour map"], ["p", "points"], ["o", "outlines"], ["t", "truth"], ["v", "cells without a score"],
    ["w", "area that was viewed"], ["s", "side by side: the next result, or the truth"], ["d", "map of the difference"], ["m", "measure"], ["y", "copy the coordinates"], ["J K", "next or previous case"],
  ]],
  ["Review", [["a", "accept the finding"], ["x", "reject it"], ["u", "undo"], ["e", "draw a finding: click its outline, then Enter"]]],
  ["Exam", [
    ["h", "next heatmap: off, benign, malignant"], ["i", "invert"], ["w W", "window wider or narrower"], ["l L", "level up or down"],
    ["0", "whole views"], ["+ −", "zoom, all views together"], ["arrows", "move"], ["1 … 4", "one view alone, or all"],
    ["m", "magnifier"], ["t", "truth"], ["b", "true size, after calibration"], ["s", "side by side: another exam of the patient"], ["wheel", "zoom"], ["right drag", "window and level"],
  ]],
];

export function Help({ onClose }: { onClose: () => void }) {
  const close = useRef<HTMLButtonElement>(null);
  useEffect(() => close.current?.focus(), []);
  return (
    <div class="shade" onClick={onClose}>
      <section class="help" role="dialog" aria-modal="true" aria-label="Keys" onClick={(event) => event.stopPropagation()}
        onKeyDown={(event) => event.key === "Tab" && event.preventDefault()}>
        <div class="title"><h2>Keys</h2><button ref={close} onClick={onClose}>Close</button></div>
        <div class="columns">
          {SECTIONS.map(([title, keys]) => (
            <div key={title} class="group">
              <h3>{title}</h3>
              <dl>{keys.map(([key, meaning]) => [<dt><kbd>{key}</kbd></dt>, <dd>{meaning}</dd>])}</dl>
            </div>
          ))}
        </div>
      </section>
    </div>
  );
}
