// npm run bench:engine: the engine beside ruma on the same inputs, and one table of what each took.
//
//   npm run bench:engine              everything
//   npm run bench:engine -- 'auth'    only what this regular expression matches
//
// Every criterion group with a function `verge` gives a row for each of its other functions. Medians, of this run only.

import { readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { main, output, root, run, say } from "./common.mjs";

const BENCHES = ["engine", "state_resolution"];

/** How many times ruma's speed is to be reached, by the names of groups; the first that matches counts. */
const TO_REACH = [
  [/^auth check\//, 3],
  // What counts there is how often we ask, which is bounded.
  [/one side a chain\//, 1],
  [/^v\d+\//, 3],
  [/^/, 0.95],
];

await main(async () => {
  const filter = process.argv.slice(2);
  const began = Date.now();
  for (const bench of BENCHES) await run("cargo", ["bench", "--locked", "--bench", bench, "--", ...filter]);
  const rows = compared(measured(began));
  if (filter.length === 0) rows.push(...(await counted()));
  print([["what", "ours", "ruma, or as named", "ratio", "to reach", "reached?"], ...rows]);
});

/** The rows of what criterion has measured, in the order in which it did. */
function compared(groups) {
  const rows = [];
  for (const [name, times] of groups) {
    const ours = times.get("verge");
    for (const [other, theirs] of times) {
      if (other === "verge" || ours === undefined) continue;
      const ratio = theirs / ours;
      const judged = other === "ruma" ? judge(ratio, TO_REACH.find(([pattern]) => pattern.test(name))[1]) : ["", ""];
      const what = other === "ruma" ? name : `${name} (${other})`;
      rows.push([what, time(ours), time(theirs), ratio.toFixed(2), ...judged]);
    }
  }
  return rows;
}

/** What criterion has measured since then: for each group and parameter the medians by function, in nanoseconds. */
function measured(since) {
  const groups = new Map();
  for (const result of results(join(root, "target", "criterion"), since).sort((a, b) => a.at - b.at)) {
    const { group_id, function_id, value_str } = result.benchmark;
    const name = [group_id, value_str].filter(Boolean).join("/");
    if (!groups.has(name)) groups.set(name, new Map());
    groups.get(name).set(function_id, result.nanoseconds);
  }
  return groups;
}

function judge(ratio, toReach) {
  return [String(toReach), ratio >= toReach ? "yes" : "NO"];
}

function results(folder, since) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return results(path, since);
    const at = statSync(path).mtimeMs;
    if (!path.endsWith("/new/benchmark.json") || at < since) return [];
    const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
    return [{ at, benchmark: read("benchmark.json"), nanoseconds: read("estimates.json").median.point_estimate }];
  });
}

/** The rows of what is counted in instructions, which it prints as JSON; none where valgrind is not installed. */
async function counted() {
  const printed = await output("cargo", ["bench", "--locked", "--bench", "instructions", "--", "--json"]);
  if (printed === null) throw new Error("the instructions could not be counted");
  const lines = printed.split("\n").filter(Boolean);
  if (lines.length === 0) say("valgrind is not installed, so no instructions were counted.");
  return lines.map((line) => JSON.parse(line)).map(({ what, ours, than, other, atMost }) => {
    const ratio = ours / other;
    const reached = ratio <= atMost ? "yes" : "NO";
    return [what, number(ours), `${than}: ${number(other)}`, ratio.toFixed(2), `at most ${atMost}`, reached];
  });
}

function time(nanoseconds) {
  const unit = [["ns", 1], ["µs", 1e3], ["ms", 1e6], ["s", 1e9]].findLast(([, size]) => nanoseconds >= size) ?? ["ns", 1];
  return `${(nanoseconds / unit[1]).toPrecision(3)} ${unit[0]}`;
}

function number(value) {
  return Math.round(value).toLocaleString("en");
}

/** A Markdown table, which can be read as it is. */
function print([head, ...rows]) {
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column].length)));
  const line = (row) => `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join(" | ")} |`;
  console.log(`\n${line(head)}`);
  console.log(`|${widths.map((width, i) => (i === 0 ? "-".repeat(width + 2) : `${"-".repeat(width + 1)}:`)).join("|")}|`);
  for (const row of rows) console.log(line(row));
}
