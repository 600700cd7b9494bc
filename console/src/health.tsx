// How nodes and BGP are, and what changed since the console looks.
import { type Network, useAnswer } from "./api";
import { go, usePlace } from "./router";
import { Empty, Head, Loading, Notes, Problem, Search, Tag, useMore } from "./ui";
import { age, clock, plural, size } from "./words";

export function HealthView() {
  const place = usePlace();
  const text = place.query.get("q") ?? "";
  const only = place.query.get("only") === "bad";
  const { value, error } = useAnswer<Network>("network", 5000);
  const [shown, more] = useMore(100);
  const [peers, morePeers] = useMore(100);
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  const change = (name: string, to: string) => {
    const query = new URLSearchParams(place.query);
    if (to) query.set(name, to);
    else query.delete(name);
    go("/health", query, true);
  };
  const wanted = text.toLowerCase();
  const rank = { silent: 0, trouble: 1, unknown: 2, well: 3 };
  const nodes = value.nodes
    .filter((one) => (!only || one.state !== "well") && `${one.name} ${one.rack}`.toLowerCase().includes(wanted))
    .sort((a, b) => rank[a.state] - rank[b.state]);
  const sessions = value.sessions
    .filter((one) => (!only || one.state !== "Established") && `${one.on} ${one.node}`.toLowerCase().includes(wanted))
    .sort((a, b) => Number(a.state === "Established") - Number(b.state === "Established"));
  const count = (state: string) => value.nodes.filter((one) => one.state === state).length;
  const established = value.nodes.reduce((sum, one) => sum + one.established, 0);
  const all = value.nodes.reduce((sum, one) => sum + one.sessions, 0);
  return (
    <>
      <Head title="Health" at={value.at}>
        <Search label="Find a node" value={text} onInput={(to) => change("q", to)} />
        <label class="inline">
          <input type="checkbox" checked={only} onChange={(event) => change("only", event.currentTarget.checked ? "bad" : "")} />{" "}
          not well only
        </label>
      </Head>
      <Problem error={error} />
      <Notes lines={[value.problem]} />
      <ul class="figures">
        <li>
          <strong>{count("well")}</strong> of {plural(value.nodes.length, "node")} well
        </li>
        <li class={count("trouble") ? "bad" : ""}>
          <strong>{count("trouble")}</strong> in trouble
        </li>
        <li class={count("silent") ? "bad" : ""}>
          <strong>{count("silent")}</strong> silent
        </li>
        <li class={established < all ? "bad" : ""}>
          <strong>
            {established}/{all}
          </strong>{" "}
          BGP sessions established
        </li>
        <li>
          <strong>{value.dataPath}</strong> data path
        </li>
      </ul>
      <section>
        <h2>What changed</h2>
        {value.changes.length ? (
          <ol class="timeline">
            {value.changes.slice(0, 12).map((one) => (
              <li key={`${one.node} ${one.at}`}>
                <span class={`dot ${one.state}`} aria-hidden="true" /> <time>{clock(one.at)}</time>{" "}
                <a href={`/?${new URLSearchParams({ node: one.node })}`}>{one.node}</a> {one.words || `is ${one.state} again`}
              </li>
            ))}
          </ol>
        ) : (
          <p class="muted">nothing, since the console looks</p>
        )}
      </section>
      <section>
        <h2>Nodes</h2>
        <table class="table">
          <thead>
            <tr>
              <th scope="col">Node</th>
              <th scope="col">State</th>
              <th scope="col">Rack</th>
              <th scope="col" class="num">Pods</th>
              <th scope="col" class="num">BGP</th>
              <th scope="col">Agent</th>
              <th scope="col" class="num">Memory</th>
            </tr>
          </thead>
          <tbody>
            {nodes.slice(0, shown).map((one) => (
              <tr key={one.name}>
                <th scope="row">
                  <a href={`/?${new URLSearchParams({ node: one.name })}`}>{one.name}</a>
                </th>
                <td>
                  <Tag tone={one.state}>{one.state}</Tag> <span class="muted">{one.problems[0]}</span>
                </td>
                <td>{one.rack}</td>
                <td class="num">{one.pods}</td>
                <td class="num">
                  {one.established}/{one.sessions}
                </td>
                <td>
                  {one.agent}
                  {one.started > 0 && <span class="muted"> · up {age(Date.now() / 1000 - one.started)}</span>}
                </td>
                <td class="num">{one.memory ? size(one.memory) : ""}</td>
              </tr>
            ))}
          </tbody>
        </table>
        {more(nodes.length)}
        {!nodes.length && <Empty>No such node.</Empty>}
      </section>
      <section>
        <h2>BGP sessions</h2>
        {value.whole ? (
          <>
            <table class="table">
              <thead>
                <tr>
                  <th scope="col">On</th>
                  <th scope="col">With</th>
                  <th scope="col">State</th>
                  <th scope="col">Role</th>
                  <th scope="col">AS</th>
                  <th scope="col">BFD</th>
                  <th scope="col">Since</th>
                  <th scope="col" class="num">Routes in, out</th>
                </tr>
              </thead>
              <tbody>
                {sessions.slice(0, peers).map((one) => (
                  <tr key={`${one.on} ${one.name}`}>
                    <th scope="row">{one.on}</th>
                    <td>
                      {one.node || one.peer} <span class="muted">{one.address}</span>
                    </td>
                    <td>
                      <Tag tone={one.state === "Established" ? "well" : "trouble"}>{one.state}</Tag>{" "}
                      <span class="muted">{one.lastError}</span>
                    </td>
                    <td>{one.role}</td>
                    <td>{one.asn}</td>
                    <td>{one.bfd || "off"}</td>
                    <td>{age(Date.now() / 1000 - Date.parse(one.since) / 1000)}</td>
                    <td class="num">
                      {one.imported}, {one.exported}
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
            {morePeers(sessions.length)}
            {!sessions.length && <p class="muted">none</p>}
          </>
        ) : (
          <p class="muted">Of so many nodes, a node’s sessions are shown when it is chosen on the map.</p>
        )}
      </section>
    </>
  );
}
