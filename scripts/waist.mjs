// Builds the Worker of tests/waist, unoptimised. Skipped when nothing it is made of has changed.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CRATE } from "./build.mjs";
import { environment, fingerprint, main, root, run } from "./common.mjs";

const SOURCES = [
  ...CRATE,
  "scripts/waist.mjs",
  "tests/common/contract.rs",
  "tests/waist/Cargo.toml",
  "tests/waist/Cargo.lock",
  "tests/waist/src",
];

await main(async () => {
  const marker = join(root, "tests", "waist", "build", ".sources");
  const wanted = fingerprint(SOURCES);
  if (existsSync(marker) && readFileSync(marker, "utf8") === wanted) return;
  // What the server's own builds have made of the dependencies is of no use: they are optimised.
  const env = { ...environment, CARGO_TARGET_DIR: join(root, "target", "waist") };
  await run("worker-build", ["--dev"], { cwd: join(root, "tests", "waist"), env });
  writeFileSync(marker, wanted);
});
