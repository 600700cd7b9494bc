// How things are said.
import type { Called, End, FlowRecord, Rule } from "./api";

export const plural = (count: number, word: string): string =>
  `${number(count)} ${word}${count === 1 ? "" : word.endsWith("s") ? "es" : "s"}`;

// Made once: toLocaleString makes one for each number, which took most of a second for the map of 5,000 nodes.
const numbers = new Intl.NumberFormat("en");

export const number = (value: number): string => numbers.format(value);

export function age(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  if (whole < 172800) return `${Math.round(whole / 3600)} h`;
  return `${Math.round(whole / 86400)} d`;
}

export function size(octets: number): string {
  if (octets < 10_000) return `${number(octets)} B`;
  let value = octets / 1000;
  let unit = "kB";
  for (const larger of ["MB", "GB", "TB"]) {
    if (value < 1000) break;
    value /= 1000;
    unit = larger;
  }
  return `${value.toPrecision(3)} ${unit}`;
}

export function clock(moment: number): string {
  const date = new Date(moment * 1000);
  const time = date.toLocaleTimeString("en-GB", { hour12: false });
  const text = `${time}.${String(date.getMilliseconds()).padStart(3, "0")}`;
  return date.toDateString() === new Date().toDateString()
    ? text
    : `${date.toISOString().slice(0, 10)} ${text}`;
}

export function nameOf(end: End): string {
  const who = end.who;
  if (who?.kind === "pod") return `${who.namespace ?? ""}/${who.name ?? ""}`;
  if (who?.kind === "node") return `node/${who.name ?? ""}`;
  return who?.names?.[0] ?? end.address;
}

/** The Service that was called, and at which port; only the address if that is all that is known. */
export function serviceOf(called: Called): string {
  const where = endOf(called);
  const port = called.port_name || called.port;
  return called.name ? `Service ${called.namespace ?? ""}/${called.name}${port ? `:${port}` : ""}` : `Service at ${where}`;
}

export const endOf = (end: End): string => {
  const name = nameOf(end);
  if (!end.port) return name;
  return name.includes(":") ? `[${name}]:${end.port}` : `${name}:${end.port}`;
};

export function ruleOf(rule: Rule | null | undefined): string {
  if (!rule) return "no rule is known";
  if (rule.isolates?.length) return `isolated by ${rule.isolates.join(", ")}, and no rule allows it`;
  return rule.rule ? `${rule.rule} of ${rule.policy}` : rule.policy;
}

export function speaking(record: FlowRecord): Rule | null | undefined {
  return record.reason === "DENIED_EGRESS" ? record.egress : (record.ingress ?? record.egress);
}

export function lasted(seconds: number): string {
  return seconds < 1 ? `${(seconds * 1000).toPrecision(3)} ms` : age(seconds);
}

/** The round trip of TCP between both ends, and of that the half to who was called. */
export function roundTrip(record: FlowRecord): string {
  if (!record.rtt || !record.rtt_back) return "not known";
  return `${lasted((record.rtt + record.rtt_back) / 1e6)}, of that ${lasted(record.rtt / 1e6)} beyond ${record.node}`;
}

export function what(record: FlowRecord, reasons: Record<string, string>): string {
  const parts: string[] = [];
  if (record.service) parts.push(serviceOf(record.service));
  if (record.message) parts.push(`type/code ${record.message}`);
  if (record.reason && record.verdict === "dropped") parts.push(reasons[record.reason] ?? record.reason);
  else if (record.reason) parts.push(`${record.verdict === "audited" ? "would be denied: " : ""}${ruleOf(speaking(record))}`);
  if (record.event === "drop" && (record.packets ?? 0) > 1) parts.push(plural(record.packets ?? 0, "packet"));
  if (record.event === "end" || record.event === "lives") {
    const time = record.began ? ` after ${lasted(record.time - record.began)}` : "";
    parts.push(`${record.how || "goes on"}${time}`);
    parts.push(`${size(record.bytes ?? 0)} there, ${size(record.bytes_back ?? 0)} back`);
    const again = (record.retransmitted ?? 0) + (record.retransmitted_back ?? 0);
    if (again) parts.push(`${plural(again, "packet")} sent again`);
  }
  return parts.join(", ");
}
