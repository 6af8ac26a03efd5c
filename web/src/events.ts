// Events of running scans. All tabs of a browser share one connection: browsers allow only six per server.

export type ServerEvent =
  | { kind: "chunks"; case: string; chunks: string[] }
  | { kind: "finished"; case: string }
  | { kind: "preliminary"; case: string; scores: Record<string, number> }
  | { kind: "cases" | "reload" };

const listeners = new Set<(event: ServerEvent) => void>();
const channel = "BroadcastChannel" in window ? new BroadcastChannel("lobule-events") : null;

function publish(text: string): void {
  const event = JSON.parse(text) as ServerEvent;
  for (const listener of listeners) listener(event);
}

function connect(): void {
  const source = new EventSource("api/events");
  let lost = false;
  source.onerror = () => (lost = true);
  source.onopen = () => {
    if (lost) announce('{"kind":"reload"}');
    lost = false;
  };
  source.onmessage = (message: MessageEvent<string>) => announce(message.data);
}

function announce(text: string): void {
  channel?.postMessage(text);
  publish(text);
}

/** Connect in the first tab; the others get its events, and one of them takes over when it closes. */
export function start(): void {
  if (channel === null || !navigator.locks) return connect();
  channel.onmessage = (message: MessageEvent<string>) => publish(message.data);
  void navigator.locks.request("lobule-events", () => {
    connect();
    return new Promise<void>(() => {});
  });
}

export function listen(listener: (event: ServerEvent) => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
