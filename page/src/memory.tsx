// What is over the conversation: the memory's facts, and what can be done with it.
import { useRef, useState } from "preact/hooks";
import * as api from "./api";
import type { Memory } from "./api";
import { count, many, seconds, size } from "./format";
import { changes, check, href, map, memories, open, panel, refresh, server } from "./state";
import type { Panel } from "./state";

export function MemoryHead({ memory }: { memory: Memory }) {
  return (
    <div class="head">
      <div class="title">
        <h1>{memory.name}</h1>
        <div class="tools">
          <Toggle to="source">Source</Toggle>
          <Toggle to="bytes">Bytes</Toggle>
          <Toggle to="hits">Hits</Toggle>
          {server.value?.writes && <Fork memory={memory} />}
        </div>
      </div>
      <p class="facts">
        {count(memory.tokens)} tokens of {many(memory.files ?? 0, "file")} ({size(memory.text_bytes ?? 0)}){" "}
        {memory.source?.length ? <>from {memory.source.join(", ")}</> : "that were sent"}
        {memory.parent && (
          <>
            , a fork of <a href={href(memory.parent)}>{memory.parent}</a> at token {count(memory.forked_at ?? 0)}
          </>
        )}
        {memory.imported && ", imported"}
      </p>
      <Stale memory={memory} />
    </div>
  );
}

function Toggle({ to, children }: { to: Panel; children: string }) {
  const on = panel.value === to;
  return (
    <button class="quiet" aria-pressed={on} onClick={() => (panel.value = on ? null : to)}>
      {children}
    </button>
  );
}

function Stale({ memory }: { memory: Memory }) {
  const [told, setTold] = useState<string | null>(null);
  const found = changes.value;
  const run = async (): Promise<void> => {
    setTold("Reading what changed …");
    try {
      for await (const event of api.sync(memory.name, new AbortController().signal)) {
        if (event.type === "progress" && event.seconds_left != null)
          setTold(`Reading what changed, ${seconds(event.seconds_left)} left`);
      }
      await refresh();
      await open(memory.name);
      setTold(null);
    } catch (error) {
      setTold(error instanceof Error ? error.message : String(error));
    }
  };
  if (told)
    return (
      <p class="stale" role="status">
        {told}
      </p>
    );
  if (!found)
    return map.value && map.value.tokens > 200_000 ? (
      <p class="stale">
        <button class="link" onClick={() => void check()}>
          Compare with the files
        </button>
      </p>
    ) : null;
  const all = [
    ...found.changed.map((path) => `${path} changed`),
    ...found.new.map((path) => `${path} is new`),
    ...found.removed.map((path) => `${path} is gone`),
  ];
  if (!all.length) return null;
  return (
    <p class="stale warn" role="status">
      <span>
        {all.slice(0, 3).join(", ")}
        {all.length > 3 ? ` and ${all.length - 3} more` : ""} since it was read.
      </span>
      {server.value?.writes && (
        <button class="link" onClick={() => void run()}>
          Bring it up to date
        </button>
      )}
    </p>
  );
}

function Fork({ memory }: { memory: Memory }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [as, setAs] = useState("");
  const [at, setAt] = useState("");
  const [wrong, setWrong] = useState<string | null>(null);
  const begin = (): void => {
    const taken = new Set(memories.value?.map((each) => each.name));
    let number = 2;
    while (taken.has(`${memory.name}-${number}`)) number += 1;
    setAs(`${memory.name}-${number}`);
    setAt("");
    setWrong(null);
    dialog.current?.showModal();
  };
  const make = async (event: Event): Promise<void> => {
    event.preventDefault();
    try {
      await api.fork(memory.name, as, at ? Number(at) : null);
      dialog.current?.close();
      await refresh();
      location.hash = href(as);
    } catch (error) {
      setWrong(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <>
      <button class="quiet" onClick={begin}>
        Fork …
      </button>
      <dialog ref={dialog} aria-labelledby="fork-title">
        <form onSubmit={(event) => void make(event)}>
          <h2 id="fork-title">Fork {memory.name}</h2>
          <p>A second memory of the same tokens. No page is copied.</p>
          <label>
            Name
            <input required pattern="[A-Za-z0-9_][A-Za-z0-9._\-]*" value={as} onInput={(e) => setAs(e.currentTarget.value)} />
          </label>
          <label>
            Up to token (empty: all {count(memory.tokens)})
            <input
              type="number"
              min={1}
              max={memory.tokens}
              value={at}
              onInput={(event) => setAt(event.currentTarget.value)}
            />
          </label>
          {wrong && (
            <p class="bad" role="alert">
              {wrong}
            </p>
          )}
          <div class="row">
            <button type="submit">Fork</button>
            <button type="button" class="quiet" onClick={() => dialog.current?.close()}>
              Cancel
            </button>
          </div>
        </form>
      </dialog>
    </>
  );
}
