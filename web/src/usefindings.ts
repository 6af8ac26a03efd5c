// The list of a slide's findings and its gallery, loaded after the first picture.

import { useEffect, useRef, useState } from "preact/hooks";
import { get, query, type CaseDetail, type Field, type Finding, type FindingsPage } from "./api";
import type { SlideView } from "./slideview";

const AT_ONCE = 200;

export interface FindingsList {
  findings: Finding[];
  /** How many there are, also those that are not loaded. */
  listed: number;
  label: string | null;
  gallery: Field[] | null;
  /** The position of each finding in the list of all classes, from 1. */
  ranks: Map<number, number>;
  chooseLabel: (label: string | null) => Promise<void>;
  more: () => Promise<void>;
}

export function useFindings(detail: CaseDetail, page: FindingsPage, view: SlideView | null): FindingsList {
  const [findings, setFindings] = useState(page.findings);
  const [listed, setListed] = useState(page.total);
  const [label, setLabel] = useState<string | null>(null);
  const [gallery, setGallery] = useState<Field[] | null>(null);
  const ranks = useRef(new Map<number, number>());
  /** The number of the latest request of the list: answers to earlier ones are dropped. */
  const lists = useRef(0);
  const load = async (chosen: string | null, before: Finding[] = []) => {
    const number = ++lists.current;
    const loaded = await loadFindings(detail.id, before.length, chosen);
    if (number !== lists.current) return;
    const all = [...before, ...loaded.findings];
    if (chosen === null) all.forEach((finding, index) => ranks.current.set(finding.number, index + 1));
    setFindings(all);
    setListed(loaded.total);
  };
  useEffect(() => {
    lists.current++;
    ranks.current.clear();
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
      if (page.total && number === lists.current) await load(null);
      const fields = isCurrent ? await get<Field[]>(`cases/${detail.id}/gallery`) : [];
      if (isCurrent) setGallery(fields);
    };
    loadLater().catch(() => setGallery([]));
    return () => void (isCurrent = false);
  }, [page, view]);
  const chooseLabel = async (chosen: string | null) => {
    setLabel(chosen);
    view?.showFindings(chosen);
    await load(chosen);
  };
  return { findings, listed, label, gallery, ranks: ranks.current, chooseLabel, more: () => load(label, findings) };
}

/** A page of the findings, highest score first. */
export function loadFindings(id: string, offset = 0, label: string | null = null): Promise<FindingsPage> {
  return get<FindingsPage>(`cases/${id}/findings?${query({ offset, limit: AT_ONCE, ...(label === null ? {} : { label }) })}`);
}
