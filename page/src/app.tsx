import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import { Chat } from "./chat";
import { Live } from "./live";
import { Memories } from "./memories";
import { MemoryHead } from "./memory";
import { Panels } from "./panels";
import { Reading, dropped } from "./reading";
import { locked, memories, memory, name, panel, problem, refresh, server } from "./state";

export function App() {
  const [menu, setMenu] = useState(false);
  useEffect(() => setMenu(false), [name.value]);
  return (
    <div class={`page ${panel.value ? "with-panel" : ""}`} {...dropped()}>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the conversation
      </a>
      <header class="top">
        <button class="menu quiet" aria-expanded={menu} aria-controls="memories" onClick={() => setMenu(!menu)}>
          Memories
        </button>
        <a class="mark" href="#/">
          Foveal
        </a>
        <Live />
      </header>
      <nav id="memories" class={menu ? "side open" : "side"} aria-label="Memories">
        <Memories />
      </nav>
      <main id="main" tabIndex={-1}>
        {locked.value ? <Key /> : <Main />}
      </main>
      {memory.value && panel.value && <Panels />}
      <Reading />
    </div>
  );
}

function skip(event: Event): void {
  event.preventDefault(); // the address names the memory
  document.getElementById("main")?.focus();
}

function Main() {
  if (problem.value)
    return (
      <div class="notice">
        <h1>Something went wrong</h1>
        <p class="bad" role="alert">
          {problem.value}
        </p>
        <button onClick={() => void refresh()}>Try again</button>
      </div>
    );
  if (!memories.value) return <p class="hint">Looking what is here …</p>;
  if (!name.value) return <Welcome />;
  if (!memory.value)
    return (
      <div class="notice">
        <h1>No such memory</h1>
        <p role="alert">
          There is no memory <b>{name.value}</b> here. It may have been deleted, or it belongs to somebody else.
        </p>
      </div>
    );
  return (
    <>
      <MemoryHead memory={memory.value} />
      {memory.value.problem ? (
        <p class="notice bad" role="alert">
          {memory.value.problem}
        </p>
      ) : (
        <Chat />
      )}
    </>
  );
}

function Welcome() {
  const empty = memories.value?.length === 0;
  return (
    <div class="welcome">
      <h1>{empty ? "Nothing has been read yet" : "Choose a memory"}</h1>
      <p>
        A memory is text that a model has read once and keeps. Ask it, and see for each word of the answer where in the
        text it looked.
      </p>
      {empty && server.value?.writes && <p>Drop a folder here, or read one with the button on the left.</p>}
      {empty && !server.value?.writes && <p>This key may not read anything in. Ask the operator of the server.</p>}
    </div>
  );
}

function Key() {
  const [secret, setSecret] = useState("");
  const enter = (event: Event): void => {
    event.preventDefault();
    api.setKey(secret.trim());
    void refresh();
  };
  return (
    <form class="welcome" onSubmit={enter}>
      <h1>This server asks for a key</h1>
      <label>
        Key
        <input
          type="password"
          autocomplete="off"
          required
          value={secret}
          onInput={(event) => setSecret(event.currentTarget.value)}
        />
      </label>
      <button type="submit">Go on</button>
      <p class="hint">It is kept until this tab is closed, and sent to this server only.</p>
    </form>
  );
}
