// Where a word of the answer looked, over the whole memory.
import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import * as api from "./api";
import type { Look } from "./api";
import { HEIGHT, Scale, draw, zoomOf } from "./draw";
import type { Colours } from "./draw";
import { count, percent } from "./format";
import { chosen, map, memory, name, show, talk } from "./state";
import { path } from "./talk";
import { picked, sum, wordsOf } from "./words";
import type { Word } from "./words";

/** The line of the heaviest pick, as the memory read it. */
const place = signal<{ token: number; path: string; line: number; text: string } | null>(null);

export function Fovea() {
  const canvas = useRef<HTMLCanvasElement>(null);
  const zoom = useRef(0);
  const turn = talk.value.turns.find((each) => each.id === chosen.value?.turn) ?? last();
  const words = useMemo(() => wordsOf(turn?.looks ?? []), [turn?.looks]);
  const at = Math.min(chosen.value?.turn === turn?.id ? (chosen.value?.word ?? 0) : words.length - 1, words.length - 1);
  const word = words[at] ?? null;
  const found = map.value;
  const heaviest = word && found ? word.look.picks.find(([start]) => start < found.tokens)?.[0] : undefined;

  useEffect(() => {
    zoom.current = 0;
    place.value = null;
  }, [name.value]);
  useEffect(() => {
    if (!found || !canvas.current) return;
    zoom.current = zoomOf(found, word?.look ?? null, zoom.current);
    const paint = (): void => paintOn(canvas.current, found, word?.look ?? null, zoom.current);
    const frame = requestAnimationFrame(paint);
    const observer = new ResizeObserver(paint);
    observer.observe(canvas.current);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", paint);
    return () => {
      cancelAnimationFrame(frame);
      observer.disconnect();
      dark.removeEventListener("change", paint);
    };
  }, [found, word, memory.value]);
  useEffect(() => {
    if (heaviest === undefined) return;
    const timer = setTimeout(() => void locate(heaviest), 120);
    return () => clearTimeout(timer);
  }, [heaviest]);

  if (!found) return null;
  const open = (event: MouseEvent): void => {
    const box = canvas.current!.getBoundingClientRect();
    const scale = new Scale(box.width, found.tokens, word?.look.position ?? found.tokens, zoom.current);
    const token = scale.token(event.clientX - box.left, event.clientY - box.top);
    if (token !== null) void openAt(token);
  };
  return (
    <section class="fovea" aria-label="Where the answer looked">
      <canvas ref={canvas} role="img" aria-label={told(word, found)} onClick={open} />
      <Legend word={word} />
      {words.length > 0 && turn && (
        <label class="slider">
          <span>Word</span>
          <input
            type="range"
            min={0}
            max={words.length - 1}
            value={at}
            aria-valuetext={`${word?.text.trim() ?? ""}, ${at + 1} of ${words.length}`}
            onInput={(event) => (chosen.value = { turn: turn.id, word: Number(event.currentTarget.value) })}
          />
          <output>{word?.text.trim() || "␣"}</output>
        </label>
      )}
      {word && place.value && <Place />}
    </section>
  );
}

function last() {
  return path(talk.value)
    .filter((turn) => turn.looks?.length)
    .pop();
}

function Legend({ word }: { word: Word | null }) {
  if (!word)
    return (
      <p class="legend hint">
        The whole memory, file by file. Ask something, and each word of the answer shows here where it looked.
      </p>
    );
  const { look } = word;
  return (
    <dl class="legend">
      <Layer kind="overview" label="HCA overview" share={sum(look.overview.share)} />
      <Layer kind="picks" label="CSA picks" share={picked(look)} />
      <Layer kind="window" label="Raw window" share={sum(look.window.share)} />
    </dl>
  );
}

function Layer({ kind, label, share }: { kind: string; label: string; share: number }) {
  return (
    <div>
      <dt>
        <span class={`key ${kind}`} aria-hidden="true" />
        {label}
      </dt>
      <dd>{percent(share)}</dd>
    </div>
  );
}

function Place() {
  const { path: file, line, text } = place.value!;
  return (
    <p class="place">
      <button class="link" onClick={() => show({ path: file, first: line, last: line })}>
        {file}:{line}
      </button>
      <code>{text.trim() || " "}</code>
    </p>
  );
}

/** The same in words, for who cannot see it. */
function told(word: Word | null, found: api.FileMap): string {
  if (!word) return `A memory of ${count(found.tokens)} tokens in ${count(found.files.length)} files`;
  const { look } = word;
  const at = look.picks.find(([start]) => start < found.tokens)?.[0];
  const file = at === undefined ? undefined : found.files.find((each) => each.first <= at && at < each.after);
  const where = file ? `; the heaviest pick is in ${file.path}` : "";
  return (
    `“${word.text.trim()}” looked: overview ${percent(sum(look.overview.share))}, ` +
    `picks ${percent(picked(look))}, raw window ${percent(sum(look.window.share))}${where}`
  );
}

async function locate(token: number): Promise<void> {
  const of = name.value;
  try {
    const source = await api.sourceAt(of!, token);
    if (name.value !== of || source.token_line == null) return;
    const text = source.lines[source.token_line - source.first_line] ?? "";
    place.value = { token, path: source.path, line: source.token_line, text };
  } catch {
    place.value = null; // the drawing says enough
  }
}

async function openAt(token: number): Promise<void> {
  const source = await api.sourceAt(name.value!, token);
  const line = source.token_line ?? 1;
  show({ path: source.path, first: line, last: line, sha256: source.sha256 });
}

function paintOn(canvas: HTMLCanvasElement | null, found: api.FileMap, look: Look | null, zoom: number): void {
  const context = canvas?.getContext("2d");
  if (!canvas || !context) return;
  const width = canvas.clientWidth;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(HEIGHT * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const style = getComputedStyle(canvas);
  const colour = (of: keyof Colours): string => style.getPropertyValue(`--${of}`).trim();
  const names: (keyof Colours)[] = ["ink", "soft", "band", "other", "overview", "picks", "window", "funnel"];
  const colours = Object.fromEntries(names.map((each) => [each, colour(each)])) as unknown as Colours;
  draw(context, new Scale(width, found.tokens, look?.position ?? found.tokens, zoom), {
    map: found,
    look,
    zoom,
    colours,
    font: `11px ${style.fontFamily}`,
  });
}
