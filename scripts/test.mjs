// npm test: everything that must hold, on a fresh clone too. Ends at the first step that fails.
//
//   npm test                    all steps
//   npm test -- e2e             only the end-to-end tests, of a Worker that is built if need be; likewise any other step by its name
//   npm test -- e2e -- -k fork  with arguments for the step's program

import { environment, main, start } from "./common.mjs";
import { python, setUp } from "./setup.mjs";

const WASM = ["--target", "wasm32-unknown-unknown"];

// The documentation is for those who work on the crate: links to private items are welcome.
const RUSTDOC = { RUSTDOCFLAGS: "-D warnings -A rustdoc::private_intra_doc_links" };

// Checked without libFuzzer, which takes a C++ compiler to build, and sharing what the other checks have built.
const FUZZ = ["--manifest-path", "fuzz/Cargo.toml"];
const UNLINKED = ["--no-default-features", "--target-dir", "target"];

const PYTEST = ["-m", "pytest", "-c", "tests/e2e/pytest.ini"];
// In two processes, each of which runs whole files: the tests wait for servers more than they compute.
const IN_TWO = ["-n", "2", "--dist", "loadfile"];

// What is about D1 itself, or about what starts the Worker; all else the second engine must do too.
const ON_D1 = ["7_plans", "8_growth", "dev"].map((name) => `--ignore=tests/e2e/test_${name}.py`);

const STEPS = [
  ["set-up", () => setUp({ tests: true })],
  ["format", program("cargo", ["fmt", "--check"])],
  ["format-fuzz", program("cargo", ["fmt", "--check", ...FUZZ])],
  ["format-waist", program("cargo", ["fmt", "--check", "--manifest-path", "tests/waist/Cargo.toml"])],
  ["clippy", program("cargo", ["clippy", "--locked", "--all-targets", "--", "-D", "warnings"])],
  ["clippy-wasm", program("cargo", ["clippy", "--locked", ...WASM, "--", "-D", "warnings"])],
  ["clippy-fuzz", program("cargo", ["clippy", "--locked", ...FUZZ, ...UNLINKED, "--", "-D", "warnings"])],
  ["rustdoc", program("cargo", ["doc", "--locked", "--no-deps", "--document-private-items"], RUSTDOC)],
  ["native", program("cargo", ["test", "--locked"], { VERGE_SYNAPSE_PYTHON: python, VERGE_REQUIRE_ORACLES: "1" })],
  ["build", program("node", ["scripts/build.mjs"])],
  ["build-waist", program("node", ["scripts/waist.mjs"])],
  ["e2e", program(python, PYTEST.concat(IN_TWO, "tests/e2e"))],
  ["e2e-object", program(python, PYTEST.concat("--engine", "object", ON_D1, "tests/e2e"))],
];

// Steps that run at the same time, in lanes: linking the Worker keeps one core busy while the other one checks and tests, and the
// end-to-end tests wait for servers more than they compute.
const SIDE_BY_SIDE = [
  [
    ["clippy", "clippy-wasm", "clippy-fuzz", "rustdoc", "native"],
    ["build", "build-waist"],
  ],
  [["e2e"], ["e2e-object"]],
];

// What a step needs when it is run alone, on a fresh clone too. What is there already costs nothing; and the end-to-end tests run
// what has been built, which must be what the source says.
const NEEDED_BY = {
  native: ["set-up"],
  "build-waist": ["set-up"],
  e2e: ["set-up", "build", "build-waist"],
  "e2e-object": ["set-up", "build", "build-waist"],
};

const tests = { passed: 0, failed: 0 };

await main(async () => {
  const [names, extra] = commandLine();
  const times = [];
  let failure = null;
  for (const lanes of groups(names)) {
    let before = null;
    const running = lanes.map((lane) => {
      const print = afterwards(before);
      const ended = inTurn(lane, async ([name, step]) => {
        const start = performance.now();
        print(`\n\x1b[1m[${name}]\x1b[0m\n`);
        await step(names.includes(name) ? extra : [], print)
          .catch((error) => {
            failure ??= `${name}: ${error.message}`;
            throw error;
          })
          .finally(() => times.push([name, (performance.now() - start) / 1000]));
      });
      before = Promise.all([before, ended]);
      return ended;
    });
    await Promise.all(running);
    // What was held back has been printed by then.
    await before;
    if (failure) break;
  }
  console.log();
  for (const [name, seconds] of times) console.log(`${name.padEnd(12)} ${seconds.toFixed(1).padStart(7)} s`);
  if (failure) {
    // A step that is no test counts as one that failed.
    tests.failed ||= 1;
    console.log(failure);
    process.exitCode = 1;
  }
  console.log(`${tests.passed} passed, ${tests.failed} failed`);
});

/** The steps of these names with those that they need, or all, in groups of lanes that run at the same time. */
function groups(names) {
  const wanted = names.flatMap((name) => [...(NEEDED_BY[name] ?? []), name]);
  const groups = [];
  for (const step of STEPS.filter(([name]) => names.length === 0 || wanted.includes(name))) {
    const lanes = SIDE_BY_SIDE.find((lanes) => lanes.flat().includes(step[0])) ?? [[step[0]]];
    if (groups.at(-1)?.lanes !== lanes) groups.push({ lanes, steps: lanes.map(() => []) });
    groups.at(-1).steps[lanes.findIndex((lane) => lane.includes(step[0]))].push(step);
  }
  return groups.map(({ steps }) => steps.filter((lane) => lane.length > 0));
}

/** Does `work` on one after the other, up to the first that fails. */
async function inTurn(list, work) {
  try {
    for (const each of list) await work(each);
  } catch {
    // It is noted; what else runs goes on to its end.
  }
}

/** Prints what it is called with, but only after `before`, so that the output of two lanes is not mixed. */
function afterwards(before) {
  let held = before ? [] : null;
  const print = (data) => (held ? held.push(data) : process.stdout.write(data));
  before?.then(() => {
    held.forEach((data) => process.stdout.write(data));
    held = null;
  });
  return print;
}

/** The steps that were asked for, and what comes after a second `--`. */
function commandLine() {
  const args = process.argv.slice(2);
  const end = args.indexOf("--");
  const names = end < 0 ? args : args.slice(0, end);
  for (const name of names) {
    if (!STEPS.some(([step]) => step === name)) throw new Error(`there is no step ${name}`);
  }
  return [names, end < 0 ? [] : args.slice(end + 1)];
}

/** A step that runs a program, shows what it prints, and adds up the tests that it reports. */
function program(name, args, variables = {}) {
  return (extra, print) =>
    new Promise((resolve, reject) => {
      const env = { ...environment, ...variables };
      const child = start(name, [...args, ...extra], { env, stdio: ["ignore", "pipe", "pipe"] });
      let line = "";
      child.stderr.on("data", print);
      child.stdout.on("data", (data) => {
        print(data);
        const lines = (line + data).split("\n");
        line = lines.pop();
        lines.forEach(count);
      });
      child.on("error", (error) => reject(new Error(`${name} cannot be started: ${error.message}`)));
      child.on("close", (code, signal) => {
        count(line);
        if (code === 0) resolve();
        else reject(new Error(`${name} ended with ${signal ?? `status ${code}`}`));
      });
    });
}

/** Adds the figures of cargo's `test result: ok. 3 passed; 0 failed; …` and of pytest's `2 failed, 1 passed in 3s`. */
function count(line) {
  if (!/^test result: |^=*.*\b(passed|failed|errors?)\b.* in [0-9.]+s/.test(line)) return;
  const figure = (word) => Number(line.match(new RegExp(`(\\d+) ${word}`))?.[1] ?? 0);
  tests.passed += figure("passed");
  tests.failed += figure("failed") + figure("error");
}
