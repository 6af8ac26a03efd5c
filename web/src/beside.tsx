// The right half of a slide's page: another result or the truth, with a view that follows the main one.

import { useEffect, useRef, useState } from "preact/hooks";
import { get, type CaseDetail, type FindingsPage, type Session } from "./api";
import { SlideView } from "./slideview";

export function Beside({ id, name, main, page }: { id: string; name: string; main: SlideView; page: FindingsPage }) {
  const host = useRef<HTMLDivElement>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    let other: SlideView | null = null;
    let closed = false;
    let leader = main;
    const lead = (view: SlideView) => () => (leader = view);
    const leadMain = lead(main);
    const follow = (from: SlideView, to: () => SlideView | null) => () => {
      if (leader === from) to()?.setView(from.view, true);
    };
    const followMain = follow(main, () => other);
    const open = async () => {
      if (id === "truth") {
        const truthAlone = { heatmap: false, points: false, outlines: false, truth: true };
        other = new SlideView(host.current!, main.detail, page, main.imageName, truthAlone);
      } else {
        const [detail, findings] = await Promise.all([get<CaseDetail>(`cases/${id}`), get<FindingsPage>(`cases/${id}/findings?limit=0`)]);
        if (closed) return;
        other = new SlideView(host.current!, detail, findings, main.imageName);
      }
      host.current!.addEventListener("pointerenter", lead(other));
      other.viewer.addOnceHandler("open", followMain);
      other.viewer.addHandler("viewport-change", follow(other, () => main));
      (window as unknown as { lobule: Record<string, unknown> }).lobule.beside = other;
    };
    main.element.addEventListener("pointerenter", leadMain);
    addEventListener("keydown", leadMain);
    main.viewer.addHandler("viewport-change", followMain);
    open().catch((error: Error) => setProblem(error.message));
    return () => {
      closed = true;
      main.element.removeEventListener("pointerenter", leadMain);
      removeEventListener("keydown", leadMain);
      main.viewer.removeHandler("viewport-change", followMain);
      other?.destroy();
      const shared = (window as unknown as { lobule: Record<string, unknown> }).lobule;
      if (shared.beside === other) delete shared.beside;
    };
  }, []);
  return (
    <>
      <div class="slide other" ref={host} />
      <p class={problem ? "side-name bad" : "side-name"}>{problem || name}</p>
    </>
  );
}

export function nameOfOther(detail: CaseDetail, session: Session | null, id: string): string {
  if (id === "truth") return "truth";
  return session?.sources[detail.others.find((other) => other.id === id)?.source ?? -1]?.name ?? "the other result";
}
