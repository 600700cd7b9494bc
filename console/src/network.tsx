// The map of nodes: racks, health, and how each reaches the others.
import { useMemo } from "preact/hooks";
import { BoardView } from "./boardview";
import { type Network, type Node, type NodePage, useAnswer } from "./api";
import type { Group, Link, Tone } from "./layout";
import { go, usePlace } from "./router";
import { Head, Loading, Notes, Problem, Tag } from "./ui";
import { age, clock, plural, size } from "./words";

const toneOf = (encapsulation: string): Tone =>
  encapsulation === "vxlan" || encapsulation === "ipip" ? encapsulation : "allowed";

export function NetworkView() {
  const place = usePlace();
  const { value, error } = useAnswer<Network>("network", 5000);
  const selected = place.query.get("node");
  const page = useAnswer<NodePage>(selected ? `nodes/${encodeURIComponent(selected)}` : null, 10_000);
  const groups = useMemo(() => groupsOf(value?.nodes ?? []), [value?.nodes]);
  const links = useMemo(() => (value ? linksOf(value, page.value) : []), [value?.ways, page.value?.routes]);
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  const racks = new Set(value.nodes.map((node) => node.rack).filter(Boolean)).size;
  const bad = value.nodes.filter((node) => node.state === "trouble" || node.state === "silent").length;
  return (
    <>
      <Head title="Network" at={value.at}>
        <span>{plural(value.nodes.length, "node")}</span>
        <span>{plural(value.pods, "pod")}</span>
        {racks > 0 && <span>{plural(racks, "rack")}</span>}
        {bad > 0 ? <Tag tone="trouble">{bad} not well</Tag> : <Tag tone="well">all well</Tag>}
      </Head>
      <Problem error={error} />
      <Notes lines={[value.problem, ...value.rejected.map((one) => `rejected: ${one}`)]} />
      <BoardView
        label={`Map of ${plural(value.nodes.length, "node")}${racks ? ` in ${plural(racks, "rack")}` : ""}, ${bad} of them not well`}
        what="nodes"
        sparse
        groups={groups}
        links={links}
        selected={selected}
        onSelect={(id) => go("/", id === null ? "" : new URLSearchParams({ node: id }), true)}
        legend={
          <>
            <span class="key well">well</span>
            <span class="key trouble">trouble</span>
            <span class="key silent">silent</span>
            <span class="key line allowed">bare</span>
            <span class="key line vxlan">VXLAN</span>
            <span class="key line ipip">IPIP</span>
            <span class="key line denied">no route</span>
            {!value.whole && <span>routes: of the node that is chosen</span>}
          </>
        }
      >
        <Problem error={page.error} />
        {page.value && <NodeDetails page={page.value} />}
        {!page.value && !page.error && <Loading />}
      </BoardView>
    </>
  );
}

function groupsOf(nodes: Node[]): Group[] {
  const racks = new Map<string, Group>();
  const some = nodes.some((node) => node.rack);
  for (const node of nodes) {
    const rack = node.rack || (some ? "no rack" : "nodes");
    let group = racks.get(rack);
    if (!group) racks.set(rack, (group = { id: rack, label: rack, note: "", items: [] }));
    group.items.push({ id: node.name, label: node.name, sub: subOf(node), tone: node.state });
  }
  for (const group of racks.values()) {
    const bad = group.items.filter((item) => item.tone !== "well" && item.tone !== "unknown").length;
    if (bad) group.note = `${group.items.length - bad}/${group.items.length} well`;
  }
  return [...racks.values()];
}

const subOf = (node: Node): string =>
  node.state === "silent"
    ? "does not answer"
    : `${plural(node.pods, "pod")}${node.sessions ? ` · BGP ${node.established}/${node.sessions}` : ""}`;

function linksOf(value: Network, page: NodePage | null): Link[] {
  const links = new Map<string, Link>();
  const add = (a: string, b: string, tone: Tone) => {
    const name = [a, b].sort().join(" ");
    const known = links.get(name);
    if (!known || tone === "denied") links.set(name, { a, b, tone, weight: 1 });
  };
  for (const way of value.ways)
    add(way.source, way.target, way.inKernel < way.routes ? "denied" : toneOf(way.encapsulation));
  if (!value.whole && page)
    for (const route of page.routes)
      if (route.node && route.node !== page.node.name)
        add(page.node.name, route.node, route.in_kernel ? toneOf(route.encapsulation ?? "none") : "denied");
  return [...links.values()];
}

function NodeDetails(props: { page: NodePage }) {
  const { node, sessions, routes, history, flows } = props.page;
  const others = routes.filter((route) => route.protocol !== "own");
  return (
    <article class="details">
      <h2>{node.name}</h2>
      <p>
        <Tag tone={node.state}>{node.state}</Tag> <span class="muted">{node.agent}</span>
      </p>
      {node.problems.map((problem) => (
        <p class="notice bad" key={problem}>
          {problem}
        </p>
      ))}
      <dl>
        <dt>Rack</dt>
        <dd>{node.rack || "–"}</dd>
        <dt>Addresses</dt>
        <dd>{node.addresses.join(", ") || "–"}</dd>
        <dt>Blocks</dt>
        <dd>{node.blocks.join(", ") || "–"}</dd>
        <dt>Pods</dt>
        <dd>{node.pods}</dd>
        <dt>Uplink</dt>
        <dd>{node.device ? `${node.device}, MTU ${node.mtu}` : "–"}</dd>
        <dt>Data path</dt>
        <dd>{node.dataPath || "–"}</dd>
        <dt>Accepts</dt>
        <dd>{node.accepts.join(", ") || "bare packets only"}</dd>
        <dt>Agent</dt>
        <dd>
          {node.version ? `${node.version}, up ${age(Date.now() / 1000 - node.started)}, ${size(node.memory)}` : "–"}
        </dd>
        {flows && (
          <>
            <dt>Flows</dt>
            <dd>{flows.recording ? `${flows.recorded} recorded, ${flows.lost} lost` : flows.why_not}</dd>
          </>
        )}
      </dl>
      <p class="links">
        <a href={`/flows?node=${encodeURIComponent(node.name)}`}>Its flows</a>
      </p>
      <h3>BGP sessions</h3>
      {sessions.length ? (
        <ul class="rows">
          {sessions.slice(0, 100).map((one) => (
            <li key={one.name}>
              <span class={`dot ${one.state === "Established" ? "well" : "trouble"}`} aria-hidden="true" />
              <span class="grow">
                {one.node || one.peer} <span class="muted">{one.address}</span>
              </span>
              <span class="muted">
                {one.state === "Established" ? `${one.imported} in, ${one.exported} out` : `${one.state} ${one.lastError}`}
              </span>
            </li>
          ))}
        </ul>
      ) : (
        <p class="muted">none</p>
      )}
      <h3>Routes</h3>
      {props.page.routesProblem && <p class="notice bad">{props.page.routesProblem}</p>}
      <ul class="rows">
        {others.slice(0, 100).map((route) => (
          <li key={`${route.network} ${route.protocol}`}>
            <span class={`dot ${route.in_kernel ? "well" : "trouble"}`} aria-hidden="true" />
            <code class="grow">{route.network}</code>
            <span class="muted">
              {route.node ?? "outside"} · {route.encapsulation === "none" ? "bare" : route.encapsulation} ·{" "}
              {route.in_kernel ? route.protocol : "not in the kernel"}
            </span>
          </li>
        ))}
      </ul>
      {others.length > 100 && <p class="muted">and {others.length - 100} more</p>}
      <h3>Since the console looks</h3>
      <ol class="timeline">
        {[...history].reverse().map((one) => (
          <li key={one.at}>
            <span class={`dot ${one.state}`} aria-hidden="true" />
            <time>{clock(one.at)}</time> <span>{one.words || one.state}</span>
          </li>
        ))}
      </ol>
    </article>
  );
}
