// A conversation over the memory, streamed.
import { batch } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { Answer } from "./answer";
import { Fovea } from "./fovea";
import { chosen, model, name, setTalk, talk, teller } from "./state";
import type { Turn } from "./talk";
import { EMPTY, messages, newest, path, siblings } from "./talk";
import { wordsOf } from "./words";

const MOST_TOKENS = 160;

/** The answer that is being written, if any. */
let running: AbortController | null = null;

export function Chat() {
  const [busy, setBusy] = useState(false);
  const [draft, setDraft] = useState("");
  const [words, setWords] = useState(true);
  const wording = words && teller.value !== null;
  const end = useRef<HTMLDivElement>(null);
  const box = useRef<HTMLTextAreaElement>(null);
  const turns = path(talk.value);
  const last = turns[turns.length - 1];
  useEffect(() => () => running?.abort(), [name.value]);
  useEffect(() => end.current?.scrollIntoView({ block: "nearest" }), [turns.length, last?.text, last?.citations]);

  const ask = async (text: string, parent: number | null): Promise<void> => {
    setDraft("");
    setBusy(true);
    await answer(text, parent, wording);
    setBusy(false);
    box.current?.focus();
  };
  const again = (turn: Turn): void => {
    // Going on from before this turn is a fork: what stands before it is the same beginning, which the server knows.
    setTalk({ ...talk.value, leaf: turn.parent });
    setDraft(turn.text);
    box.current?.focus();
  };
  const send = (event: Event): void => {
    event.preventDefault();
    if (draft.trim() && !busy) void ask(draft, talk.value.leaf);
  };
  return (
    <>
      <Fovea />
      <div class="talk" role="log" aria-label="Conversation" aria-live="off" tabIndex={0}>
        {!turns.length && <Empty wording={wording} />}
        {turns.map((turn) =>
          turn.role === "user" ? (
            <article key={turn.id} class="said user" aria-label="You">
              <p>{turn.text}</p>
              <footer>
                <Branches turn={turn} />
                <button class="link" disabled={busy} onClick={() => again(turn)}>
                  Ask differently
                </button>
              </footer>
            </article>
          ) : (
            <Answer key={turn.id} turn={turn} busy={busy && turn.id === talk.value.leaf}>
              <Branches turn={turn} />
              {turn.id !== talk.value.leaf && (
                <button class="link" disabled={busy} onClick={() => setTalk({ ...talk.value, leaf: turn.id })}>
                  Fork here
                </button>
              )}
            </Answer>
          ),
        )}
        <div ref={end} class="end" />
      </div>
      <form class="composer" onSubmit={send}>
        <label class="unseen" for="draft">
          Ask this memory
        </label>
        <textarea
          id="draft"
          ref={box}
          rows={2}
          value={draft}
          placeholder={goesOn(wording) ? "The beginning of a sentence that stands in it" : "A question"}
          onInput={(event) => setDraft(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
          }}
        />
        <div class="row">
          {busy ? (
            <button type="button" onClick={() => running?.abort()}>
              Stop
            </button>
          ) : (
            <button type="submit" disabled={!draft.trim()}>
              Ask
            </button>
          )}
          {turns.length > 0 && (
            <button type="button" class="quiet" disabled={busy} onClick={() => fresh()}>
              New conversation
            </button>
          )}
          {teller.value && (
            <label class="choice">
              <input type="checkbox" checked={words} onChange={(event) => setWords(event.currentTarget.checked)} />
              Answer in the words of {teller.value.id}
            </label>
          )}
        </div>
      </form>
    </>
  );
}

const goesOn = (wording: boolean): boolean => !wording && !model.value?.answers;

function Empty({ wording }: { wording: boolean }) {
  if (!goesOn(wording)) return <p class="hint">Ask something. The answer names the lines that it came from.</p>;
  return (
    <p class="hint">
      The model of this memory, {model.value?.id}, was not trained to chat: it goes on as the text does. Write the
      beginning of a sentence that stands in a file, and it continues, with the lines that this came from.
    </p>
  );
}

function fresh(): void {
  batch(() => {
    chosen.value = null;
    setTalk(EMPTY);
  });
}

function Branches({ turn }: { turn: Turn }) {
  const all = siblings(talk.value, turn);
  if (all.length < 2) return null;
  const at = all.findIndex((other) => other.id === turn.id);
  const go = (to: number): void => setTalk({ ...talk.value, leaf: newest(talk.value, all[to]!.id) });
  return (
    <span class="branches">
      <button class="link" aria-label="Previous fork" disabled={!at} onClick={() => go(at - 1)}>
        ‹
      </button>
      fork {at + 1} of {all.length}
      <button class="link" aria-label="Next fork" disabled={at === all.length - 1} onClick={() => go(at + 1)}>
        ›
      </button>
    </span>
  );
}

/** Ask behind turn `parent`, and take the answer in as it comes. */
async function answer(text: string, parent: number | null, wording: boolean): Promise<void> {
  const of = name.value!;
  const id = Math.max(0, ...talk.value.turns.map((turn) => turn.id)) + 1;
  const reply: Turn = { id: id + 1, parent: id, role: "assistant", text: "", looks: [] };
  setTalk({ turns: [...talk.value.turns, { id, parent, role: "user", text }, reply], leaf: reply.id });
  const sent = messages(path({ ...talk.value, leaf: id }));
  const mine = new AbortController();
  running = mine;
  let changed = false;
  const put = (): void => {
    changed = false;
    if (name.value !== of) return;
    batch(() => {
      talk.value = {
        ...talk.value,
        turns: talk.value.turns.map((turn) => (turn.id === reply.id ? { ...reply } : turn)),
      };
      if (reply.looks?.length) chosen.value = { turn: reply.id, word: wordsOf(reply.looks).length - 1 };
    });
  };
  try {
    const pieces =
      wording && teller.value
        ? api.ask(of, text, teller.value.id, mine.signal)
        : api.chat(model.value?.id ?? "", of, sent, MOST_TOKENS, mine.signal);
    for await (const piece of pieces) {
      if (piece.content) reply.text += piece.content;
      if (piece.attention) reply.looks = [...reply.looks!, ...piece.attention];
      if (piece.citations) reply.citations = piece.citations;
      if (piece.finish) reply.finish = piece.finish;
      if (piece.usage) reply.usage = piece.usage;
      if (!changed) requestAnimationFrame(put); // one drawing a frame, however fast they come
      changed = true;
    }
  } catch (error) {
    if (mine.signal.aborted) reply.finish = "stopped";
    else reply.problem = error instanceof Error ? error.message : String(error);
  }
  put();
  if (name.value === of) setTalk(talk.value);
}
