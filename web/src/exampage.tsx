// The page of an exam: four views, their heatmaps, and the scores of the breasts.

import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { copyText, numberOf, onAddress, rememberView } from "./address";
import { get, type Finding, type Reviews } from "./api";
import { BesideExam, Pane } from "./besideexam";
import { neighbours, type CasePageProps } from "./casepage";
import { COLOUR_MAPS } from "./colours";
import { Cross, ModeText, movedCross, type Pointer } from "./cross";
import { BreastScores, Calibration, pxPerMm } from "./exampanel";
import { ExamView, PANES } from "./examview";
import { FindingsRows } from "./findings";
import { score, shortCount } from "./format";
import { useKeys } from "./keys";
import { DetailsPanel } from "./provenance";
import { focusField, ReviewPanel, sendReview, verdicts } from "./review";
import { caseHash } from "./route";
import { change, nudge, settings, useSettings } from "./settings";
import { fullScreen } from "./tools";
import { loadFindings } from "./usefindings";
import { Brand, next, Slider, Switch, Tabs, ThemeButton } from "./widgets";

const TABS = ["scores", "findings", "review", "details"] as const;
/** The address follows the view after this time. */
const REMEMBER_MS = 300;

export function ExamPage({ detail, page, cases, session, onHelp }: CasePageProps) {
  useSettings();
  const host = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<ExamView | null>(null);
  const [, update] = useReducer((count: number) => count + 1, 0);
  const [tab, setTab] = useState<(typeof TABS)[number]>("scores");
  const [findings, setFindings] = useState<Finding[]>([]);
  const [pointer, setPointer] = useState<Pointer | null>(null);
  const [drawing, setDrawing] = useState(false);
  const [reviews, setReviews] = useState<Reviews>({});
  const [message, setMessage] = useState("");
  const [beside, setBeside] = useState("");
  const drag = useRef<{ x: number; y: number; windowing: boolean; name?: string; far: number } | null>(null);
  const others = detail.other_exams ?? [];

  useEffect(() => {
    const created = new ExamView(host.current!, detail);
    let pending = 0;
    created.onUpdate = () => {
      if (!pending) pending = requestAnimationFrame(() => { pending = 0; update(0); });
    };
    setView(created);
    const stop = onAddress(detail.id, (values) => {
      const number = (name: string) => numberOf(values, name);
      if (number("z") !== undefined) created.zoom = Math.max(0.05, number("z")!);
      if (number("x") !== undefined) created.pan = [number("x")!, number("y") ?? 0];
      if (PANES.includes(values.get("one") ?? "")) created.single = values.get("one");
      if (number("width") !== undefined) created.setWindow(number("level") ?? created.centre, number("width")!);
      if (values.has("invert")) created.inverted = true;
      if (number("f") !== undefined) created.selected = number("f")!;
      if (others.some((other) => other.id === values.get("with"))) setBeside(values.get("with")!);
      created.redraw();
    });
    (window as unknown as { lobule: unknown }).lobule = { exam: created, change };
    void get<Reviews>(`cases/${detail.id}/reviews`).then(setReviews, () => {});
    return () => {
      cancelAnimationFrame(pending);
      stop();
      created.destroy();
    };
  }, [detail]);
  useEffect(() => {
    if (page.total) void loadFindings(detail.id).then((loaded) => setFindings(loaded.findings), () => {});
  }, [page]);
  useEffect(() => {
    if (!view) return;
    view.findings = findings;
    if (findings.length && !view.outlines.size) view.loadOutlines().catch(() => {});
    view.drawn = Object.values(reviews).flat().filter((one) => one.action === "draw" && one.polygon).map((one) => ({ name: one.image ?? "", points: one.polygon! }));
    view.redraw();
  }, [view, findings, reviews]);
  const remember = () => {
    if (!view) return;
    const values: Record<string, string> = { level: view.centre.toFixed(0), width: view.width.toFixed(0) };
    if (view.zoom !== 1) values.z = view.zoom.toPrecision(4);
    if (view.pan) [values.x, values.y] = view.pan.map((mm) => mm.toFixed(1));
    if (view.single) values.one = view.single;
    if (view.inverted) values.invert = "1";
    if (view.selected !== null) values.f = String(view.selected);
    if (beside) values.with = beside;
    rememberView(detail.id, values);
  };
  useEffect(() => {
    const timer = setTimeout(remember, REMEMBER_MS);
    return () => clearTimeout(timer);
  });

  const saying = useRef(0);
  const say = (text: string) => {
    setMessage(text);
    clearTimeout(saying.current);
    saying.current = window.setTimeout(() => setMessage(""), Math.max(3000, 60 * text.length));
  };
  const local = (event: MouseEvent): [number, number] => {
    const bounds = host.current!.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };
  const onDown = (event: PointerEvent) => {
    const [x, y] = local(event);
    drag.current = { x, y, windowing: event.button === 2 || event.shiftKey, name: view?.at(x, y)?.name, far: 0 };
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
  };
  const onMove = (event: PointerEvent) => {
    if (!view) return;
    const [x, y] = local(event);
    point({ x, y, isCross: false });
    if (drag.current) {
      const [dx, dy] = [x - drag.current.x, y - drag.current.y];
      if (drag.current.windowing) view.setWindow(view.centre + (dy * view.width) / 400, view.width * 1.005 ** dx);
      else view.moveBy(dx, dy, drag.current.name);
      Object.assign(drag.current, { x, y, far: drag.current.far + Math.hypot(dx, dy) });
    }
  };
  /** The pointer is at another position, by mouse or by keyboard. */
  const point = (to: Pointer | null) => {
    if (!view) return;
    setPointer(to);
    view.pointer = to ? [to.x, to.y] : null;
    view.aim();
  };
  const onUp = () => {
    const isClick = drag.current && !drag.current.windowing && drag.current.far < 4;
    drag.current = null;
    if (drawing && isClick) view?.addCorner();
  };
  const cross = () => {
    const [x, y] = view!.middle.map(Math.round);
    return movedCross({ x, y, isCross: true }, [host.current!.clientWidth, host.current!.clientHeight]);
  };
  const arrow = (x: number, y: number) => (event: KeyboardEvent) => {
    if (!view) return;
    if (!event.shiftKey) return view.moveBy(-60 * x, -60 * y);
    point(pointer ? movedCross(pointer, [host.current!.clientWidth, host.current!.clientHeight], x, y) : cross());
  };
  const alone = (index: number) => {
    if (!view) return;
    view.single = view.single === PANES[index] ? null : PANES[index];
    view.zoom = 1;
    view.pan = null;
    view.redraw();
  };
  const trueSize = () => {
    if (!view) return;
    if (![...view.views.values()].some((one) => one.info.mm_per_px)) return say("The files do not state the size of a pixel.");
    if (!pxPerMm()) return say("Calibrate the screen first: measure the bar in the panel with a ruler.");
    view.setScale(pxPerMm());
  };
  const calibrate = () => {
    setTab("scores");
    setTimeout(() => document.getElementById("calibration")?.focus());
  };
  const review = async (action: string, values: object = {}) => {
    try {
      setReviews(await sendReview(detail.id, action, values));
      return true;
    } catch (error) {
      say(error instanceof Error ? error.message : String(error));
      setTab("review");
      if (!settings.person.trim()) focusField("person");
      return false;
    }
  };
  const choose = (finding: Finding) => {
    if (!view) return;
    view.selected = finding.number;
    // A heatmap that is on shows the class of the finding.
    if (view.heatmap && finding.label && view.grades().includes(finding.label)) view.showHeatmap(finding.label);
    view.flyTo(finding.image, finding.l0_x, finding.l0_y);
  };
  const step = (by: number) => {
    if (!findings.length) return say("This exam has no findings.");
    const index = findings.findIndex((one) => one.number === view?.selected);
    setTab("findings");
    choose(findings[(index + by + findings.length) % findings.length]);
  };
  const selected = view?.selected ?? null;
  const judge = (action: "accept" | "reject") => {
    if (selected === null) return say("Choose a finding first, with n.");
    void review(action, { finding: selected });
  };
  const write = (field: "relabel" | "note") => {
    if (field === "relabel" && selected === null) return say("Choose a finding first, with n.");
    setTab("review");
    focusField(field);
  };
  const draw = (on: boolean) => {
    setDrawing(on);
    view?.stopDrawing();
    if (!on || !view) return;
    if (!pointer) point(cross());
  };
  const finishDrawing = async () => {
    const drawn = view?.finishedOutline();
    if (!drawn) return say("An outline needs at least three points.");
    if (await review("draw", drawn)) draw(false);
  };
  const copyLink = async () => {
    remember();
    say((await copyText(location.href)) ? "The address of this view was copied." : "The browser does not allow copying: copy its address bar.");
  };
  const copy = async () => {
    const at = view?.pointer ? view.at(...view.pointer) : null;
    if (!at) return say("Move the pointer over a view first, or the cross with Shift and the arrows.");
    const text = `${at.name} ${at.column}, ${at.row}`;
    say((await copyText(text)) ? `Copied ${text}` : `The browser does not allow copying: ${text}`);
  };
  const nextBeside = () => {
    if (!others.length) return say("The cohort has no other exam of this patient.");
    const ids = ["", ...others.map((other) => other.id)];
    setBeside(ids[(ids.indexOf(beside) + 1) % ids.length]);
  };
  const [before, after] = neighbours(cases, detail.id);
  const visit = (row?: { id: string }) => row && (location.hash = caseHash(row.id));
  const invert = (on: boolean) => { if (view) { view.inverted = on; view.redraw(); } };
  const magnify = (on: boolean) => {
    if (!view) return;
    view.lens = on;
    if (on && !view.pointer) point(cross());
    view.redraw();
  };
  const whole = () => { view?.reset(); view?.resetWindow(); };
  const closeMode = { Escape: () => draw(false), " ": () => view?.addCorner(), Backspace: () => view?.removeCorner(), Enter: () => void finishDrawing() };
  useKeys({
    h: () => view?.nextHeatmap(), i: () => invert(!view?.inverted), m: () => magnify(!view?.lens),
    w: () => view?.setWindow(view.centre, view.width * 1.1), W: () => view?.setWindow(view.centre, view.width / 1.1),
    l: () => view?.setWindow(view.centre + view.width / 20, view.width), L: () => view?.setWindow(view.centre - view.width / 20, view.width),
    "0": whole, "+": () => view?.zoomBy(1.3), "=": () => view?.zoomBy(1.3), "-": () => view?.zoomBy(1 / 1.3),
    ArrowLeft: arrow(-1, 0), ArrowRight: arrow(1, 0), ArrowUp: arrow(0, -1), ArrowDown: arrow(0, 1),
    "1": () => alone(0), "2": () => alone(1), "3": () => alone(2), "4": () => alone(3),
    t: () => change({ truth: !settings.truth }), b: trueSize, B: calibrate, y: () => void copy(), Y: () => void copyLink(), F: fullScreen,
    "[": () => nudge("opacity", -0.1), "]": () => nudge("opacity", 0.1), ",": () => nudge("threshold", -0.05), ".": () => nudge("threshold", 0.05),
    c: () => change({ colours: next(COLOUR_MAPS, settings.colours) }),
    n: () => step(1), N: () => step(-1), a: () => judge("accept"), x: () => judge("reject"), u: () => void review("undo"), e: () => draw(!drawing),
    R: () => write("relabel"), M: () => write("note"), q: () => setTab(next(TABS, tab)), Q: () => setTab(next(TABS, tab, -1)),
    p: () => change({ examFindings: !settings.examFindings }), s: nextBeside, J: () => visit(after), K: () => visit(before),
    ...(drawing ? closeMode : {}),
  });
  const judged = useMemo(() => verdicts(reviews), [reviews]);
  const ranks = useMemo(() => new Map(findings.map((finding, index) => [finding.number, index + 1])), [findings]);
  const highest = view ? Math.max(1, ...[...view.views.values()].map(({ info }) => info.highest ?? 1)) : 1;

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
            {titleOf(other)}
          </button>
        ))}
        <span class={`chip ${view?.heatmap ? "heat" : ""}`} title="h">{view?.heatmap ? `heatmap: ${view.heatmap}` : "heatmaps off"}</span>
        <button disabled={!before} onClick={() => visit(before)} title="Previous case (K)" aria-label="Previous case">‹</button>
        <button disabled={!after} onClick={() => visit(after)} title="Next case (J)" aria-label="Next case">›</button>
        <ThemeButton />
        <button onClick={onHelp} title="Keys (?)">?</button>
      </header>
      <main class={`stage ${beside ? "halved" : ""}`}>
        {beside && view && <BesideExam key={beside} id={beside} main={view} title={others.filter((other) => other.id === beside).map((other) => `${titleOf(other)} · ${other.name}`)[0] ?? ""} />}
        <div class="exam" ref={host} role="application" aria-label={`Exam ${detail.name}`} tabIndex={0}
          onPointerDown={onDown} onPointerMove={onMove} onPointerUp={onUp} onDblClick={(event) => { const name = view?.at(...local(event))?.name; if (name && !drawing) alone(PANES.indexOf(name)); }} onContextMenu={(event) => event.preventDefault()}
          onPointerLeave={() => { if (!drag.current) point(null); }}
          onWheel={(event) => { event.preventDefault(); view?.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...local(event)); }} />
        {view && PANES.map((name) => {
          const [left, top, width, height] = view.pane(name);
          if (!width) return null;
          const loaded = view.views.get(name);
          const text = detail.missing_views?.includes(name) ? `${name} is missing.` : loaded ? loaded.problem || (loaded.image ? "" : "Loading …") : `${name} is missing.`;
          return <Pane key={name} name={name} box={[left, top, width, height]} text={text} />;
        })}
        <Cross pointer={pointer} />
        <div class="notices">
          {view?.grey.name === "canvas" && <p class="notice" role="note">WebGL is not available: views are shown at a reduced resolution.</p>}
          {drawing && <p class="notice" role="note"><ModeText mode="draw" /></p>}
          {message && <p class="notice" role="status">{message}</p>}
        </div>
        <div class="readout">
          {view && <span>level {Math.round(view.centre)}, width {Math.round(view.width)}</span>}
          {at && at.value !== null && <span class="coordinates">{at.name} column {at.column}, row {at.row}: <strong data-value={at.value}>{at.value}</strong></span>}
          {heat !== null && <span>{view?.heatmap} {score(heat)}</span>}
        </div>
      </main>
      <aside class="panel">
        <Tabs names={TABS} chosen={tab} onChoose={setTab} text={(name) => (name === "findings" && page.total ? `findings ${shortCount(page.total)}` : name)} />
        <div class="tab" role="tabpanel" aria-label={tab} tabIndex={0}>
          {tab === "scores" && <>
            <BreastScores scores={detail.scores} spread={detail.details.spread as Record<string, { least: number; greatest: number }> | undefined} labels={settings.truth ? detail.breast_labels : undefined} />
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
                <Slider name="Level" min={0} max={Math.max(highest, Math.ceil(view.centre))} step={1} value={view.centre} text={String(Math.round(view.centre))} onInput={(value) => view.setWindow(value, view.width)} />
                <Slider name="Width" min={1} max={Math.max(2 * highest, Math.ceil(view.width))} step={1} value={view.width} text={String(Math.round(view.width))} onInput={(value) => view.setWindow(view.centre, value)} />
                <Switch name="Invert" hint="i" on={view.inverted} onChange={invert} />
                <Switch name="Magnifier" hint="m" on={view.lens} onChange={magnify} />
                {page.total > 0 && <Switch name="All findings" hint="p" on={settings.examFindings} onChange={(examFindings) => change({ examFindings })} />}
                {(detail.has_truth || detail.breast_labels) && <Switch name="Truth" hint="t" on={settings.truth} onChange={(truth) => change({ truth })} />}
                <div class="buttons">
                  <button onClick={whole}>Whole views <kbd>0</kbd></button>
                  <button onClick={fullScreen}>Full screen <kbd>F</kbd></button>
                  <button onClick={() => void copyLink()}>Copy address <kbd>Y</kbd></button>
                </div>
              </section>
            )}
            <Calibration onDone={() => update(0)} onShow={trueSize} />
          </>}
          {tab === "findings" && (
            <>
              {page.total === 0 && <p class="subtle">There are no findings.</p>}
              <FindingsRows findings={findings} labels={page.labels} selected={selected} judged={judged} onChoose={choose} withImage />
            </>
          )}
          {tab === "review" && <ReviewPanel reviews={reviews} selected={selected} ranks={ranks} labels={page.labels} relabelKey="R" onDraw={() => draw(!drawing)} onReview={review} canReview={detail.status !== "no result"} />}
          {tab === "details" && <DetailsPanel detail={detail} onGo={() => {}} />}
        </div>
        <p class="subtle research">{session?.research_use}</p>
      </aside>
    </div>
  );
}

function titleOf(other: { name: string; date: string; relation: string }): string {
  return `${other.relation === "unknown" ? "other exam" : other.relation} ${dateText(other.date) || other.name}`;
}

function dateText(date: string): string {
  return /^\d{8}$/.test(date) ? `${date.slice(0, 4)}-${date.slice(4, 6)}-${date.slice(6)}` : date;
}
