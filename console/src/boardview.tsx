// A map with its tools, and a list of the same beside it for keyboards and screen readers.
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Board } from "./board";
import type { Group, Link } from "./layout";
import { Search } from "./ui";

declare global {
  interface Window {
    podwayBoard?: Board;
  }
}

const LISTED = 60;

export function BoardView(props: {
  label: string;
  what: string;
  groups: Group[];
  links: Link[];
  selected: string | null;
  onSelect: (id: string | null) => void;
  sparse?: boolean;
  legend: ComponentChildren;
  children: ComponentChildren;
}) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const board = useRef<Board | null>(null);
  const select = useRef(props.onSelect);
  select.current = props.onSelect;
  const [text, setText] = useState("");
  useEffect(() => {
    if (!canvas.current) return;
    const made = new Board(canvas.current, (id) => select.current(id), props.sparse);
    board.current = made;
    window.podwayBoard = made;
    return () => {
      made.close();
      delete window.podwayBoard;
    };
  }, []);
  useEffect(() => board.current?.show(props.groups, props.links), [props.groups, props.links]);
  useEffect(() => board.current?.select(props.selected, true), [props.selected]);
  const every = useMemo(() => props.groups.flatMap((group) => group.items.map((item) => ({ item, group }))), [props.groups]);
  const found = useMemo(() => {
    const wanted = text.toLowerCase();
    const rank = (tone: string) => (tone === "silent" ? 0 : tone === "trouble" ? 1 : 2);
    return every
      .filter(({ item, group }) => `${item.label} ${item.sub} ${group.label}`.toLowerCase().includes(wanted))
      .sort((a, b) => rank(a.item.tone) - rank(b.item.tone));
  }, [every, text]);
  const chosen = every.find(({ item }) => item.id === props.selected)?.item;
  return (
    <div class="board">
      <div class="board-map">
        <canvas
          ref={canvas}
          tabIndex={0}
          role="application"
          aria-roledescription="map"
          aria-label={`${props.label}. Arrow keys go from one to the next, shift and arrow keys move the map, plus and minus zoom, 0 shows all. The list holds the same.`}
        />
        <div class="board-tools" role="group" aria-label="Map">
          <button type="button" onClick={() => board.current?.zoom(1.4)} aria-label="Zoom in">
            +
          </button>
          <button type="button" onClick={() => board.current?.zoom(1 / 1.4)} aria-label="Zoom out">
            −
          </button>
          <button type="button" onClick={() => board.current?.fit()} aria-label="Show all">
            <svg viewBox="0 0 16 16" aria-hidden="true">
              <path d="M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4" />
            </svg>
          </button>
        </div>
        <div class="board-legend">{props.legend}</div>
      </div>
      <aside class="board-side" aria-label={chosen ? chosen.label : props.what}>
        <p class="sr" aria-live="polite">
          {chosen ? `${chosen.label}, ${chosen.sub}, ${chosen.tone}` : ""}
        </p>
        {props.selected === null ? (
          <>
            <Search label={`Find ${props.what}`} value={text} onInput={setText} />
            <ul class="pick">
              {found.slice(0, LISTED).map(({ item, group }) => (
                <li key={item.id}>
                  <button type="button" onClick={() => props.onSelect(item.id)}>
                    <span class={`dot ${item.tone}`} aria-hidden="true" />
                    <span class="pick-name">{item.label}</span>
                    <span class="pick-sub">{item.sub || group.label}</span>
                    {(item.tone === "trouble" || item.tone === "silent") && <span class="sr">{item.tone}</span>}
                  </button>
                </li>
              ))}
            </ul>
            {found.length > LISTED && <p class="empty">and {found.length - LISTED} more: type to find them</p>}
            {!found.length && <p class="empty">nothing of that name</p>}
          </>
        ) : (
          <>
            <button type="button" class="back" onClick={() => props.onSelect(null)}>
              ← All
            </button>
            {props.children}
          </>
        )}
      </aside>
    </div>
  );
}
