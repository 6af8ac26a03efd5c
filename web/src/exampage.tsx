// The page of an exam: four views, their heatmaps, and the scores of the breasts.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";
import { get, type CaseDetail, type Reviews } from "./api";
import { Bar } from "./caselist";
import { neighbours, type CasePageProps } from "./casepage";
import { ExamView, PANES } from "./examview";
import { score, word } from "./format";
import { useKeys } from "./keys";
import { DetailsPanel } from "./provenance";
import { ReviewPanel, sendReview } from "./review";
import { caseHash } from "./route";
import { change, settings, useSettings } from "./settings";
import { Brand, Slider, Switch, ThemeButton } from "./widgets";

const CALIBRATION = "lobule-px-per-mm";
const BAR_PX = 280;

export function ExamPage({ detail, cases, session, onHelp }: CasePageProps) {
  useSettings();
  const host = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<ExamView | null>(null);
  const [, update] = useReducer((count: number) => count + 1, 0);
  const [tab, setTab] = useState<"scores" | "review" | "details">("scores");
  const [reviews, setReviews] = useState<Reviews>({});
  const [message, setMessage] = useState("");
  const [beside, setBeside] = useState("");
  const drag = useRef<{ x: number; y: number; windowing: boolean; name?: string } | null>(null);

  useEffect(() => {
    const created = new ExamView(host.current!, detail);
    let pending = 0;
    created.onUpdate = () => {
      if (!pending) pending = requestAnimationFrame(() => { pending = 0; update(0); });
    };
    setView(created);
    (window as unknown as { lobule: unknown }).lobule = { exam: created, change };
    void get<Reviews>(`cases/${detail.id}/reviews`).then(setReviews, () => {});
    return () => {
      cancelAnimationFrame(pending);
      created.destroy();
    };
  }, [detail]);

  const say = (text: string) => {
    setMessage(text);
    setTimeout(() => setMessage(""), 3000);
  };
  const local = (event: MouseEvent): [number, number] => {
    const bounds = host.current!.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };
  const onDown = (event: PointerEvent) => {
    const [x, y] = local(event);
    drag.current = { x, y, windowing: event.button === 2 || event.shiftKey, name: view?.at(x, y)?.name };
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
  };
  const onMove = (event: PointerEvent) => {
    if (!view) return;
    const [x, y] = local(event);
    view.pointer = [x, y];
    if (drag.current) {
      const [dx, dy] = [x - drag.current.x, y - drag.current.y];
      if (drag.current.windowing) view.setWindow(view.centre + (dy * view.width) / 400, view.width * 1.005 ** dx);
      else view.moveBy(dx, dy, drag.current.name);
      Object.assign(drag.current, { x, y });
    } else if (view.lens) view.redraw();
    update(0);
  };
  const alone = (index: number) => {
    if (!view) return;
    view.single = view.single === PANES[index] ? null : PANES[index];
    view.zoom = 1;
    view.pan = null;
    view.redraw();
  };
  const trueSize = () => {
    const perMm = Number(localStorage.getItem(CALIBRATION));
    if (!view) return;
    if (![...view.views.values()].some((one) => one.info.mm_per_px)) return say("The files do not state the size of a pixel.");
    if (!perMm) return say("Calibrate the screen first: measure the bar in the panel with a ruler.");
    view.zoomBy(perMm / view.scale);
  };
  const review = async (action: string, values: object = {}) => {
    try {
      setReviews(await sendReview(detail.id, action, values));
      return true;
    } catch (error) {
      say(error instanceof Error ? error.message : String(error));
      return false;
    }
  };
  const others = detail.other_exams ?? [];
  const nextBeside = () => {
    if (!others.length) return say("The cohort has no other exam of this patient.");
    const ids = ["", ...others.map((other) => other.id)];
    setBeside(ids[(ids.indexOf(beside) + 1) % ids.length]);
  };
  const [before, after] = neighbours(cases, detail.id);
  const visit = (row?: { id: string }) => row && (location.hash = caseHash(row.id));
  useKeys({
    h: () => view?.nextHeatmap(),
    i: () => { if (view) { view.inverted = !view.inverted; view.redraw(); } },
    w: () => view?.setWindow(view.centre, view.width * 1.1), W: () => view?.setWindow(view.centre, view.width / 1.1),
    l: () => view?.setWindow(view.centre + view.width / 20, view.width), L: () => view?.setWindow(view.centre - view.width / 20, view.width),
    "0": () => { view?.reset(); view?.resetWindow(); },
    "+": () => view?.zoomBy(1.3), "=": () => view?.zoomBy(1.3), "-": () => view?.zoomBy(1 / 1.3),
    ArrowLeft: () => view?.moveBy(60, 0), ArrowRight: () => view?.moveBy(-60, 0), ArrowUp: () => view?.moveBy(0, 60), ArrowDown: () => view?.moveBy(0, -60),
    "1": () => alone(0), "2": () => alone(1), "3": () => alone(2), "4": () => alone(3),
    m: () => { if (view) { view.lens = !view.lens; view.redraw(); } },
    t: () => change({ truth: !settings.truth }), b: trueSize, u: () => void review("undo"),
    "[": () => change({ opacity: Math.max(0, settings.opacity - 0.1) }), "]": () => change({ opacity: Math.min(1, settings.opacity + 0.1) }),
    s: nextBeside, J: () => visit(after), K: () => visit(before),
  });

  const at = view?.pointer ? view.at(...view.pointer) : null;
  const heat = view?.pointer ? view.scoreAt(...view.pointer) : null;
  return (
    <div class="case-page">
      <header class="bar">
        <Brand />
        <h1>{detail.name}</h1>
        <span class={`chip ${detail.status.replace(" ", "-")}`}>{detail.status}</span>
        <span class="space" />
        {others.map((other) => (
          <button key={other.id} aria-pressed={beside === other.id} onClick={() => setBeside(beside === other.id ? "" : other.id)} title="Side by side, in the same scale (s)">
            {other.relation === "unknown" ? "other exam" : other.relation} {dateText(other.date) || other.name}
          </button>
        ))}
        <span class={`chip ${view?.heatmap ? "heat" : ""}`} title="h">{view?.heatmap ? `heatmap: ${view.heatmap}` : "heatmaps off"}</span>
        <button disabled={!before} onClick={() => visit(before)} title="Previous case (K)" aria-label="Previous case">‹</button>
        <button disabled={!after} onClick={() => visit(after)} title="Next case (J)" aria-label="Next case">›</button>
        <ThemeButton />
        <button onClick={onHelp} title="Keys (?)">?</button>
      </header>
      <main class={`stage ${beside ? "halved" : ""}`}>
        {beside && view && <BesideExam key={beside} id={beside} main={view} />}
        <div class="exam" ref={host} role="application" aria-label={`Exam ${detail.name}`} tabIndex={0}
          onPointerDown={onDown} onPointerMove={onMove} onPointerUp={() => (drag.current = null)} onContextMenu={(event) => event.preventDefault()}
          onPointerLeave={() => { if (view && !drag.current) { view.pointer = null; view.redraw(); } }}
          onWheel={(event) => { event.preventDefault(); view?.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...local(event)); }} />
        {view && PANES.map((name) => {
          const [left, top, width, height] = view.pane(name);
          if (!width) return null;
          const loaded = view.views.get(name);
          const text = loaded ? loaded.problem || (loaded.image ? "" : "Loading …") : `${name} is missing.`;
          const outer = name.startsWith("R") ? "left" : "right";
          return (
            <div key={name} class={`pane ${outer}`} style={{ left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` }}>
              <strong>{name}</strong>
              {text && <p class="notice">{text}</p>}
            </div>
          );
        })}
        <div class="notices">
          {view?.renderer === "canvas" && <p class="notice" role="note">WebGL is not available: views are shown at a reduced resolution.</p>}
          {message && <p class="notice" role="status">{message}</p>}
        </div>
        <div class="readout">
          {view && <span>level {Math.round(view.centre)}, width {Math.round(view.width)}</span>}
          {at && at.value !== null && <span class="coordinates">{at.name} column {at.column}, row {at.row}: <strong data-value={at.value}>{at.value}</strong></span>}
          {heat !== null && <span>{view?.heatmap} {score(heat)}</span>}
        </div>
      </main>
      <aside class="panel">
        <nav class="tabs" role="tablist">
          {(["scores", "review", "details"] as const).map((name) => (
            <button key={name} role="tab" aria-selected={tab === name} onClick={() => setTab(name)}>{name}</button>
          ))}
        </nav>
        <div class="tab" role="tabpanel">
          {tab === "scores" && <>
            <BreastScores scores={detail.scores} spread={detail.details.spread as Record<string, { least: number; greatest: number }> | undefined} labels={detail.breast_labels} />
            {!!detail.missing_views?.length && <p class="notice bad">Missing: {detail.missing_views.join(", ")}.</p>}
            {view && (
              <section>
                <h2>Heatmap <kbd>h</kbd></h2>
                <div class="buttons">
                  {[null, ...view.grades()].map((grade) => (
                    <button key={grade ?? "off"} aria-pressed={view.heatmap === grade} onClick={() => view.showHeatmap(grade)}>{grade ?? "off"}</button>
                  ))}
                </div>
                <Slider name="Opacity" min={0} max={1} step={0.01} value={settings.opacity} text={`${Math.round(100 * settings.opacity)} %`} onInput={(opacity) => change({ opacity })} />
                <Slider name="Threshold" min={0} max={1} step={0.005} value={settings.threshold} text={settings.threshold.toFixed(2)} onInput={(threshold) => change({ threshold })} />
              </section>
            )}
            {view && (
              <section>
                <h2>Window</h2>
                <Slider name="Level" min={0} max={2 * view.centre + 1} step={1} value={view.centre} text={String(Math.round(view.centre))} onInput={(value) => view.setWindow(value, view.width)} />
                <Slider name="Width" min={1} max={Math.max(4096, view.width)} step={1} value={view.width} text={String(Math.round(view.width))} onInput={(value) => view.setWindow(view.centre, value)} />
                <Switch name="Invert" hint="i" on={view.inverted} onChange={(on) => { view.inverted = on; view.redraw(); }} />
                <Switch name="Magnifier" hint="m" on={view.lens} onChange={(on) => { view.lens = on; view.redraw(); }} />
                {detail.has_truth && <Switch name="Truth (dashed)" hint="t" on={settings.truth} onChange={(truth) => change({ truth })} />}
              </section>
            )}
            <Calibration onDone={() => update(0)} onShow={trueSize} />
          </>}
          {tab === "review" && <ReviewPanel reviews={reviews} selected={null} labels={[]} onReview={review} canReview={detail.status !== "no result"} />}
          {tab === "details" && <DetailsPanel detail={detail} onGo={() => {}} />}
        </div>
        <p class="subtle research">{session?.research_use}</p>
      </aside>
    </div>
  );
}

function dateText(date: string): string {
  return /^\d{8}$/.test(date) ? `${date.slice(0, 4)}-${date.slice(4, 6)}-${date.slice(6)}` : date;
}

/** Another exam of the patient, in the same scale in millimetres and at the same position. */
function BesideExam({ id, main }: { id: string; main: ExamView }) {
  const host = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<ExamView | null>(null);
  const [problem, setProblem] = useState("");
  const [, update] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    let other: ExamView | null = null;
    let closed = false;
    const stop = main.onPaint(() => other?.follow(main));
    get<CaseDetail>(`cases/${id}`).then((detail) => {
      if (closed) return;
      other = new ExamView(host.current!, detail);
      other.onUpdate = () => update(0);
      other.follow(main);
      setView(other);
      (window as unknown as { lobule: Record<string, unknown> }).lobule.besideExam = other;
    }, (error: Error) => setProblem(error.message));
    return () => {
      closed = true;
      stop();
      other?.destroy();
      delete (window as unknown as { lobule: Record<string, unknown> }).lobule.besideExam;
    };
  }, []);
  return (
    <div class="exam other" ref={host} onWheel={(event) => { event.preventDefault(); main.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2); }}>
      {problem && <p class="notice bad">{problem}</p>}
      {view && <p class="exam-name">{view.detail.name}</p>}
    </div>
  );
}

function BreastScores(props: { scores: Record<string, number>; spread?: Record<string, { least: number; greatest: number }>; labels?: Record<string, boolean> }) {
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
function Calibration({ onDone, onShow }: { onDone: () => void; onShow: () => void }) {
  const [mm, setMm] = useState("");
  const known = Number(localStorage.getItem(CALIBRATION));
  return (
    <section>
      <h2>True size <kbd>b</kbd></h2>
      <div class="ruler" style={{ width: `${BAR_PX}px` }} />
      <form class="inline" onSubmit={(event) => {
        event.preventDefault();
        if (Number(mm) > 10) localStorage.setItem(CALIBRATION, String(BAR_PX / Number(mm)));
        onDone();
      }}>
        <input type="number" min="11" max="1000" step="0.5" placeholder="length of the bar, mm" aria-label="Length of the bar in millimetres" value={mm} onInput={(event) => setMm(event.currentTarget.value)} />
        <button disabled={!(Number(mm) > 10)}>Calibrate</button>
      </form>
      {known > 0 && <button onClick={onShow}>Show true size ({known.toPrecision(3)} px per mm)</button>}
    </section>
  );
}
