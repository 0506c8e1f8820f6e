// Writes built.json: digests of what the page was built from, and of what came out. tests/page/test_built.py holds both
// against the files, so that nobody forgets `make page`.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const OUT = "../foveal/server/page";
const FROM = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"];
const MADE = "src/openapi.d.ts"; // of the server's own description; types only

const below = (folder) =>
  readdirSync(folder, { withFileTypes: true }).flatMap((each) => {
    const path = `${folder}/${each.name}`;
    return each.isDirectory() ? below(path) : [path];
  });

const digests = (paths, base) =>
  Object.fromEntries(
    paths.sort().map((path) => [path.slice(base.length), createHash("sha256").update(readFileSync(path)).digest("hex")]),
  );

const from = [...FROM, ...below("src").filter((path) => path !== MADE)];
const told = { from: digests(from, ""), made: digests(below(OUT), `${OUT}/`) };
writeFileSync("built.json", JSON.stringify(told, null, 1) + "\n");
