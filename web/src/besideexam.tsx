// The right half of an exam's page: another exam of the patient.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";
import { get, type CaseDetail } from "./api";
import { ExamView, PANES } from "./examview";

/** The name of a view over its pane, and what is wrong with it. */
export function Pane({ name, box: [left, top, width, height], text }: { name: string; box: [number, number, number, number]; text: string }) {
  return (
    <div class={`pane ${name.startsWith("R") ? "left" : "right"}`} style={{ left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` }}>
      <strong>{name}</strong>
      {text && <p class="notice">{text}</p>}
    </div>
  );
}

/** Another exam of the patient, in the same scale in millimetres and at the same position. */
export function BesideExam({ id, main, title }: { id: string; main: ExamView; title: string }) {
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
      const shared = (window as unknown as { lobule: Record<string, unknown> }).lobule;
      if (shared.besideExam === other) delete shared.besideExam;
    };
  }, []);
  return (
    <div class="exam other" ref={host} onWheel={(event) => { event.preventDefault(); main.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2); }}>
      {problem && <p class="notice bad">{problem}</p>}
      {view && PANES.filter((name) => view.pane(name)[2]).map((name) => (
        <Pane key={name} name={name} box={view.pane(name)} text={view.views.get(name)?.image ? "" : view.views.get(name)?.problem || (view.views.has(name) ? "Loading …" : `${name} is missing.`)} />
      ))}
      {view && <p class="exam-name">{title}</p>}
    </div>
  );
}
