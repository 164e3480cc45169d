// What the scripts share: where things are, running programs, showing progress.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The project's folder. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Where set-up puts the programs that it builds. */
export const tools = join(root, "target", "tools");

/** Where development servers and tests keep what they make. */
export const work = join(root, ".verge");

/** Whatever proxy leads out of this machine, servers on it reach one another without. */
const direct = [process.env.no_proxy ?? process.env.NO_PROXY, "localhost", "127.0.0.1", "::1"].filter(Boolean).join(",");

/** The environment for all programs: the project's own programs come first, and nobody phones home. */
export const environment = {
  ...process.env,
  no_proxy: direct,
  NO_PROXY: direct,
  PATH: [join(root, "node_modules", ".bin"), join(tools, "bin"), process.env.PATH].join(":"),
  WASM_BINDGEN_BIN: join(tools, "bin", "wasm-bindgen"),
  WASM_OPT_BIN: join(root, "node_modules", ".bin", "wasm-opt"),
  ESBUILD_BIN: join(root, "node_modules", ".bin", "esbuild"),
  WRANGLER_SEND_METRICS: "false",
  CLOUDFLARE_CF_FETCH_ENABLED: "false",
  X_LOCAL_OBSERVABILITY: "false",
  X_LOCAL_EXPLORER: "false",
};

/** A sentence on what happens now. */
export function say(line) {
  console.log(`\x1b[36m==>\x1b[0m ${line}`);
}

/**
 * Does those of the steps that are needed, numbered, and shows how long each and all of them took. A step is
 * `{ title, needed: async () => boolean, run: async () => … }`.
 */
export async function perform(steps) {
  const needed = [];
  for (const step of steps) if (await step.needed()) needed.push(step);
  const began = performance.now();
  for (const [index, { title, run }] of needed.entries()) {
    const [number, start] = [`[${index + 1}/${needed.length}]`, performance.now()];
    say(`${number} ${title}`);
    await run();
    say(`${number} done after ${duration(performance.now() - start)}`);
  }
  if (needed.length > 1) say(`All ${needed.length} steps took ${duration(performance.now() - began)}`);
}

function duration(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

const running = new Set();
let asked = false;

/** Whether this script was asked to stop, by Ctrl-C or a signal. */
export function stopping() {
  return asked;
}

/** Starts a program in a process group of its own, which ends, with all it has started, when this script is to stop. */
export function start(program, args, options = {}) {
  const child = spawn(program, args, { cwd: root, env: environment, stdio: "inherit", ...options, detached: true });
  running.add(child);
  child.on("exit", () => {
    running.delete(child);
    // Whatever of the group outlives its first process.
    signalGroup(child, "SIGKILL");
  });
  return child;
}

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.on(signal, () => {
    if (running.size === 0) process.exit(130);
    if (asked) return;
    asked = true;
    for (const child of running) signalGroup(child, "SIGTERM");
    setTimeout(() => running.forEach((child) => signalGroup(child, "SIGKILL")), 5000).unref();
  });
}

function signalGroup(child, signal) {
  try {
    process.kill(-child.pid, signal);
  } catch {
    // It has ended already.
  }
}

/** Runs a program to its end and shows its output; throws where it fails. */
export function run(program, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = start(program, args, options);
    child.on("error", (error) => reject(new Error(`${program} cannot be started: ${error.message}`)));
    child.on("exit", (code, signal) => {
      if (code === 0) resolve();
      else reject(new Error(`${program} ${args.join(" ")} ended with ${signal ?? `status ${code}`}`));
    });
  });
}

/** Runs a program and answers with what it printed; `null` where it fails or is not there. */
export function output(program, args, options = {}) {
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, env: environment, stdio: ["ignore", "pipe", "pipe"], ...options });
    let text = "";
    child.stdout.on("data", (data) => (text += data));
    child.on("error", () => resolve(null));
    child.on("close", (code) => resolve(code === 0 ? text.trim() : null));
  });
}

/** A hash of the contents of files and of whole folders of the project: changes when anything in them does. */
export function fingerprint(paths) {
  const hash = createHash("sha256");
  const add = (name) => {
    const path = join(root, name);
    if (!existsSync(path)) return;
    if (statSync(path).isDirectory()) {
      for (const entry of readdirSync(path).sort()) add(join(name, entry));
    } else {
      hash.update(name).update("\0").update(readFileSync(path)).update("\0");
    }
  };
  paths.forEach(add);
  return hash.digest("hex");
}

/** Runs a script's main function; a failure is one line and status 1. */
export async function main(body) {
  try {
    await body();
  } catch (error) {
    process.exitCode = 1;
    if (asked) return;
    console.error(`\x1b[31merror:\x1b[0m ${error.message}`);
  }
}

/** Whether the module with this `import.meta.url` is what `node` was started with. */
export function isMain(url) {
  return process.argv[1] === fileURLToPath(url);
}
