// Policies: what they select, what they say, and what they decided.
import { useMemo } from "preact/hooks";
import { type Dated, type Policy, type ShownRule, type Sums, useAnswer } from "./api";
import { go, usePlace } from "./router";
import { Empty, Head, Loading, Notes, Problem, Search, Tag, useMore } from "./ui";
import { number, plural } from "./words";

export function PoliciesView() {
  const place = usePlace();
  const text = place.query.get("q") ?? "";
  const { value, error } = useAnswer<Dated & { policies: Policy[] }>("policies", 10_000);
  const sums = useAnswer<Sums>("flows/sums?by=policy&since=1h", 30_000);
  const decided = useMemo(() => new Map(sums.value?.rows.map((row) => [row.key, row])), [sums.value]);
  const [shown, more] = useMore(50);
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  const wanted = text.toLowerCase();
  const found = value.policies.filter((one) => `${one.key} ${one.selects}`.toLowerCase().includes(wanted));
  return (
    <>
      <Head title="Policies" at={value.at}>
        <span>{plural(value.policies.length, "policy").replace("policys", "policies")}</span>
        <Search label="Find a policy" value={text} onInput={(to) => go("/policies", to ? new URLSearchParams({ q: to }) : "", true)} />
      </Head>
      <Problem error={error} />
      <Notes lines={[value.problem, ...(sums.value?.notes ?? [])]} />
      <div class="cards">
        {found.slice(0, shown).map((one) => {
          const row = decided.get(one.key);
          const query = new URLSearchParams({ policy: one.namespace ? `${one.namespace}/${one.name}` : one.name });
          return (
            <details key={one.key} class="card" open={found.length < 4}>
              <summary>
                <span class="card-title">
                  <span class="muted">{one.namespace ? `${one.namespace}/` : `${one.tier} ${one.priority} · `}</span>
                  {one.name}
                </span>
                <span class="card-facts">
                  {one.isolates.map((direction) => (
                    <Tag key={direction} tone="plain">
                      closes {direction}
                    </Tag>
                  ))}
                  <span>{plural(one.count, "pod")}</span>
                  {row && <span>{number(row.flows)} allowed</span>}
                  {row && row.denied > 0 && <span class="denied">{number(row.denied)} denied</span>}
                  {one.problems.length > 0 && <Tag tone="trouble">{plural(one.problems.length, "doubt")}</Tag>}
                </span>
              </summary>
              <div class="card-body">
                {one.problems.map((problem) => (
                  <p class="notice" key={problem}>
                    {problem}
                  </p>
                ))}
                <p>
                  Selects <code>{one.selects}</code>:{" "}
                  {one.pods.length ? (
                    <>
                      {one.pods.slice(0, 12).map((pod, at) => (
                        <>
                          {at > 0 && ", "}
                          <a href={`/flows?${new URLSearchParams({ pod })}`}>{pod}</a>
                        </>
                      ))}
                      {one.count > 12 && ` and ${one.count - 12} more`}
                    </>
                  ) : (
                    "no pod"
                  )}
                </p>
                <Rules title="Ingress" rules={one.ingress} closed={one.isolates.includes("ingress")} word="from" />
                <Rules title="Egress" rules={one.egress} closed={one.isolates.includes("egress")} word="to" />
                <p class="links">
                  <a href={`/flows?${query}&show=past`}>What it decided</a>
                  <a href={`/flows?${query}&verdict=denied`}>What it denies now</a>
                </p>
              </div>
            </details>
          );
        })}
      </div>
      {more(found.length)}
      {!found.length && <Empty>{value.policies.length ? "No policy of that name." : "There are no policies: all pods reach each other."}</Empty>}
    </>
  );
}

function Rules(props: { title: string; rules: ShownRule[]; closed: boolean; word: string }) {
  if (!props.rules.length && !props.closed) return null;
  return (
    <section class="rules">
      <h4>{props.title}</h4>
      {props.rules.length ? (
        <ul>
          {props.rules.map((rule) => (
            <li key={rule.place}>
              <Tag tone={rule.action === "Deny" ? "denied" : rule.action === "Pass" ? "plain" : "allowed"}>{rule.action}</Tag>{" "}
              {rule.name && <strong>{rule.name} </strong>}
              {props.word} {rule.peers.join("; ")} <span class="muted">at {rule.ports.join(", ")}</span>
            </li>
          ))}
        </ul>
      ) : (
        <p class="muted">closed: no rule allows anything</p>
      )}
    </section>
  );
}
