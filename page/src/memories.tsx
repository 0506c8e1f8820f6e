// The memories, each below the one that it was forked from.
import type { Memory } from "./api";
import { many, percent, seconds, tokens } from "./format";
import { openReading } from "./reading";
import { changes, href, memories, name, server } from "./state";

export function Memories() {
  const all = memories.value ?? [];
  const known = new Set(all.map((each) => each.name));
  const roots = all.filter((each) => !each.parent || !known.has(each.parent));
  return (
    <>
      <h2>Memories</h2>
      {memories.value && !all.length && <p class="hint">There are none yet.</p>}
      <Tree of={roots} all={all} />
      {server.value?.writes && (
        <button class="wide" onClick={openReading}>
          Read a folder …
        </button>
      )}
    </>
  );
}

function Tree({ of, all }: { of: Memory[]; all: Memory[] }) {
  if (!of.length) return null;
  return (
    <ul class="tree">
      {of.map((each) => (
        <li key={each.name}>
          <Entry memory={each} />
          <Tree of={all.filter((other) => other.parent === each.name && other.name !== each.name)} all={all} />
        </li>
      ))}
    </ul>
  );
}

function Entry({ memory }: { memory: Memory }) {
  const current = memory.name === name.value;
  return (
    <a href={href(memory.name)} aria-current={current ? "page" : undefined} class="entry">
      <span class="name">{memory.name}</span>
      <span class="about">{about(memory)}</span>
      <State memory={memory} current={current} />
    </a>
  );
}

function about(memory: Memory): string {
  if (memory.problem) return "damaged";
  const of = memory.parent ? `fork at ${tokens(memory.forked_at ?? 0)}` : many(memory.files ?? 0, "file");
  return `${tokens(memory.tokens)} tokens · ${of}`;
}

function State({ memory, current }: { memory: Memory; current: boolean }) {
  const reading = memory.reading;
  if (reading) {
    const done = reading.tokens_total ? reading.tokens_done / reading.tokens_total : 0;
    const left = reading.seconds_left == null ? "" : `, ${seconds(reading.seconds_left)} left`;
    return (
      <span class="state">
        <progress value={done} max={1} aria-label={`Reading ${memory.name}`} />
        reading, {percent(done)}
        {left}
      </span>
    );
  }
  if (memory.problem) return <span class="state bad">{memory.problem}</span>;
  if (!memory.complete && !memory.parent) return <span class="state warn">not read to its end</span>;
  const stale = current && changes.value?.known ? differing() : 0;
  return stale ? <span class="state warn">{many(stale, "file")} changed since</span> : null;
}

function differing(): number {
  const found = changes.value;
  return found ? found.changed.length + found.new.length + found.removed.length : 0;
}
