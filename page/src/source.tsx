// Lines of a file, as the memory read it.
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import type { FileSpan, Source } from "./api";
import { many, tokens } from "./format";
import { useLoaded } from "./panels";
import { changes, map, name, show, shown } from "./state";

const AROUND = 60;

export function SourceView() {
  return shown.value ? <Lines /> : <Files />;
}

function Files() {
  const [text, setText] = useState("");
  const all = (map.value?.files ?? []).filter((file) => !file.outdated);
  const found = all.filter((file) => file.path.toLowerCase().includes(text.toLowerCase()));
  const stale = new Set([...(changes.value?.changed ?? []), ...(changes.value?.removed ?? [])]);
  return (
    <>
      {all.length > 12 && (
        <label class="find">
          Find a file
          <input type="search" value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
      )}
      <ul class="files">
        {found.slice(0, 200).map((file: FileSpan) => (
          <li key={file.path}>
            <button class="link" onClick={() => show({ path: file.path, first: 1, last: 1 })}>
              {file.path}
            </button>
            <span class="number">{tokens(file.after - file.first)}</span>
            {stale.has(file.path) && <span class="tag warn">changed since</span>}
          </li>
        ))}
      </ul>
      {found.length > 200 && <p class="hint">and {many(found.length - 200, "more file")}</p>}
    </>
  );
}

function Lines() {
  const { path, first, last, sha256 } = shown.value!;
  const [from, setFrom] = useState(0);
  const [to, setTo] = useState(0);
  const marked = useRef<HTMLLIElement>(null);
  useEffect(() => {
    setFrom(Math.max(1, first - AROUND));
    setTo(last + AROUND);
  }, [path, first, last]);
  const [found, wrong] = useLoaded<Source | null>(
    () => (from ? api.source(name.value!, path, from, to, sha256) : Promise.resolve(null)),
    [path, from, to, sha256],
  );
  const here = found?.path === path ? found : null;
  useEffect(() => marked.current?.scrollIntoView({ block: "center" }), [here?.path, first, here === null]);
  const end = here ? here.first_line + here.lines.length - 1 : 0;
  return (
    <>
      <p class="crumb">
        <button class="link" onClick={() => (shown.value = null)}>
          All files
        </button>
        <span>
          <b>{path}</b>
          {first > 1 || last > 1 ? `, line${last > first ? `s ${first}–${last}` : ` ${first}`}` : ""}
        </span>
      </p>
      {wrong && (
        <p class="bad" role="alert">
          {wrong}
        </p>
      )}
      {here?.stale && (
        <p class="stale warn" role="status">
          The file changed since. These are the lines as the memory read them.
        </p>
      )}
      {here?.outdated && <p class="stale warn">An earlier version of the file, which the memory still holds.</p>}
      {!here && !wrong && <p class="hint">Looking it up …</p>}
      {here && (
        <>
          {here.first_line > 1 && (
            <button class="link" onClick={() => setFrom(Math.max(1, from - 4 * AROUND))}>
              Earlier lines
            </button>
          )}
          <ol class="lines" tabIndex={0} aria-label={`Lines of ${path}`} start={here.first_line}>
            {here.lines.map((text, index) => {
              const line = here.first_line + index;
              const hit = line >= first && line <= last;
              return (
                <li key={line} value={line} ref={line === first ? marked : undefined} class={hit ? "hit" : undefined}>
                  {hit ? <mark>{text || " "}</mark> : <span>{text || " "}</span>}
                </li>
              );
            })}
          </ol>
          {end < here.total_lines && (
            <button class="link" onClick={() => setTo(to + 4 * AROUND)}>
              Later lines ({here.total_lines - end} more)
            </button>
          )}
        </>
      )}
    </>
  );
}
