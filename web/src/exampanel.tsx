// What the panel of an exam shows: the scores of the breasts, and the calibration of the screen.

import { useState } from "preact/hooks";
import { Bar } from "./caselist";
import { score, word } from "./format";

const CALIBRATION = "lobule-px-per-mm";
const BAR_PX = 280;

/** CSS pixels per millimetre of the screen; 0 if it was not calibrated. */
export function pxPerMm(): number {
  return Number(localStorage.getItem(CALIBRATION)) || 0;
}

export function BreastScores(props: { scores: Record<string, number>; spread?: Record<string, { least: number; greatest: number }>; labels?: Record<string, boolean> }) {
  const names = Object.keys(props.scores);
  if (!names.length) return <p class="subtle">This exam has no scores.</p>;
  return (
    <section>
      <h2>Breast scores</h2>
      <table class="plain">
        <tbody>
          {names.map((name) => {
            const spread = props.spread?.[name];
            const label = props.labels?.[name];
            return (
              <tr key={name}>
                <th>{word(name)}</th>
                <td>
                  <Bar value={props.scores[name]} />
                  <div class="subtle">
                    {[spread && spread.least < spread.greatest && `${score(spread.least)} to ${score(spread.greatest)}`, label !== undefined && `truth: ${label ? "yes" : "no"}`].filter(Boolean).join(" · ")}
                  </div>
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

/** One measurement of the screen with a ruler gives its pixels per millimetre. */
export function Calibration({ onDone, onShow }: { onDone: () => void; onShow: () => void }) {
  const [mm, setMm] = useState("");
  const calibrated = pxPerMm();
  return (
    <section>
      <h2>True size</h2>
      <div class="ruler" style={{ width: `${BAR_PX}px` }} />
      <form class="inline" onSubmit={(event) => {
        event.preventDefault();
        if (Number(mm) > 10) localStorage.setItem(CALIBRATION, String(BAR_PX / Number(mm)));
        (document.activeElement as HTMLElement).blur();
        onDone();
      }}>
        <input id="calibration" type="number" min="11" max="1000" step="0.5" placeholder="length of the bar, mm" aria-label="Length of the bar in millimetres" value={mm} onInput={(event) => setMm(event.currentTarget.value)} />
        <button disabled={!(Number(mm) > 10)}>Calibrate <kbd>B</kbd></button>
      </form>
      {calibrated > 0 && <button onClick={onShow}>Show true size ({calibrated.toPrecision(3)} px per mm) <kbd>b</kbd></button>}
    </section>
  );
}
