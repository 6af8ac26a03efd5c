// The start of the viewer: loads the session, and shows the page that the address names.

import { render } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import { get, type CaseRow, type Session } from "./api";
import { CaseList } from "./caselist";
import { CasePage } from "./casepage";
import { listen, start } from "./events";
import { Help } from "./help";
import { useKeys } from "./keys";
import { ReviewTable } from "./reviewtable";
import { applyTheme, change, settings } from "./settings";
import { parseRoute, type Route } from "./route";
import "./style.css";

function App() {
  const [route, setRoute] = useState<Route>(parseRoute());
  const [session, setSession] = useState<Session | null>(null);
  const [cases, setCases] = useState<CaseRow[] | null>(null);
  const [problem, setProblem] = useState("");
  const [help, setHelp] = useState(false);

  const load = useCallback(async () => {
    try {
      setCases(await get<CaseRow[]>("cases"));
      setProblem("");
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  }, []);

  useEffect(() => {
    void get<Session>("session").then(setSession, (error: Error) => setProblem(error.message));
    void load();
    const onHash = () => setRoute(parseRoute());
    addEventListener("hashchange", onHash);
    const stop = listen((event) => {
      if (event.kind !== "chunks") void load();
    });
    return () => {
      removeEventListener("hashchange", onHash);
      stop();
    };
  }, []);

  useKeys({
    "?": () => setHelp((shown) => !shown),
    Escape: () => {
      if (help) setHelp(false);
      else if (route.page !== "list") location.hash = "#/";
    },
    D: () => change({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" }),
  });

  const shown = cases?.find((one) => one.id === route.id);
  useEffect(() => {
    document.title = shown ? `${shown.name} · Lobule` : "Lobule";
  }, [shown?.name]);

  return (
    <>
      {problem && (
        <div class="problem" role="alert">
          {problem} <button onClick={() => void load()}>Try again</button>
        </div>
      )}
      {route.page === "case" ? (
        <CasePage key={route.id} id={route.id} cases={cases ?? []} session={session} onHelp={() => setHelp(true)} />
      ) : route.page === "reviews" ? (
        <ReviewTable />
      ) : (
        <CaseList cases={cases} session={session} onHelp={() => setHelp(true)} />
      )}
      {help && <Help onClose={() => setHelp(false)} />}
    </>
  );
}

applyTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => settings.theme === "system" && applyTheme());
start();
render(<App />, document.getElementById("app")!);
