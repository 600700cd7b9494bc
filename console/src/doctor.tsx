// What is wrong, why it matters, and what to do about it.
import { type Diagnosis, useAnswer } from "./api";
import { Command, Empty, Head, Loading, Notes, Problem, Tag, commandsOf, withCode } from "./ui";
import { plural } from "./words";

export function DoctorView() {
  const { value, error } = useAnswer<Diagnosis>("doctor", 20_000);
  if (!value) return error ? <Problem error={error} /> : <Loading />;
  return (
    <>
      <Head title="Doctor" at={value.at}>
        <span>{plural(value.nodes.length, "node")} looked at</span>
        {value.errors > 0 && <Tag tone="trouble">{plural(value.errors, "error")}</Tag>}
        {value.warnings > 0 && <Tag tone="dropped">{plural(value.warnings, "warning")}</Tag>}
        {!value.findings.length && <Tag tone="well">nothing wrong</Tag>}
      </Head>
      <Problem error={error} />
      <Notes lines={[value.problem, value.silent.length ? `no answer from ${value.silent.join(", ")}` : undefined]} />
      <div class="cards">
        {value.findings.map((one) => (
          <article key={`${one.check} ${one.subject} ${one.found}`} class={`card finding ${one.severity}`}>
            <h2>
              <Tag tone={one.severity === "error" ? "trouble" : "dropped"}>{one.severity}</Tag> {one.subject || "cluster"}{" "}
              <span class="muted">{one.check}</span>
            </h2>
            <p>{withCode(one.found)}</p>
            <p class="muted">{withCode(one.why)}</p>
            <p>
              <strong>Do: </strong>
              {withCode(one.advice)}
            </p>
            {commandsOf(one.advice).map((text) => (
              <Command key={text} text={text} />
            ))}
          </article>
        ))}
      </div>
      {!value.findings.length && <Empty>All checks passed on {plural(value.nodes.length, "node")}.</Empty>}
    </>
  );
}
