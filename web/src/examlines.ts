// The lines over a view of an exam: truth, findings, outlines of reviews and the one that is being drawn.

import type { Finding } from "./api";
import type { ExamView } from "./examview";
import type { Line } from "./painter";
import { settings } from "./settings";
import { closed } from "./slidelines";

type Colour = [number, number, number];
const GRADE_COLOURS: Record<string, Colour> = { malignant: [255, 90, 90], benign: [90, 200, 255] };
/** Radius of the ring around a finding without a box, in millimetres. */
const RING_MM = 6;
const FINDING_COLOUR: Colour = [0, 200, 255];
const CHOSEN_COLOUR: Colour = [255, 217, 0];
const DRAWN_COLOUR: Colour = [255, 110, 180];
const DRAWING_COLOUR = DRAWN_COLOUR;

/** What is drawn over one view. */
export function examLines(view: ExamView, name: string): Line[] {
  const lines: Line[] = [];
  const ofView = <T extends { name: string }>(outlines: T[]) => outlines.filter((one) => one.name === name);
  if (settings.truth)
    for (const { group, rings } of ofView(view.truth))
      for (const ring of rings) lines.push({ points: closed(ring), colour: GRADE_COLOURS[group] ?? [60, 220, 120], width: 2, dashed: true });
  for (const finding of view.findings) {
    const isChosen = finding.number === view.selected;
    if (finding.image === name && (isChosen || settings.examFindings))
      for (const points of view.outlines.get(finding.number) ?? [frame(finding, RING_MM / view.mm(name))])
        lines.push({ points: closed(points), colour: isChosen ? CHOSEN_COLOUR : FINDING_COLOUR, width: isChosen ? 3 : 2 });
  }
  for (const { points } of ofView(view.drawn)) lines.push({ points: closed(points), colour: DRAWN_COLOUR, width: 2 });
  if (view.drawing?.name === name) lines.push({ points: view.drawing.points, colour: DRAWING_COLOUR, width: 2 });
  return lines;
}

/** The box of a finding, or a ring around its position. */
function frame({ box, l0_x, l0_y }: Finding, radius: number): number[][] {
  if (box) {
    const [x, y, width, height] = box;
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
  }
  const angles = Array.from({ length: 48 }, (_, index) => (index / 48) * 2 * Math.PI);
  return angles.map((angle) => [l0_x + radius * Math.cos(angle), l0_y + radius * Math.sin(angle)]);
}
