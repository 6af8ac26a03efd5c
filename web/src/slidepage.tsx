// The page of a slide: the image with its overlay, and a panel with display settings, findings, review and details.

import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { applyDisplay, copyText, displayValues, numberOf, onAddress, rememberView } from "./address";
import { get, type Finding, type Reviews } from "./api";
import { Beside, nameOfOther } from "./beside";
import { neighbours, type CasePageProps } from "./casepage";
import { COLOUR_MAPS } from "./colours";
import { Cross, ModeText, movedCross, type Pointer } from "./cross";
import { DisplayPanel } from "./display";
import { listen } from "./events";
import { FindingsPanel, Gallery } from "./findings";
import { shortCount } from "./format";
import { useKeys } from "./keys";
import { DetailsPanel } from "./provenance";
import { focusField, ReviewPanel, sendReview, verdicts } from "./review";
import { caseHash } from "./route";
import { change, nudge, settings, useSettings } from "./settings";
import { Readout, ScaleBar, SeenMap, UM_AT_1X } from "./slidemarks";
import { SlideView } from "./slideview";
import { fullScreen, ICONS, Tools, type Tool } from "./tools";
import { useFindings } from "./usefindings";
import { Brand, next, Scores, Tabs, ThemeButton, withCode } from "./widgets";

const MAGNIFICATIONS = [5, 10, 20, 40];
/** While the slide moves, the texts around it follow at most this often. */
const UPDATE_MS = 50;
/** The address follows the view after this time. */
const REMEMBER_MS = 300;
const TABS = ["display", "findings", "review", "details"] as const;
type Tab = (typeof TABS)[number];

export function SlidePage({ detail, page, cases, session, onHelp }: CasePageProps) {
  useSettings();
  const host = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<SlideView | null>(null);
  /** A view is created again when a scan has finished; what lies beside it then follows the new one. */
  const views = useRef(0);
  const [, update] = useReducer((count: number) => count + 1, 0);
  const [tab, setTab] = useState<Tab>(detail.status === "failed" ? "details" : "display");
  const [galleryShown, setGalleryShown] = useState(false);
  const [reviews, setReviews] = useState<Reviews>({});
  const [pointer, setPointer] = useState<Pointer | null>(null);
  const [beside, setBeside] = useState("");
  const [mode, setMode] = useState<"" | "measure" | "draw">("");
  const [message, setMessage] = useState("");
  const list = useFindings(detail, page, view);
  const { findings, listed, gallery } = list;
  const [preliminary, setPreliminary] = useState(detail.preliminary_scores);
  useEffect(() => {
    setPreliminary(detail.preliminary_scores);
    return listen((event) => {
      if (event.kind === "preliminary" && event.case === detail.id) setPreliminary(event.scores);
    });
  }, [detail]);
  const image = view?.image ?? Object.values(detail.images)[0];
  const mpp = image?.mpp?.[0] ?? null;

  useEffect(() => {
    const created = new SlideView(host.current!, detail, page, Object.keys(detail.images)[0] ?? "slide");
    let pending = 0, updated = 0;
    created.onUpdate = () => {
      pending ||= window.setTimeout(() => {
        pending = 0;
        updated = performance.now();
        update(0);
      }, Math.max(0, updated + UPDATE_MS - performance.now()));
    };
    let stop = () => {};
    created.viewer.addOnceHandler("open", () => {
      stop = onAddress(detail.id, (values) => applyAddress(created, values));
      created.viewer.addHandler("animation-finish", () => remember.current(created));
    });
    views.current++;
    setView(created);
    // Tests and people who want to know look at the view from the browser's console.
    (window as unknown as { lobule: unknown }).lobule = { view: created, change };
    return () => {
      clearTimeout(pending);
      stop();
      created.destroy();
    };
  }, [detail]);
  const besides = [...detail.others.map((other) => other.id), ...(detail.has_truth ? ["truth"] : [])];
  const applyAddress = (of: SlideView, values: URLSearchParams) => {
    const number = (name: string) => numberOf(values, name);
    applyDisplay(values);
    if (values.has("x")) {
      of.viewer.viewport.setFlip(values.has("flip"));
      of.setView({ x: number("x"), y: number("y"), scale: number("s"), rotation: number("r") ?? 0 }, true);
    }
    if (values.has("class")) of.setMaps(detail, values.get("class")!);
    if (number("f") !== undefined) of.selected = number("f")!;
    const other = values.get("with") ?? "";
    if (besides.includes(other)) {
      setBeside(other);
      of.compare(values.has("diff") ? other : null);
    }
  };
  const remember = useRef((_view: SlideView) => {});
  remember.current = (of) => {
    if (!of.viewer.viewport) return;
    const values = { ...positionOf(of), ...displayValues() };
    if (of.classes().length > 1) values.class = of.className;
    if (of.selected !== null) values.f = String(of.selected);
    if (beside) values.with = beside;
    if (of.comparedWith !== null) values.diff = "1";
    rememberView(detail.id, values);
  };
  useEffect(() => {
    if (!view?.viewer.isOpen()) return;
    const timer = setTimeout(() => remember.current(view), REMEMBER_MS);
    return () => clearTimeout(timer);
  });
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
  const zoomTo = (magnification: number) => mpp && view?.setView({ scale: UM_AT_1X / magnification / mpp });
  const zoomBy = (factor: number) => view && view.setView({ scale: view.view.scale / factor });
  const pan = (x: number, y: number) => {
    if (!view) return;
    const size = view.viewer.viewport.getContainerSize();
    const [px, py] = view.toImage(size.x / 2 + 0.2 * x * size.x, size.y / 2 + 0.2 * y * size.y);
    view.setView({ x: px, y: py });
  };
  const rotate = (by: number) => view?.setView({ rotation: view.viewer.viewport.getRotation() + by });
  const showBeside = (id: string) => {
    // A slide that was shown as a whole is shown as a whole in the other width, too.
    if (view?.showsAll && !id !== !beside) view.viewer.addOnceHandler("after-resize" as "resize", () => queueMicrotask(() => view.home(true)));
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
  const toggle = (name: "heatmap" | "points" | "outlines" | "truth" | "states" | "seen" | "tissue" | "profile") => () => change({ [name]: !settings[name] });
  const saying = useRef(0);
  const say = (text: string) => {
    setMessage(text);
    clearTimeout(saying.current);
    saying.current = window.setTimeout(() => setMessage(""), Math.max(2500, 60 * text.length));
  };
  const copy = async (at: { x: number; y: number } | null) => {
    if (!view) return;
    const { x, y } = at ? view.under(at.x, at.y) : view.view;
    const text = `${Math.round(x)}, ${Math.round(y)}`;
    say((await copyText(text)) ? `Copied ${text}` : `The browser does not allow copying: ${text}`);
  };
  const copyLink = async () => {
    if (view) remember.current(view);
    say((await copyText(location.href)) ? "The address of this view was copied." : "The browser does not allow copying: copy its address bar.");
  };
  const review = async (action: "accept" | "reject" | "undo" | "relabel" | "note" | "draw", values: object = {}) => {
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
  const judge = (action: "accept" | "reject") => {
    if (view?.selected === null || view?.selected === undefined) return say("Choose a finding first, with n.");
    void review(action, { finding: view.selected });
  };
  const write = (field: "relabel" | "note") => {
    if (field === "relabel" && (view?.selected ?? null) === null) return say("Choose a finding first, with n.");
    setTab("review");
    focusField(field);
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
  const start = (chosen: "measure" | "draw") => {
    const on = mode !== chosen;
    stopMode();
    if (on) {
      setMode(chosen);
      if (view && !pointer) setPointer(movedCross(null, view.size));
    }
  };
  const [before, after] = neighbours(cases, detail.id);
  const visit = (row?: { id: string }) => row && (location.hash = caseHash(row.id));
  const arrow = (x: number, y: number) => (event: KeyboardEvent) => {
    if (!event.shiftKey || !view) return pan(x, y);
    point(movedCross(pointer, view.size, x, y));
  };
  /** The pointer has moved: an outline that is being drawn follows it. */
  const point = (to: Pointer) => {
    setPointer(to);
    if (!view || mode !== "draw" || !view.drawing.length) return;
    const at = view.under(to.x, to.y);
    view.drawing[view.drawing.length - 1] = [at.x, at.y];
    view.redraw();
  };
  const setPoint = (to: Pointer | null) => {
    if (!view || !mode || !to) return;
    const { x, y } = view.under(to.x, to.y);
    if (mode === "measure") view.measured = view.measured.length >= 2 ? [[x, y]] : [...view.measured, [x, y]];
    else view.drawing = [...view.drawing.slice(0, -1), [x, y], [x, y]];
    view.redraw();
    update(0);
  };
  const removePoint = () => {
    if (!view) return;
    if (mode === "measure") view.measured = view.measured.slice(0, -1);
    else view.drawing = view.drawing.length > 2 ? [...view.drawing.slice(0, -2), view.drawing.at(-1)!] : [];
    view.redraw();
    update(0);
  };
  const chooseClass = (name: string) => {
    view?.setMaps(detail, name);
    update(0);
  };
  const closeMode = { Escape: stopMode, " ": () => setPoint(pointer), Backspace: removePoint, Enter: () => void finishDrawing() };
  const whole = () => view?.home();
  const flip = () => void view?.viewer.viewport.toggleFlip();
  useKeys({
    ArrowLeft: arrow(-1, 0), ArrowRight: arrow(1, 0), ArrowUp: arrow(0, -1), ArrowDown: arrow(0, 1),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5),
    "0": whole, s: nextBeside, d: toggleDifference,
    ...Object.fromEntries(MAGNIFICATIONS.map((value, index) => [String(index + 1), () => zoomTo(value)])),
    r: () => rotate(90), R: () => rotate(-90), f: flip, F: fullScreen,
    n: () => step(1), N: () => step(-1), g: () => setGalleryShown((shown) => !shown),
    h: toggle("heatmap"), p: toggle("points"), o: toggle("outlines"), t: toggle("truth"), T: toggle("tissue"), v: toggle("states"), w: toggle("seen"), i: toggle("profile"),
    "[": () => nudge("opacity", -0.1), "]": () => nudge("opacity", 0.1), ",": () => nudge("threshold", -0.05), ".": () => nudge("threshold", 0.05),
    c: () => change({ colours: next(COLOUR_MAPS, settings.colours) }), k: () => view && chooseClass(next(view.classes(), view.className)),
    m: () => start("measure"), e: () => start("draw"), y: () => void copy(pointer), Y: () => void copyLink(),
    a: () => judge("accept"), x: () => judge("reject"), u: () => void review("undo"), L: () => write("relabel"), M: () => write("note"),
    q: () => setTab(next(TABS, tab)), Q: () => setTab(next(TABS, tab, -1)), J: () => visit(after), K: () => visit(before),
    ...(mode ? closeMode : {}),
  });

  const moved = useRef(false);
  const pressed = useRef<[number, number] | null>(null);
  const local = (event: MouseEvent): Pointer => {
    const bounds = view!.viewer.canvas.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top, isCross: false };
  };
  const onMove = (event: PointerEvent) => {
    if (!view) return;
    point(local(event));
    if (pressed.current && Math.hypot(event.clientX - pressed.current[0], event.clientY - pressed.current[1]) > 4) moved.current = true;
  };
  const tools: Tool[] = [
    { name: "Whole slide", key: "0", icon: ICONS.whole, onClick: whole },
    ...(mpp ? MAGNIFICATIONS.map((value, index) => ({ name: `Zoom to ${value}×`, key: String(index + 1), text: `${value}×`, onClick: () => zoomTo(value) })) : []),
    { name: "Rotate", key: "r", icon: ICONS.rotate, onClick: () => rotate(90) },
    { name: "Flip", key: "f", icon: ICONS.flip, onClick: flip },
    { name: "Measure", key: "m", icon: ICONS.measure, on: mode === "measure", onClick: () => start("measure") },
    { name: "Gallery of the highest fields", key: "g", icon: ICONS.gallery, on: galleryShown, onClick: () => setGalleryShown(!galleryShown) },
    { name: "Full screen", key: "F", icon: ICONS.screen, onClick: fullScreen },
    { name: "Copy the address of this view", key: "Y", icon: ICONS.link, onClick: () => void copyLink() },
  ];
  const now = view?.viewer.isOpen?.() && view.viewer.viewport ? view.view : null;
  const judged = useMemo(() => verdicts(reviews), [reviews]);
  return (
    <div class="case-page">
      <header class="bar">
        <Brand />
        <h1>{detail.name}</h1>
        <span class={`chip ${detail.status.replace(" ", "-")}`}>{detail.status}</span>
        <Scores scores={preliminary ?? detail.scores} />
        {preliminary && <span class="subtle" title="The slide is being refined.">in the coarse map</span>}
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
          <a key={other.id} class="button" href={caseHash(other.id, now ? positionOf(view!) : undefined)} title="The same case and view in the other result">
            Open in {session?.sources[other.source]?.name}
          </a>
        ))}
        <button disabled={!before} onClick={() => visit(before)} title="Previous case (K)" aria-label="Previous case">‹</button>
        <button disabled={!after} onClick={() => visit(after)} title="Next case (J)" aria-label="Next case">›</button>
        <ThemeButton />
        <button onClick={onHelp} title="Keys (?)">?</button>
      </header>
      <main class={`stage ${beside ? "halved" : ""}`}>
        {beside && view && <Beside key={`${beside} ${views.current}`} id={beside} name={nameOfOther(detail, session, beside)} main={view} page={page} />}
        <div class={`slide ${mode}`} ref={host} role="application" aria-label={`Slide ${detail.name}`} tabIndex={0}
          onPointerMove={onMove} onPointerLeave={() => setPointer(null)} onClick={(event) => !moved.current && view && setPoint(local(event))}
          onContextMenu={(event) => { event.preventDefault(); if (view) void copy(local(event)); }}
          onPointerDown={(event) => { pressed.current = [event.clientX, event.clientY]; moved.current = false; }}
          onPointerUp={() => (pressed.current = null)} />
        <Cross pointer={pointer} />
        <Tools tools={tools} />
        <div class="notices">
          {image?.missing && <p class="notice bad" role="note">{withCode(image.missing)}</p>}
          {detail.error && <p class="notice bad" role="note">{detail.error}</p>}
          {detail.status === "unfinished" && <p class="notice" role="note">The scan is running: the map fills in as it is written.</p>}
          {view?.overlay.renderer === "canvas" && <p class="notice" role="note">WebGL is not available: the overlay is drawn without it, more slowly.</p>}
          {view && view.comparedWith !== null && (
            <p class="notice" role="note">Difference: this result minus {nameOfOther(detail, session, view.comparedWith)}. Orange is higher here, blue is lower.</p>
          )}
          {mode && <p class="notice" role="note"><ModeText mode={mode} /></p>}
          {message && <p class="notice" role="status">{message}</p>}
        </div>
        {now && <ScaleBar mpp={mpp} scale={now.scale} />}
        {view && <SeenMap view={view} shown={settings.seen} />}
        {view && <Readout view={view} isOpen={now !== null} mpp={mpp} pointer={pointer} total={page.total} />}
        {galleryShown && gallery && (
          <Gallery detail={detail} fields={gallery} mpp={mpp} onChoose={(field) => {
            view?.flyTo(field.x, field.y, 450 / (mpp ?? 0.5));
            if (view) view.selected = field.finding;
          }} onClose={() => setGalleryShown(false)} />
        )}
      </main>
      <aside class="panel">
        <Tabs names={TABS} chosen={tab} onChoose={setTab} text={(name) => (name === "findings" && page.total ? `findings ${shortCount(page.total)}` : name)} />
        <div class="tab" role="tabpanel" aria-label={tab} tabIndex={0}>
          {tab === "display" && view && <DisplayPanel view={view} detail={detail} onClass={chooseClass} />}
          {tab === "findings" && (
            <FindingsPanel detail={detail} page={page} list={list} selected={view?.selected ?? null} judged={judged} onChoose={choose} onGallery={() => setGalleryShown(true)} />
          )}
          {tab === "review" && (
            <ReviewPanel reviews={reviews} selected={view?.selected ?? null} ranks={list.ranks} labels={page.labels} onReview={review} onDraw={() => start("draw")}
              canReview={detail.status !== "no result"} />
          )}
          {tab === "details" && <DetailsPanel detail={detail} onGo={(box) => view?.flyTo(box[0] + box[2] / 2, box[1] + box[3] / 2, 2 * Math.max(box[2], box[3]))} />}
        </div>
        <p class="subtle research">{session?.research_use}</p>
      </aside>
    </div>
  );
}

/** The position of a view as values of an address. */
function positionOf(view: SlideView): Record<string, string> {
  const { x, y, scale, rotation } = view.view;
  const values: Record<string, string> = { x: x.toFixed(0), y: y.toFixed(0), s: scale.toPrecision(4), r: String(Math.round(rotation)) };
  if (view.viewer.viewport.getFlip()) values.flip = "1";
  return values;
}
