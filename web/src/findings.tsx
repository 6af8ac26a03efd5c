// The list of findings, and the gallery of the highest-scoring fields.

import { useEffect, useRef, useState } from "preact/hooks";
import { query, type CaseDetail, type Field, type Finding, type FindingsPage } from "./api";
import { length, score, word } from "./format";
import { useKeys } from "./keys";
import type { FindingsList } from "./usefindings";

const FIELD_UM = 250;
const LESION_CLASSES: Record<string, string> = { itc: "isolated tumour cells", micro: "micrometastasis", macro: "macrometastasis" };
const SHORT: Record<string, string> = { ...LESION_CLASSES, itc: "isolated cells" };

/** What a finding is: its class of size, and its class where the findings have several. */
function kind(finding: Finding, labels: string[]): string {
  const lesion = finding.lesion_class && (SHORT[finding.lesion_class] ?? word(finding.lesion_class));
  const label = finding.label && (labels.length > 1 || !lesion) ? word(finding.label) : "";
  return [label, lesion].filter(Boolean).join(" · ");
}

export function FindingsPanel(props: {
  detail: CaseDetail; page: FindingsPage; list: FindingsList; selected: number | null; judged: Map<number, string>;
  onChoose: (finding: Finding) => void; onGallery: () => void;
}) {
  const { detail, page, list } = props;
  const [loading, setLoading] = useState(false);
  const more = async () => {
    setLoading(true);
    await list.more().finally(() => setLoading(false));
  };
  return (
    <>
      {!!list.gallery?.length && (
        <section>
          <h2>Highest fields <button class="small" onClick={props.onGallery}>Gallery <kbd>g</kbd></button></h2>
        </section>
      )}
      {page.labels.length > 1 && (
        <label class="field"><span>Class</span>
          <select value={list.label ?? ""} onChange={(event) => void list.chooseLabel(event.currentTarget.value || null)}>
            <option value="">all classes</option>
            {page.labels.filter(Boolean).map((name) => <option key={name} value={name}>{word(name)}</option>)}
          </select>
        </label>
      )}
      {(page.isPending || (list.listed > 0 && list.findings.length === 0)) && <p class="subtle">Loading the findings …</p>}
      {page.total === 0 && !page.isPending && <p class="subtle">There are no findings{detail.status === "unfinished" ? " yet" : ""}.</p>}
      <FindingsRows findings={list.findings} labels={page.labels} selected={props.selected} judged={props.judged} onChoose={props.onChoose} />
      {list.findings.length > 0 && list.findings.length < list.listed && <button onClick={() => void more()} disabled={loading}>Show more of {list.listed.toLocaleString("en")}</button>}
    </>
  );
}

export function FindingsRows(props: {
  findings: Finding[]; labels: string[]; selected: number | null; judged: Map<number, string>; onChoose: (finding: Finding) => void;
  withImage?: boolean;
}) {
  const rows = useRef<HTMLOListElement>(null);
  useEffect(() => rows.current?.querySelector(".chosen")?.scrollIntoView({ block: "nearest" }), [props.selected, props.findings]);
  return (
    <ol class="findings" ref={rows}>
      {props.findings.map((finding, index) => (
        <li key={finding.number}>
          <button class={`finding ${finding.number === props.selected ? "chosen" : ""}`} aria-current={finding.number === props.selected}
            onClick={() => props.onChoose(finding)}>
            <span class="rank">{index + 1}</span>
            <strong>{score(finding.score)}</strong>
            <span title={finding.lesion_class && LESION_CLASSES[finding.lesion_class]}>{[props.withImage && finding.image, kind(finding, props.labels)].filter(Boolean).join(" ")}</span>
            <span class="subtle">{finding.size_um ? length(finding.size_um) : ""}</span>
            <span class="verdict" title="Your review">{props.judged.get(finding.number) ?? ""}</span>
          </button>
        </li>
      ))}
    </ol>
  );
}

export function Gallery(props: { detail: CaseDetail; fields: Field[]; mpp: number | null; onChoose: (field: Field) => void; onClose: () => void }) {
  const strip = useRef<HTMLDivElement>(null);
  const move = (by: number) => {
    const buttons = [...strip.current!.querySelectorAll("button")];
    const index = buttons.indexOf(document.activeElement as HTMLButtonElement);
    buttons[(index + by + buttons.length) % buttons.length]?.focus();
  };
  useEffect(() => {
    const before = document.activeElement as HTMLElement;
    strip.current!.querySelector("button")?.focus();
    return () => before.focus?.();
  }, []);
  const arrow = (by: number) => (event: KeyboardEvent) => !event.shiftKey && move(by);
  useKeys({ ArrowLeft: arrow(-1), ArrowRight: arrow(1), Escape: props.onClose });
  const side = props.mpp ? FIELD_UM / props.mpp : 1000;
  const address = (field: Field) =>
    `api/cases/${props.detail.id}/region?${query({ x: Math.round(field.x - side / 2), y: Math.round(field.y - side / 2), width: Math.round(side), height: Math.round(side), side: 256 })}`;
  return (
    <section class="gallery" aria-label="Highest-scoring fields">
      <header>
        <h2>The {props.fields.length} highest fields{props.mpp ? `, ${FIELD_UM} µm wide` : ""}</h2>
        <button onClick={props.onClose}>Close <kbd>g</kbd></button>
      </header>
      <div class="strip" ref={strip}>
        {props.fields.map((field, index) => (
          <button key={index} onClick={() => props.onChoose(field)} title={`Field ${index + 1}, score ${score(field.score)}`}>
            <img alt={`Field ${index + 1}`} src={address(field)} width={160} height={160} />
            <span>{index + 1}. {score(field.score)}</span>
          </button>
        ))}
        {props.fields.length === 0 && <p class="subtle">Nothing was scored.</p>}
      </div>
    </section>
  );
}
