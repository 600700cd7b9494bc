import { type ComponentChildren, render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { type About, type Diagnosis, useAnswer } from "./api";
import { DoctorView } from "./doctor";
import { FlowsView } from "./flows";
import { HealthView } from "./health";
import { NetworkView } from "./network";
import { PoliciesView } from "./policies";
import { follow, usePlace } from "./router";
import { ServicesView } from "./services";
import { TraceView } from "./trace";
import { TrafficView } from "./traffic";
import { Empty, Problem } from "./ui";
import "./style.css";

const VIEWS: { path: string; name: string; icon: string; key: string }[] = [
  { path: "/", name: "Network", key: "n", icon: "M5 5h4v4H5zM15 5h4v4h-4zM10 15h4v4h-4zM9 7h6M7 9l4 6M17 9l-4 6" },
  { path: "/traffic", name: "Traffic", key: "t", icon: "M4 8h13l-3-3M20 16H7l3 3" },
  { path: "/flows", name: "Flows", key: "f", icon: "M4 6h16M4 12h10M4 18h13" },
  { path: "/trace", name: "Trace", key: "r", icon: "M5 19a2 2 0 1 0 0-.1M19 5a2 2 0 1 0 0-.1M7 19h6a4 4 0 0 0 0-8h-2a4 4 0 0 1 0-6h6" },
  { path: "/policies", name: "Policies", key: "p", icon: "M12 3l7 3v6c0 4-3 7-7 9-4-2-7-5-7-9V6z" },
  { path: "/services", name: "Services", key: "s", icon: "M12 4v6M12 10l-6 8M12 10l6 8M12 10v8" },
  { path: "/doctor", name: "Doctor", key: "d", icon: "M12 5v14M5 12h14" },
  { path: "/health", name: "Health", key: "h", icon: "M3 12h4l3-7 4 14 3-7h4" },
];

function App() {
  const place = usePlace();
  const about = useAnswer<About>("about", 60_000);
  const diagnosis = useAnswer<Diagnosis>("doctor", 60_000);
  const view = VIEWS.find((one) => one.path === place.path);
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    document.title = `${view?.name ?? "Nothing"} · ${about.value?.cluster ?? "Podway"}`;
  }, [view, about.value]);
  useEffect(() => {
    // A new view begins at its heading, for screen readers, too.
    if (!first.current) main.current?.focus({ preventScroll: true });
    first.current = false;
    scrollTo(0, 0);
  }, [place.path]);
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName)) return;
      if (event.altKey && !event.ctrlKey && !event.metaKey) {
        const found = VIEWS.find((one) => one.key === event.key);
        if (found) {
          event.preventDefault();
          document.querySelector<HTMLAnchorElement>(`nav a[href="${found.path}"]`)?.click();
        }
      } else if (event.key === "/") {
        const field = document.querySelector<HTMLInputElement>("main input[type=search], main form input");
        if (field) {
          event.preventDefault();
          field.focus();
        }
      }
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, []);
  const errors = diagnosis.value?.errors ?? 0;
  return (
    <div class="shell" onClick={follow}>
      <a class="skip" href="#main">
        Skip to the view
      </a>
      <nav class="side" aria-label="Views">
        <div class="brand">
          <svg viewBox="0 0 32 32" aria-hidden="true">
            <path d="M9 22.5 23 9.5" />
            <circle cx="9" cy="22.5" r="4.5" />
            <circle cx="23" cy="9.5" r="4.5" class="far" />
          </svg>
          <span>
            <strong>Podway</strong>
            <small title={about.value?.cluster}>{about.value?.cluster ?? ""}</small>
          </span>
        </div>
        <ul>
          {VIEWS.map((one) => (
            <li key={one.path}>
              <a href={one.path} aria-current={one.path === place.path ? "page" : undefined} title={`Alt+${one.key.toUpperCase()}`}>
                <svg viewBox="0 0 24 24" aria-hidden="true">
                  <path d={one.icon} />
                </svg>
                <span>{one.name}</span>
                {one.path === "/doctor" && errors > 0 && (
                  <b class="count" aria-label={`${errors} errors`}>
                    {errors}
                  </b>
                )}
              </a>
            </li>
          ))}
        </ul>
        <p class="version">read only · {about.value?.version}</p>
      </nav>
      <main id="main" ref={main} tabIndex={-1} class={place.path === "/" || place.path === "/traffic" ? "wide" : ""}>
        <Problem error={about.error} />
        {shown(place.path, about.value)}
      </main>
    </div>
  );
}

function shown(path: string, about: About | null): ComponentChildren {
  switch (path) {
    case "/":
      return <NetworkView />;
    case "/traffic":
      return <TrafficView />;
    case "/flows":
      return <FlowsView about={about} />;
    case "/trace":
      return <TraceView />;
    case "/policies":
      return <PoliciesView />;
    case "/services":
      return <ServicesView />;
    case "/doctor":
      return <DoctorView />;
    case "/health":
      return <HealthView />;
    default:
      return <Empty>There is no such view.</Empty>;
  }
}

const root = document.getElementById("app");
if (root) render(<App />, root);
