// The page of a slide: the image with its overlay, and a panel with display settings, findings, review and details.

import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { get, query, type Field, type Finding, type FindingsPage, type Reviews } from "./api";
import { Beside, nameOfOther } from "./beside";
import { neighbours, type CasePageProps } from "./casepage";
import { COLOUR_MAPS } from "./colours";
import { DisplayPanel } from "./display";
import { FindingsPanel, Gallery } from "./findings";
import { count, length, score, shortCount } from "./format";
import { useKeys } from "./keys";
import { DetailsPanel } from "./provenance";
import { ReviewPanel, sendReview, verdicts } from "./review";
import { caseHash, parseRoute } from "./route";
import { change, settings, useSettings } from "./settings";
import { ScaleBar, SeenMap } from "./slidemarks";
import { SlideView, type Cursor } from "./slideview";
import { Brand, Scores, ThemeButton } from "./widgets";

const MAGNIFICATIONS = [5, 10, 20, 40];
/** µm/px of a 10× objective. */
const UM_AT_10X = 1;
const STATES = ["not scored yet", "glass", "", "failed"];
/** While the slide moves, the texts around it follow at most this often. */
const UPDATE_MS = 50;
type Tab = "display" | "findings" | "review" | "details";

export function SlidePage({ detail, page, cases, session, onHelp }: CasePageProps) {
  useSettings();
  const host = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<SlideView | null>(null);
  const [, update] = useReducer((count: number) => count + 1, 0);
  const [tab, setTab] = useState<Tab>(detail.status === "failed" ? "details" : "display");
  const [gallery, setGallery] = useState<Field[] | null>(null);
  const [galleryShown, setGalleryShown] = useState(false);
  const [findings, setFindings] = useState(page.findings);
  const [listed, setListed] = useState(page.total);
  const [reviews, setReviews] = useState<Reviews>({});
  const [cursor, setCursor] = useState<Cursor | null>(null);
  const [beside, setBeside] = useState("");
  const [mode, setMode] = useState<"" | "measure" | "draw">("");
  const [message, setMessage] = useState("");
  const [label, setLabel] = useState<string | null>(null);
  const image = view?.image ?? Object.values(detail.images)[0];
  const mpp = image?.mpp?.[0] ?? null;

  useEffect(() => {
    const route = parseRoute().view;
    const created = new SlideView(host.current!, detail, page, Object.keys(detail.images)[0] ?? "slide");
    let pending = 0, updated = 0;
    created.onUpdate = () => {
      pending ||= window.setTimeout(() => {
        pending = 0;
        updated = performance.now();
        update(0);
      }, Math.max(0, updated + UPDATE_MS - performance.now()));
    };
    created.viewer.addOnceHandler("open", () => {
      const number = (name: string) => (route.has(name) ? Number(route.get(name)) : undefined);
      if (route.has("x")) created.setView({ x: number("x"), y: number("y"), scale: number("s"), rotation: number("r") ?? 0 }, true);
      if (route.get("flip")) created.viewer.viewport.setFlip(true);
      created.viewer.addHandler("animation-finish", () => remember(created));
    });
    setView(created);
    // Tests and people who want to know look at the view from the browser's console.
    (window as unknown as { lobule: unknown }).lobule = { view: created, change };
    return () => {
      clearTimeout(pending);
      created.destroy();
    };
  }, [detail]);
  /** The number of the latest request of the list: answers to earlier ones are dropped. */
  const lists = useRef(0);
  const loadList = async (chosen: string | null) => {
    const number = ++lists.current;
    const filter: Record<string, string> = chosen === null ? {} : { label: chosen };
    const loaded = await get<FindingsPage>(`cases/${detail.id}/findings?${query({ limit: 200, ...filter })}`);
    if (number !== lists.current) return;
    setFindings(loaded.findings);
    setListed(loaded.total);
  };
  useEffect(() => {
    lists.current++;
    setFindings([]);
    setListed(page.total);
    setLabel(null);
    if (!view) return;
    view.setFindings(page);
    if (page.isPending) return;
    let isCurrent = true;
    const loadLater = async () => {
      const number = lists.current;
      // The list and the gallery need more of the file than the picture does.
      if (page.total) await view.firstFindings();
      if (page.total && number === lists.current) await loadList(null);
      const fields = isCurrent ? await get<Field[]>(`cases/${detail.id}/gallery`) : [];
      if (isCurrent) setGallery(fields);
    };
    loadLater().catch(() => setGallery([]));
    return () => void (isCurrent = false);
  }, [page, view]);
  useEffect(() => {
    void get<Reviews>(`cases/${detail.id}/reviews`).then(setReviews, () => {});
  }, [detail]);
  useEffect(() => {
    if (!view) return;
    view.drawn = Object.values(reviews).flat().filter((one) => one.action === "draw" && one.polygon).map((one) => one.polygon!);
    view.redraw();
  }, [view, reviews]);

  const choose = (finding: Finding) => {
    if (!view) return;
    view.selected = finding.number;
    view.flyTo(finding.l0_x, finding.l0_y, 900 / (mpp ?? 0.5) / 2);
    update(0);
  };
  /** The step to take when the list of findings is there. */
  const waitingStep = useRef(0);
  const step = (by: number) => {
    if (!findings.length) {
      waitingStep.current = listed ? by : 0;
      return;
    }
    const index = findings.findIndex((one) => one.number === view?.selected);
    setTab("findings");
    choose(findings[(index + by + findings.length) % findings.length]);
  };
  useEffect(() => {
    const by = waitingStep.current;
    if (!findings.length || !by) return;
    waitingStep.current = 0;
    step(by);
  }, [findings]);
  const zoomTo = (magnification: number) => mpp && view?.setView({ scale: (UM_AT_10X * 10) / magnification / mpp });
  const zoomBy = (factor: number) => view && view.setView({ scale: view.view.scale / factor });
  const pan = (x: number, y: number) => {
    if (!view) return;
    const size = view.viewer.viewport.getContainerSize();
    const [px, py] = view.toImage(size.x / 2 + 0.2 * x * size.x, size.y / 2 + 0.2 * y * size.y);
    view.setView({ x: px, y: py });
  };
  const rotate = (by: number) => view?.setView({ rotation: view.viewer.viewport.getRotation() + by });
  const nudge = (name: "opacity" | "threshold", by: number) =>
    change({ [name]: Math.min(1, Math.max(0, Math.round((settings[name] + by) * 100) / 100)) });
  const besides = [...detail.others.map((other) => other.id), ...(detail.has_truth ? ["truth"] : [])];
  const showBeside = (id: string) => {
    setBeside(id);
    view?.compare(view.comparedWith !== null && id ? id : null);
  };
  const nextBeside = () => {
    if (!besides.length) return say("There is no other result of this case, and no truth.");
    showBeside(["", ...besides][(besides.indexOf(beside) + 2) % (besides.length + 1)]);
  };
  const toggleDifference = () => {
    if (!view || !beside) return say("Show another result or the truth first, with s.");
    view.compare(view.comparedWith === null ? beside : null);
    update(0);
  };
  const chooseLabel = async (chosen: string | null) => {
    setLabel(chosen);
    view?.showFindings(chosen);
    await loadList(chosen);
  };
  const toggle = (name: "heatmap" | "points" | "outlines" | "truth" | "states" | "seen") => () => change({ [name]: !settings[name] });
  const say = (text: string) => {
    setMessage(text);
    setTimeout(() => setMessage(""), 2500);
  };
  const copy = () => {
    const { x, y } = cursor ?? view!.view;
    void navigator.clipboard?.writeText(`${Math.round(x)}, ${Math.round(y)}`).catch(() => {});
    say(`Copied ${Math.round(x)}, ${Math.round(y)}`);
  };
  const review = async (action: "accept" | "reject" | "undo" | "relabel" | "note" | "draw", values: object = {}) => {
    try {
      setReviews(await sendReview(detail.id, action, values));
      return true;
    } catch (error) {
      say(error instanceof Error ? error.message : String(error));
      setTab("review");
      return false;
    }
  };
  const judge = (action: "accept" | "reject") => {
    if (view?.selected === null || view?.selected === undefined) return say("Choose a finding first, with n.");
    void review(action, { finding: view.selected });
  };
  const finishDrawing = async () => {
    if (!view || mode !== "draw") return;
    const polygon = view.drawing.slice(0, -1).map(([x, y]) => [Math.round(x), Math.round(y)]);
    if (polygon.length < 3) return say("An outline needs at least three points.");
    if (await review("draw", { polygon, image: view.imageName })) stopMode();
  };
  const stopMode = () => {
    if (view) Object.assign(view, { measured: [], drawing: [] });
    setMode("");
    view?.redraw();
  };
  const start = (next: "measure" | "draw") => {
    const on = mode !== next;
    stopMode();
    if (on) {
      setMode(next);
      say(next === "measure" ? "Click two points." : "Click the outline, then press Enter.");
    }
  };
  const [before, after] = neighbours(cases, detail.id);
  const visit = (row?: { id: string }) => row && (location.hash = caseHash(row.id));
  useKeys({
    ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5),
    "0": () => view?.home(), s: nextBeside, d: toggleDifference,
    ...Object.fromEntries(MAGNIFICATIONS.map((value, index) => [String(index + 1), () => zoomTo(value)])),
    r: () => rotate(90), R: () => rotate(-90), f: () => view?.viewer.viewport.toggleFlip(),
    F: () => void (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
    n: () => step(1), N: () => step(-1), g: () => setGalleryShown((shown) => !shown),
    h: toggle("heatmap"), p: toggle("points"), o: toggle("outlines"), t: toggle("truth"), v: toggle("states"), w: toggle("seen"),
    "[": () => nudge("opacity", -0.1), "]": () => nudge("opacity", 0.1), ",": () => nudge("threshold", -0.05), ".": () => nudge("threshold", 0.05),
    c: () => change({ colours: COLOUR_MAPS[(COLOUR_MAPS.indexOf(settings.colours) + 1) % COLOUR_MAPS.length] }),
    m: () => start("measure"), e: () => start("draw"), y: copy, Enter: () => void finishDrawing(),
    a: () => judge("accept"), x: () => judge("reject"), u: () => void review("undo"),
    J: () => visit(after), K: () => visit(before),
    ...(mode ? { Escape: stopMode } : {}),
  });

  const click = (event: MouseEvent) => {
    if (!view || !mode || moved.current) return;
    const at = view.at(event.clientX, event.clientY);
    if (mode === "measure") view.measured = view.measured.length >= 2 ? [[at.x, at.y]] : [...view.measured, [at.x, at.y]];
    else view.drawing = [...view.drawing.slice(0, -1), [at.x, at.y], [at.x, at.y]];
    view.redraw();
  };
  const moved = useRef(false);
  const pressed = useRef<[number, number] | null>(null);
  const onMove = (event: PointerEvent) => {
    if (!view) return;
    const at = view.at(event.clientX, event.clientY);
    setCursor(at);
    if (pressed.current && Math.hypot(event.clientX - pressed.current[0], event.clientY - pressed.current[1]) > 4) moved.current = true;
    if (mode === "draw" && view.drawing.length) {
      view.drawing[view.drawing.length - 1] = [at.x, at.y];
      view.redraw();
    }
  };
  const now = view?.viewer.isOpen?.() && view.viewer.viewport ? view.view : null;
  const judged = useMemo(() => verdicts(reviews), [reviews]);
  return (
    <div class="case-page">
      <header class="bar">
        <Brand />
        <h1>{detail.name}</h1>
        <span class={`chip ${detail.status.replace(" ", "-")}`}>{detail.status}</span>
        <Scores scores={detail.scores} />
        <span class="space" />
        {besides.length > 0 && (
          <span class="compare">
            <span class="subtle">Compare with</span>
            {besides.map((id) => (
              <button key={id} aria-pressed={beside === id} onClick={() => showBeside(beside === id ? "" : id)} title="Side by side, with linked views (s)">
                {nameOfOther(detail, session, id)}
              </button>
            ))}
            {beside && view?.hasMaps && (
              <button aria-pressed={view.comparedWith !== null} onClick={toggleDifference} title="Map of the difference (d)">Difference</button>
            )}
          </span>
        )}
        {detail.others.map((other) => (
          <a key={other.id} class="button" href={`${caseHash(other.id)}${now ? `?${viewQuery(view!)}` : ""}`} title="The same case and view in the other result">
            Open in {session?.sources[other.source]?.name}
          </a>
        ))}
        <button disabled={!before} onClick={() => visit(before)} title="Previous case (K)" aria-label="Previous case">‹</button>
        <button disabled={!after} onClick={() => visit(after)} title="Next case (J)" aria-label="Next case">›</button>
        <ThemeButton />
        <button onClick={onHelp} title="Keys (?)">?</button>
      </header>
      <main class={`stage ${beside ? "halved" : ""}`}>
        {beside && view && <Beside key={beside} id={beside} name={nameOfOther(detail, session, beside)} main={view} page={page} />}
        <div class={`slide ${mode}`} ref={host} role="application" aria-label={`Slide ${detail.name}`} tabIndex={0}
          onPointerMove={onMove} onPointerLeave={() => setCursor(null)} onClick={click}
          onPointerDown={(event) => { pressed.current = [event.clientX, event.clientY]; moved.current = false; }}
          onPointerUp={() => (pressed.current = null)} />
        <div class="notices">
          {image?.missing && <p class="notice" role="note">{image.missing}</p>}
          {detail.error && <p class="notice bad" role="note">{detail.error}</p>}
          {detail.status === "unfinished" && <p class="notice" role="note">The scan is running: the map fills in as it is written.</p>}
          {view?.overlay.renderer === "canvas" && <p class="notice" role="note">WebGL is not available: the overlay is drawn without it, more slowly.</p>}
          {view && view.comparedWith !== null && (
            <p class="notice" role="note">Difference: this result minus {nameOfOther(detail, session, view.comparedWith)}. Orange is higher here, blue is lower.</p>
          )}
          {message && <p class="notice" role="status">{message}</p>}
        </div>
        {now && <ScaleBar mpp={mpp} scale={now.scale} />}
        {view && <SeenMap view={view} shown={settings.seen} />}
        <div class="readout">
          {now && mpp && <span>{magnification((UM_AT_10X * 10) / (now.scale * mpp))}</span>}
          {cursor && <span class="coordinates">{Math.round(cursor.x)}, {Math.round(cursor.y)} px</span>}
          {cursor && cursor.score !== null && <span>score {score(cursor.score)}</span>}
          {cursor && cursor.score === null && cursor.state !== null && STATES[cursor.state] && <span>{STATES[cursor.state]}</span>}
          {view && view.measured.length === 2 && <strong>{measured(view.measured, mpp)}</strong>}
          {page.total > 0 && view && settings.points && <span>{findingsInView(view.inView.findings, page.total)}</span>}
        </div>
        {galleryShown && gallery && (
          <Gallery detail={detail} fields={gallery} mpp={mpp} onChoose={(field) => {
            view?.flyTo(field.x, field.y, 450 / (mpp ?? 0.5));
            if (view) view.selected = field.finding;
          }} onClose={() => setGalleryShown(false)} />
        )}
      </main>
      <aside class="panel">
        <nav class="tabs" role="tablist">
          {(["display", "findings", "review", "details"] as const).map((name) => (
            <button key={name} role="tab" aria-selected={tab === name} onClick={() => setTab(name)}>
              {name}{name === "findings" && page.total ? ` ${shortCount(page.total)}` : ""}
            </button>
          ))}
        </nav>
        <div class="tab" role="tabpanel">
          {tab === "display" && view && <DisplayPanel view={view} detail={detail} onClass={(name) => { view.setMaps(detail, name); update(0); }} />}
          {tab === "findings" && (
            <FindingsPanel detail={detail} page={page} listed={listed} label={label} onLabel={(chosen) => void chooseLabel(chosen)} findings={findings} selected={view?.selected ?? null} judged={judged}
              onMore={(more) => setFindings((list) => [...list, ...more])} onChoose={choose} onGallery={() => setGalleryShown(true)} gallery={gallery} mpp={mpp} />
          )}
          {tab === "review" && (
            <ReviewPanel reviews={reviews} selected={view?.selected ?? null} labels={page.labels} onReview={review} onDraw={() => start("draw")}
              canReview={detail.status !== "no result"} />
          )}
          {tab === "details" && <DetailsPanel detail={detail} onGo={(box) => view?.flyTo(box[0] + box[2] / 2, box[1] + box[3] / 2, 2 * Math.max(box[2], box[3]))} />}
        </div>
        <p class="subtle research">{session?.research_use}</p>
      </aside>
    </div>
  );
}

function viewQuery(view: SlideView): URLSearchParams {
  const { x, y, scale, rotation } = view.view;
  const values: Record<string, string> = { x: x.toFixed(0), y: y.toFixed(0), s: scale.toPrecision(4), r: String(Math.round(rotation)) };
  if (view.viewer.viewport.getFlip()) values.flip = "1";
  return new URLSearchParams(values);
}

/** Keep the address of the current view in the address bar. */
function remember(view: SlideView): void {
  if (!view.viewer.viewport || parseRoute().id !== view.detail.id) return;
  history.replaceState(null, "", `${caseHash(view.detail.id)}?${viewQuery(view)}`);
}

/** Tiles of findings extend beyond the screen, so the number includes findings a little outside it. */
function findingsInView(number: number, total: number): string {
  if (number === total) return count(total, "finding");
  return `${number.toLocaleString("en")} of ${count(total, "finding")} in or near the view`;
}

function magnification(value: number): string {
  return `${value >= 10 ? Math.round(value) : value.toPrecision(2)}×`;
}

function measured([a, b]: [number, number][], mpp: number | null): string {
  const px = Math.hypot(a[0] - b[0], a[1] - b[1]);
  return mpp ? length(px * mpp) : `${Math.round(px)} px`;
}
