// Services and who is behind them.
import { type Dated, type Service, useAnswer } from "./api";
import { go, usePlace } from "./router";
import { Empty, Head, Loading, Notes, Problem, Search, Tag, useMore } from "./ui";
import { age, plural } from "./words";

export function ServicesView() {
  const place = usePlace();
  const text = place.query.get("q") ?? "";
  const { value, error } = useAnswer<Dated & { services: Service[] }>("services", 10_000);
  const [shown, more] = useMore(50);
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  const wanted = text.toLowerCase();
  const found = value.services.filter((one) =>
    `${one.namespace}/${one.name} ${one.addresses.join(" ")} ${one.type}`.toLowerCase().includes(wanted),
  );
  const dead = value.services.filter((one) => one.ports.some((port) => !port.ready)).length;
  return (
    <>
      <Head title="Services" at={value.at}>
        <span>{plural(value.services.length, "Service")}</span>
        {dead > 0 && <Tag tone="trouble">{dead} without a backend</Tag>}
        <Search label="Find a Service" value={text} onInput={(to) => go("/services", to ? new URLSearchParams({ q: to }) : "", true)} />
      </Head>
      <Problem error={error} />
      <Notes lines={[value.problem]} />
      <div class="cards">
        {found.slice(0, shown).map((one) => (
          <details key={`${one.namespace}/${one.name}`} class="card" open={found.length < 4}>
            <summary>
              <span class="card-title">
                <span class="muted">{one.namespace}/</span>
                {one.name}
              </span>
              <span class="card-facts">
                <Tag tone="plain">{one.type}</Tag>
                <span>{[...one.addresses, ...one.outside].join(", ")}</span>
                {one.ports.map((port) => (
                  <span key={port.text} class={port.ready ? "" : "denied"}>
                    {port.text} → {port.ready}/{port.count}
                  </span>
                ))}
              </span>
            </summary>
            <div class="card-body">
              <p class="muted">
                Backends are read of {one.source === "slices" ? "EndpointSlices" : "the pods that it selects"}
                {one.affinity > 0 && `; a client stays with its backend for ${age(one.affinity)}`}
                {one.policy && `; traffic policy: ${one.policy}`}
              </p>
              {one.ports.map((port) => (
                <section key={port.text} class="rules">
                  <h4>
                    {port.text} {port.name}
                  </h4>
                  {port.backends.length ? (
                    <ul class="rows">
                      {port.backends.map((backend) => (
                        <li key={`${backend.address} ${backend.port}`}>
                          <span class={`dot ${backend.state === "ready" ? "well" : "trouble"}`} aria-hidden="true" />
                          <code class="grow">
                            {backend.address.includes(":") ? `[${backend.address}]` : backend.address}:{backend.port}
                          </code>
                          <span class="muted">
                            {backend.pod && <a href={`/flows?${new URLSearchParams({ pod: backend.pod })}`}>{backend.pod}</a>}{" "}
                            {backend.node && `on ${backend.node}`} {backend.state !== "ready" && backend.state}
                          </span>
                        </li>
                      ))}
                    </ul>
                  ) : (
                    <p class="denied">nobody is behind this port</p>
                  )}
                </section>
              ))}
            </div>
          </details>
        ))}
      </div>
      {more(found.length)}
      {!found.length && <Empty>{value.services.length ? "No Service of that name." : "There are no Services."}</Empty>}
    </>
  );
}
