import { render } from "preact";
import { App } from "./app";
import { open, refresh, route } from "./state";
import "./style.css";

addEventListener("hashchange", () => void open(route()));
void refresh().then(() => open(route()));
render(<App />, document.getElementById("app")!);
