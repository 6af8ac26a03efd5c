// The page of one case: a slide or an exam.

import { useEffect, useState } from "preact/hooks";
import { get, type CaseDetail, type CaseRow, type FindingsPage, type Session } from "./api";
import { listen } from "./events";
import { ExamPage } from "./exampage";
import { SlidePage } from "./slidepage";
import { Brand } from "./widgets";

const NO_FINDINGS: FindingsPage = { total: 0, findings: [], labels: [], images: {} };

export interface CasePageProps {
  detail: CaseDetail;
  page: FindingsPage;
  cases: CaseRow[];
  session: Session | null;
  onHelp: () => void;
}

export function CasePage(props: { id: string; cases: CaseRow[]; session: Session | null; onHelp: () => void }) {
  const [loaded, setLoaded] = useState<{ detail: CaseDetail; page: FindingsPage } | null>(null);
  const [problem, setProblem] = useState("");
  const load = async (isFirst: boolean) => {
    try {
      const findings = get<FindingsPage>(`cases/${props.id}/findings?limit=0`).catch(() => NO_FINDINGS);
      const detail = await get<CaseDetail>(`cases/${props.id}`);
      // A slide and its maps are shown while many findings are still being read.
      if (isFirst && detail.kind !== "exam") setLoaded({ detail, page: { ...NO_FINDINGS, isPending: true } });
      setLoaded({ detail, page: await findings });
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  };
  useEffect(() => {
    void load(true);
    return listen((event) => {
      if ((event.kind === "finished" && event.case === props.id) || event.kind === "reload") void load(false);
    });
  }, [props.id]);
  if (!loaded)
    return (
      <div class="list-page">
        <header class="bar"><Brand /></header>
        {problem ? (
          <section class="empty" role="alert">
            <h1>This case cannot be opened</h1>
            <p>{problem[0].toUpperCase() + problem.slice(1)}</p>
            <p class="buttons">
              <button onClick={() => { setProblem(""); void load(true); }}>Try again</button>
              <a class="button" href="#/">All cases</a>
            </p>
          </section>
        ) : (
          <p class="empty">Opening the case …</p>
        )}
      </div>
    );
  const Page = loaded.detail.kind === "exam" ? ExamPage : SlidePage;
  return <Page {...loaded} cases={props.cases} session={props.session} onHelp={props.onHelp} />;
}

/** The cases before and after this one in the list. */
export function neighbours(cases: CaseRow[], id: string): [CaseRow | undefined, CaseRow | undefined] {
  const index = cases.findIndex((row) => row.id === id);
  return [cases[index - 1], cases[index + 1]];
}
