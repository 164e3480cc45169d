// Runs the contract of the narrow waist on the real runtime: `node run.mjs BUILD` prints, as JSON, what of it does not hold over
// D1 and over an object's storage.

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Miniflare, convertV4MiniflareOptions } from "miniflare";

const build = process.argv[2];
const read = (name) => ({
  type: name.endsWith(".js") ? "ESModule" : "CompiledWasm",
  path: join(build, name),
  contents: readFileSync(join(build, name), name.endsWith(".js") ? "utf8" : null),
});
const entry = `
  export { Contract } from "./index.js";
  const object = (env) => env.OBJECT.get(env.OBJECT.idFromName("waist"));
  export default { fetch: (request, env) => object(env).fetch(request) };
`;
const modules = [
  { type: "ESModule", path: join(build, "entry.js"), contents: entry },
  ...readdirSync(build).filter((name) => /\.(js|wasm)$/.test(name)).map(read),
];
const runtime = new Miniflare(
  convertV4MiniflareOptions({
    modules,
    modulesRoot: build,
    compatibilityDate: "2026-06-01",
    d1Databases: { DB: "waist" },
    durableObjects: { OBJECT: { className: "Contract", useSQLite: true } },
  }),
);
try {
  // Over D1 the first batch asks whether the database is live.
  const migration = readFileSync(new URL("../../migrations/0037_engine.sql", import.meta.url), "utf8");
  const database = await runtime.getD1Database("DB");
  await database.prepare(migration).run();
  const found = {};
  for (const engine of ["d1", "object"]) {
    const answer = await runtime.dispatchFetch(`http://waist/${engine}`);
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${engine}: ${answer.status} ${text}`);
    found[engine] = JSON.parse(text);
  }
  console.log(JSON.stringify(found));
} finally {
  await runtime.dispose();
}
