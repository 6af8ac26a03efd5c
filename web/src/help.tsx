// The overlay that lists the keys.

import { useEffect, useRef } from "preact/hooks";

const SECTIONS: [string, [string, string][]][] = [
  ["Everywhere", [["?", "this list"], ["D", "light or dark"], ["Esc", "close, or back to the cases"]]],
  ["Cases", [["↑ ↓", "choose a case"], ["Enter", "open it"], ["/", "search"], ["s", "sort by the next column"], ["S", "reverse the order"], ["f", "next status"], ["R", "table of reviews"]]],
  ["Slide and exam", [
    ["arrows", "move"], ["⇧ arrows", "move a cross instead of the mouse"], ["+ −", "zoom"], ["[ ]", "opacity of the heatmap"], [", .", "threshold of the heatmap"],
    ["c", "next colour map"], ["t", "truth"], ["n N", "next or previous finding"], ["y", "copy the coordinates"], ["Y", "copy the address of the view"],
    ["q Q", "next or previous tab of the panel"], ["F", "full screen"], ["J K", "next or previous case"],
  ]],
  ["Review", [
    ["a", "accept the finding"], ["x", "reject it"], ["u", "undo"], ["e", "draw a finding, then Enter"], ["Space", "set a point at the cross"],
    ["⌫", "remove the last point"], ["M", "write a note"],
  ]],
  ["Slide", [
    ["0", "whole slide"], ["1 … 4", "5×, 10×, 20×, 40×"], ["r R", "rotate by 90°"], ["f", "flip"], ["g", "gallery of the highest fields"],
    ["h", "heatmap"], ["k", "next class of the map"], ["p", "points"], ["o", "outlines"], ["T", "tissue"], ["v", "cells without a score"],
    ["w", "area that was viewed"], ["i", "colour profile"], ["s", "side by side: the next result, or the truth"], ["d", "map of the difference"],
    ["m", "measure: two points"], ["L", "relabel the finding"],
  ]],
  ["Exam", [
    ["0", "whole views, first window"], ["1 … 4", "one view alone, or all"], ["h", "next heatmap: off, benign, malignant"], ["i", "invert"],
    ["w W", "window wider or narrower"], ["l L", "level up or down"], ["m", "magnifier"], ["p", "mark all findings"],
    ["B", "calibrate the screen"], ["b", "true size, after calibration"], ["s", "side by side: another exam"], ["R", "relabel the finding"],
  ]],
  ["Mouse", [
    ["wheel", "zoom"], ["drag", "move"], ["right", "slide: copy the coordinates; exam: drag for window and level, also with Shift"], ["double", "slide: zoom in; exam: one view alone"],
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
