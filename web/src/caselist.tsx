// The list of cases: sorted, filtered and searched in the browser. Only the rows in view exist in the page.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { CaseRow, Session } from "./api";
import { score, word } from "./format";
import { useKeys } from "./keys";
import { caseHash } from "./route";
import { Brand, next, ThemeButton } from "./widgets";

const ROW = 60, HEAD = 36;
const STATUSES = ["complete", "partial", "unfinished", "failed", "unscored", "damaged", "not started", "no result"];

interface Column {
  key: string;
  title: string;
  value: (row: CaseRow) => string | number | undefined;
  number?: boolean;
}

function columnsOf(cases: CaseRow[], session: Session | null): Column[] {
  const columns: Column[] = [{ key: "name", title: "case", value: (row) => row.name }];
  if (session?.show_patients) columns.push({ key: "patient", title: "patient", value: (row) => row.patient ?? "" });
  if ((session?.sources.length ?? 0) > 1)
    columns.push({ key: "source", title: "result", value: (row) => session!.sources[row.source]?.name ?? "" });
  columns.push({ key: "status", title: "status", value: (row) => row.status });
  const scores = (row: CaseRow) => row.preliminary_scores ?? row.scores;
  const names = [...new Set(cases.flatMap((row) => Object.keys(scores(row))))].slice(0, 6);
  for (const name of names)
    columns.push({ key: `score ${name}`, title: word(name), value: (row) => scores(row)[name], number: true });
  columns.push({ key: "findings", title: "findings", value: (row) => row.findings, number: true });
  // What a narrow window cuts off is least important.
  for (const key of ["label", "split", "site"] as const)
    if (cases.some((row) => row[key])) columns.push({ key, title: key, value: (row) => row[key] ?? "" });
  return columns;
}

export function CaseList(props: { cases: CaseRow[] | null; session: Session | null; onHelp: () => void }) {
  const cases = props.cases ?? [];
  const columns = useMemo(() => columnsOf(cases, props.session), [props.cases, props.session]);
  const [search, setSearch] = useState("");
  const [status, setStatus] = useState("");
  const [order, setOrder] = useState<{ key: string; down: boolean }>({ key: "", down: false });
  const [chosen, setChosen] = useState(0);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(800);
  const field = useRef<HTMLInputElement>(null);
  const scroller = useRef<HTMLDivElement>(null);

  const rows = useMemo(() => {
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (row: CaseRow) => {
      const text = columns.map((column) => column.value(row)).join(" ").toLowerCase();
      return words.every((one) => text.includes(one)) && (!status || row.status === status);
    };
    const listed = cases.filter(matches);
    const column = columns.find((one) => one.key === order.key);
    if (column) {
      const sign = order.down ? -1 : 1;
      listed.sort((a, b) => {
        const [x, y] = [column.value(a), column.value(b)];
        if (x === undefined || y === undefined) return Number(x === undefined) - Number(y === undefined);
        if (typeof x === "number" && typeof y === "number") return sign * (x - y);
        return sign * String(x).localeCompare(String(y), "en", { numeric: true });
      });
    }
    return listed;
  }, [cases, columns, search, status, order]);

  useEffect(() => {
    const element = scroller.current!;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  useEffect(() => setChosen((index) => Math.max(0, Math.min(index, rows.length - 1))), [rows.length]);

  const move = (step: number) => {
    const index = Math.max(0, Math.min(chosen + step, rows.length - 1));
    setChosen(index);
    const element = scroller.current!;
    if (index * ROW < element.scrollTop) element.scrollTop = index * ROW;
    if ((index + 1) * ROW + HEAD > element.scrollTop + element.clientHeight) element.scrollTop = (index + 1) * ROW + HEAD - element.clientHeight;
  };
  const sort = (key: string, number: boolean) =>
    setOrder((before) => (before.key === key ? { key, down: !before.down } : { key, down: number }));
  const statuses = STATUSES.filter((one) => cases.some((row) => row.status === one));
  useKeys({
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    j: () => move(1),
    k: () => move(-1),
    PageDown: () => move(Math.floor(height / ROW) - 1),
    PageUp: () => move(1 - Math.floor(height / ROW)),
    Home: () => move(-rows.length),
    End: () => move(rows.length),
    Enter: () => rows[chosen] && (location.hash = caseHash(rows[chosen].id)),
    "/": () => field.current?.focus(),
    s: () => {
      const keys = columns.map((column) => column.key);
      const column = columns[(keys.indexOf(order.key) + 1) % keys.length];
      sort(column.key, column.number ?? false);
    },
    f: () => setStatus(next(["", ...statuses], status)),
    R: () => (location.hash = "#/reviews"),
    S: () => order.key && setOrder({ ...order, down: !order.down }),
  });

  const first = Math.max(0, Math.floor(top / ROW) - 4);
  const last = Math.min(rows.length, Math.ceil((top + height) / ROW) + 4);
  const methods = (props.session?.sources ?? []).map((source) => source.method).filter(Boolean);
  return (
    <div class="list-page">
      <header class="bar">
        <Brand />
        <h1>Cases</h1>
        <span class="subtle">{[...new Set(methods)].join(", ")}</span>
        <span class="space" />
        <input
          ref={field}
          type="search"
          placeholder="Search  /"
          aria-label="Search cases"
          value={search}
          onInput={(event) => setSearch(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter") event.currentTarget.blur();
          }}
        />
        <select aria-label="Status" value={status} onChange={(event) => setStatus(event.currentTarget.value)}>
          <option value="">every status</option>
          {statuses.map((one) => <option key={one} value={one}>{one}</option>)}
        </select>
        <a class="button" href="#/reviews">Reviews</a>
        <ThemeButton />
        <button onClick={props.onHelp} title="Keys (?)">?</button>
      </header>
      <main class="table-page">
       <div class="table" style={{ "--columns": columns.length }}>
        <div class="rows" role="grid" aria-label="Cases" aria-rowcount={rows.length + 1} ref={scroller} tabIndex={0} onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
          <div class="head" role="row">
            <span class="thumb" role="columnheader">image</span>
            {columns.map((column) => (
              <span key={column.key} role="columnheader" class={cellClass(column)}
                aria-sort={order.key === column.key ? (order.down ? "descending" : "ascending") : "none"}>
                <button onClick={() => sort(column.key, column.number ?? false)}>
                  {column.title}{order.key === column.key ? (order.down ? " ▾" : " ▴") : ""}
                </button>
              </span>
            ))}
          </div>
          <div class="body" style={{ height: `${rows.length * ROW}px` }} role="rowgroup">
            {rows.slice(first, last).map((row, index) => (
              <div key={row.id} role="row" class={`row ${first + index === chosen ? "chosen" : ""}`}
                aria-rowindex={first + index + 2} aria-selected={first + index === chosen}
                style={{ top: `${(first + index) * ROW}px` }}
                onMouseDown={() => setChosen(first + index)} onClick={() => (location.hash = caseHash(row.id))}>
                <span class="thumb" role="gridcell">
                  <img loading="lazy" alt="" src={`api/cases/${row.id}/thumbnail`} onError={(event) => (event.currentTarget.style.visibility = "hidden")} />
                </span>
                {columns.map((column) => <Cell key={column.key} column={column} row={row} />)}
              </div>
            ))}
          </div>
          {props.cases && rows.length === 0 && (
            <p class="empty">{cases.length ? "No case matches the search." : "There are no cases in these results yet."}</p>
          )}
          {!props.cases && <p class="empty">Loading the cases …</p>}
        </div>
       </div>
      </main>
      <footer class="bar foot">
        <span>{rows.length === cases.length ? `${cases.length.toLocaleString("en")} cases` : `${rows.length.toLocaleString("en")} of ${cases.length.toLocaleString("en")} cases`}</span>
        <span class="space" />
        <span class="subtle">{props.session?.research_use}</span>
      </footer>
    </div>
  );
}

function cellClass(column: Column): string {
  return column.number ? "number" : column.key === "name" ? "name" : "";
}

function Cell({ column, row }: { column: Column; row: CaseRow }) {
  const value = column.value(row);
  if (column.key === "status")
    return (
      <span role="gridcell"><span class={`chip ${row.status.replace(" ", "-")}`} title={row.error ?? ""}>{row.status}</span></span>
    );
  if (column.key.startsWith("score "))
    return (
      <span role="gridcell" class="number">
        {typeof value === "number" ? <Bar value={value} /> : "–"}
      </span>
    );
  if (column.key === "name")
    return <span role="gridcell" class="name"><a href={caseHash(row.id)} tabIndex={-1} title={row.name}>{row.name}</a></span>;
  return <span role="gridcell" class={cellClass(column)} title={String(value ?? "")}>{typeof value === "number" ? value.toLocaleString("en") : value}</span>;
}

export function Bar({ value }: { value: number }) {
  const share = Math.min(1, Math.max(0, value));
  return (
    <span class="score">
      <span class="meter"><span style={{ width: `${100 * share}%` }} /></span>
      {score(value)}
    </span>
  );
}
