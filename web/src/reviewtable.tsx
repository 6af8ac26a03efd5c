// Who has reviewed which case.

import { useEffect, useState } from "preact/hooks";
import { get } from "./api";
import { caseHash } from "./route";
import { Brand, ThemeButton } from "./widgets";

interface Row {
  case: string; id: string | null; person: string; accept: number; reject: number; relabel: number; note: number; draw: number;
  /** The time of the latest entry in force; empty if none is. */
  last: string;
}

export function ReviewTable() {
  const [rows, setRows] = useState<Row[] | null>(null);
  useEffect(() => void get<Row[]>("reviews").then(setRows, () => setRows([])), []);
  const columns = ["accept", "reject", "relabel", "draw", "note"] as const;
  const titles = { accept: "accepted", reject: "rejected", relabel: "relabelled", draw: "drawn", note: "notes" };
  return (
    <div class="list-page">
      <header class="bar"><Brand /><h1>Reviews</h1><span class="space" /><ThemeButton /></header>
      <main class="page">
        {rows?.length ? (
          <table class="plain">
            <thead><tr><th>case</th><th>reviewer</th>{columns.map((name) => <th key={name} class="number">{titles[name]}</th>)}<th>last entry</th></tr></thead>
            <tbody>
              {rows.map((row) => (
                <tr key={`${row.case} ${row.person}`}>
                  <td>{row.id ? <a href={caseHash(row.id)}>{row.case}</a> : row.case}</td>
                  <td>{row.person}</td>
                  {columns.map((name) => <td key={name} class="number">{row[name]}</td>)}
                  <td>{row.last.slice(0, 16).replace("T", " ")}</td>
                </tr>
              ))}
            </tbody>
          </table>
        ) : (
          <p class="empty">{rows ? "Nobody has reviewed a case of these results yet. Open a case, choose a finding and press a to accept it or x to reject it." : "Loading the reviews …"}</p>
        )}
      </main>
    </div>
  );
}
