// From tokens to words: what a person points at.
import type { Look } from "./api";

export interface Word {
  text: string;
  look: Look;
  /** 0 to 4: how much of the memory this word's picks hold, beside the other words of the answer. */
  heat: number;
}

/** The words of an answer. Tokens that make one word are told of by their mean. */
export function wordsOf(looks: readonly Look[]): Word[] {
  const groups: Look[][] = [];
  let text = "";
  for (const look of looks) {
    const begins = /^\s/.test(look.text) || /\s$/.test(text) || !groups.length;
    if (begins) groups.push([look]);
    else groups[groups.length - 1]!.push(look);
    text = look.text;
  }
  const words = groups.map((group) => ({ text: group.map((look) => look.text).join(""), look: mean(group), heat: 0 }));
  const most = Math.max(...words.map((word) => picked(word.look)), Number.MIN_VALUE);
  for (const word of words) word.heat = Math.round(4 * Math.sqrt(picked(word.look) / most));
  return words;
}

/** The share of CSA's attention that went to entries of the memory's past. */
export const picked = (look: Look): number => sum(look.picks.map(([, share]) => share));
export const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);

function mean(group: Look[]): Look {
  if (group.length === 1) return group[0]!;
  const last = group[group.length - 1]!;
  const picks = new Map<number, number>();
  const overview = last.overview.share.map(() => 0);
  for (const look of group) {
    for (const [start, share] of look.picks) picks.set(start, (picks.get(start) ?? 0) + share / group.length);
    look.overview.share.forEach((share, bin) => (overview[bin] = (overview[bin] ?? 0) + share / group.length));
  }
  return {
    ...last,
    picks: [...picks].sort((one, other) => other[1] - one[1]),
    overview: { ...last.overview, share: overview },
  };
}
