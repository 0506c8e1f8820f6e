// A conversation as a tree of turns: going on from any of them is a fork.
import type { Citation, Look, Message, Usage } from "./api";

export interface Turn {
  id: number;
  parent: number | null;
  role: "user" | "assistant";
  text: string;
  citations?: Citation[];
  usage?: Usage;
  finish?: string;
  problem?: string;
  /** Where each token looked. Too large to be kept beyond this visit. */
  looks?: Look[];
}

export interface Talk {
  turns: Turn[];
  /** The turn at the end of what is shown. */
  leaf: number | null;
}

export const EMPTY: Talk = { turns: [], leaf: null };

export function path(talk: Talk): Turn[] {
  const byId = new Map(talk.turns.map((turn) => [turn.id, turn]));
  const found: Turn[] = [];
  for (let id = talk.leaf; id !== null; ) {
    const turn = byId.get(id);
    if (!turn) break;
    found.unshift(turn);
    id = turn.parent;
  }
  return found;
}

export const siblings = (talk: Talk, turn: Turn): Turn[] =>
  talk.turns.filter((other) => other.parent === turn.parent && other.role === turn.role);

/** The latest end of what goes on from a turn. */
export function newest(talk: Talk, id: number): number {
  const next = talk.turns.filter((turn) => turn.parent === id).pop();
  return next ? newest(talk, next.id) : id;
}

export const messages = (turns: Turn[]): Message[] =>
  turns.filter((turn) => turn.text).map(({ role, text }) => ({ role, content: text }));

const key = (name: string): string => `foveal.talk.${new URL(document.baseURI).pathname}.${name}`;

export function load(name: string): Talk {
  try {
    const found = JSON.parse(localStorage.getItem(key(name)) ?? "null") as Talk | null;
    return found && Array.isArray(found.turns) ? found : EMPTY;
  } catch {
    return EMPTY;
  }
}

export function save(name: string, talk: Talk): void {
  const turns = talk.turns.map(({ looks: _, ...rest }) => rest);
  try {
    if (turns.length) localStorage.setItem(key(name), JSON.stringify({ ...talk, turns }));
    else localStorage.removeItem(key(name));
  } catch {
    // no room, or none allowed: it lasts as long as the page
  }
}
