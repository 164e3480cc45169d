// npm run setup: everything that a fresh clone needs to build and run the Worker, and with --tests to test it.
// What is there in the right version is left alone, so that it costs nothing to call it first every time.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { environment, fingerprint, isMain, main, output, root, run, say, tools, work } from "./common.mjs";

const WORKER_BUILD = "0.8.7";
const WASM_TARGET = "wasm32-unknown-unknown";

/** The Python of the tests. */
export const python = join(work, "venv", "bin", "python");

/** Sets up what building and running need, and with `tests` what the end-to-end tests need too. */
export async function setUp({ tests = false } = {}) {
  await npmPackages();
  await rust();
  await cargoTool("worker-build", WORKER_BUILD, ["--locked"]);
  // It must be the very version that the crate uses. Its published lock file does not resolve.
  await cargoTool("wasm-bindgen-cli", lockedVersion("wasm-bindgen"), []);
  if (tests) await pythonPackages();
}

async function npmPackages() {
  const marker = join(root, "node_modules", ".verge");
  const wanted = fingerprint(["package-lock.json"]);
  if (read(marker) === wanted) return;
  say("Installing npm packages (wrangler, esbuild, binaryen, node; about 500 MB)");
  await run("npm", ["ci", "--no-audit", "--no-fund"], { env: process.env });
  writeFileSync(marker, wanted);
}

/** The toolchain that rust-toolchain.toml names. */
export async function rust() {
  // rust-toolchain.toml names the toolchain, its components and the wasm32 target; rustup installs what is missing.
  if ((await output("cargo", ["--version"])) === null) {
    say("Installing the Rust toolchain that rust-toolchain.toml names");
    await run("rustup", ["toolchain", "install"]);
  }
  // A toolchain that was there before is not given the target by rustup on its own.
  const targets = await output("rustup", ["target", "list", "--installed"]);
  if (targets !== null && !targets.includes(WASM_TARGET)) await run("rustup", ["target", "add", WASM_TARGET]);
}

async function cargoTool(crate, version, flags) {
  const program = { "wasm-bindgen-cli": "wasm-bindgen" }[crate] ?? crate;
  const installed = await output(join(tools, "bin", program), ["--version"]);
  if (installed?.split(" ").at(-1) === version) return;
  say(`Building ${crate} ${version} (once, 2 to 4 minutes)`);
  const places = ["--root", tools, "--target-dir", join(root, "target", "tools-build")];
  await run("cargo", ["install", crate, "--version", version, "--force", ...places, ...flags]);
}

async function pythonPackages() {
  const requirements = "tests/e2e/requirements.txt";
  const marker = join(work, "venv", ".verge");
  const wanted = fingerprint([requirements]);
  if (existsSync(python) && read(marker) === wanted) return;
  say("Installing Synapse, matrix-nio and pytest for the end-to-end tests (about 300 MB)");
  mkdirSync(work, { recursive: true });
  await run("python3", ["-m", "venv", join(work, "venv")]);
  await run(python, ["-m", "pip", "install", "--quiet", "-r", join(root, requirements)], { env: environment });
  writeFileSync(marker, wanted);
}

function lockedVersion(crate) {
  const found = read(join(root, "Cargo.lock")).match(new RegExp(`name = "${crate}"\nversion = "([^"]+)"`));
  if (!found) throw new Error(`Cargo.lock names no ${crate}`);
  return found[1];
}

function read(path) {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}

if (isMain(import.meta.url)) await main(() => setUp({ tests: process.argv.includes("--tests") }));
