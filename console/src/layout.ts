// Where things stand on a map: items in groups, groups side by side. Pure.

export interface Item {
  id: string;
  label: string;
  sub: string;
  tone: Tone;
}
export interface Group {
  id: string;
  label: string;
  /** What is said behind the label where there is room. */
  note: string;
  items: Item[];
}
export interface Link {
  a: string;
  b: string;
  tone: Tone;
  weight: number;
}
export type Tone = "plain" | "well" | "trouble" | "silent" | "unknown" | "allowed" | "denied" | "dropped" | "vxlan" | "ipip";

export interface Box {
  x: number;
  y: number;
  w: number;
  h: number;
}
export interface Placed extends Box {
  item: Item;
  group: number;
}
export interface Frame extends Box {
  group: Group;
  head: number;
}
export interface Plan {
  frames: Frame[];
  items: Placed[];
  index: Map<string, number>;
  bounds: Box;
  form: Form;
}
export interface Form {
  w: number;
  h: number;
  gap: number;
  pad: number;
  head: number;
  between: number;
}

/** How large an item is drawn, by how many there are: as a card, as a tag, as a cell. Links need room between. */
export function formOf(count: number, linked: boolean): Form {
  if (count <= 60) return { w: 168, h: 56, gap: 44, pad: 26, head: 34, between: 84 };
  if (count <= 300) return { w: 112, h: 34, gap: 16, pad: 18, head: 34, between: 56 };
  return { w: 26, h: 26, gap: 6, pad: 14, head: 62, between: linked ? 84 : 26 };
}

const byName = new Intl.Collator("en", { numeric: true });

export function plan(groups: Group[], aspect = 1.6, linked = false): Plan {
  const count = groups.reduce((sum, group) => sum + group.items.length, 0);
  const form = formOf(count, linked);
  const sized = [...groups]
    .sort((a, b) => byName.compare(a.label, b.label))
    .map((group) => {
      const many = Math.max(1, group.items.length);
      const columns = Math.max(1, Math.min(many, Math.round(Math.sqrt((many * 1.5 * form.h) / form.w)) || 1));
      const rows = Math.ceil(many / columns);
      return {
        group,
        columns,
        w: columns * form.w + (columns - 1) * form.gap + 2 * form.pad,
        h: rows * form.h + (rows - 1) * form.gap + form.pad + form.head,
      };
    });
  const width = widthOf(sized, form.between, aspect);
  const frames: Frame[] = [];
  const items: Placed[] = [];
  const index = new Map<string, number>();
  let x = 0;
  let y = 0;
  let shelf = 0;
  let right = 0;
  for (const one of sized) {
    if (x > 0 && x + one.w > width + 0.5) {
      x = 0;
      y += shelf + form.between;
      shelf = 0;
    }
    const number = frames.length;
    frames.push({ x, y, w: one.w, h: one.h, group: one.group, head: form.head });
    const inside = [...one.group.items].sort((a, b) => byName.compare(a.label, b.label));
    inside.forEach((item, at) => {
      index.set(item.id, items.length);
      items.push({
        item,
        group: number,
        x: x + form.pad + (at % one.columns) * (form.w + form.gap),
        y: y + form.head + Math.floor(at / one.columns) * (form.h + form.gap),
        w: form.w,
        h: form.h,
      });
    });
    right = Math.max(right, x + one.w);
    shelf = Math.max(shelf, one.h);
    x += one.w + form.between;
  }
  return { frames, items, index, bounds: { x: 0, y: 0, w: Math.max(1, right), h: Math.max(1, y + shelf) }, form };
}

/** How broad shelves are that make the whole fit best into a window of this aspect. */
function widthOf(sized: { w: number; h: number }[], between: number, aspect: number): number {
  let best = 0;
  let most = 0;
  let width = -between;
  const tried = new Set<number>();
  for (const one of sized.slice(0, 80)) tried.add((width += one.w + between));
  const area = sized.reduce((sum, one) => sum + (one.w + between) * (one.h + between), 0);
  for (const factor of [0.8, 0.9, 1, 1.1, 1.25]) tried.add(Math.sqrt(area * aspect) * factor);
  for (const limit of tried) {
    let [x, y, shelf, right] = [0, 0, 0, 0];
    for (const one of sized) {
      if (x > 0 && x + one.w > limit + 0.5) [x, y, shelf] = [0, y + shelf + between, 0];
      right = Math.max(right, x + one.w);
      shelf = Math.max(shelf, one.h);
      x += one.w + between;
    }
    const fits = Math.min(aspect / Math.max(1, right), 1 / Math.max(1, y + shelf));
    if (fits > most) [most, best] = [fits, limit];
  }
  return best;
}

/** The item that is nearest in a direction, as arrow keys mean it; the one itself if there is none. */
export function neighbour(plan: Plan, from: number, dx: number, dy: number): number {
  const here = plan.items[from];
  if (!here) return 0;
  const cx = here.x + here.w / 2;
  const cy = here.y + here.h / 2;
  let best = from;
  let least = Infinity;
  plan.items.forEach((one, at) => {
    const ox = one.x + one.w / 2 - cx;
    const oy = one.y + one.h / 2 - cy;
    const along = ox * dx + oy * dy;
    const across = Math.abs(ox * dy) + Math.abs(oy * dx);
    if (at === from || along <= 0.5) return;
    const cost = along + 2.5 * across;
    if (cost < least) {
      least = cost;
      best = at;
    }
  });
  return best;
}
