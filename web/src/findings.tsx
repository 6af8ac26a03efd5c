// The list of findings, and the gallery of the highest-scoring fields.

import { useState } from "preact/hooks";
import { get, query, type CaseDetail, type Field, type Finding, type FindingsPage } from "./api";
import { length, score, word } from "./format";

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
  detail: CaseDetail; page: FindingsPage; listed: number; label: string | null; onLabel: (label: string | null) => void; findings: Finding[]; selected: number | null; gallery: Field[] | null; mpp: number | null;
  judged: Map<number, string>; onMore: (more: Finding[]) => void; onChoose: (finding: Finding) => void; onGallery: () => void;
}) {
  const { detail, page, findings } = props;
  const [loading, setLoading] = useState(false);
  const more = async () => {
    setLoading(true);
    try {
      props.onMore((await get<FindingsPage>(`cases/${detail.id}/findings?${query({ offset: findings.length, limit: 200, ...(props.label === null ? {} : { label: props.label }) })}`)).findings);
    } finally {
      setLoading(false);
    }
  };
  return (
    <>
      {props.gallery && props.gallery.length > 0 && (
        <section>
          <h2>Highest fields <button class="small" onClick={props.onGallery}>Gallery <kbd>g</kbd></button></h2>
        </section>
      )}
      {page.labels.length > 1 && (
        <label class="field"><span>Class</span>
          <select value={props.label ?? ""} onChange={(event) => props.onLabel(event.currentTarget.value || null)}>
            <option value="">all classes</option>
            {page.labels.filter(Boolean).map((name) => <option key={name} value={name}>{word(name)}</option>)}
          </select>
        </label>
      )}
      {(page.isPending || (props.listed > 0 && findings.length === 0)) && <p class="subtle">Loading the findings …</p>}
      {page.total === 0 && !page.isPending && <p class="subtle">There are no findings{detail.status === "unfinished" ? " yet" : ""}.</p>}
      <ol class="findings">
        {findings.map((finding, index) => (
          <li key={finding.number}>
            <button class={`finding ${finding.number === props.selected ? "chosen" : ""}`} aria-current={finding.number === props.selected}
              onClick={() => props.onChoose(finding)}>
              <span class="rank">{index + 1}</span>
              <strong>{score(finding.score)}</strong>
              <span title={finding.lesion_class && LESION_CLASSES[finding.lesion_class]}>{kind(finding, page.labels)}</span>
              <span class="subtle">{finding.size_um ? length(finding.size_um) : ""}</span>
              <span class="verdict" title="Your review">{props.judged.get(finding.number) ?? ""}</span>
            </button>
          </li>
        ))}
      </ol>
      {findings.length > 0 && findings.length < props.listed && <button onClick={() => void more()} disabled={loading}>Show more of {props.listed.toLocaleString("en")}</button>}
    </>
  );
}

export function Gallery(props: { detail: CaseDetail; fields: Field[]; mpp: number | null; onChoose: (field: Field) => void; onClose: () => void }) {
  const side = props.mpp ? FIELD_UM / props.mpp : 1000;
  const address = (field: Field) =>
    `api/cases/${props.detail.id}/region?${query({ x: Math.round(field.x - side / 2), y: Math.round(field.y - side / 2), width: Math.round(side), height: Math.round(side), side: 256 })}`;
  return (
    <section class="gallery" aria-label="Highest-scoring fields">
      <header>
        <h2>The {props.fields.length} highest fields{props.mpp ? `, ${FIELD_UM} µm wide` : ""}</h2>
        <button onClick={props.onClose}>Close <kbd>g</kbd></button>
      </header>
      <div class="strip">
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
