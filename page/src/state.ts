// What the whole page knows.
import { batch, computed, signal } from "@preact/signals";
import * as api from "./api";
import type { Talk } from "./talk";
import * as talks from "./talk";

export const server = signal<api.Server | null>(null);
export const memories = signal<api.Memory[] | null>(null);
export const problem = signal<string | null>(null);
/** Whether the server asks for a key that the page has not got. */
export const locked = signal(false);
export const name = signal<string | null>(null);
export const memory = computed(() => memories.value?.find((each) => each.name === name.value) ?? null);
/** The model that the memory was made with, or whichever is served. */
export const model = computed(() => {
  const models = server.value?.models ?? [];
  return models.find((each) => each.id === memory.value?.model) ?? models[0] ?? null;
});
/** Another model that can word answers, where the memory's own was not made to chat. */
export const teller = computed(() =>
  model.value?.answers ? null : (server.value?.models.find((each) => each.answers) ?? null),
);
export const talk = signal<Talk>(talks.EMPTY);
export const map = signal<api.FileMap | null>(null);
export const changes = signal<api.Changes | null>(null);

export interface Shown {
  path: string;
  first: number;
  last: number;
  sha256?: string;
  stale?: boolean | null;
  outdated?: boolean;
}
/** The lines that are open beside the chat. */
export const shown = signal<Shown | null>(null);
/** Which word of which turn the fovea shows. */
export const chosen = signal<{ turn: number; word: number } | null>(null);
export type Panel = "source" | "bytes" | "hits";
export const panel = signal<Panel | null>(null);

const MOST_CHECKED = 200_000;
/** Tokens up to which a memory's files are compared without being asked: that reads all of them. */

export function fail(error: unknown): void {
  if (error instanceof api.Failure && error.status === 401) locked.value = true;
  else problem.value = error instanceof Error ? error.message : String(error);
}

export async function refresh(): Promise<void> {
  try {
    const [about, found] = await Promise.all([api.server(), api.memories()]);
    batch(() => {
      server.value = about;
      memories.value = found;
      locked.value = false;
      problem.value = null;
    });
  } catch (error) {
    fail(error);
  }
}

export async function open(next: string | null): Promise<void> {
  batch(() => {
    name.value = next;
    talk.value = next ? talks.load(next) : talks.EMPTY;
    map.value = changes.value = shown.value = chosen.value = null;
    panel.value = null;
  });
  document.title = next ? `${next} · Foveal` : "Foveal";
  if (!next) return;
  try {
    const found = await api.fileMap(next);
    if (name.value !== next) return;
    map.value = found;
    if (found.tokens <= MOST_CHECKED) await check();
  } catch (error) {
    if (name.value === next && !(error instanceof api.Failure && error.status === 404)) fail(error);
  }
}

export async function check(): Promise<void> {
  const asked = name.value;
  if (!asked) return;
  const found = await api.changes(asked);
  if (name.value === asked) changes.value = found;
}

export function setTalk(next: Talk): void {
  talk.value = next;
  if (name.value) talks.save(name.value, next);
}

export function show(lines: Shown): void {
  batch(() => {
    shown.value = lines;
    panel.value = "source";
  });
}

export const route = (): string | null => {
  const found = /^#\/m\/([^/]+)$/.exec(location.hash);
  try {
    return found ? decodeURIComponent(found[1]!) : null;
  } catch {
    return null;
  }
};
export const href = (to: string): string => `#/m/${encodeURIComponent(to)}`;
