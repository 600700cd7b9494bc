// Parts that several views have.
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Refused } from "./api";
import { age } from "./words";

export function Head(props: { title: string; children?: ComponentChildren; at?: number; now?: number }) {
  return (
    <header class="head">
      <h1>{props.title}</h1>
      <div class="head-more">{props.children}</div>
      {props.at !== undefined && <Fresh at={props.at} />}
    </header>
  );
}

function Fresh(props: { at: number }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const old = Date.now() / 1000 - props.at;
  return <span class={old > 30 ? "fresh old" : "fresh"}>{old < 2 ? "now" : `${age(old)} ago`}</span>;
}

export function Problem(props: { error: Refused | null }) {
  if (!props.error) return null;
  return (
    <div class="notice bad" role="alert">
      <strong>{props.error.message}</strong>
      {props.error.hint && <span> {withCode(props.error.hint)}</span>}
    </div>
  );
}

/** Words of the cluster: notes, nodes that are silent, objects that are no facts. */
export function Notes(props: { lines: (string | undefined)[] }) {
  const lines = props.lines.filter((line): line is string => !!line);
  if (!lines.length) return null;
  return (
    <div class="notice" role="status">
      {lines.slice(0, 5).map((line) => (
        <p key={line}>{withCode(line)}</p>
      ))}
      {lines.length > 5 && <p>and {lines.length - 5} more</p>}
    </div>
  );
}

export function Empty(props: { children: ComponentChildren }) {
  return <p class="empty">{props.children}</p>;
}

export function Loading() {
  return (
    <p class="empty" role="status">
      Asking the cluster …
    </p>
  );
}

export function Tag(props: { tone: string; children: ComponentChildren; title?: string }) {
  return (
    <span class={`tag ${props.tone}`} title={props.title}>
      {props.children}
    </span>
  );
}

/** Text with the commands in it (between backticks) set as such. It is text: nothing in it becomes markup. */
export function withCode(text: string): ComponentChildren {
  return text.split("`").map((part, at) => (at % 2 ? <code key={at}>{part}</code> : part));
}

const PROSE = /\b(shows?|tells?|there|again|and|or|the|a|of|those|knows)\b/;

/** Commands that a text names: between backticks, or behind a colon up to the end, as Podway's hints write them. */
export function commandsOf(text: string): string[] {
  const quoted = [...text.matchAll(/`([^`]+)`/g)].map((found) => found[1] ?? "");
  const plain = [...text.replace(/`[^`]*`/g, "").matchAll(/(?:^|: |; )((?:podway|ip|sysctl|nft|systemctl|modprobe) [^,;()]+)(?=[,;.]|$)/g)]
    .map((found) => (found[1] ?? "").trim())
    .filter((command) => !PROSE.test(command));
  return [...new Set([...quoted, ...plain])].filter((one) => /^[a-z][\w-]* \S/.test(one));
}

export function Command(props: { text: string }) {
  const [copied, set] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(props.text);
    set(true);
    setTimeout(() => set(false), 1500);
  };
  return (
    <div class="command">
      <code>{props.text}</code>
      <button type="button" onClick={() => void copy()} aria-label={`Copy: ${props.text}`}>
        <span aria-live="polite">{copied ? "Copied" : "Copy"}</span>
      </button>
    </div>
  );
}

/** Rows beyond the first ones are shown when asked for: a browser need not lay out five thousand. */
export function useMore(first: number): [number, (total: number) => ComponentChildren] {
  const [count, set] = useState(first);
  return [
    count,
    (total) =>
      total > count && (
        <button type="button" class="more" onClick={() => set(count * 4)}>
          Show more ({total - count} left)
        </button>
      ),
  ];
}

export function Search(props: { label: string; value: string; onInput: (text: string) => void }) {
  return (
    <input
      type="search"
      class="search"
      aria-label={props.label}
      placeholder={props.label}
      value={props.value}
      onInput={(event) => props.onInput(event.currentTarget.value)}
    />
  );
}
