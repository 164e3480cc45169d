// npm run build: the Worker as build/index.js and build/index_bg.wasm. Skipped when nothing it is made of has changed.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fingerprint, isMain, main, root, run, say } from "./common.mjs";
import { setUp } from "./setup.mjs";

const SOURCES = ["src", "migrations", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "scripts/build.mjs"];

/** Builds the release Worker. */
export async function build() {
  const marker = join(root, "build", ".sources");
  const wanted = fingerprint(SOURCES);
  if (existsSync(marker) && readFileSync(marker, "utf8") === wanted) return;
  say("Building the Worker (1 to 2 minutes the first time)");
  await run("worker-build", ["--release"]);
  writeFileSync(marker, wanted);
}

if (isMain(import.meta.url)) {
  await main(async () => {
    await setUp();
    await build();
  });
}
