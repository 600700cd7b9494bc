// Who speaks to whom: namespaces, workloads, and what was denied between them.
import { useMemo } from "preact/hooks";
import { BoardView } from "./boardview";
import { type Edge, type Talk, useAnswer } from "./api";
import type { Group, Link, Tone } from "./layout";
import { go, usePlace } from "./router";
import { Head, Loading, Notes, Problem, Tag } from "./ui";
import { number, plural, size } from "./words";

const TIMES = ["5m", "15m", "1h", "6h", "24h"];

export function TrafficView() {
  const place = usePlace();
  const since = place.query.get("since") ?? "15m";
  const only = place.query.get("only") === "refused";
  const selected = place.query.get("workload");
  const { value, error } = useAnswer<Talk>(`talk?since=${encodeURIComponent(since)}`, 10_000);
  const groups = useMemo(() => (value ? groupsOf(value) : []), [value?.workloads, value?.namespaces]);
  const edges = useMemo(
    () => (value?.edges ?? []).filter((edge) => !only || edge.denied + edge.dropped > 0),
    [value?.edges, only],
  );
  const links = useMemo(() => edges.map(linkOf), [edges]);
  const change = (name: string, to: string) => {
    const query = new URLSearchParams(place.query);
    if (to) query.set(name, to);
    else query.delete(name);
    go("/traffic", query, true);
  };
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  const denied = edges.filter((edge) => edge.denied).length;
  return (
    <>
      <Head title="Traffic" at={value.at}>
        <span>{plural(value.workloads.length, "workload")}</span>
        <span>{plural(edges.length, "pair")}</span>
        {denied > 0 && <Tag tone="denied">{denied} with denials</Tag>}
        <label class="inline">
          of the last{" "}
          <select value={since} onChange={(event) => change("since", event.currentTarget.value)}>
            {(TIMES.includes(since) ? TIMES : [since, ...TIMES]).map((time) => (
              <option key={time}>{time}</option>
            ))}
          </select>
        </label>
        <label class="inline">
          <input
            type="checkbox"
            checked={only}
            onChange={(event) => change("only", event.currentTarget.checked ? "refused" : "")}
          />{" "}
          refused only
        </label>
      </Head>
      <Problem error={error} />
      <Notes
        lines={[
          value.problem,
          ...value.notes,
          ...Object.values(value.silent),
          value.more ? `${value.more} more pairs were left out: a shorter time shows them` : undefined,
        ]}
      />
      <BoardView
        label={`Map of ${plural(value.workloads.length, "workload")} in ${plural(value.namespaces.length, "namespace")}; ${plural(edges.length, "pair")} spoke, ${denied} of them with denials`}
        what="workloads"
        groups={groups}
        links={links}
        selected={selected}
        onSelect={(id) => change("workload", id ?? "")}
        legend={
          <>
            <span class="key line allowed">allowed</span>
            <span class="key line denied">denied by a policy</span>
            <span class="key line dropped">dropped</span>
          </>
        }
      >
        {selected && <Details talk={value} id={selected} />}
      </BoardView>
    </>
  );
}

function groupsOf(talk: Talk): Group[] {
  const spaces = new Map<string, Group>();
  const group = (id: string, label: string) => {
    let found = spaces.get(id);
    if (!found) spaces.set(id, (found = { id, label, note: "", items: [] }));
    return found;
  };
  for (const one of talk.workloads) {
    const space = group(one.namespace, one.namespace);
    const tone: Tone = one.pods === 0 ? "unknown" : one.running < one.pods ? "trouble" : "plain";
    const sub = one.pods ? `${plural(one.pods, "pod")} on ${plural(one.nodes, "node")}` : "its pods are gone";
    space.items.push({ id: one.name, label: one.name.slice(one.namespace.length + 1), sub, tone });
  }
  const ends = new Set(talk.edges.flatMap((edge) => [edge.source, edge.target]));
  for (const [id, label] of [
    ["nodes", "the nodes themselves"],
    ["outside", "outside of the cluster"],
  ] as const)
    if (ends.has(id)) group(` ${id}`, label).items.push({ id, label: id, sub: "", tone: "unknown" });
  return [...spaces.values()];
}

function toneOf(edge: Edge): Tone {
  if (edge.denied) return "denied";
  return edge.dropped ? "dropped" : "allowed";
}

const linkOf = (edge: Edge): Link => ({
  a: edge.source,
  b: edge.target,
  tone: toneOf(edge),
  weight: edge.flows + edge.denied + edge.dropped,
});

function Details(props: { talk: Talk; id: string }) {
  const { talk, id } = props;
  const workload = talk.workloads.find((one) => one.name === id);
  const sorted = (edges: Edge[]) =>
    [...edges].sort((a, b) => b.denied - a.denied || b.flows - a.flows || b.octets - a.octets);
  const [name, space] = [id.slice(id.indexOf("/") + 1), id.slice(0, id.indexOf("/"))];
  return (
    <article class="details">
      <h2>{id}</h2>
      {workload && (
        <p class="muted">
          {workload.running} of {plural(workload.pods, "pod")} running, on {plural(workload.nodes, "node")}
        </p>
      )}
      {workload && (
        <p class="links">
          <a href={`/flows?${new URLSearchParams({ pod: `${space}/${name}*` })}`}>Its flows</a>
          <a href={`/flows?${new URLSearchParams({ pod: `${space}/${name}*`, verdict: "denied" })}`}>What is denied</a>
        </p>
      )}
      <Ends title="Calls" edges={sorted(talk.edges.filter((edge) => edge.source === id))} end="target" />
      <Ends title="Is called by" edges={sorted(talk.edges.filter((edge) => edge.target === id))} end="source" />
    </article>
  );
}

function Ends(props: { title: string; edges: Edge[]; end: "source" | "target" }) {
  return (
    <>
      <h3>{props.title}</h3>
      {props.edges.length ? (
        <ul class="rows">
          {props.edges.slice(0, 60).map((edge) => (
            <li key={edge[props.end]}>
              <span class={`dot ${toneOf(edge)}`} aria-hidden="true" />
              <span class="grow">{edge[props.end]}</span>
              <span class="muted">
                {number(edge.flows)} flows, {size(edge.octets)}
                {edge.denied > 0 && <strong class="denied"> {number(edge.denied)} denied</strong>}
                {edge.dropped > 0 && <strong class="dropped"> {number(edge.dropped)} dropped</strong>}
              </span>
            </li>
          ))}
        </ul>
      ) : (
        <p class="muted">nobody</p>
      )}
    </>
  );
}
