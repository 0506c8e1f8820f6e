// Reading a folder into a new memory: dropped here, chosen, or a path of the server's.
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { count, many, percent, seconds, size } from "./format";
import { href, memories, refresh, server } from "./state";

interface Text {
  path: string;
  text: string;
}
interface Found {
  texts: Text[];
  /** Files that are no text, or could not be read. */
  skipped: number;
}
const wanted = signal(false);
/** What was dropped or chosen. */
const found = signal<Found | null>(null);
const over = signal(false);

export const openReading = (): void => {
  found.value = null;
  wanted.value = true;
};

/** What makes the page take folders that are dropped on it. */
export function dropped() {
  const allowed = (event: DragEvent): boolean =>
    Boolean(server.value?.writes && event.dataTransfer?.types.includes("Files"));
  return {
    onDragOver: (event: DragEvent) => {
      if (!allowed(event)) return;
      event.preventDefault();
      over.value = true;
    },
    onDragLeave: (event: DragEvent) => {
      if (!event.relatedTarget) over.value = false;
    },
    onDrop: (event: DragEvent) => {
      over.value = false;
      if (!allowed(event)) return;
      event.preventDefault();
      const entries = [...event.dataTransfer!.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
      openReading();
      void take(entries);
    },
  };
}

/** Hidden files and what npm installed. What somebody names is read, whatever it is called. */
const beside = (name: string): boolean => name.startsWith(".") || name === "node_modules";

async function take(entries: FileSystemEntry[]): Promise<void> {
  const files: [string, FileSystemFileEntry][] = [];
  const walk = async (entry: FileSystemEntry): Promise<void> => {
    if (entry.isFile) {
      files.push([entry.fullPath.replace(/^\//, ""), entry as FileSystemFileEntry]);
      return;
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      const some = await new Promise<FileSystemEntry[]>((done) => reader.readEntries(done, () => done([])));
      if (!some.length) return;
      for (const each of some) if (!beside(each.name)) await walk(each);
    }
  };
  for (const entry of entries) await walk(entry);
  await takeFiles(
    files.map(([path, entry]) => [path, () => new Promise<File>((done, wrong) => entry.file(done, wrong))]),
  );
}

function takeChosen(files: File[]): Promise<void> {
  const named = files.map((file): [string, File] => [file.webkitRelativePath || file.name, file]);
  const kept = named.filter(([path]) => !path.split("/").slice(1).some(beside));
  return takeFiles(kept.map(([path, file]) => [path, () => Promise.resolve(file)]));
}

/** Texts only: what has a zero byte, is no UTF-8, or cannot be read, is left out and counted. */
async function takeFiles(files: [string, () => Promise<File>][]): Promise<void> {
  const texts: Text[] = [];
  let skipped = 0;
  for (const [path, open] of files) {
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await (await open()).arrayBuffer());
      if (text.includes("\0")) throw new TypeError("binary");
      if (text) texts.push({ path, text });
    } catch {
      skipped += 1;
    }
  }
  found.value = { texts, skipped };
}

export function Reading() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (wanted.value) dialog.current?.showModal();
    else dialog.current?.close();
  }, [wanted.value]);
  return (
    <>
      {over.value && (
        <div class="drop" aria-hidden="true">
          Drop it to read it
        </div>
      )}
      <dialog ref={dialog} aria-labelledby="read-title" onClose={() => (wanted.value = false)}>
        {wanted.value && <Form />}
      </dialog>
    </>
  );
}

function Form() {
  const [as, setAs] = useState("");
  const [path, setPath] = useState("");
  const [told, setTold] = useState<{ share: number; text: string } | null>(null);
  const [wrong, setWrong] = useState<string | null>(null);
  const work = useRef<AbortController | null>(null);
  useEffect(() => () => work.current?.abort(), []);
  const texts = found.value?.texts ?? [];
  const from = texts[0]?.path.split("/")[0] ?? path.split("/").filter(Boolean).pop() ?? "";
  const name = as || from.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9_]+/, "");
  const read = async (event: Event): Promise<void> => {
    event.preventDefault();
    setWrong(null);
    setTold({ share: 0, text: "Sending …" });
    work.current = new AbortController();
    try {
      const what = texts.length ? { files: texts } : { path };
      for await (const each of api.read(name, what, work.current.signal)) {
        if (each.type === "progress") setTold(progress(each));
      }
      await refresh();
      wanted.value = false;
      location.hash = href(name);
    } catch (error) {
      setTold(null);
      if (!work.current.signal.aborted) setWrong(error instanceof Error ? error.message : String(error));
      void refresh();
    }
  };
  const taken = memories.value?.some((each) => each.name === name);
  return (
    <form onSubmit={(event) => void read(event)}>
      <h2 id="read-title">Read into a memory</h2>
      <fieldset disabled={told !== null}>
        <label>
          A folder of yours
          <input
            type="file"
            multiple
            ref={(input) => input?.setAttribute("webkitdirectory", "")}
            onChange={(event) => void takeChosen([...(event.currentTarget.files ?? [])])}
          />
        </label>
        {found.value && <p>{about(found.value)}</p>}
        {server.value?.reads_paths && !texts.length && (
          <label>
            or a path of the server's, below what its operator allows
            <input value={path} placeholder="docs" onInput={(event) => setPath(event.currentTarget.value)} />
          </label>
        )}
        <label>
          Name
          <input
            required
            value={name}
            pattern="[A-Za-z0-9_][A-Za-z0-9._\-]*"
            onInput={(event) => setAs(event.currentTarget.value)}
          />
        </label>
        {taken && <p class="warn">There is a memory of this name. Choose another one.</p>}
      </fieldset>
      {told && (
        <p role="status">
          <progress value={told.share} max={1} aria-label="Reading" /> {told.text}
        </p>
      )}
      {wrong && (
        <p class="bad" role="alert">
          {wrong}
        </p>
      )}
      <div class="row">
        <button type="submit" disabled={told !== null || taken || !name || !(texts.length || path)}>
          Read
        </button>
        <button
          type="button"
          class="quiet"
          onClick={() => {
            work.current?.abort();
            wanted.value = false;
          }}
        >
          {told ? "Stop" : "Cancel"}
        </button>
      </div>
    </form>
  );
}

function about({ texts, skipped }: Found): string {
  const bytes = texts.reduce((all, each) => all + each.text.length, 0);
  const taken = texts.length ? `${many(texts.length, "file")}, ${size(bytes)}` : "There is no text in it";
  return skipped ? `${taken}; ${many(skipped, "file")} left out, being no text` : taken;
}

function progress(of: api.Reading): { share: number; text: string } {
  const share = of.tokens_total ? of.tokens_done / of.tokens_total : 0;
  const left = of.seconds_left == null ? "" : `, ${seconds(of.seconds_left)} left`;
  return { share, text: `${count(of.tokens_done)} of ${count(of.tokens_total)} tokens, ${percent(share)}${left}` };
}
