// What is beside the conversation: source, bytes, hits.
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { Hits } from "./hits";
import { count, size } from "./format";
import { name, panel, shown } from "./state";
import { SourceView } from "./source";

const TITLES = { source: "Source", bytes: "Bytes", hits: "Hits and misses" };

export function Panels() {
  const title = useRef<HTMLHeadingElement>(null);
  useEffect(() => title.current?.focus(), [panel.value, shown.value]);
  const which = panel.value!;
  const close = (): void => {
    panel.value = null;
    document.getElementById("main")?.focus();
  };
  return (
    <aside class="panel" aria-labelledby="panel-title" onKeyDown={(event) => event.key === "Escape" && close()}>
      <div class="title">
        <h2 id="panel-title" ref={title} tabIndex={-1}>
          {TITLES[which]}
        </h2>
        <button class="quiet" onClick={close}>
          Close
        </button>
      </div>
      {which === "source" ? <SourceView /> : which === "bytes" ? <BytesView of={name.value!} /> : <Hits />}
    </aside>
  );
}

/** What `load` gives, and what went wrong. */
export function useLoaded<T>(load: () => Promise<T>, on: unknown[]): [T | null, string | null] {
  const [found, setFound] = useState<T | null>(null);
  const [wrong, setWrong] = useState<string | null>(null);
  useEffect(() => {
    let mine = true;
    setWrong(null);
    load().then(
      (value) => mine && setFound(value),
      (error: unknown) => mine && setWrong(error instanceof Error ? error.message : String(error)),
    );
    return () => {
      mine = false;
    };
  }, on);
  return [found, wrong];
}

const KINDS: Record<string, [string, string]> = {
  window: ["Raw window", "the last tokens of each layer, as they are"],
  csa_entries: ["CSA entries", "one for 4 tokens"],
  index_keys: ["Index keys", "by which CSA picks its entries"],
  hca_entries: ["HCA entries", "one for 128 tokens"],
  open_windows: ["Open windows", "tokens that no entry holds yet"],
  tokens: ["Token ids", "the text itself"],
};

function BytesView({ of }: { of: string }) {
  const [found, wrong] = useLoaded(() => api.bytes(of), [of]);
  if (wrong) return <p role="alert" class="bad">{wrong}</p>;
  if (!found) return <p class="hint">Counting …</p>;
  const kinds = Object.entries(KINDS).map(([key, [label, what]]) => ({ key, label, what, bytes: found.kinds[key] ?? 0 }));
  const own = kinds.reduce((all, each) => all + each.bytes, 0);
  const rivals = [
    { label: "This memory", bytes: own },
    { label: `DeepSeek-V3.2, ${found.layers} layers as here`, bytes: found.same_layers },
    ...found.rivals.map((each) => ({ label: each.name, bytes: each.bytes })),
  ];
  const most = Math.max(...rivals.map((each) => each.bytes));
  return (
    <>
      <p>
        {count(found.tokens)} tokens take <b>{size(own)}</b>, {(own / Math.max(1, found.tokens)).toFixed(0)} bytes a token,
        stored as {found.format}.
      </p>
      <Bars of={kinds} most={Math.max(...kinds.map((each) => each.bytes))} label="Bytes by kind" />
      <h3>The same tokens in other architectures</h3>
      <Bars of={rivals} most={most} label="Bytes of other architectures" />
      <p class="hint">The others are arithmetic: bytes of a token and a layer, times both. DeepSeek-V3.2 has 61 layers.</p>
    </>
  );
}

interface Bar {
  label: string;
  bytes: number;
  what?: string;
}

function Bars({ of, most, label }: { of: Bar[]; most: number; label: string }) {
  return (
    <table class="bars">
      <caption class="unseen">{label}</caption>
      <tbody>
        {of.map((each) => (
          <tr key={each.label}>
            <th scope="row">
              {each.label}
              {each.what && <small>{each.what}</small>}
            </th>
            <td>
              <meter min={0} max={most} value={each.bytes} aria-label={`${each.label}: ${size(each.bytes)}`} />
            </td>
            <td class="number">{size(each.bytes)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
