// Flows, live and past, with the filters in the address.
import { useMemo, useState } from "preact/hooks";
import { type About, type End, type FlowRecord, type Flows, type Line, type Sums, useAnswer, useLive } from "./api";
import { go, usePlace } from "./router";
import { Empty, Head, Loading, Notes, Problem, Tag, useMore } from "./ui";
import { clock, endOf, number, plural, roundTrip, ruleOf, serviceOf, size, what } from "./words";

const FILTERS: { name: string; label: string; hint: string }[] = [
  { name: "pod", label: "Pod", hint: "shop/web-*" },
  { name: "namespace", label: "Namespace", hint: "shop" },
  { name: "from", label: "From", hint: "pod, node/…, CIDR" },
  { name: "to", label: "To", hint: "pod, node/…, CIDR" },
  { name: "workload", label: "Workload", hint: "shop/web" },
  { name: "service", label: "Service", hint: "shop/web" },
  { name: "dns", label: "DNS name", hint: "*.example.com" },
  { name: "port", label: "Port", hint: "80" },
  { name: "policy", label: "Policy", hint: "shop/deny-all" },
  { name: "selector", label: "Labels", hint: "app=web" },
  { name: "node", label: "Node", hint: "node1" },
];
const VERDICTS = ["", "allowed", "denied", "dropped", "audited"];
const EVENTS = ["", "new", "end", "drop", "audit", "lives", "changed"];
const SUMS = ["pair", "policy", "pod", "workload", "service", "dns", "namespace", "port", "reason", "verdict", "node"];
const TIMES = ["5m", "15m", "1h", "6h", "24h"];

export function FlowsView(props: { about: About | null }) {
  const place = usePlace();
  const mode = place.query.get("show") ?? "live";
  const filters = useMemo(() => {
    const query = new URLSearchParams(place.query);
    query.delete("show");
    query.delete("by");
    if (mode === "live") query.delete("since");
    return query;
  }, [place]);
  const change = (name: string, value: string) => {
    const query = new URLSearchParams(place.query);
    if (value) query.set(name, value);
    else query.delete(name);
    go("/flows", query, true);
  };
  const active = [...filters.keys()].filter((name) => name !== "since");
  const by = place.query.get("by") ?? "pair";
  const since = place.query.get("since") ?? "1h";
  return (
    <>
      <Head title="Flows">
        <div class="segments" role="group" aria-label="What is shown">
          {["live", "past", "sums"].map((one) => (
            <button
              key={one}
              type="button"
              aria-pressed={mode === one}
              onClick={() => change("show", one === "live" ? "" : one)}
            >
              {one[0]?.toUpperCase() + one.slice(1)}
            </button>
          ))}
        </div>
        {mode !== "live" && (
          <label class="inline">
            of the last{" "}
            <select value={since} onChange={(event) => change("since", event.currentTarget.value)}>
              {(TIMES.includes(since) ? TIMES : [since, ...TIMES]).map((time) => (
                <option key={time}>{time}</option>
              ))}
            </select>
          </label>
        )}
        {mode === "sums" && (
          <label class="inline">
            by{" "}
            <select value={by} onChange={(event) => change("by", event.currentTarget.value)}>
              {SUMS.map((one) => (
                <option key={one}>{one}</option>
              ))}
            </select>
          </label>
        )}
      </Head>
      <details class="filters" open={active.length > 0 || innerWidth > 700}>
        <summary>Filters{active.length ? ` (${active.length})` : ""}</summary>
        <form
          onSubmit={(event) => {
            event.preventDefault();
          }}
        >
          <Choice label="Verdict" values={VERDICTS} name="verdict" query={place.query} onChange={change} />
          <Choice label="Event" values={EVENTS} name="event" query={place.query} onChange={change} />
          {FILTERS.map((one) => (
            <label key={one.name}>
              <span>{one.label}</span>
              <input
                name={one.name}
                value={place.query.get(one.name) ?? ""}
                placeholder={one.hint}
                autocomplete="off"
                spellcheck={false}
                onChange={(event) => change(one.name, event.currentTarget.value.trim())}
              />
            </label>
          ))}
          {active.length > 0 && (
            <button type="button" onClick={() => go("/flows", mode === "live" ? "" : `show=${mode}`, true)}>
              Clear
            </button>
          )}
        </form>
      </details>
      {mode === "live" && <LiveFlows query={filters.toString()} about={props.about} />}
      {mode === "past" && <PastFlows query={filters} since={since} about={props.about} />}
      {mode === "sums" && <SumsOf query={filters} since={since} by={by} />}
    </>
  );
}

function Choice(props: {
  label: string;
  name: string;
  values: string[];
  query: URLSearchParams;
  onChange: (name: string, value: string) => void;
}) {
  return (
    <label>
      <span>{props.label}</span>
      <select
        name={props.name}
        value={props.query.get(props.name) ?? ""}
        onChange={(event) => props.onChange(props.name, event.currentTarget.value)}
      >
        {props.values.map((one) => (
          <option key={one} value={one}>
            {one || "any"}
          </option>
        ))}
      </select>
    </label>
  );
}

function LiveFlows(props: { query: string; about: About | null }) {
  const [paused, setPaused] = useState<Line[] | null>(null);
  const live = useLive(props.query);
  const lines = paused ?? live.lines;
  return (
    <>
      <p class="live" role="status">
        <span class={`pulse ${paused ? "paused" : live.state}`} aria-hidden="true" />
        {paused
          ? `held; ${plural(newer(live.lines, paused), "newer line")} wait`
          : live.state === "broken"
            ? "the connection is lost, and taken up again from where it was"
            : live.state === "refused"
              ? "nothing is followed"
              : live.state === "waiting"
                ? "asking …"
                : "following"}
        {live.lost > 0 && <Tag tone="dropped">{number(live.lost)} lost</Tag>}
        <button type="button" onClick={() => setPaused(paused ? null : live.lines)}>
          {paused ? "Go on" : "Hold"}
        </button>
      </p>
      <Problem error={live.error} />
      <Table lines={lines} about={props.about} />
      {!lines.length && live.state === "open" && <Empty>Nothing flows that matches, so far.</Empty>}
    </>
  );
}

const newer = (lines: Line[], held: Line[]): number => (lines[0]?.key ?? 0) - (held[0]?.key ?? 0);

function PastFlows(props: { query: URLSearchParams; since: string; about: About | null }) {
  const query = new URLSearchParams(props.query);
  query.set("since", props.since);
  query.set("last", "1000");
  const { value, error } = useAnswer<Flows>(`flows?${query}`, 0);
  const lines = useMemo(
    () => [...(value?.records ?? [])].reverse().map((record, key): Line => ({ kind: "record", key, record })),
    [value],
  );
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  return (
    <>
      <Notes
        lines={[
          ...value.notes,
          ...Object.values(value.silent),
          value.more ? "these are the newest 1,000: more filters, or a shorter time, show others" : undefined,
        ]}
      />
      <Table lines={lines} about={props.about} />
      {!lines.length && <Empty>No flow is known that matches.</Empty>}
    </>
  );
}

function SumsOf(props: { query: URLSearchParams; since: string; by: string }) {
  const query = new URLSearchParams(props.query);
  query.set("since", props.since);
  query.set("by", props.by);
  const { value, error } = useAnswer<Sums>(`flows/sums?${query}`, 15_000);
  const [shown, more] = useMore(100);
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  const most = Math.max(1, ...value.rows.map((row) => row.flows + row.denied + row.dropped));
  return (
    <>
      <Notes lines={[...value.notes, ...Object.values(value.silent)]} />
      <table class="table sums">
        <caption class="sr">Sums of the last {props.since} by {props.by}</caption>
        <thead>
          <tr>
            <th scope="col">{props.by}</th>
            <th scope="col" class="num">flows</th>
            <th scope="col" class="num">denied</th>
            <th scope="col" class="num">dropped</th>
            <th scope="col" class="num">bytes</th>
            <th scope="col" class="bars" aria-hidden="true" />
          </tr>
        </thead>
        <tbody>
          {value.rows.slice(0, shown).map((row) => (
            <tr key={row.key}>
              <th scope="row">{row.key}</th>
              <td class="num">{number(row.flows)}</td>
              <td class={`num ${row.denied ? "denied" : "muted"}`}>{number(row.denied)}</td>
              <td class={`num ${row.dropped ? "dropped" : "muted"}`}>{number(row.dropped)}</td>
              <td class="num">{size(row.bytes)}</td>
              <td class="bars" aria-hidden="true">
                <svg viewBox="0 0 100 8" preserveAspectRatio="none">
                  <Bar values={[row.flows, row.denied, row.dropped]} most={most} />
                </svg>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {more(value.rows.length)}
      {!value.rows.length && <Empty>Nothing that matches was seen.</Empty>}
    </>
  );
}

function Bar(props: { values: [number, number, number]; most: number }) {
  let x = 0;
  return (
    <>
      {(["allowed", "denied", "dropped"] as const).map((tone, at) => {
        const width = ((props.values[at] ?? 0) / props.most) * 100;
        const left = x;
        x += width;
        return <rect key={tone} class={tone} x={left} y="0" width={width} height="8" />;
      })}
    </>
  );
}

function Table(props: { lines: Line[]; about: About | null }) {
  const [open, setOpen] = useState<number | null>(null);
  const [shown, more] = useMore(200);
  const reasons = props.about?.reasons ?? {};
  if (!props.lines.length) return null;
  return (
    <>
      <table class="table flows">
        <caption class="sr">Flows, the newest first</caption>
        <thead>
          <tr>
            <th scope="col">Time</th>
            <th scope="col">Node</th>
            <th scope="col">Verdict</th>
            <th scope="col">From</th>
            <th scope="col">To</th>
            <th scope="col">What</th>
          </tr>
        </thead>
        <tbody>
          {props.lines.slice(0, shown).flatMap((line) => {
            if (line.kind !== "record")
              return [
                <tr key={line.key} class="line-note">
                  <td colSpan={6}>{line.kind === "note" ? line.words : <Lost line={line} />}</td>
                </tr>,
              ];
            const { record } = line;
            const rows = [
              <tr key={line.key} class={`flow ${record.verdict}`}>
                <td class="time">
                  <button
                    type="button"
                    class="plain"
                    aria-expanded={open === line.key}
                    onClick={() => setOpen(open === line.key ? null : line.key)}
                  >
                    {clock(record.time)}
                  </button>
                </td>
                <td class="muted">{record.node}</td>
                <td class="said">
                  <Tag tone={record.verdict}>{record.verdict}</Tag> <span class="muted">{record.event}</span>
                </td>
                <td class="end" title={endOf(record.source)}>
                  {endOf(record.source)}
                </td>
                <td class="end" title={endOf(record.destination)}>
                  <span class="muted">{record.reply ? "← " : "→ "}</span>
                  {endOf(record.destination)} <span class="muted">{record.protocol}</span>
                </td>
                <td class="what">{what(record, reasons)}</td>
              </tr>,
            ];
            if (open === line.key)
              rows.push(
                <tr key={`${line.key} more`} class="flow-more">
                  <td colSpan={6}>
                    <More record={record} reasons={reasons} />
                  </td>
                </tr>,
              );
            return rows;
          })}
        </tbody>
      </table>
      {more(props.lines.length)}
    </>
  );
}

function Lost(props: { line: Extract<Line, { kind: "lost" }> }) {
  const { loss } = props.line;
  const count = loss.records === null ? "Some records" : plural(loss.records, "record");
  return (
    <>
      <strong class="dropped">{count} lost</strong>
      {loss.node && ` of ${loss.node}`}: {loss.why}
      {loss.since ? (
        <>
          {" "}
          <a href={`/flows?show=past&since=${new Date(loss.since * 1000).toISOString()}`}>show what nodes remember</a>
        </>
      ) : null}
    </>
  );
}

function More(props: { record: FlowRecord; reasons: Record<string, string> }) {
  const { record } = props;
  const [source, target] = [record.source, record.destination];
  const trace = new URLSearchParams({ from: traced(record, "source"), to: traced(record, "destination") });
  if ((record.protocol === "tcp" || record.protocol === "udp") && target.port) {
    trace.set("port", String(target.port));
    trace.set("proto", record.protocol);
  }
  return (
    <div class="more-of">
      <dl>
        <dt>From</dt>
        <dd>
          {endOf(source)} <span class="muted">{also(source)}</span>
        </dd>
        {record.service && (
          <>
            <dt>Called</dt>
            <dd>
              {serviceOf(record.service)} <span class="muted">{endOf(record.service)}</span>
            </dd>
          </>
        )}
        <dt>To</dt>
        <dd>
          {endOf(target)} <span class="muted">{also(target)}</span>
        </dd>
        {record.reason && (
          <>
            <dt>Reason</dt>
            <dd>
              <code>{record.reason}</code> {props.reasons[record.reason]}
            </dd>
          </>
        )}
        {record.egress && (
          <>
            <dt>Egress</dt>
            <dd>
              {ruleOf(record.egress)} <Revision of={record.egress.revision} />
            </dd>
          </>
        )}
        {record.ingress && (
          <>
            <dt>Ingress</dt>
            <dd>
              {ruleOf(record.ingress)} <Revision of={record.ingress.revision} />
            </dd>
          </>
        )}
        <dt>Way</dt>
        <dd>
          {[record.direction, record.path, record.device].filter(Boolean).join(", ") || "–"}
        </dd>
        <dt>Carried</dt>
        <dd>
          {plural(record.packets ?? 0, "packet")}, {size(record.bytes ?? 0)} there;{" "}
          {plural(record.packets_back ?? 0, "packet")}, {size(record.bytes_back ?? 0)} back
        </dd>
        {record.protocol === "tcp" && (record.event === "end" || record.event === "lives") && (
          <>
            <dt>Round trip</dt>
            <dd>{roundTrip(record)}</dd>
            <dt>Sent again</dt>
            <dd>
              {plural(record.retransmitted ?? 0, "packet")} there, {number(record.retransmitted_back ?? 0)} back
            </dd>
          </>
        )}
        <dt>Record</dt>
        <dd>
          {number(record.sequence)} of {record.node}
        </dd>
      </dl>
      <p class="links">
        <a href={`/trace?${trace}`}>Trace it</a>
        <a href={`/flows?${new URLSearchParams({ pod: traced(record, "source") })}`}>Flows of the one end</a>
        <a href={`/flows?${new URLSearchParams({ pod: traced(record, "destination") })}`}>Flows of the other</a>
      </p>
    </div>
  );
}

/** What else is known of an end: its address, its workload, all its names. */
const also = (end: End): string =>
  [end.address, end.who?.workload, ...(end.who?.names ?? [])].filter(Boolean).join(", ");

function traced(record: FlowRecord, end: "source" | "destination"): string {
  const one = record[end];
  if (one.who?.kind === "pod") return `${one.who.namespace ?? ""}/${one.who.name ?? ""}`;
  return one.address;
}

const Revision = (props: { of: string | undefined }) =>
  props.of ? <span class="muted">revision {props.of}</span> : null;
