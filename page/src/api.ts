// The server's API, with the types that it tells of itself.
import type { components } from "./openapi";

type Schemas = components["schemas"];
export type Memory = Schemas["MemoryAnswer"];
export type FileMap = Schemas["MapAnswer"];
export type FileSpan = Schemas["FileAnswer"];
export type Source = Schemas["SourceAnswer"];
export type Changes = Schemas["ChangesAnswer"];
export type Bytes = Schemas["BytesAnswer"];
export type Server = Schemas["ServerAnswer"];
/** Lines that an answer came from; those of a question that was answered in words tell no share. */
export type Citation = Pick<Schemas["CitationAnswer"], "path" | "first_line" | "last_line"> &
  Partial<Schemas["CitationAnswer"]>;
export type Look = Schemas["LookAnswer"];
export type Why = Schemas["WhyAnswer"];
export type Reading = Schemas["ReadingAnswer"];

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
  cache_miss?: { reason: string; position: number; message?: { index: number; role: string } } | null;
}

export interface Message {
  role: "user" | "assistant";
  content: string;
}

/** An answer of the server that is an error, in its own words. Status 0: it could not be reached. */
export class Failure extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

const KEY = "foveal.key";

export function setKey(key: string): void {
  sessionStorage.setItem(KEY, key);
}

function headers(json: boolean): Record<string, string> {
  const key = sessionStorage.getItem(KEY);
  return { ...(json ? { "content-type": "application/json" } : {}), ...(key ? { "x-api-key": key } : {}) };
}

/** Paths are relative to the page, which may lie below a prefix. */
async function send(path: string, body?: unknown, method?: string, signal?: AbortSignal): Promise<Response> {
  const json = body !== undefined;
  let answer: Response;
  try {
    answer = await fetch(new URL(path, document.baseURI), {
      method: method ?? (json ? "POST" : "GET"),
      headers: headers(json),
      ...(json ? { body: JSON.stringify(body) } : {}),
      ...(signal ? { signal } : {}),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure("The server cannot be reached. Is `foveal serve` still running?", 0);
  }
  if (answer.ok) return answer;
  let message = `${answer.status} ${answer.statusText}`;
  try {
    message = ((await answer.json()) as { error: { message: string } }).error.message;
  } catch {
    // no JSON: the status says what is known
  }
  throw new Failure(message, answer.status);
}

async function get<T>(path: string): Promise<T> {
  return (await send(path)).json() as Promise<T>;
}

const of = (name: string, what: string): string => `v1/memories/${encodeURIComponent(name)}/${what}`;

export const server = (): Promise<Server> => get("v1/server");
export const memories = async (): Promise<Memory[]> => (await get<{ data: Memory[] }>("v1/memories")).data;
export const fileMap = (name: string): Promise<FileMap> => get(of(name, "map"));
export const bytes = (name: string): Promise<Bytes> => get(of(name, "bytes"));
export const changes = (name: string): Promise<Changes> => get(of(name, "changes"));
export const metrics = async (): Promise<string> => (await send("metrics")).text();
export const whys = async (model?: string): Promise<Why[]> =>
  (await get<{ data: Why[] }>(`v1/why?limit=20${model ? `&model=${encodeURIComponent(model)}` : ""}`)).data;
export const sourceAt = (name: string, token: number): Promise<Source> => get(of(name, `source?token=${token}`));
export const remove = (name: string): Promise<Response> =>
  send(`v1/memories/${encodeURIComponent(name)}`, undefined, "DELETE");
export const fork = async (name: string, as: string, at: number | null): Promise<Memory> =>
  (await send(of(name, "fork"), at === null ? { name: as } : { name: as, at })).json() as Promise<Memory>;

export function source(name: string, path: string, first: number, last: number, sha256?: string): Promise<Source> {
  const query = new URLSearchParams({ path, first: `${first}`, last: `${last}`, ...(sha256 ? { sha256 } : {}) });
  return get(of(name, `source?${query}`));
}

/** The data of server-sent events, until the stream ends or says that it is done. */
async function* events(answer: Response): AsyncGenerator<any> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop()!;
      for (const part of parts) {
        const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    void reader.cancel().catch(() => undefined);
  }
}

export interface Piece {
  content?: string;
  attention?: Look[];
  citations?: Citation[];
  finish?: string;
  usage?: Usage;
}

/** A chat over a memory, in the pieces in which it comes. */
export async function* chat(
  model: string,
  memory: string,
  messages: Message[],
  most: number,
  signal: AbortSignal,
): AsyncGenerator<Piece> {
  const body = {
    model,
    memory,
    messages,
    max_tokens: most,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
    citations: true,
    attention: true,
  };
  for await (const event of events(await send("v1/chat/completions", body, "POST", signal))) {
    if (event.error) throw new Failure(event.error.message, 500);
    const choice = event.choices[0];
    yield { ...choice?.delta, finish: choice?.finish_reason ?? undefined, usage: event.usage ?? undefined };
  }
}

/** A question, answered in words by the model `teller` from the places that fit best. */
export async function* ask(memory: string, question: string, teller: string, signal: AbortSignal): AsyncGenerator<Piece> {
  const path = of(memory, "ask");
  for await (const event of events(await send(path, { question, with: teller, stream: true }, "POST", signal))) {
    if (event.type === "error") throw new Failure(event.error.message, 500);
    if (event.type === "delta") yield { content: event.text };
    if (event.type === "done") yield { citations: event.citations, finish: event.finish_reason };
  }
}

export type ReadEvent =
  | ({ type: "progress" } & Reading)
  | { type: "started"; name: string }
  | { type: "done"; memory: Memory }
  | { type: "error"; error: { message: string } };

export type What = { files: { path: string; text: string }[] } | { path: string };

/** Read texts, or a path of the server's, into a new memory. */
export async function* read(name: string, what: What, signal: AbortSignal): AsyncGenerator<ReadEvent> {
  for await (const event of events(await send("v1/memories", { name, ...what, stream: true }, "POST", signal))) {
    if (event.type === "error") throw new Failure(event.error.message, 500);
    yield event;
  }
}

/** Bring a memory up to date with its files. */
export async function* sync(name: string, signal: AbortSignal): AsyncGenerator<ReadEvent> {
  for await (const event of events(await send(of(name, "sync"), { stream: true }, "POST", signal))) {
    if (event.type === "error") throw new Failure(event.error.message, 500);
    yield event;
  }
}
