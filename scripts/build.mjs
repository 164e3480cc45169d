// npm run build: the Worker as build/index.js and build/index_bg.wasm. Skipped when nothing it is made of has changed.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { environment, fingerprint, isMain, main, perform, root, run } from "./common.mjs";
import { setUpSteps } from "./setup.mjs";

/** What every Worker is made of: the crate, and the files that name the versions of the tools that build it. */
export const CRATE = [
  "src",
  "build.rs",
  "migrations",
  "Cargo.toml",
  "Cargo.lock",
  ".cargo",
  "rust-toolchain.toml",
  "package-lock.json",
  "scripts/setup.mjs",
];

/** Builds the release Worker. */
export async function build() {
  await perform([buildStep()]);
}

/** The step that builds it. */
export function buildStep() {
  const marker = join(root, "build", ".sources");
  const wanted = fingerprint([...CRATE, "scripts/build.mjs"]);
  return {
    title: "Building the Worker (1 to 2 minutes the first time)",
    needed: async () => !existsSync(marker) || readFileSync(marker, "utf8") !== wanted,
    run: async () => {
      // A request that the platform cuts off when its client hangs up is never dropped, and its memory is lost to the isolate.
      await run("worker-build", ["--release"], { env: { ...environment, RUN_TO_COMPLETION: "1" } });
      writeFileSync(marker, wanted);
    },
  };
}

if (isMain(import.meta.url)) await main(async () => perform([...(await setUpSteps()), buildStep()]));
