// The display panel: everything here changes the picture in the next frame, without a request.

import { useEffect, useRef } from "preact/hooks";
import type { CaseDetail, ImageInfo } from "./api";
import { COLOUR_MAPS, DIFFERENCE, colourTable, position } from "./colours";
import { change, settings } from "./settings";
import type { SlideView } from "./slideview";
import { Slider, Switch } from "./widgets";
import { trim, word } from "./format";

export function DisplayPanel(props: { view: SlideView; detail: CaseDetail; onClass: (name: string) => void }) {
  const { view, detail } = props;
  const [lowest, high] = view.scoreRange;
  const difference = view.comparedWith !== null;
  const low = difference ? 0 : lowest;
  const classes = view.classes();
  return (
    <>
      {view.hasMaps ? (
        <section>
          <Switch name="Heatmap" hint="h" on={settings.heatmap} onChange={(heatmap) => change({ heatmap })} />
          {classes.length > 1 && (
            <label class="field"><span>Class</span>
              <select value={view.className} onChange={(event) => props.onClass(event.currentTarget.value)}>
                {classes.map((name) => <option key={name} value={name}>{word(name)}</option>)}
              </select>
            </label>
          )}
          <Legend low={lowest} high={high} difference={difference} />
          <Slider name="Opacity" min={0} max={1} step={0.01} value={settings.opacity} text={`${Math.round(100 * settings.opacity)} %`} onInput={(opacity) => change({ opacity })} />
          <Slider name="Threshold" min={low} max={high} step={(high - low) / 200} value={settings.threshold} text={trim(settings.threshold)} onInput={(threshold) => change({ threshold })} />
          <Slider name="Gamma" min={0.3} max={3} step={0.05} value={settings.gamma} text={settings.gamma.toFixed(2)} onInput={(gamma) => change({ gamma })} />
          <label class="field"><span>Colours</span>
            <select disabled={difference} value={settings.colours} onChange={(event) => change({ colours: event.currentTarget.value })}>
              {COLOUR_MAPS.map((name) => <option key={name} value={name}>{name}</option>)}
            </select>
          </label>
          <Switch name="Smooth between cells" on={settings.smooth} onChange={(smooth) => change({ smooth })} />
          <Switch name="Cells without a score" hint="v" on={settings.states} onChange={(states) => change({ states })} />
          {settings.states && (
            <ul class="patterns">
              <li><i class="pending" /> not scored yet</li>
              <li><i class="glass" /> glass</li>
              <li><i class="failed" /> failed</li>
            </ul>
          )}
        </section>
      ) : (
        <p class="subtle">This case has no map.</p>
      )}
      <section>
        <h2>Show</h2>
        <Switch name="Findings" hint="p" on={settings.points} onChange={(points) => change({ points })} />
        <Switch name="Outlines" hint="o" on={settings.outlines} onChange={(outlines) => change({ outlines })} />
        {detail.has_truth && <Switch name="Truth (dashed green)" hint="t" on={settings.truth} onChange={(truth) => change({ truth })} />}
        {view.hasMaps && <Switch name="Tissue" hint="T" on={settings.tissue} onChange={(tissue) => change({ tissue })} />}
        <Switch name="Viewed area" hint="w" on={settings.seen} onChange={(seen) => change({ seen })} />
        {view.image.profile?.applied && <Switch name="Colour profile" hint="i" on={settings.profile} onChange={(profile) => change({ profile })} />}
        <p class="subtle profile">{profileText(view.image)}</p>
      </section>
    </>
  );
}

/** Whether the colours on the screen are those that the scanner's profile asks for. */
export function profileText(image: ImageInfo): string {
  if (image.missing || !image.levels?.length) return "";
  if (!image.profile) return "The file has no colour profile: colours are shown as stored.";
  if (!image.profile.applied) return `Colour profile “${image.profile.name}”: the stored colours are shown.`;
  return settings.profile ? `Colour profile “${image.profile.name}” is applied.` : `Colour profile “${image.profile.name}” is not applied.`;
}

function Legend({ low, high, difference }: { low: number; high: number; difference: boolean }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { threshold } = settings;
  const [colours, gamma] = difference ? [DIFFERENCE, 1] : [settings.colours, settings.gamma];
  useEffect(() => {
    const context = canvas.current!.getContext("2d")!;
    const image = context.createImageData(256, 1);
    const table = colourTable(colours);
    for (let i = 0; i < 256; i++) {
      const value = low + (i / 255) * (high - low);
      const at = 4 * Math.round(255 * position(value, low, high, gamma));
      image.data.set([table[at], table[at + 1], table[at + 2], (difference ? Math.abs(value) : value) < threshold ? 0 : 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
  }, [colours, gamma, threshold, low, high, difference]);
  // The range of a difference is a little wider on one side, so that 0 is one of its 256 values.
  const ends = difference ? [-high, 0, high] : [low, (low + high) / 2, high];
  const share = Math.min(1, Math.max(0, (threshold - low) / (high - low)));
  return (
    <div class="legend">
      <canvas ref={canvas} width={256} height={1} role="img" aria-label={`Scores from ${trim(low)} to ${trim(high)}`} />
      <i class="mark" style={{ left: `${100 * share}%` }} />
      <div class="ends">{ends.map((value, index) => <span key={index}>{trim(value)}</span>)}</div>
    </div>
  );
}
