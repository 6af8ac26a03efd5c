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

type Send = (action: "accept" | "reject" | "undo" | "relabel" | "note" | "draw", values?: object) => Promise<boolean>;

export function ReviewPanel(props: { reviews: Reviews; selected: number | null; labels: string[]; canReview: boolean; onReview: Send; onDraw?: () => void }) {
  const { selected, onReview } = props;
  const [note, setNote] = useState("");
  const [label, setLabel] = useState("");
  if (!props.canReview) return <p class="subtle">A case without results cannot be reviewed.</p>;
  const chosen = selected === null ? "Choose a finding to judge it." : `Finding ${selected + 1} is chosen.`;
  return (
    <>
      <section>
        <label class="field"><span>Your name</span>
          <input value={settings.person} maxLength={64} onInput={(event) => change({ person: event.currentTarget.value })} />
        </label>
        <p class="subtle">{chosen}</p>
        <div class="buttons">
          <button disabled={selected === null} onClick={() => void onReview("accept", { finding: selected })}>Accept <kbd>a</kbd></button>
          <button disabled={selected === null} onClick={() => void onReview("reject", { finding: selected })}>Reject <kbd>x</kbd></button>
          {props.onDraw && <button onClick={props.onDraw}>Draw <kbd>e</kbd></button>}
          <button onClick={() => void onReview("undo")}>Undo <kbd>u</kbd></button>
        </div>
        <form class="inline" onSubmit={(event) => { event.preventDefault(); if (label.trim()) void onReview("relabel", { finding: selected, label: label.trim() }).then((ok) => ok && setLabel("")); }}>
          <input list="labels" placeholder="Another label" aria-label="Another label" value={label} onInput={(event) => setLabel(event.currentTarget.value)} />
          <datalist id="labels">{props.labels.map((name) => <option key={name} value={name} />)}</datalist>
          <button disabled={selected === null || !label.trim()}>Relabel</button>
        </form>
        <form class="inline" onSubmit={(event) => { event.preventDefault(); if (note.trim()) void onReview("note", { text: note.trim() }).then((ok) => ok && setNote("")); }}>
          <textarea placeholder="A note about this case" aria-label="Note" rows={3} maxLength={4000} value={note} onInput={(event) => setNote(event.currentTarget.value)} />
          <button disabled={!note.trim()}>Add note</button>
        </form>
      </section>
      {Object.entries(props.reviews).map(([person, entries]) => (
        <section key={person}>
          <h2>{person}</h2>
          <ul class="notes">{entries.map((entry, index) => <li key={index}>{sentence(entry)}</li>)}</ul>
          {entries.length === 0 && <p class="subtle">No entries.</p>}
        </section>
      ))}
    </>
  );
}

function sentence(entry: Review): string {
  if (entry.action === "note") return entry.text ?? "";
  if (entry.action === "draw") return `A finding was drawn with ${entry.polygon?.length ?? 0} points.`;
  const subject = `Finding ${(entry.finding ?? 0) + 1}`;
  return entry.action === "relabel" ? `${subject}: ${word(entry.label ?? "")}` : `${subject} ${WORDS[entry.action]}`;
}
