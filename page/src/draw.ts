// The fovea on a canvas: the whole memory with HCA's overview and CSA's picks, the conversation behind it with the raw
// window, and below both a piece of the memory, large, around the heaviest pick.
import type { FileMap, Look } from "./api";

export const HEIGHT = 168;
export const ZOOM_TOKENS = 512;
const LABELS = 14;
const BAND = { top: 16, height: 6 };
const OVERVIEW = { top: 26, height: 34 };
const PICKS = { top: 62, height: 18 };
const FUNNEL = { top: 82, height: 20 };
const ZOOM = { top: 104, height: 48 };
const GAP = 10;
const MEMORY = 0.84;
/** Share of the width that the memory takes; the rest is the conversation. */
const LEAST_TALK = 128;

export interface Scene {
  map: FileMap;
  look: Look | null;
  zoom: number;
  colours: Colours;
  font: string;
}

export interface Colours {
  ink: string;
  soft: string;
  band: string;
  other: string;
  overview: string;
  picks: string;
  window: string;
  funnel: string;
}

/** Where things are, in CSS pixels; and which token lies at a point. */
export class Scale {
  readonly memory: number;
  constructor(
    readonly width: number,
    readonly tokens: number,
    readonly end: number,
    readonly zoom: number,
  ) {
    this.memory = Math.max(1, width * MEMORY - GAP / 2);
  }

  x(token: number): number {
    if (token <= this.tokens) return (token / Math.max(1, this.tokens)) * this.memory;
    const talk = Math.max(LEAST_TALK, this.end - this.tokens);
    return this.memory + GAP + ((token - this.tokens) / talk) * (this.width - this.memory - GAP);
  }

  zoomed(token: number): number {
    return ((token - this.zoom) / ZOOM_TOKENS) * this.width;
  }

  token(x: number, y: number): number | null {
    if (y >= ZOOM.top) return this.inside(this.zoom + (x / this.width) * ZOOM_TOKENS);
    return x <= this.memory ? this.inside((x / this.memory) * this.tokens) : null;
  }

  private inside(token: number): number | null {
    const whole = Math.floor(token);
    return whole >= 0 && whole < this.tokens ? whole : null;
  }
}

/** The first token of the piece that is shown large: the one that is shown, as long as the heaviest pick is in it. */
export function zoomOf(map: FileMap, look: Look | null, before: number): number {
  const heaviest = look?.picks.find(([start]) => start < map.tokens)?.[0];
  const most = Math.max(0, map.tokens - ZOOM_TOKENS);
  if (heaviest === undefined) return Math.min(before, most);
  if (heaviest >= before + 32 && heaviest < before + ZOOM_TOKENS - 32) return Math.min(before, most);
  return Math.max(0, Math.min(most, heaviest - ZOOM_TOKENS / 2));
}

export function draw(context: CanvasRenderingContext2D, scale: Scale, scene: Scene): void {
  const { map, look, colours } = scene;
  context.clearRect(0, 0, scale.width, HEIGHT);
  context.font = scene.font;
  context.textBaseline = "middle";
  files(context, scale, scene);
  context.fillStyle = colours.soft;
  context.fillText("conversation", scale.x(map.tokens + 1), LABELS / 2, scale.width - scale.memory - GAP);
  context.fillRect(scale.x(map.tokens + 1), BAND.top, scale.width - scale.memory - GAP, BAND.height);
  funnel(context, scale, scene);
  lens(context, scale, scene);
  if (!look) return;
  overview(context, scale, look, colours.overview);
  window(context, scale, look, colours.window);
  picks(context, scale, look, colours.picks);
}

/** The files as bands. Those narrower than a pixel are drawn as one. */
function files(context: CanvasRenderingContext2D, scale: Scale, { map, colours }: Scene): void {
  let drawn = -1;
  map.files.forEach((file, number) => {
    const [from, to] = [scale.x(file.first), scale.x(file.after)];
    if (to - drawn < 1) return;
    drawn = to;
    context.fillStyle = file.outdated ? colours.funnel : number % 2 ? colours.other : colours.band;
    context.fillRect(from, BAND.top, Math.max(1, to - from - (to - from > 3 ? 1 : 0)), BAND.height);
    if (to - from < 48) return;
    context.fillStyle = colours.soft;
    context.fillText(fitting(context, file.path, to - from - 6), from, LABELS / 2);
  });
}

/** As much of a path's end as there is room for. */
function fitting(context: CanvasRenderingContext2D, path: string, room: number): string {
  if (context.measureText(path).width <= room) return path;
  const name = path.split("/").pop()!;
  if (context.measureText(name).width <= room) return name;
  const letters = Math.floor(room / context.measureText("m").width);
  return letters > 3 ? `${name.slice(0, letters - 1)}…` : "";
}

function overview(context: CanvasRenderingContext2D, scale: Scale, look: Look, colour: string): void {
  const { span, share } = look.overview;
  // Parts of the conversation are often far above all of the memory: they are cut, so that the memory can be seen.
  const most = Math.max(...share.filter((_, bin) => (bin + 1) * span <= scale.tokens), Number.MIN_VALUE);
  context.fillStyle = colour;
  share.forEach((value, bin) => {
    const [from, to] = [scale.x(bin * span), scale.x(Math.min((bin + 1) * span, scale.end))];
    const height = Math.max(value ? 1 : 0, Math.min(1, value / most) * OVERVIEW.height);
    context.fillRect(from, OVERVIEW.top + OVERVIEW.height - height, Math.max(1, to - from - 0.5), height);
  });
}

function picks(context: CanvasRenderingContext2D, scale: Scale, look: Look, colour: string): void {
  const most = Math.max(look.picks[0]?.[1] ?? 0, Number.MIN_VALUE);
  context.fillStyle = colour;
  for (const [start, share] of look.picks) {
    const part = share / most;
    context.globalAlpha = 0.25 + 0.75 * part;
    const height = Math.max(3, part * PICKS.height);
    context.fillRect(scale.x(start) - 0.75, PICKS.top + PICKS.height - height, 2, height);
    const [from, to] = [scale.zoomed(start), scale.zoomed(start + 4)];
    if (to < 0 || from > scale.width || start >= scale.tokens) continue;
    const large = Math.max(2, part * (ZOOM.height - 8));
    context.fillRect(from, ZOOM.top + ZOOM.height - large, Math.max(2, to - from - 1), large);
  }
  context.globalAlpha = 1;
}

function window(context: CanvasRenderingContext2D, scale: Scale, look: Look, colour: string): void {
  const { first = 0, span, share } = look.window;
  const most = Math.max(...share, Number.MIN_VALUE);
  context.fillStyle = colour;
  share.forEach((value, step) => {
    const [from, to] = [scale.x(first + step * span), scale.x(first + (step + 1) * span)];
    const height = Math.max(1, (value / most) * OVERVIEW.height);
    context.fillRect(from, OVERVIEW.top + OVERVIEW.height - height, Math.max(1, to - from - 0.5), height);
  });
}

function funnel(context: CanvasRenderingContext2D, scale: Scale, { colours, map }: Scene): void {
  if (map.tokens <= ZOOM_TOKENS) return;
  const [from, to] = [scale.x(scale.zoom), Math.max(scale.x(scale.zoom) + 2, scale.x(scale.zoom + ZOOM_TOKENS))];
  context.fillStyle = colours.funnel;
  context.globalAlpha = 0.35;
  context.fillRect(from, BAND.top, to - from, FUNNEL.top - BAND.top);
  context.beginPath();
  context.moveTo(from, FUNNEL.top);
  context.lineTo(to, FUNNEL.top);
  context.lineTo(scale.width, FUNNEL.top + FUNNEL.height);
  context.lineTo(0, FUNNEL.top + FUNNEL.height);
  context.fill();
  context.globalAlpha = 1;
}

/** The ground of the large piece, with where its files begin. */
function lens(context: CanvasRenderingContext2D, scale: Scale, { map, colours }: Scene): void {
  context.fillStyle = colours.other;
  context.globalAlpha = 0.35;
  context.fillRect(0, ZOOM.top, Math.min(scale.width, scale.zoomed(map.tokens)), ZOOM.height);
  context.globalAlpha = 1;
  for (const file of map.files) {
    if (file.after <= scale.zoom || file.first >= scale.zoom + ZOOM_TOKENS) continue;
    const from = Math.max(0, scale.zoomed(file.first));
    context.fillStyle = colours.band;
    if (file.first > scale.zoom) context.fillRect(from, ZOOM.top, 1, ZOOM.height);
    context.fillStyle = colours.soft;
    const room = Math.min(scale.width, scale.zoomed(file.after)) - from - 8;
    context.fillText(fitting(context, file.path, room), from + 4, ZOOM.top + ZOOM.height + 9);
  }
}
