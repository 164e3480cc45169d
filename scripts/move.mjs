// npm run move: moves the data of a running server from one engine to the other. `npm run move -- --help` lists the options.

import { readFileSync } from "node:fs";
import { request } from "node:https";
import { parseArgs } from "node:util";
import { main, say } from "./common.mjs";

const HELP = `MOVE_SECRET=… npm run move -- --from d1 --to object --url https://matrix.example.org
  --from ENGINE   where the data is: d1 or object
  --to ENGINE     where it shall be
  --url URL       where the server is reached
  --cancel        give up a move that has not ended: the server goes on where it was
  --ca F          trust this authority too
The secret is that of the server, and is taken from the environment. What was cut off goes on when it is started again.`;

const OPTIONS = {
  from: { type: "string" },
  to: { type: "string" },
  url: { type: "string" },
  cancel: { type: "boolean" },
  ca: { type: "string" },
  help: { type: "boolean" },
};

const ENGINES = ["d1", "object"];
/** How often a step is asked for again that got no answer. */
const TRIES = 10;

await main(async () => {
  const { values: options } = parseArgs({ options: OPTIONS });
  if (options.help) return console.log(HELP);
  const { from, to } = options;
  if (!ENGINES.includes(from) || !ENGINES.includes(to) || from === to) {
    throw new Error("--from and --to must be d1 and object, or object and d1");
  }
  if (!options.url?.startsWith("https://")) throw new Error("--url must say where the server is reached, with https://");
  const secret = process.env.MOVE_SECRET;
  if (!secret) throw new Error("MOVE_SECRET must be in the environment: the secret that the server has under this name");
  const ca = options.ca ? readFileSync(options.ca) : undefined;
  const ask = (content) => patiently(() => post(new URL("/_verge/move", options.url), secret, ca, content));

  if (options.cancel) {
    await ask({ from, to, cancel: true });
    return say(`The move is given up: the server goes on with ENGINE = "${from}"`);
  }
  say(`Moving from ${from} to ${to}`);
  let last = "";
  for (let isDone = false; !isDone; ) {
    for (const step of (await ask({ from, to })).steps) {
      const line = describe(step);
      if (line !== last) console.log(line);
      last = line;
      isDone = step.phase === "done";
    }
  }
  say(`Everything is in ${to}. Now set ENGINE = "${to}" in wrangler.toml, deploy, and delete the secret:`);
  console.log("    npx wrangler deploy\n    npx wrangler secret delete MOVE_SECRET");
});

function describe({ phase, table, rows, sha256 }) {
  if (sha256 !== undefined) return `alike     ${table}, ${rows} rows${sha256 && `, sha256 ${sha256}`}`;
  return table ? `${phase.padEnd(9)} ${table}, ${rows} rows` : phase;
}

/** The answer to a step. One that fails for a moment is asked for again: each step is made once, however often. */
async function patiently(step) {
  for (let tries = 1; ; tries += 1) {
    let why;
    try {
      const { status, body } = await step();
      if (status === 200) return JSON.parse(body);
      why = reason(status, body);
      if (status < 500) throw new Error(why);
    } catch (error) {
      if (why !== undefined) throw error;
      why = error.message;
    }
    if (tries === TRIES) throw new Error(`${why}; start it again, and it goes on where it was`);
    await new Promise((resolve) => setTimeout(resolve, 500 * tries));
  }
}

function reason(status, body) {
  try {
    return JSON.parse(body).error ?? `the server answers ${status}`;
  } catch {
    return `the server answers ${status}, with what is no answer of a Verge: does the zone's protection against bots stand before it?`;
  }
}

function post(url, secret, ca, content) {
  return new Promise((resolve, reject) => {
    // A zone's protection against bots refuses what does not say what it is.
    const headers = { Authorization: `Bearer ${secret}`, "Content-Type": "application/json", "User-Agent": "Verge (npm run move)" };
    const call = request(url, { method: "POST", headers, ca, timeout: 120_000 }, (answer) => {
      let body = "";
      answer.setEncoding("utf8").on("data", (data) => (body += data));
      answer.on("end", () => resolve({ status: answer.statusCode, body })).on("error", reject);
    });
    call.on("error", reject).on("timeout", () => call.destroy(new Error("the server does not answer in time")));
    call.end(JSON.stringify(content));
  });
}
