// A packet's way, step by step: what was planned, what the kernel says, what a probe showed.
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { type Direction, type Hop, Refused, type Seen, type Trace, ask, useAnswer } from "./api";
import { go, usePlace } from "./router";
import { Command, Empty, Head, Notes, Problem, Tag, commandsOf, withCode } from "./ui";

const STEP = 900;

export function TraceView() {
  const place = usePlace();
  const { query } = place;
  const [from, to] = [query.get("from") ?? "", query.get("to") ?? ""];
  const [trace, setTrace] = useState<Trace | null>(null);
  const [error, setError] = useState<Refused | null>(null);
  const [busy, setBusy] = useState(false);
  const [again, setAgain] = useState(0);
  const asked = useMemo(() => {
    const params = new URLSearchParams();
    for (const name of ["from", "to", "port", "proto", "send"]) {
      const value = query.get(name);
      if (value) params.set(name, value);
    }
    return params.toString();
  }, [place]);
  useEffect(() => {
    setTrace(null);
    setError(null);
    if (!from || !to) return;
    const stop = new AbortController();
    setBusy(true);
    ask<Trace>(`trace?${asked}`, stop.signal)
      .then(setTrace)
      .catch((problem: unknown) => {
        if (!stop.signal.aborted) setError(problem instanceof Refused ? problem : new Refused(String(problem), ""));
      })
      .finally(() => {
        if (!stop.signal.aborted) setBusy(false);
      });
    return () => stop.abort();
  }, [asked, again]);
  return (
    <>
      <Head title="Trace">
        <span class="muted">a packet’s way: as planned, as kernels say, as a probe went</span>
      </Head>
      <TraceForm
        key={asked}
        query={query}
        busy={busy}
        onAsk={(params) => {
          if (params.toString() === asked) setAgain(again + 1);
          else go("/trace", params);
        }}
      />
      <Problem error={error} />
      {busy && (
        <p class="empty" role="status">
          A probe is on its way …
        </p>
      )}
      {trace && <Report trace={trace} />}
      {!trace && !busy && !error && (
        <Empty>Name two ends: pods (shop/web-1), nodes, or addresses. A probe is sent, and captured at each hop.</Empty>
      )}
    </>
  );
}

function TraceForm(props: { query: URLSearchParams; busy: boolean; onAsk: (params: URLSearchParams) => void }) {
  const { query } = props;
  return (
    <form
      class="trace-form"
      onSubmit={(event) => {
        event.preventDefault();
        const params = new URLSearchParams();
        for (const [name, value] of new FormData(event.currentTarget))
          if (typeof value === "string" && value.trim()) params.set(name, value.trim());
        props.onAsk(params);
      }}
    >
      <Named name="from" label="From" value={query.get("from") ?? ""} />
      <Named name="to" label="To" value={query.get("to") ?? ""} />
      <label>
        <span>Port</span>
        <input name="port" inputMode="numeric" pattern="[0-9]{1,5}" value={query.get("port") ?? ""} placeholder="any" />
      </label>
      <label>
        <span>Protocol</span>
        <select name="proto" value={query.get("proto") ?? ""}>
          <option value="">TCP with a port, else ICMP</option>
          <option value="tcp">TCP</option>
          <option value="udp">UDP</option>
          <option value="icmp">ICMP</option>
        </select>
      </label>
      <label>
        <span>Probe</span>
        <select name="send" value={query.get("send") ?? ""}>
          <option value="">is sent</option>
          <option value="0">is not sent</option>
        </select>
      </label>
      <button type="submit" class="primary" disabled={props.busy}>
        Trace
      </button>
    </form>
  );
}

function Named(props: { name: string; label: string; value: string }) {
  const list = useId();
  const [text, setText] = useState(props.value);
  const { value } = useAnswer<{ names: string[] }>(`names?q=${encodeURIComponent(text)}`, 0);
  return (
    <label class="grow">
      <span>{props.label}</span>
      <input
        name={props.name}
        required
        value={text}
        list={list}
        autocomplete="off"
        spellcheck={false}
        placeholder="pod, node or address"
        onInput={(event) => setText(event.currentTarget.value)}
      />
      <datalist id={list}>
        {(value?.names ?? []).map((name) => (
          <option key={name} value={name} />
        ))}
      </datalist>
    </label>
  );
}

function Report(props: { trace: Trace }) {
  const { trace } = props;
  const [family, setFamily] = useState(0);
  const [back, setBack] = useState(false);
  const shown = trace.families[Math.min(family, trace.families.length - 1)];
  if (!shown) return null;
  const way = back ? shown.back : shown.there;
  return (
    <>
      <Notes lines={trace.silent.map((one) => `${one.node}: ${one.reason}`)} />
      <div class="trace-tabs">
        {trace.families.length > 1 && (
          <div class="segments" role="group" aria-label="IP version">
            {trace.families.map((one, at) => (
              <button key={one.family} type="button" aria-pressed={family === at} onClick={() => setFamily(at)}>
                {one.family}
              </button>
            ))}
          </div>
        )}
        <div class="segments" role="group" aria-label="Direction">
          <button type="button" aria-pressed={!back} onClick={() => setBack(false)}>
            There <Outcome way={shown.there} />
          </button>
          <button type="button" aria-pressed={back} onClick={() => setBack(true)}>
            Back <Outcome way={shown.back} />
          </button>
        </div>
        <span class="muted">
          {trace.protocol} {shown.source} → {shown.destination}
          {shown.port ? ` port ${shown.port}` : ""}
        </span>
      </div>
      {shown.policy.map((one) => (
        <p key={`${one.direction} ${one.pod}`} class="policy-said">
          <Tag tone={one.allowed ? "allowed" : "denied"}>{one.allowed ? "allowed" : "denied"}</Tag> {one.direction} of{" "}
          {one.pod}: {one.reason}
          {one.unenforced && <span class="muted"> (nothing enforces it: {one.unenforced})</span>}
          {one.audit && <span class="muted">; audited policies would deny it: {one.audit}</span>}
        </p>
      ))}
      <Way key={`${shown.family} ${back}`} way={way} />
    </>
  );
}

function Outcome(props: { way: Direction }) {
  const { outcome } = props.way.verdict;
  return <span class={`dot ${outcome === "delivered" ? "well" : outcome === "lost" ? "trouble" : "unknown"}`} />;
}

function Way(props: { way: Direction }) {
  const { way } = props;
  const calm = useMemo(() => matchMedia("(prefers-reduced-motion: reduce)").matches, []);
  const failed = way.hops.findIndex((hop) => hop.number === way.verdict.hop);
  const last = failed >= 0 ? failed : way.hops.length - 1;
  const [at, setAt] = useState(calm ? last : 0);
  const [playing, setPlaying] = useState(!calm);
  const list = useRef<HTMLOListElement>(null);
  useEffect(() => {
    if (!playing) return;
    if (at >= last) return setPlaying(false);
    const timer = setTimeout(() => setAt(at + 1), STEP);
    return () => clearTimeout(timer);
  }, [playing, at, last]);
  const chosen = (to: number) => {
    setPlaying(false);
    setAt(Math.max(0, Math.min(way.hops.length - 1, to)));
  };
  const hop = way.hops[at];
  return (
    <>
      <Verdict way={way} />
      <div class="rail" aria-hidden="true">
        <Rail hops={way.hops} at={at} lost={failed} calm={calm} onChoose={chosen} />
      </div>
      <div class="player" role="group" aria-label="Steps">
        <button type="button" onClick={() => chosen(at - 1)} disabled={at === 0}>
          ← Step
        </button>
        <button
          type="button"
          onClick={() => {
            if (!playing && at >= last) setAt(0);
            setPlaying(!playing);
          }}
        >
          {playing ? "Hold" : "Play"}
        </button>
        <button type="button" onClick={() => chosen(at + 1)} disabled={at >= way.hops.length - 1}>
          Step →
        </button>
        <span class="muted" aria-live="polite">
          hop {at + 1} of {way.hops.length}
          {hop ? `: ${hop.pod ? `pod ${hop.pod}` : `node ${hop.node}`}` : ""}
        </span>
      </div>
      <ol class="hops" ref={list}>
        {way.hops.map((one, number) => (
          <HopCard
            key={one.number}
            hop={one}
            state={number === failed ? "failed" : number < at ? "passed" : number === at ? "here" : "ahead"}
            onChoose={() => chosen(number)}
          />
        ))}
      </ol>
    </>
  );
}

function Verdict(props: { way: Direction }) {
  const { verdict } = props.way;
  const tone = verdict.outcome === "delivered" ? "good" : verdict.outcome === "lost" ? "bad" : "";
  return (
    <div class={`verdict ${tone}`} role="status">
      <strong>{verdict.outcome}</strong>
      <span class="muted">
        {verdict.basis === "none" ? "nothing shows it" : `shown by the ${verdict.basis}`}
        {verdict.took !== null && `, ${nanoseconds(verdict.took)}`}
        {verdict.encapsulation && verdict.encapsulation !== "none" && `, in ${verdict.encapsulation}`}
        {verdict.translated && `, translated to ${verdict.translated}`}
        {verdict.largest > 0 && `, up to ${verdict.largest} bytes`}
      </span>
      {verdict.problem && <p>{withCode(verdict.problem)}</p>}
      {verdict.detail && <p class="muted">{withCode(verdict.detail)}</p>}
      {verdict.advice && <p>{withCode(verdict.advice)}</p>}
      {commandsOf(verdict.advice).map((text) => (
        <Command key={text} text={text} />
      ))}
    </div>
  );
}

function Rail(props: { hops: Hop[]; at: number; lost: number; calm: boolean; onChoose: (at: number) => void }) {
  const many = props.hops.length;
  const step = innerWidth < 720 ? 92 : 150;
  const width = Math.max(280, many * step);
  const edge = step * 0.4;
  const x = (at: number) => edge + (at * (width - 2 * edge)) / Math.max(1, many - 1);
  return (
    <svg viewBox={`0 0 ${width} 86`} class={props.calm ? "calm" : ""}>
      <line x1={x(0)} x2={x(many - 1)} y1="32" y2="32" class="rail-line" />
      <line x1={x(0)} x2={x(props.at)} y1="32" y2="32" class="rail-done" />
      {props.hops.map((hop, at) => (
        <g key={hop.number} onClick={() => props.onChoose(at)} class={at <= props.at ? "station done" : "station"}>
          {hop.pod ? (
            <circle cx={x(at)} cy="32" r="9" class={at === props.lost ? "lost" : ""} />
          ) : (
            <rect x={x(at) - 9} y="23" width="18" height="18" rx="5" class={at === props.lost ? "lost" : ""} />
          )}
          <text x={x(at)} y="62">
            {short(hop.pod ? (hop.pod.split("/")[1] ?? hop.pod) : hop.node)}
          </text>
          <text x={x(at)} y="77" class="small">
            {hop.pod ? "pod" : hop.planned?.encapsulation && hop.planned.encapsulation !== "none" ? hop.planned.encapsulation : "node"}
          </text>
        </g>
      ))}
      <circle cx="0" cy="32" r="5.5" class="packet" transform={`translate(${x(props.at)} 0)`} style={{ transform: `translateX(${x(props.at)}px)` }} />
    </svg>
  );
}

const short = (text: string): string => (text.length > 20 ? `${text.slice(0, 19)}…` : text);

function HopCard(props: { hop: Hop; state: string; onChoose: () => void }) {
  const { hop } = props;
  const planned = hop.planned;
  const kernel = hop.kernel;
  return (
    <li class={`hop ${props.state}`} aria-current={props.state === "here" ? "step" : undefined}>
      <button type="button" class="hop-head" onClick={props.onChoose}>
        <span class="hop-number">{hop.number}</span>
        <strong>{hop.pod ? `pod ${hop.pod}` : `node ${hop.node}`}</strong>
        <span class="muted">
          {hop.pod && `on ${hop.node}`} {[hop.entry && `in ${hop.entry}`, hop.exit && `out ${hop.exit}`].filter(Boolean).join(", ")}
        </span>
        {!hop.onPlan && <Tag tone="dropped">not as planned</Tag>}
      </button>
      {hop.problem && <p class="notice bad">{hop.problem}</p>}
      <div class="lanes">
        <section>
          <h4>Plan</h4>
          {planned ? (
            <>
              <p>
                {planned.disposition}
                {planned.encapsulation && planned.encapsulation !== "none" && `, in ${planned.encapsulation}`}
              </p>
              {planned.route && <code>{planned.route}</code>}
              <p class="muted">
                by {planned.owner}
                {planned.learnedFrom && `, told by ${planned.learnedFrom}`}
              </p>
              {planned.neighbour && <p class="muted">neighbour {planned.neighbour}</p>}
              {planned.translation && <p class="muted">source: {planned.translation}</p>}
            </>
          ) : (
            <p class="muted">not on the planned way</p>
          )}
        </section>
        <section>
          <h4>Kernel</h4>
          {kernel ? (
            <>
              <p>{kernel.type}</p>
              {kernel.route && <code>{kernel.route}</code>}
              <p class="muted">
                {[
                  kernel.owner && `by ${kernel.owner}${kernel.learnedFrom ? `, told by ${kernel.learnedFrom}` : ""}`,
                  kernel.mtu ? `MTU ${kernel.mtu}` : "",
                ]
                  .filter(Boolean)
                  .join(", ")}
              </p>
              {kernel.neighbour && (
                <p class="muted">
                  neighbour {kernel.neighbour.address} {kernel.neighbour.mac && `at ${kernel.neighbour.mac}`},{" "}
                  {kernel.neighbour.state}
                </p>
              )}
              {kernel.underlay && (
                <p class="muted">
                  {kernel.underlay.encapsulation} to {kernel.underlay.endpoint}: {kernel.underlay.route}
                </p>
              )}
            </>
          ) : (
            <p class="muted">not asked</p>
          )}
        </section>
        <section>
          <h4>Probe</h4>
          {hop.seen.length ? hop.seen.map((one, at) => <Sight key={at} seen={one} />) : <p class="muted">not seen here</p>}
        </section>
      </div>
    </li>
  );
}

function Sight(props: { seen: Seen }) {
  const { seen } = props;
  const end = (address: string, port: number) => (port ? (address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`) : address);
  return (
    <p>
      <Tag tone="well">{seen.direction}</Tag> <code>{seen.interface}</code>
      <span class="muted">
        {" "}
        {end(seen.source, seen.sourcePort)} → {end(seen.destination, seen.destinationPort)}, hop limit {seen.hopLimit},{" "}
        {seen.length} bytes
        {seen.sinceLast !== null && seen.sinceLast !== undefined && seen.sinceLast > 0 && `, +${nanoseconds(seen.sinceLast)}`}
        {seen.tunnels?.length ? `, in ${seen.tunnels.join(", ")}` : ""}
      </span>
    </p>
  );
}

function nanoseconds(value: number): string {
  if (value < 1e6) return `${(value / 1e3).toPrecision(3)} µs`;
  return `${(value / 1e6).toPrecision(3)} ms`;
}
