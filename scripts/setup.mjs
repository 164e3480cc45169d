// npm run setup: everything that a fresh clone needs to build and run the Worker, and with --tests to test it.
// What is there in the right version is left alone, so that it costs nothing to call it first every time.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { environment, fingerprint, isMain, main, output, perform, root, run, tools, work } from "./common.mjs";
import nodeVersion from "./node-version.cjs";

const WORKER_BUILD = "0.8.7";
const WASM_TARGET = "wasm32-unknown-unknown";
const COMPONENTS = ["clippy", "rustfmt"];

const OLDEST_PYTHON = [3, 11];

/** The tools run for seconds and are built once: what optimising them takes is never won back. */
const UNOPTIMISED = {
  CARGO_PROFILE_RELEASE_OPT_LEVEL: "0",
  CARGO_PROFILE_RELEASE_LTO: "off",
  CARGO_PROFILE_RELEASE_CODEGEN_UNITS: "256",
  CARGO_PROFILE_RELEASE_DEBUG: "false",
};

/** The Python of the tests. */
export const python = join(work, "venv", "bin", "python");

/** Sets up what building and running need, and with `tests` what the end-to-end tests need too. */
export async function setUp(options) {
  await perform(await setUpSteps(options));
}

/**
 * The steps of setting up.
 *
 * Throws, before anything is built, where a program is missing that must be there.
 */
export async function setUpSteps({ tests = false } = {}) {
  await requirements(tests);
  return [
    npmPackages(),
    toolchain(),
    cargoTool("worker-build", WORKER_BUILD, ["--locked"]),
    // It must be the very version that the crate uses. Its published lock file does not resolve.
    cargoTool("wasm-bindgen-cli", lockedVersion("wasm-bindgen"), []),
    ...(tests ? [pythonPackages()] : []),
  ];
}

/** Says in one sentence what this machine lacks. */
async function requirements(tests) {
  const lacking = [nodeVersion.lacking(process.versions.node)].filter((lacks) => lacks !== null);
  const has = async (program, ...args) => (await output(program, args)) !== null;
  if (!(await has("npm", "--version"))) lacking.push("npm");
  // Where Rust was installed without rustup, cargo does not know the toolchain of rust-toolchain.toml.
  if (!(await has("rustup", "--version"))) lacking.push("rustup, which brings Rust");
  if (!(await has("cc", "--version"))) lacking.push("a C compiler (cc), which links what Rust compiles");
  if (!(await has("openssl", "version"))) lacking.push("openssl, which makes the certificates");
  const [major, minor] = OLDEST_PYTHON;
  const check = `import sys, venv, ensurepip; sys.exit(sys.version_info < (${major}, ${minor}))`;
  if (tests && !(await has("python3", "-c", check))) {
    lacking.push(`Python ${major}.${minor} or newer with venv (python3), for the end-to-end tests`);
  }
  if (lacking.length > 0) throw new Error(`this machine lacks ${lacking.join("; ")}`);
}

function npmPackages() {
  const marker = join(root, "node_modules", ".verge");
  const wanted = fingerprint(["package-lock.json"]);
  return {
    title: "Installing npm packages: wrangler, esbuild, binaryen, node, Matrix clients, a browser (about 650 MB)",
    needed: async () => read(marker) !== wanted,
    run: async () => {
      // All are for development, and would be left out where the environment says that this is production.
      await run("npm", ["ci", "--include=dev", "--no-audit", "--no-fund", "--loglevel", "error"], { env: process.env });
      writeFileSync(marker, wanted);
    },
  };
}

/** The toolchain that rust-toolchain.toml names, with its components and the wasm32 target. */
function toolchain() {
  return {
    title: "Installing the Rust toolchain that rust-toolchain.toml names",
    needed: async () => {
      if ((await output("cargo", ["--version"])) === null) return true;
      const [targets, components] = await Promise.all([installed("target"), installed("component")]);
      return !targets.includes(WASM_TARGET) || COMPONENTS.some((component) => !components.includes(component));
    },
    run: async () => {
      await run("rustup", ["toolchain", "install"]);
      // A toolchain that was there before is not given the target by rustup on its own, and not always the components.
      await run("rustup", ["target", "add", WASM_TARGET]);
      await run("rustup", ["component", "add", ...COMPONENTS]);
    },
  };
}

async function installed(kind) {
  return (await output("rustup", [kind, "list", "--installed"])) ?? "";
}

/** Installs the toolchain where it is missing. */
export async function rust() {
  await perform([toolchain()]);
}

function cargoTool(crate, version, flags) {
  const program = { "wasm-bindgen-cli": "wasm-bindgen" }[crate] ?? crate;
  return {
    title: `Building ${crate} ${version} (once, 1 to 2 minutes)`,
    needed: async () => {
      const installed = await output(join(tools, "bin", program), ["--version"]);
      return installed?.split(" ").at(-1) !== version;
    },
    run: async () => {
      const places = ["--root", tools, "--target-dir", join(root, "target", "tools-build")];
      const env = { ...environment, ...UNOPTIMISED };
      await run("cargo", ["install", crate, "--version", version, "--force", ...places, ...flags], { env });
    },
  };
}

function pythonPackages() {
  const requirements = "tests/e2e/requirements.txt";
  const marker = join(work, "venv", ".verge");
  const wanted = fingerprint([requirements]);
  return {
    title: "Installing Synapse, matrix-nio and pytest for the end-to-end tests (about 300 MB)",
    needed: async () => !existsSync(python) || read(marker) !== wanted,
    run: async () => {
      mkdirSync(work, { recursive: true });
      await run("python3", ["-m", "venv", join(work, "venv")]);
      await run(python, ["-m", "pip", "install", "--quiet", "-r", join(root, requirements)], { env: environment });
      writeFileSync(marker, wanted);
    },
  };
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
