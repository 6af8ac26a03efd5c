// The server's API: types of its answers and functions that request them.

export interface Session {
  version: string;
  research_use: string;
  sources: { name: string; method: string | null }[];
  show_patients: boolean;
}

export interface CaseRow {
  id: string;
  name: string;
  source: number;
  kind: "slide" | "image" | "exam";
  status: string;
  scores: Record<string, number>;
  /** The scores of the coarse map of a case that is being refined. */
  preliminary_scores?: Record<string, number>;
  findings: number;
  remarks: number;
  label?: string;
  split?: string;
  site?: string;
  patient?: string | null;
  error?: string;
  breast_labels?: Record<string, boolean>;
}

export interface ImageInfo {
  width: number;
  height: number;
  mpp?: [number, number] | null;
  mpp_source?: string | null;
  format?: string;
  bounds?: [number, number, number, number];
  version?: string;
  levels?: { size: [number, number]; tile: [number, number]; step: [number, number] }[];
  missing?: string;
  /** The ICC profile of the slide; null if the file has none. */
  profile?: { name: string; applied: boolean } | null;
  label_images?: string[];
  view?: string;
  pointing?: "left" | "right" | null;
  mm_per_px?: number | null;
  lowest?: number;
  highest?: number;
  inverted_from?: number | null;
  decisions?: string[];
}

export interface MapInfo {
  name: string;
  image: string;
  classes: string[];
  rows: number;
  columns: number;
  l0_stride: [number, number];
  um_stride: [number, number] | null;
  chunk: [number, number];
  levels: number;
  tile: number;
  cells: Record<string, number>;
}

export interface CaseDetail extends CaseRow {
  images: Record<string, ImageInfo>;
  maps: MapInfo[];
  missing_views?: string[];
  other_exams?: { id: string; name: string; date: string; relation: "prior" | "later" | "unknown" }[];
  notes: string[];
  failed_fields: { pass: string; image: string; l0_box: number[]; cause: string }[];
  failed_count: number;
  provenance: Record<string, unknown>;
  details: Record<string, unknown>;
  has_truth: boolean;
  others: { id: string; source: number }[];
}

export interface Finding {
  number: number;
  l0_x: number;
  l0_y: number;
  score: number;
  label?: string;
  size_um?: number;
  area_um2?: number;
  lesion_class?: string;
  box?: number[];
  image: string;
  polygon?: number[][][][];
}

export interface FindingsPage {
  total: number;
  findings: Finding[];
  labels: string[];
  /** `top` is the tile that covers all findings, in base64. */
  images: Record<string, { count: number; tile_side: number; levels: number; top?: string }>;
  /** The findings have been requested but not received. */
  isPending?: boolean;
}

export interface Field {
  x: number;
  y: number;
  score: number;
  image: string;
  finding: number | null;
  label: string | null;
}

export interface TruthOutline {
  kind: string;
  name: string;
  group: string;
  rings: number[][][];
}

export interface Review {
  action: "accept" | "reject" | "relabel" | "note" | "draw";
  finding?: number;
  label?: string;
  text?: string;
  image?: string;
  polygon?: number[][];
  time: string;
}

export type Reviews = Record<string, Review[]>;

export class RequestError extends Error {}

async function checked(answer: Response): Promise<Response> {
  if (answer.ok) return answer;
  let message = `The server answered ${answer.status}.`;
  try {
    const text = await answer.text();
    const body = JSON.parse(text) as { error?: string; detail?: unknown };
    if (typeof body.error === "string") message = `${body.error}.`.replace("..", ".");
    else if (typeof body.detail === "string") message = body.detail;
  } catch {
    // The answer is not JSON: the status is all there is to say.
  }
  throw new RequestError(message);
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await checked(await fetch(`api/${path}`, { signal }))).json() as Promise<T>;
}

export async function getBytes(path: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  return (await checked(await fetch(`api/${path}`, { signal }))).arrayBuffer();
}

export async function post<T>(path: string, body: unknown): Promise<T> {
  const headers = { "content-type": "application/json", "x-lobule": "1" };
  return (await checked(await fetch(`api/${path}`, { method: "POST", headers, body: JSON.stringify(body) }))).json() as Promise<T>;
}

export function query(values: Record<string, string | number>): string {
  return new URLSearchParams(Object.entries(values).map(([name, value]) => [name, String(value)])).toString();
}

/** How long to wait before a failed request is repeated, in milliseconds: longer each time, up to a minute. */
export function retryDelay(failures: number): number {
  return Math.min(60_000, 1000 * 2 ** failures);
}
