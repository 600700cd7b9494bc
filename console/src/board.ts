// Draws a map on a canvas, and moves it. Thousands of items and ten thousand links are drawn in a few strokes, each of
// all that look alike; while the map is moved, the picture is moved if drawing it anew would take too long.
import { type Box, type Link, type Placed, type Plan, type Tone, neighbour, plan } from "./layout";
import type { Group } from "./layout";

interface Camera {
  x: number;
  y: number;
  k: number;
}

interface Colours {
  ink: string;
  muted: string;
  faint: string;
  line: string;
  surface: string;
  panel: string;
  accent: string;
  tones: Record<Tone, string>;
}

const TONES: Tone[] = [
  "plain",
  "well",
  "trouble",
  "silent",
  "unknown",
  "allowed",
  "denied",
  "dropped",
  "vxlan",
  "ipip",
];
const FONT = '"Inter", system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
/** A picture that takes longer to draw (in milliseconds), or has more in it, is moved as it is. */
const SLOW = 9;
const MANY = 1500;
const DASHED: Partial<Record<Tone, number[]>> = { denied: [7, 4], dropped: [2, 4], vxlan: [10, 3], ipip: [3, 3] };

function colours(): Colours {
  const style = getComputedStyle(document.documentElement);
  const read = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const tones = Object.fromEntries(TONES.map((tone) => [tone, read(`tone-${tone}`)])) as Record<Tone, string>;
  return {
    ink: read("ink"),
    muted: read("muted"),
    faint: read("faint"),
    line: read("line"),
    surface: read("surface"),
    panel: read("panel"),
    accent: read("accent"),
    tones,
  };
}

export class Board {
  private readonly context: CanvasRenderingContext2D;
  private readonly picture = document.createElement("canvas");
  private pictured: Camera | null = null;
  private took = 0;
  private plan: Plan = plan([]);
  private shown = "";
  private links: Link[] = [];
  private paths: { tone: Tone; heavy: boolean; path: Path2D }[] = [];
  private between: { a: number; b: number; tone: Tone; weight: number }[] = [];
  private near = new Map<string, Link[]>();
  private camera: Camera = { x: 0, y: 0, k: 1 };
  private fitted = true;
  private selected: string | null = null;
  private hovered: string | null = null;
  private colours = colours();
  private frame = 0;
  private settle = 0;
  private width = 1;
  private height = 1;
  private ratio = 1;
  private readonly texts = new Map<string, number>();
  private readonly stop = new AbortController();
  /** Times of the last frames, in milliseconds: what tests and the curious read. */
  readonly frames: number[] = [];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly chosen: (id: string | null) => void,
    /** Whether links are those of what is chosen only, and need no room. */
    private readonly sparse = false,
  ) {
    const context = canvas.getContext("2d");
    if (!context) throw new Error("this browser draws no canvas");
    this.context = context;
    const signal = this.stop.signal;
    const resized = new ResizeObserver(() => this.resize());
    resized.observe(canvas);
    signal.addEventListener("abort", () => resized.disconnect());
    matchMedia("(prefers-color-scheme: dark)").addEventListener(
      "change",
      () => {
        this.colours = colours();
        this.redraw();
      },
      { signal },
    );
    this.listen(signal);
    this.resize();
  }

  close(): void {
    this.stop.abort();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.settle);
  }

  show(groups: Group[], links: Link[]): void {
    const key = JSON.stringify([groups, links]);
    if (key === this.shown) return;
    this.shown = key;
    const before = this.plan;
    const [left, right, top, bottom] = this.margins;
    const aspect = (this.width - left - right) / Math.max(40, this.height - top - bottom);
    this.plan = plan(groups, aspect, links.length > 0 && !this.sparse);
    this.links = links.filter((one) => this.plan.index.has(one.a) && this.plan.index.has(one.b) && one.a !== one.b);
    this.near = new Map();
    for (const one of this.links) {
      for (const end of [one.a, one.b]) {
        const known = this.near.get(end);
        if (known) known.push(one);
        else this.near.set(end, [one]);
      }
    }
    this.weave();
    const same = before.bounds.w === this.plan.bounds.w && before.bounds.h === this.plan.bounds.h;
    if (this.fitted && !same) this.fit();
    this.redraw();
  }

  select(id: string | null, reveal = false): void {
    this.selected = id;
    const placed = id === null ? undefined : this.plan.items[this.plan.index.get(id) ?? -1];
    if (placed && reveal && !this.sees(placed)) {
      this.fitted = false;
      this.camera.x = placed.x + placed.w / 2 - this.width / 2 / this.camera.k;
      this.camera.y = placed.y + placed.h / 2 - this.height / 2 / this.camera.k;
    }
    this.redraw();
  }

  fit(): void {
    const { bounds } = this.plan;
    const [left, right, top, bottom] = this.margins;
    const wide = Math.max(40, this.width - left - right);
    const high = Math.max(40, this.height - top - bottom);
    const k = Math.max(0.02, Math.min(wide / bounds.w, high / bounds.h, 1.15));
    this.camera = {
      k,
      x: bounds.x + bounds.w / 2 - (left + wide / 2) / k,
      y: bounds.y + bounds.h / 2 - (top + high / 2) / k,
    };
    this.fitted = true;
    this.redraw();
  }

  /** What tools and legend cover: left, right, top, bottom. */
  private get margins(): [number, number, number, number] {
    const legend = this.canvas.parentElement?.querySelector<HTMLElement>(".board-legend")?.offsetHeight ?? 0;
    return this.width > 560 ? [24, 64, 24, legend + 24] : [14, 58, 14, legend + 24];
  }

  zoom(factor: number, at?: { x: number; y: number }): void {
    const point = at ?? { x: this.width / 2, y: this.height / 2 };
    const { camera } = this;
    const k = Math.min(4, Math.max(0.02, camera.k * factor));
    camera.x += point.x / camera.k - point.x / k;
    camera.y += point.y / camera.k - point.y / k;
    camera.k = k;
    this.fitted = false;
    this.move();
  }

  pan(dx: number, dy: number): void {
    this.camera.x -= dx / this.camera.k;
    this.camera.y -= dy / this.camera.k;
    this.fitted = false;
    this.move();
  }

  /** Select the next item in a direction. */
  step(dx: number, dy: number): void {
    const at = this.selected === null ? -1 : (this.plan.index.get(this.selected) ?? -1);
    const found = this.plan.items[at < 0 ? 0 : neighbour(this.plan, at, dx, dy)];
    if (found) {
      this.chosen(found.item.id);
      this.select(found.item.id, true);
    }
  }

  // Input.

  private listen(signal: AbortSignal): void {
    const { canvas } = this;
    const down = new Map<number, { x: number; y: number }>();
    let moved = 0;
    const at = (event: MouseEvent) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), at(event));
      },
      { passive: false, signal },
    );
    canvas.addEventListener(
      "pointerdown",
      (event) => {
        canvas.setPointerCapture(event.pointerId);
        down.set(event.pointerId, at(event));
        moved = down.size > 1 ? 99 : 0;
      },
      { signal },
    );
    canvas.addEventListener(
      "pointermove",
      (event) => {
        const before = down.get(event.pointerId);
        const now = at(event);
        if (!before) {
          const hit = event.pointerType === "mouse" ? this.hit(now.x, now.y) : null;
          if (hit !== this.hovered) {
            this.hovered = hit;
            canvas.style.cursor = hit ? "pointer" : "grab";
            this.redraw();
          }
          return;
        }
        const other = [...down.entries()].find(([id]) => id !== event.pointerId)?.[1];
        if (other) {
          const was = Math.hypot(before.x - other.x, before.y - other.y);
          const is = Math.hypot(now.x - other.x, now.y - other.y);
          if (was > 0) this.zoom(is / was, { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
        } else {
          moved += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
          if (moved > 4) this.pan(now.x - before.x, now.y - before.y);
        }
        down.set(event.pointerId, now);
      },
      { signal },
    );
    const up = (event: PointerEvent) => {
      if (!down.delete(event.pointerId) || event.type === "pointercancel" || moved > 4) return;
      const point = at(event);
      const hit = this.hit(point.x, point.y);
      this.chosen(hit);
      this.select(hit);
    };
    canvas.addEventListener("pointerup", up, { signal });
    canvas.addEventListener("pointercancel", up, { signal });
    canvas.addEventListener("dblclick", (event) => this.zoom(1.8, at(event)), { signal });
    canvas.addEventListener(
      "keydown",
      (event) => {
        const arrows: Record<string, [number, number]> = {
          ArrowLeft: [-1, 0],
          ArrowRight: [1, 0],
          ArrowUp: [0, -1],
          ArrowDown: [0, 1],
        };
        const arrow = arrows[event.key];
        if (arrow && event.shiftKey) this.pan(-60 * arrow[0], -60 * arrow[1]);
        else if (arrow) this.step(...arrow);
        else if (event.key === "+" || event.key === "=") this.zoom(1.3);
        else if (event.key === "-") this.zoom(1 / 1.3);
        else if (event.key === "0") this.fit();
        else if (event.key === "Escape") {
          this.chosen(null);
          this.select(null);
        } else return;
        event.preventDefault();
      },
      { signal },
    );
  }

  private hit(x: number, y: number): string | null {
    const wx = this.camera.x + x / this.camera.k;
    const wy = this.camera.y + y / this.camera.k;
    const slack = Math.max(0, 7 / this.camera.k - this.plan.form.w / 2);
    for (const one of this.plan.items) {
      if (wx >= one.x - slack && wx <= one.x + one.w + slack && wy >= one.y - slack && wy <= one.y + one.h + slack)
        return one.item.id;
    }
    return null;
  }

  // Drawing.

  private resize(): void {
    const box = this.canvas.getBoundingClientRect();
    this.ratio = Math.min(2, window.devicePixelRatio || 1);
    this.width = Math.max(1, box.width);
    this.height = Math.max(1, box.height);
    for (const one of [this.canvas, this.picture]) {
      one.width = Math.round(this.width * this.ratio);
      one.height = Math.round(this.height * this.ratio);
    }
    if (this.fitted) this.fit();
    this.redraw();
  }

  /** The map is moved: the picture is, too, and drawn anew when it rests, where drawing takes long. */
  private move(): void {
    if (this.took < SLOW && this.plan.items.length + this.links.length < MANY) return this.redraw();
    clearTimeout(this.settle);
    this.settle = window.setTimeout(() => this.redraw(), 90);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.slide();
    });
  }

  private redraw(): void {
    clearTimeout(this.settle);
    this.pictured = null;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.pictured) this.slide();
      else this.draw();
    });
  }

  private slide(): void {
    const began = performance.now();
    const was = this.pictured;
    if (!was) return this.draw();
    const { context, camera } = this;
    const scale = camera.k / was.k;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(
      this.picture,
      (was.x - camera.x) * camera.k * this.ratio,
      (was.y - camera.y) * camera.k * this.ratio,
      this.canvas.width * scale,
      this.canvas.height * scale,
    );
    this.count(performance.now() - began);
  }

  private count(took: number): void {
    this.frames.push(took);
    if (this.frames.length > 120) this.frames.shift();
  }

  /** Make of links what can be drawn in few strokes. */
  private weave(): void {
    const kinds = new Map<string, { tone: Tone; heavy: boolean; path: Path2D }>();
    const sums = new Map<string, { a: number; b: number; tone: Tone; weight: number }>();
    for (const one of this.links) {
      const [a, b] = [this.placed(one.a), this.placed(one.b)];
      if (!a || !b) continue;
      const heavy = one.weight > 100;
      const name = `${one.tone} ${heavy}`;
      let kind = kinds.get(name);
      if (!kind) kinds.set(name, (kind = { tone: one.tone, heavy, path: new Path2D() }));
      curve(kind.path, a, b);
      if (a.group !== b.group) {
        const [low, high] = a.group < b.group ? [a.group, b.group] : [b.group, a.group];
        const pair = `${low} ${high} ${one.tone}`;
        const sum = sums.get(pair);
        if (sum) sum.weight += one.weight;
        else sums.set(pair, { a: low, b: high, tone: one.tone, weight: one.weight });
      }
    }
    const order = (tone: Tone) => (tone === "denied" || tone === "dropped" ? 1 : 0);
    this.paths = [...kinds.values()].sort((a, b) => order(a.tone) - order(b.tone));
    this.between = [...sums.values()].sort((a, b) => order(a.tone) - order(b.tone));
  }

  private placed(id: string): Placed | undefined {
    return this.plan.items[this.plan.index.get(id) ?? -1];
  }

  private sees(box: Box): boolean {
    const { camera } = this;
    const [x, y] = [(box.x - camera.x) * camera.k, (box.y - camera.y) * camera.k];
    return x + box.w * camera.k > 8 && y + box.h * camera.k > 8 && x < this.width - 8 && y < this.height - 8;
  }

  private draw(): void {
    const began = performance.now();
    const { context, camera, plan } = this;
    const world = () =>
      context.setTransform(
        camera.k * this.ratio,
        0,
        0,
        camera.k * this.ratio,
        -camera.x * camera.k * this.ratio,
        -camera.y * camera.k * this.ratio,
      );
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    world();
    const px = 1 / camera.k;
    const cell = plan.form.w * camera.k;

    const active = this.selected ?? this.hovered;
    const fine = plan.items.length <= 60 || this.links.length < 1500 || cell > 40;
    // Links of groups run behind these, those of items before them.
    if (!fine) this.drawLinks(fine, active !== null && this.near.has(active), px);
    this.drawFrames(px, fine);
    if (fine) this.drawLinks(fine, active !== null && this.near.has(active), px);
    if (active !== null) this.drawNear(active, px);
    this.drawItems(cell, px, active);

    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.drawLabels(cell);

    this.took = performance.now() - began;
    this.count(this.took);
    const copy = this.picture.getContext("2d");
    copy?.setTransform(1, 0, 0, 1, 0, 0);
    copy?.clearRect(0, 0, this.picture.width, this.picture.height);
    copy?.drawImage(this.canvas, 0, 0);
    this.pictured = { ...camera };
  }

  private drawFrames(px: number, fine: boolean): void {
    const { context, colours } = this;
    context.fillStyle = colours.panel;
    context.strokeStyle = colours.line;
    context.lineWidth = px;
    for (const frame of this.plan.frames) {
      if (!this.sees(frame)) continue;
      context.beginPath();
      context.roundRect(frame.x, frame.y, frame.w, frame.h, Math.min(16, 14 * px));
      context.globalAlpha = fine ? 1 : 0.88;
      context.fill();
      context.globalAlpha = 1;
      context.stroke();
    }
  }

  private drawLinks(fine: boolean, dim: boolean, px: number): void {
    const { context, colours } = this;
    context.lineCap = "round";
    if (fine) {
      const many = Math.min(1, 60 / Math.max(1, this.links.length));
      for (const one of this.paths) {
        context.strokeStyle = colours.tones[one.tone];
        context.globalAlpha = dim ? 0.07 : one.tone === "denied" || one.tone === "dropped" ? 0.75 : 0.22 + 0.4 * many;
        context.lineWidth = (one.heavy ? 2.2 : 1.3) * px;
        context.setLineDash((DASHED[one.tone] ?? []).map((length) => length * px));
        context.stroke(one.path);
      }
    } else {
      const most = Math.max(1, ...this.between.map((one) => one.weight));
      for (const one of this.between) {
        const [a, b] = [this.plan.frames[one.a], this.plan.frames[one.b]];
        if (!a || !b) continue;
        const path = new Path2D();
        curve(path, a, b);
        const bad = one.tone === "denied" || one.tone === "dropped";
        const strength = Math.log1p(one.weight) / Math.log1p(most);
        context.strokeStyle = colours.tones[one.tone];
        context.globalAlpha = dim ? 0.06 : bad ? 0.3 + 0.5 * strength : 0.12 + 0.4 * strength ** 2;
        context.lineWidth = (0.8 + 3.4 * strength ** 2) * px;
        context.setLineDash((DASHED[one.tone] ?? []).map((length) => length * px));
        context.stroke(path);
      }
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  /** Draw the links of one item: to each other end or, if these are very many, to their groups. */
  private drawNear(id: string, px: number): void {
    const { context, colours } = this;
    const links = this.near.get(id) ?? [];
    const many = links.length > 150;
    const drawn = new Set<string>();
    for (const one of links) {
      const [a, b] = [this.placed(one.a), this.placed(one.b)];
      if (!a || !b) continue;
      const [from, to] = one.a === id ? [a, b] : [b, a];
      const path = new Path2D();
      if (many) {
        const name = `${to.group} ${one.tone}`;
        const frame = this.plan.frames[to.group];
        if (drawn.has(name) || !frame) continue;
        drawn.add(name);
        curve(path, from, frame);
      } else if (one.a === id) curve(path, from, to);
      else curve(path, to, from);
      context.strokeStyle = colours.tones[one.tone];
      context.globalAlpha = many ? 0.55 : 0.9;
      context.lineWidth = (many ? 1.5 : 2.2) * px;
      context.setLineDash((DASHED[one.tone] ?? []).map((length) => length * px));
      context.stroke(path);
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  private drawItems(cell: number, px: number, active: string | null): void {
    const { context, colours, plan } = this;
    const linked = new Set<string>();
    if (active !== null) for (const one of this.near.get(active) ?? []) linked.add(one.a).add(one.b);
    const dim = linked.size > 0 && linked.size < plan.items.length / 2;
    const kinds = new Map<string, Placed[]>();
    for (const one of plan.items) {
      if (!this.sees(one)) continue;
      const faint = dim && one.item.id !== active && !linked.has(one.item.id);
      const name = `${one.item.tone} ${faint}`;
      const known = kinds.get(name);
      if (known) known.push(one);
      else kinds.set(name, [one]);
    }
    const card = cell >= 90;
    const radius = card ? 10 : Math.min(plan.form.h / 4, 6);
    for (const [name, placed] of kinds) {
      const [tone, faint] = name.split(" ") as [Tone, string];
      context.globalAlpha = faint === "true" ? 0.35 : 1;
      context.beginPath();
      for (const one of placed) {
        if (cell > 7) context.roundRect(one.x, one.y, one.w, one.h, radius);
        else context.rect(one.x, one.y, one.w, one.h);
      }
      if (cell < 60) {
        // What is well is quiet: trouble is what is to be seen.
        if (tone === "well" || tone === "plain") context.globalAlpha *= 0.5;
        context.fillStyle = colours.tones[tone];
        context.fill();
        continue;
      }
      context.fillStyle = colours.surface;
      context.fill();
      context.strokeStyle = tone === "well" || tone === "plain" ? colours.line : colours.tones[tone];
      context.lineWidth = 1.2 * px;
      context.stroke();
      context.beginPath();
      for (const one of placed) context.roundRect(one.x + 9, one.y + one.h / 2 - (one.h * 0.22), 4, one.h * 0.44, 2);
      context.fillStyle = colours.tones[tone];
      context.fill();
    }
    context.globalAlpha = 1;
    for (const [id, width] of [
      [this.hovered, 1.6],
      [this.selected, 2.6],
    ] as const) {
      const one = id === null ? undefined : this.placed(id);
      if (!one) continue;
      context.strokeStyle = colours.accent;
      context.lineWidth = width * px;
      context.beginPath();
      context.roundRect(one.x - 3 * px, one.y - 3 * px, one.w + 6 * px, one.h + 6 * px, radius + 3 * px);
      context.stroke();
    }
  }

  private drawLabels(cell: number): void {
    const { context, camera, colours, plan } = this;
    context.textBaseline = "middle";
    for (const frame of plan.frames) {
      const width = frame.w * camera.k;
      if (!this.sees(frame) || width < 34) continue;
      const head = frame.head * camera.k;
      const font = Math.max(10, Math.min(13, head * 0.5));
      if (head < font) continue;
      context.font = `600 ${font}px ${FONT}`;
      context.fillStyle = colours.muted;
      const left = (frame.x - camera.x) * camera.k + Math.min(16, plan.form.pad * camera.k);
      const inset = 2 * Math.min(16, plan.form.pad * camera.k);
      const middle = (frame.y - camera.y) * camera.k + head / 2;
      const whole = `${frame.group.label}  ${frame.group.note}`.trim();
      const noted = this.cut(whole, width - inset, font) === whole;
      const label = noted ? whole : this.cut(frame.group.label, width - inset, font, true);
      context.strokeStyle = colours.panel;
      context.lineWidth = 3;
      context.strokeText(label, left, middle);
      context.fillText(label, left, middle);
    }
    if (cell < 60) return;
    const tall = plan.form.h * camera.k >= 40;
    for (const one of plan.items) {
      if (!this.sees(one)) continue;
      const x = (one.x - camera.x) * camera.k + 22 * Math.min(1, camera.k * 1.1);
      const y = (one.y - camera.y) * camera.k;
      const room = one.w * camera.k - 32 * Math.min(1, camera.k * 1.1);
      const font = Math.max(10, Math.min(14, 13 * camera.k));
      const middle = y + (one.h * camera.k) / 2;
      context.font = `600 ${font}px ${FONT}`;
      context.fillStyle = colours.ink;
      context.fillText(this.cut(one.item.label, room, font), x, tall && one.item.sub ? middle - font * 0.62 : middle);
      if (tall && one.item.sub) {
        context.font = `400 ${font * 0.86}px ${FONT}`;
        context.fillStyle = colours.muted;
        context.fillText(this.cut(one.item.sub, room, font * 0.86), x, middle + font * 0.72);
      }
    }
  }

  /** A text as far as there is room for it: its beginning, or its end, where names differ. */
  private cut(text: string, room: number, font: number, end = false): string {
    const fits = (part: string) => {
      const name = `${Math.round(font)} ${part}`;
      let width = this.texts.get(name);
      if (width === undefined) {
        width = this.context.measureText(part).width;
        if (this.texts.size > 20_000) this.texts.clear();
        this.texts.set(name, width);
      }
      return width <= room;
    };
    if (fits(text)) return text;
    let length = Math.max(0, Math.floor(room / (font * 0.55)) - 1);
    const part = () => (end ? `…${text.slice(-length)}` : `${text.slice(0, length)}…`);
    while (length > 0 && !fits(part())) length -= 1;
    return length > 0 ? part() : "";
  }
}

/** A slightly bent line between the middles of two boxes, so that lines of one row do not lie on each other. */
function curve(path: Path2D, a: Box, b: Box): void {
  const [ax, ay, bx, by] = [a.x + a.w / 2, a.y + a.h / 2, b.x + b.w / 2, b.y + b.h / 2];
  const [dx, dy] = [bx - ax, by - ay];
  path.moveTo(ax, ay);
  path.quadraticCurveTo(ax + dx / 2 - dy * 0.14, ay + dy / 2 + dx * 0.14, bx, by);
}
