// Reviews: what a person says about the findings. Each entry is appended to a file; undo takes the last one back.

import { useState } from "preact/hooks";
import { post, type Review, type Reviews } from "./api";
import { word } from "./format";
import { change, settings } from "./settings";

const WORDS: Record<string, string> = { accept: "accepted", reject: "rejected", relabel: "relabelled", note: "note", draw: "drawn" };

export async function sendReview(caseId: string, action: string, values: object): Promise<Reviews> {
  if (!settings.person.trim()) throw new Error("Enter your name in the review panel first.");
  return post<Reviews>(`cases/${caseId}/reviews`, { person: settings.person.trim(), action, ...values });
}

/** The verdict on each finding by the person at the screen. */
export function verdicts(reviews: Reviews): Map<number, string> {
  const judged = new Map<number, string>();
  for (const entry of reviews[settings.person.trim()] ?? [])
    if (entry.finding !== undefined)
      judged.set(entry.finding, entry.action === "accept" ? "✓" : entry.action === "reject" ? "✗" : entry.label ?? "");
  return judged;
}

/** Move the focus to a field of the review panel when that is shown. */
export function focusField(name: "person" | "relabel" | "note"): void {
  setTimeout(() => document.getElementById(`review-${name}`)?.focus());
}

type Send = (action: "accept" | "reject" | "undo" | "relabel" | "note" | "draw", values?: object) => Promise<boolean>;

export function ReviewPanel(props: { reviews: Reviews; selected: number | null; ranks: ReadonlyMap<number, number>; labels: string[]; canReview: boolean; onReview: Send; onDraw?: () => void; relabelKey?: string }) {
  const { selected, onReview } = props;
  const nameOf = (finding: number) => `Finding ${props.ranks.get(finding) ?? `number ${finding}`}`;
  const [note, setNote] = useState("");
  const [label, setLabel] = useState("");
  if (!props.canReview) return <p class="subtle">A case without results cannot be reviewed.</p>;
  const chosen = selected === null ? "Choose a finding to judge it." : `${nameOf(selected)} is chosen.`;
  const relabel = async () => {
    if (!label.trim() || selected === null || !(await onReview("relabel", { finding: selected, label: label.trim() }))) return;
    setLabel("");
    (document.activeElement as HTMLElement).blur();
  };
  const addNote = async () => {
    if (!note.trim() || !(await onReview("note", { text: note.trim() }))) return;
    setNote("");
    (document.activeElement as HTMLElement).blur();
  };
  return (
    <>
      <section>
        <label class="field"><span>Your name</span>
          <input id="review-person" value={settings.person} maxLength={64} onInput={(event) => change({ person: event.currentTarget.value })} />
        </label>
        <p class="subtle">{chosen}</p>
        <div class="buttons pairs">
          <button disabled={selected === null} onClick={() => void onReview("accept", { finding: selected })}>Accept <kbd>a</kbd></button>
          <button disabled={selected === null} onClick={() => void onReview("reject", { finding: selected })}>Reject <kbd>x</kbd></button>
          {props.onDraw && <button onClick={props.onDraw}>Draw <kbd>e</kbd></button>}
          <button onClick={() => void onReview("undo")}>Undo <kbd>u</kbd></button>
        </div>
        <form class="inline" onSubmit={(event) => { event.preventDefault(); void relabel(); }}>
          <input id="review-relabel" list="labels" placeholder="Another label" aria-label="Another label" value={label} onInput={(event) => setLabel(event.currentTarget.value)} />
          <datalist id="labels">{props.labels.map((name) => <option key={name} value={name} />)}</datalist>
          <button disabled={selected === null || !label.trim()}>Relabel <kbd>{props.relabelKey ?? "L"}</kbd></button>
        </form>
        <form class="inline" onSubmit={(event) => { event.preventDefault(); void addNote(); }}>
          <textarea id="review-note" placeholder="A note about this case" aria-label="Note" rows={3} maxLength={4000} value={note} onInput={(event) => setNote(event.currentTarget.value)}
            onKeyDown={(event) => { if (event.key === "Enter" && event.ctrlKey) void addNote(); }} title="Ctrl and Enter add the note" />
          <button disabled={!note.trim()}>Add note <kbd>M</kbd></button>
        </form>
      </section>
      {Object.entries(props.reviews).map(([person, entries]) => (
        <section key={person}>
          <h2>{person}</h2>
          <ul class="notes">{entries.map((entry, index) => <li key={index}>{sentence(entry, nameOf)}</li>)}</ul>
          {entries.length === 0 && <p class="subtle">No entries.</p>}
        </section>
      ))}
    </>
  );
}

function sentence(entry: Review, nameOf: (finding: number) => string): string {
  if (entry.action === "note") return entry.text ?? "";
  if (entry.action === "draw") return `A finding was drawn with ${entry.polygon?.length ?? 0} points.`;
  const subject = nameOf(entry.finding ?? 0);
  return entry.action === "relabel" ? `${subject}: ${word(entry.label ?? "")}` : `${subject} ${WORDS[entry.action]}`;
}
