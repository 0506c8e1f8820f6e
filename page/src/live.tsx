// What the server does just now, from its own metrics.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import * as api from "./api";
import { count } from "./format";
import { locked, memories } from "./state";
import { sum } from "./words";

const EVERY = 2000;
const KEPT = 45;

interface Sample {
  at: number;
  read: number;
  written: number;
  running: number;
}
const samples = signal<Sample[]>([]);
const away = signal(false);
let looked = 0;

const reading = (): api.Reading[] => memories.value?.flatMap((each) => each.reading ?? []) ?? [];

/** The sum of a metric over its labels. */
export function total(text: string, metric: string): number {
  let all = 0;
  for (const line of text.split("\n"))
    if (line.startsWith(metric) && /^[{ ]/.test(line.slice(metric.length))) all += Number(line.slice(line.lastIndexOf(" ")));
  return all;
}

async function look(): Promise<void> {
  if (document.hidden || locked.value) return;
  try {
    const text = await api.metrics();
    const sample = {
      at: performance.now(),
      read: total(text, "foveal_prompt_tokens_read_total"),
      written: total(text, "foveal_output_tokens_total"),
      running: total(text, "foveal_requests_running"),
    };
    samples.value = [...samples.value, sample].slice(-KEPT);
    away.value = false;
    looked += 1;
    if (looked % 8 === 0 || reading().length) memories.value = await api.memories();
  } catch {
    away.value = true;
  }
}

export function Live() {
  useEffect(() => {
    void look();
    const timer = setInterval(() => void look(), EVERY);
    return () => clearInterval(timer);
  }, []);
  if (away.value)
    return (
      <p class="live bad" role="status">
        The server does not answer
      </p>
    );
  const speeds = rates(samples.value);
  const now = speeds[speeds.length - 1];
  if (!now) return <p class="live" />;
  return (
    <p class="live" aria-label="The server just now">
      <Line values={speeds.map((each) => each.written + each.read)} />
      <span>
        <b>{count(now.read + sum(reading().map((each) => each.tokens_per_second ?? 0)))}</b> read, <b>{count(now.written)}</b> written a second
      </span>
      <span class="wide-only">{now.running} in work</span>
    </p>
  );
}

function rates(of: Sample[]): { read: number; written: number; running: number }[] {
  return of.slice(1).map((sample, index) => {
    const before = of[index]!;
    const seconds = (sample.at - before.at) / 1000;
    return {
      read: Math.max(0, sample.read - before.read) / seconds,
      written: Math.max(0, sample.written - before.written) / seconds,
      running: sample.running,
    };
  });
}

function Line({ values }: { values: number[] }) {
  const most = Math.max(...values, 1);
  const points = values.map((value, index) => `${(index * 88) / (KEPT - 2)},${17 - (16 * value) / most}`).join(" ");
  return (
    <svg class="line" viewBox="0 0 88 18" aria-hidden="true">
      <polyline points={points} />
    </svg>
  );
}
