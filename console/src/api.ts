// What the server tells (docs/console.md), and how it is asked.
import { useEffect, useRef, useState } from "preact/hooks";

export interface Dated {
  at: number;
  now: number;
  problem: string;
}
export type State = "well" | "trouble" | "silent" | "unknown";
export interface Node {
  name: string;
  rack: string;
  addresses: string[];
  agent: string;
  state: State;
  problems: string[];
  accepts: string[];
  sends: string[];
  blocks: string[];
  pods: number;
  established: number;
  sessions: number;
  version: string;
  started: number;
  device: string;
  mtu: number;
  memory: number;
  dataPath: string;
}
export interface Session {
  on: string;
  name: string;
  node: string;
  peer: string;
  role: string;
  address: string;
  asn: number;
  state: string;
  since: string;
  lastError: string;
  bfd: string;
  imported: number;
  exported: number;
}
export interface Way {
  source: string;
  target: string;
  encapsulation: string;
  protocol: string;
  routes: number;
  inKernel: number;
}
export interface Change {
  at: number;
  state: State;
  words: string;
}
export interface Network extends Dated {
  nodes: Node[];
  pools: { name: string; cidr: string; encapsulation: string; distribution: string; blocks: number }[];
  sessions: Session[];
  ways: Way[];
  whole: boolean;
  dataPath: string;
  pods: number;
  rejected: string[];
  changes: (Change & { node: string })[];
}
export interface Route {
  network: string;
  node?: string;
  protocol: string;
  encapsulation?: string;
  in_kernel: boolean;
  next_hops?: { gateway: string; device: string }[];
}
export interface NodePage extends Dated {
  node: Node;
  sessions: Session[];
  routes: Route[];
  routesProblem: string;
  history: Change[];
  flows: { recording?: boolean; why_not?: string; recorded?: number; lost?: number } | null;
}
export interface Edge {
  source: string;
  target: string;
  flows: number;
  denied: number;
  dropped: number;
  octets: number;
  last: number;
}
export interface Workload {
  name: string;
  namespace: string;
  pods: number;
  running: number;
  nodes: number;
}
export interface Talk extends Dated {
  namespaces: string[];
  workloads: Workload[];
  edges: Edge[];
  more: number;
  notes: string[];
  silent: Record<string, string>;
}
export interface Who {
  kind?: "pod" | "node" | "outside";
  name?: string;
  namespace?: string;
  node?: string;
  workload?: string;
  names?: string[];
}
export interface End {
  address: string;
  port?: number;
  who?: Who;
}
export interface Rule {
  policy: string;
  rule?: string;
  revision?: string;
  isolates?: string[];
}
export interface Called {
  address: string;
  port?: number;
  namespace?: string;
  name?: string;
  port_name?: string;
}
export type Verdict = "allowed" | "denied" | "dropped" | "audited";
export interface FlowRecord {
  time: number;
  node: string;
  sequence: number;
  event: string;
  verdict: Verdict;
  source: End;
  destination: End;
  protocol: string;
  direction?: string;
  reason?: string;
  egress?: Rule | null;
  ingress?: Rule | null;
  message?: string;
  packets?: number;
  bytes?: number;
  packets_back?: number;
  bytes_back?: number;
  began?: number;
  how?: string;
  path?: string;
  device?: string;
  reply?: boolean;
  rtt?: number;
  rtt_back?: number;
  retransmitted?: number;
  retransmitted_back?: number;
  service?: Called | null;
}
export interface Flows {
  records: FlowRecord[];
  more: boolean;
  notes: string[];
  silent: Record<string, string>;
}
export interface Sums extends Dated {
  rows: {
    key: string;
    flows: number;
    denied: number;
    dropped: number;
    packets: number;
    bytes: number;
    last: number;
  }[];
  more: number;
  complete: boolean;
  notes: string[];
  silent: Record<string, string>;
}
export interface ShownRule {
  place: string;
  action: string;
  peers: string[];
  ports: string[];
  name: string;
}
export interface Policy {
  key: string;
  kind: string;
  namespace: string;
  name: string;
  selects: string;
  count: number;
  pods: string[];
  isolates: string[];
  ingress: ShownRule[];
  egress: ShownRule[];
  problems: string[];
  tier: string;
  priority: number;
}
export interface Backend {
  address: string;
  port: number;
  node: string;
  state: string;
  pod: string;
}
export interface Service {
  namespace: string;
  name: string;
  type: string;
  addresses: string[];
  outside: string[];
  ports: { text: string; name: string; ready: number; count: number; backends: Backend[] }[];
  source: string;
  affinity: number;
  policy: string;
}
export interface Finding {
  check: string;
  severity: "error" | "warning";
  subject: string;
  found: string;
  why: string;
  advice: string;
}
export interface Diagnosis extends Dated {
  healthy: boolean;
  nodes: string[];
  silent: string[];
  errors: number;
  warnings: number;
  findings: Finding[];
}
export interface Seen {
  interface: string;
  direction: "in" | "out";
  source: string;
  sourcePort: number;
  destination: string;
  destinationPort: number;
  hopLimit: number;
  length: number;
  sinceLast: number | null;
  tunnels?: string[];
}
export interface Hop {
  number: number;
  node: string;
  pod: string;
  entry: string;
  exit: string;
  planned: {
    disposition: string;
    owner: string;
    route?: string;
    learnedFrom?: string;
    neighbour?: string;
    encapsulation?: string;
    translation?: string;
  } | null;
  kernel: {
    type: string;
    route?: string;
    device?: string;
    mtu?: number;
    owner?: string;
    learnedFrom?: string;
    neighbour?: { address: string; mac: string; state: string } | null;
    underlay?: { encapsulation: string; endpoint: string; route?: string; device?: string; missing?: string } | null;
  } | null;
  seen: Seen[];
  problem: string;
  onPlan: boolean;
}
export interface TraceVerdict {
  outcome: "delivered" | "lost" | "unknown";
  basis: string;
  hop: number | null;
  problem: string;
  advice: string;
  detail: string;
  lastSeen: string;
  encapsulation: string;
  translated: string;
  took: number | null;
  largest: number;
  answeredBy: string;
}
export interface Direction {
  sender: string;
  receiver: string;
  hops: Hop[];
  verdict: TraceVerdict;
}
export interface Trace {
  delivered: boolean;
  sender: string;
  receiver: string;
  protocol: string;
  dryRun: boolean;
  families: {
    family: string;
    source: string;
    destination: string;
    port: number;
    there: Direction;
    back: Direction;
    policy: { direction: string; pod: string; allowed: boolean; reason: string; audit?: string; unenforced?: string }[];
    enforced: boolean;
  }[];
  silent: { node: string; reason: string }[];
  duration: number;
}
export interface About {
  cluster: string;
  version: string;
  reasons: Record<string, string>;
}

export class Refused extends Error {
  constructor(
    message: string,
    readonly hint: string,
    /** Of HTTP; 0 where nothing answered. */
    readonly status = 0,
  ) {
    super(message);
  }
}

async function fetched(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
  try {
    // The header is one that no other site can send: what sends probes needs it.
    return await fetch(`/api/v1/${path}`, { headers: { "Podway-Console": "1", ...headers }, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refused("the console does not answer", "is `podway console` still running?");
  }
}

async function read<T>(response: Response): Promise<T> {
  const body = (await response.json().catch(() => ({}))) as { error?: string; hint?: string };
  if (!response.ok) throw new Refused(body.error ?? `the console answers ${response.status}`, body.hint ?? "", response.status);
  return body as T;
}

export async function ask<T>(path: string, signal: AbortSignal): Promise<T> {
  return read(await fetched(path, {}, signal));
}

export interface Answer<T> {
  value: T | null;
  error: Refused | null;
}

/** Asks now, and again and again while the page is in view. What was known stays while there is nothing newer. */
export function useAnswer<T>(path: string | null, every: number): Answer<T> {
  const [answer, set] = useState<Answer<T>>({ value: null, error: null });
  const last = useRef<string | null>(null);
  useEffect(() => {
    if (path !== last.current) set({ value: null, error: null });
    last.current = path;
    if (path === null) return;
    const stop = new AbortController();
    let timer = 0;
    let tag = "";
    const look = async () => {
      try {
        const response = await fetched(path, tag ? { "If-None-Match": tag } : {}, stop.signal);
        if (response.status === 304) {
          // The same as before, seen again: parts that are the same stay the same objects, and nothing is drawn anew.
          const dates = { at: Number(response.headers.get("Podway-At")), now: Number(response.headers.get("Podway-Now")) };
          set((known) => ({ value: known.value && { ...known.value, ...dates }, error: null }));
        } else {
          const value = await read<T>(response);
          tag = response.headers.get("ETag") ?? "";
          set({ value, error: null });
        }
      } catch (error) {
        if (stop.signal.aborted) return;
        if (error instanceof Refused) set((known) => ({ value: known.value, error }));
        else throw error;
      }
      if (every && !stop.signal.aborted) timer = window.setTimeout(again, every);
    };
    const again = () => {
      if (document.visibilityState === "visible") void look();
      else document.addEventListener("visibilitychange", again, { once: true, signal: stop.signal });
    };
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [path, every]);
  return answer;
}

export interface Loss {
  node: string;
  records: number | null;
  why: string;
  since?: number;
}
export type Line =
  | { kind: "record"; key: number; record: FlowRecord }
  | { kind: "lost"; key: number; loss: Loss }
  | { kind: "note"; key: number; words: string };

const LINES = 1000;

export interface Live {
  lines: Line[];
  state: "waiting" | "open" | "broken" | "refused";
  lost: number;
  error: Refused | null;
}

const NOTHING: Live = { lines: [], state: "waiting", lost: 0, error: null };

/** Milliseconds after which is asked again what the console refused, being busy: a browser gives that up for good. */
const AGAIN = 5000;

/** Follows flows. A browser that loses the connection asks again from where it was, by the last event's id. */
export function useLive(query: string | null): Live {
  const [live, set] = useState<Live>(NOTHING);
  useEffect(() => {
    set(NOTHING);
    if (query === null) return;
    const stop = new AbortController();
    let source: EventSource | null = null;
    let place = "";
    let timer = 0;
    let waiting: Line[] = [];
    let key = 0;
    let lost = 0;
    let frame = 0;
    const show = () => {
      frame = 0;
      const more = waiting;
      waiting = [];
      set((known) => ({ lines: [...more.reverse(), ...known.lines].slice(0, LINES), state: "open", lost, error: null }));
    };
    const take = (line: Line) => {
      waiting.push(line);
      if (waiting.length > LINES) waiting = waiting.slice(-LINES);
      frame ||= requestAnimationFrame(show);
    };
    const connect = () => {
      const asked = new URLSearchParams(query);
      if (place) asked.set("place", place);
      const path = `flows/live?${asked}`;
      const opened = new EventSource(`/api/v1/${path}`);
      source = opened;
      const on = <T,>(kind: string, line: (data: T) => Line) => {
        opened.addEventListener(kind, (event) => {
          const { data, lastEventId } = event as MessageEvent<string>;
          place = lastEventId || place;
          take(line(JSON.parse(data) as T));
        });
      };
      on<FlowRecord>("record", (record) => ({ kind: "record", key: key++, record }));
      on<Loss>("lost", (loss) => {
        lost += loss.records ?? 0;
        return { kind: "lost", key: key++, loss };
      });
      on<{ words: string }>("note", (note) => ({ kind: "note", key: key++, words: note.words }));
      opened.onopen = () => set((known) => ({ ...known, state: "open", error: null }));
      opened.onerror = () => {
        set((known) => ({ ...known, state: "broken" }));
        if (opened.readyState === EventSource.CLOSED) void refused(path);
      };
    };
    /** Finds out what the console said to a browser that gave up, which does not tell; what is wrong stays so, and is not asked again. */
    const refused = async (path: string) => {
      try {
        const response = await fetched(path, {}, stop.signal);
        if (response.ok) await response.body?.cancel();
        else await read(response);
      } catch (error) {
        if (stop.signal.aborted) return;
        if (!(error instanceof Refused)) throw error;
        const wrong = error.status >= 400 && error.status < 500;
        set((known) => ({ ...known, state: wrong ? "refused" : "broken", error }));
        if (wrong) return;
      }
      if (!stop.signal.aborted) timer = setTimeout(connect, AGAIN);
    };
    connect();
    return () => {
      stop.abort();
      clearTimeout(timer);
      source?.close();
      if (frame) cancelAnimationFrame(frame);
    };
  }, [query]);
  return live;
}
