// Where we are: the address is the state, so that a view with its filters can be linked to and gone back to.
import { useLayoutEffect, useState } from "preact/hooks";

export interface Place {
  path: string;
  query: URLSearchParams;
}

const here = (): Place => ({ path: location.pathname, query: new URLSearchParams(location.search) });

export function go(path: string, query?: URLSearchParams | string, replace = false): void {
  const text = query?.toString() ?? "";
  const to = text ? `${path}?${text}` : path;
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  dispatchEvent(new PopStateEvent("popstate"));
}

export function usePlace(): Place {
  const [place, set] = useState(here);
  useLayoutEffect(() => {
    const changed = () => set(here());
    addEventListener("popstate", changed);
    changed(); // the address may have changed between the drawing and this
    return () => removeEventListener("popstate", changed);
  }, []);
  return place;
}

/** A link within the console: followed without a new page, unless the browser is asked for one. */
export function follow(event: MouseEvent): void {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const link = (event.target as Element | null)?.closest?.("a[href^='/']");
  if (!(link instanceof HTMLAnchorElement) || link.target) return;
  event.preventDefault();
  const to = new URL(link.href);
  go(to.pathname, to.searchParams);
}
