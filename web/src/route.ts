// The address of a page: `#/`, `#/reviews` or `#/case/ID?x=…&y=…&s=…&r=…`.

export interface Route {
  page: "list" | "case" | "reviews";
  id: string;
  view: URLSearchParams;
}

export function parseRoute(hash = location.hash): Route {
  const [path, query = ""] = hash.replace(/^#/, "").split("?");
  const match = /^\/case\/([0-9a-f]{24})$/.exec(path);
  if (match) return { page: "case", id: match[1], view: new URLSearchParams(query) };
  return { page: path === "/reviews" ? "reviews" : "list", id: "", view: new URLSearchParams() };
}

export function caseHash(id: string, view?: Record<string, string>): string {
  const query = view ? `?${new URLSearchParams(view)}` : "";
  return `#/case/${id}${query}`;
}
