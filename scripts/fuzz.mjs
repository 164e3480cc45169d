// npm run fuzz -- TARGET [seconds]: libFuzzer on one of the targets of fuzz/, for a minute by default, with the stable
// compiler and without cargo-fuzz. Needs a C++ compiler, for libFuzzer itself.
//
// What it finds to be new goes to .verge/fuzz/TARGET, and is where the next run begins; fuzz/corpus/TARGET is only read. An
// input that fails is written to .verge/fuzz too; `npm run fuzz -- TARGET FILE` runs that one alone.

import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { environment, isMain, main, output, root, run, work } from "./common.mjs";
import { rust } from "./setup.mjs";

// What cargo-fuzz passes: libFuzzer is told of every edge that is taken, and of what is compared with what.
const INSTRUMENTED = [
  "-Cpasses=sancov-module",
  "-Cllvm-args=-sanitizer-coverage-level=4",
  "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
  "-Cllvm-args=-sanitizer-coverage-pc-table",
  "-Cllvm-args=-sanitizer-coverage-trace-compares",
  "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
  "-Ccodegen-units=1",
  "--cfg=fuzzing",
].join(" ");

if (isMain(import.meta.url)) await main(fuzz);

async function fuzz() {
  const [target, what = "60"] = process.argv.slice(2);
  const targets = readdirSync(join(root, "fuzz", "fuzz_targets")).map((file) => file.replace(".rs", ""));
  if (!targets.includes(target)) throw new Error(`npm run fuzz -- TARGET [seconds]; the targets: ${targets.join(", ")}`);
  if (!/^[0-9]+$/.test(what) && !existsSync(what)) throw new Error(`${what} is no number of seconds, and no file`);

  await rust();
  const host = (await output("rustc", ["-vV"])).match(/^host: (.*)$/m)[1];
  const built = join(root, "target", "fuzz");
  // With a target named, the flags are not for build scripts and macros.
  const build = ["build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--bin", target];
  const env = { ...environment, RUSTFLAGS: `${process.env.RUSTFLAGS ?? ""} ${INSTRUMENTED}` };
  await run("cargo", [...build, "--target", host, "--target-dir", built], { env });

  const found = join(work, "fuzz", target);
  mkdirSync(found, { recursive: true });
  const inputs = existsSync(what) ? [what] : [found, join(root, "fuzz", "corpus", target), `-max_total_time=${what}`];
  await run(join(built, host, "release", target), [...inputs, `-artifact_prefix=${found}-`, "-max_len=65536", "-timeout=10"]);
}
