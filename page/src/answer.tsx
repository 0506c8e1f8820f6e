// An answer: its words, each with where it looked, and the lines that it came from.
import { Fragment } from "preact";
import type { ComponentChildren } from "preact";
import { useMemo } from "preact/hooks";
import type { Citation } from "./api";
import { count, percent } from "./format";
import { chosen, show } from "./state";
import type { Turn } from "./talk";
import { wordsOf } from "./words";

export function Answer({ turn, busy, children }: { turn: Turn; busy: boolean; children: ComponentChildren }) {
  return (
    <article class="said answer" aria-label="Answer" aria-busy={busy}>
      <Words turn={turn} />
      {busy && !turn.text && <p class="hint">Reading …</p>}
      {turn.problem && (
        <p class="bad" role="alert">
          {turn.problem}
        </p>
      )}
      {turn.citations && <Citations of={turn.citations} />}
      <footer>
        {turn.usage && <Found turn={turn} />}
        {children}
      </footer>
      {!busy && turn.text && (
        <div class="unseen" role="status">
          The answer is there.
        </div>
      )}
    </article>
  );
}

function Words({ turn }: { turn: Turn }) {
  const words = useMemo(() => wordsOf(turn.looks ?? []), [turn.looks]);
  const at = chosen.value?.turn === turn.id ? chosen.value.word : -1;
  const told = words.map((word) => word.text).join("");
  if (!words.length || !turn.text.startsWith(told.slice(0, turn.text.length).trimEnd())) return <p>{turn.text}</p>;
  const pick = (event: Event): void => {
    const word = (event.target as HTMLElement).closest<HTMLElement>("[data-word]")?.dataset.word;
    if (word !== undefined) chosen.value = { turn: turn.id, word: Number(word) };
  };
  return (
    <p class="words" onMouseOver={pick} onClick={pick}>
      {words.map((word, index) => {
        const space = /^\s*/.exec(word.text)![0]; // outside of the mark, so that it is as wide as the word
        return (
          <Fragment key={index}>
            {index ? space : ""}
            <span data-word={index} class={`w h${word.heat}${index === at ? " at" : ""}`}>
              {word.text.slice(space.length)}
            </span>
          </Fragment>
        );
      })}
      {turn.text.slice(told.length)}
    </p>
  );
}

function Citations({ of }: { of: Citation[] }) {
  if (!of.length) return <p class="hint">No line of the memory holds this.</p>;
  return (
    <ul class="cited" aria-label="Lines it came from">
      {of.map((each) => (
        <li key={`${each.path}:${each.first_line}`}>
          <button class="cite" onClick={() => show({ ...each, first: each.first_line, last: each.last_line })}>
            <span class="where">
              {each.path}:{each.first_line}
              {each.last_line > each.first_line ? `–${each.last_line}` : ""}
            </span>
            {each.share !== undefined && <span class="share">{percent(each.share)}</span>}
            {each.stale && <span class="tag warn">changed since</span>}
            {each.outdated && <span class="tag warn">earlier version</span>}
          </button>
        </li>
      ))}
    </ul>
  );
}

function Found({ turn }: { turn: Turn }) {
  const usage = turn.usage!;
  const known = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const run = usage.prompt_tokens - known;
  const ended = turn.finish === "length" ? ", cut at its limit" : turn.finish === "stopped" ? ", stopped" : "";
  return (
    <span>
      {count(known)} tokens known, {count(run)} read, {count(usage.completion_tokens)} written{ended}
    </span>
  );
}
