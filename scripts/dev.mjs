// npm run dev: one homeserver on this machine, on the real runtime. `npm run dev -- --help` lists the options.

import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer, isIP } from "node:net";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { buildStep } from "./build.mjs";
import { authority, leaf } from "./certificates.mjs";
import { environment, fingerprint, main, perform, root, run, say, start, stopping, work } from "./common.mjs";
import { newSigningKey } from "./keygen.mjs";
import { databaseMistake, localGet, mistake } from "./ready.mjs";
import { setUpSteps } from "./setup.mjs";

const HELP = `npm run dev -- [options]
  --server-name NAME        the name in user ids (localhost:8448)
  --engine ENGINE           where it runs: d1 (default) or object
  --ip ADDRESS              where to listen (127.0.0.1)
  --port PORT               where to listen (8448)
  --persist-to DIR          the data: database, signing key, certificates (.verge/dev/<server name>)
  --tls-key F --tls-cert F  the certificate to serve; by default one is made, signed by .verge/ca/ca.crt
  --ca F                    trust this authority too, besides the system's and our own
  --registration MODE       open (default here), token, closed
  --registration-token T    the token for --registration token
  --default-room-version V  the version of new rooms (12)
  --well-known HOST:PORT    what /.well-known/matrix/server says (the name's host, port 443)
  --doh URL                 the DNS over HTTPS resolver
  --trusted-key-servers JSON
  --limits                  bound how often may be asked, as a deployment does by default
  --cron-seconds N          how often the scheduled trigger fires (60, as the platform does)
  --move-secret S           bind the databases of both engines, so that \`npm run move\` can move the data with this secret
  --as-built                run what build/ holds, without set-up and build
  --entry F                 a module to run instead of build/index.js, such as one of the tests that wraps it
  --log-costs               a log line for each request: database calls, rows read and written`;

const INSPECTOR_PORTS = { first: 9_300, count: 2_000 };

/** The variables that bound how often may be asked. */
const RATES = [
  "LOGIN_RATE",
  "REGISTRATION_RATE",
  "TOKEN_VALIDITY_RATE",
  "FEDERATION_RATE",
  "NOTARY_RATE",
  "PROFILE_RATE",
  "UPLOAD_RATE",
  "REMOTE_MEDIA_RATE",
];

/**
 * The local runtime takes any id, and keeps the data in a file that is named after it. A deployment's would begin anew beside what is
 * there, and with the engine `object` there is none.
 */
const DATABASE_ID = "00000000-0000-0000-0000-000000000000";

/** By engine, where the runtime keeps its data below the folder, and what the configuration binds. */
const ENGINES = {
  d1: {
    data: join("v3", "d1"),
    bindings: {
      d1_databases: [
        { binding: "DB", database_name: "verge", database_id: DATABASE_ID, migrations_dir: join(root, "migrations") },
      ],
    },
  },
  object: {
    data: join("v3", "do"),
    bindings: {
      durable_objects: { bindings: [{ name: "OBJECT", class_name: "Homeserver" }] },
      migrations: [{ tag: "v1", new_sqlite_classes: ["Homeserver"] }],
    },
  },
};

const OPTIONS = {
  "server-name": { type: "string", default: "localhost:8448" },
  engine: { type: "string", default: "d1" },
  ip: { type: "string", default: "127.0.0.1" },
  port: { type: "string", default: "8448" },
  "persist-to": { type: "string" },
  "tls-key": { type: "string" },
  "tls-cert": { type: "string" },
  ca: { type: "string" },
  registration: { type: "string", default: "open" },
  "registration-token": { type: "string" },
  "default-room-version": { type: "string" },
  "well-known": { type: "string" },
  doh: { type: "string" },
  "trusted-key-servers": { type: "string" },
  "cron-seconds": { type: "string", default: "60" },
  "move-secret": { type: "string" },
  limits: { type: "boolean" },
  "as-built": { type: "boolean" },
  entry: { type: "string" },
  "log-costs": { type: "boolean" },
  help: { type: "boolean" },
};

await main(async () => {
  const { values: options } = parseArgs({ options: OPTIONS });
  if (options.help) return console.log(HELP);
  check(options);
  await checkFree(options);
  if (!options["as-built"]) await perform([...(await setUpSteps()), buildStep()]);
  const name = options["server-name"];
  const folder = resolve(options["persist-to"] ?? join(work, "dev", name.replaceAll(/[^a-z0-9.-]/gi, "_")));
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  if (!options["move-secret"]) checkData(options.engine, folder);
  const tls = await certificate(options, folder);
  const config = configuration(options, folder);
  if (options.engine === "d1" || options["move-secret"]) await migrate(config, folder);
  await serve(options, folder, config, tls);
});

/** Refuses options that cannot be meant, before minutes are spent on them. What only the server can judge it says itself. */
function check(options) {
  const port = Number(options.port);
  if (!Object.hasOwn(ENGINES, options.engine)) throw new Error(`--engine ${options.engine} is neither d1 nor object`);
  if (!/^[0-9]+$/.test(options.port) || port < 1 || port > 65_535) {
    throw new Error(`--port ${options.port} is no port: it is a number from 1 to 65535`);
  }
  if (!(Number(options["cron-seconds"]) > 0)) {
    throw new Error(`--cron-seconds ${options["cron-seconds"]} is no number of seconds above 0`);
  }
  if (isIP(options.ip) === 0) throw new Error(`--ip ${options.ip} is no IP address`);
  if (Boolean(options["tls-key"]) !== Boolean(options["tls-cert"])) {
    throw new Error("--tls-key and --tls-cert go together");
  }
  for (const option of ["tls-key", "tls-cert", "ca", "entry"]) {
    if (options[option] && !existsSync(options[option])) throw new Error(`--${option} ${options[option]}: no such file`);
  }
  if (options.registration === "token" && !options["registration-token"]) {
    throw new Error("--registration token needs --registration-token");
  }
}

/**
 * Refuses a folder with the data of the other engine alone: the server would begin anew beside them, under the same name. Where both
 * are there, they have been moved, and the server itself knows where to.
 */
function checkData(engine, folder) {
  if (existsSync(join(folder, ENGINES[engine].data))) return;
  for (const [other, { data }] of Object.entries(ENGINES)) {
    if (other !== engine && existsSync(join(folder, data))) {
      throw new Error(`${folder} holds the data of --engine ${other}; take that, or another --persist-to`);
    }
  }
}

/** Refuses an address that is taken: the runtime would be silent about it, and another server answer in our place. */
async function checkFree({ ip, port }) {
  let error = await listeningFails(ip, port);
  // A server that was killed a moment ago may not be gone yet.
  for (let tries = 0; error?.code === "EADDRINUSE" && tries < 20; tries += 1) {
    await sleep(100);
    error = await listeningFails(ip, port);
  }
  if (error === null) return;
  const why = { EADDRINUSE: "is in use", EACCES: "is not for this user", EADDRNOTAVAIL: "is not of this machine" };
  throw new Error(`port ${port} on ${ip} ${why[error.code] ?? `cannot be used: ${error.message}`}`);
}

/** Why nobody can listen there; `null` where one can. */
function listeningFails(ip, port) {
  return new Promise((resolve) => {
    const server = createServer().on("error", resolve);
    server.listen(Number(port), ip, () => server.close(() => resolve(null)));
  });
}

/** The certificate to serve, and a file with the authorities to trust besides the system's. */
async function certificate(options, folder) {
  const ca = await authority();
  const trusted = join(folder, "trusted.pem");
  const authorities = [ca.certificate, options.ca].filter(Boolean).map((file) => readFileSync(file, "utf8"));
  writeFileSync(trusted, authorities.join("\n"));
  if (options["tls-key"]) {
    return { key: resolve(options["tls-key"]), certificate: resolve(options["tls-cert"]), trusted };
  }
  const host = options["server-name"].replace(/:\d+$/, "").replaceAll(/[[\]]/g, "");
  const hosts = [...new Set([host, options.ip, "localhost"])];
  return { ...(await leaf(folder, hosts, ca)), trusted, ca: ca.certificate };
}

/** Writes the configuration of this one server: wrangler.toml's, with the variables and secrets of the options. */
function configuration(options, folder) {
  const key = join(folder, "signing.key");
  if (!existsSync(key)) writeFileSync(key, `${newSigningKey()}\n`, { mode: 0o600 });

  const shared = readFileSync(join(root, "wrangler.toml"), "utf8");
  const setting = (name) => {
    const found = shared.match(new RegExp(`^${name} = "(.*)"`, "m"));
    if (!found) throw new Error(`wrangler.toml has no ${name}`);
    return found[1];
  };
  const vars = {
    SERVER_NAME: options["server-name"],
    ENGINE: options.engine,
    WELL_KNOWN_SERVER: options["well-known"],
    CLIENT_BASE_URL: `https://${urlHost(options)}`,
    REGISTRATION: options.registration,
    DEFAULT_ROOM_VERSION: options["default-room-version"],
    DNS_OVER_HTTPS: options.doh,
    TRUSTED_KEY_SERVERS: options["trusted-key-servers"],
    LOG_COSTS: options["log-costs"] ? "1" : undefined,
    ...(options.limits ? {} : Object.fromEntries(RATES.map((name) => [name, "off"]))),
  };
  const path = join(folder, "wrangler.json");
  const bound = options["move-secret"] ? Object.values(ENGINES) : [ENGINES[options.engine]];
  const bindings = Object.assign({}, ...bound.map((engine) => engine.bindings));
  const config = {
    name: "verge",
    main: options.entry ? resolve(options.entry) : join(root, setting("main")),
    compatibility_date: setting("compatibility_date"),
    vars,
    ...bindings,
    r2_buckets: [{ binding: "MEDIA", bucket_name: "verge-media" }],
    triggers: { crons: ["* * * * *"] },
  };
  writeFileSync(path, JSON.stringify(config, null, 2));
  const secrets = { SIGNING_KEY: readFileSync(key, "utf8").trim(), REGISTRATION_TOKEN: options["registration-token"], MOVE_SECRET: options["move-secret"] };
  const lines = Object.entries(secrets).filter(([, value]) => value).map(([name, value]) => `${name}="${value}"\n`);
  writeFileSync(join(folder, ".dev.vars"), lines.join(""), { mode: 0o600 });
  return path;
}

/** Applies the migrations that this folder's database does not have yet. */
async function migrate(config, folder) {
  const marker = join(folder, "migrations.applied");
  const wanted = fingerprint(["migrations"]);
  if (existsSync(marker) && readFileSync(marker, "utf8") === wanted) return;
  say("Applying the migrations");
  const d1 = (args, stdout) => {
    const options = { cwd: folder, env: { ...environment, CI: "1", XDG_CONFIG_HOME: folder }, stdio: ["ignore", stdout, "inherit"] };
    return run("wrangler", ["d1", ...args, "--local", "--persist-to", folder, "--config", config], options);
  };
  if (existsSync(join(folder, ENGINES.d1.data))) {
    await d1(["migrations", "apply", "DB"], "inherit");
  } else {
    // `apply` starts a runtime for each of them. A new database takes all in one transaction, a tenth of the time.
    const file = join(folder, "migrations.sql");
    writeFileSync(file, allMigrations());
    await d1(["execute", "DB", "--file", file], "ignore");
    rmSync(file);
  }
  writeFileSync(marker, wanted);
}

/** All migrations, each noted down as `wrangler d1 migrations apply` does. */
function allMigrations() {
  const table =
    "CREATE TABLE IF NOT EXISTS d1_migrations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, " +
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL);";
  const names = readdirSync(join(root, "migrations")).filter((name) => name.endsWith(".sql"));
  const text = (name) => readFileSync(join(root, "migrations", name), "utf8");
  const each = names.sort().map((name) => `${text(name)}\nINSERT INTO d1_migrations (name) VALUES ('${name}');`);
  return [table, ...each].join("\n");
}

/** Runs the server until it is asked to stop. */
async function serve(options, folder, config, tls) {
  const args = ["dev", "--config", config, "--persist-to", folder];
  args.push("--test-scheduled", "--show-interactive-dev-session=false");
  args.push("--ip", options.ip, "--port", options.port, "--inspector-port", String(await freePort()));
  args.push("--local-protocol", "https", "--https-key-path", tls.key, "--https-cert-path", tls.certificate);
  const env = { ...environment, CI: "1", XDG_CONFIG_HOME: folder, NODE_EXTRA_CA_CERTS: tls.trusted };
  // It writes to us, and so would not see that a terminal shows it.
  if (process.stdout.isTTY && !env.NO_COLOR) env.FORCE_COLOR ??= "1";
  const wrangler = start("wrangler", args, { cwd: folder, env, stdio: ["ignore", "pipe", "pipe"] });
  const hasSaidWhy = passOn(wrangler);
  // Once all is read that it has printed.
  const ended = new Promise((done) => wrangler.on("close", done).on("error", done));

  let answer = null;
  while (answer === null && !stopping() && wrangler.exitCode === null && wrangler.signalCode === null) {
    answer = await localGet(options, "/_matrix/key/v2/server");
    if (answer === null) await Promise.race([sleep(100), ended]);
  }
  // One whose data is elsewhere waits to be moved further.
  const isMoved = options["move-secret"] && answer?.status === 503;
  if (isMoved) say("The data of this engine is moving, or has moved; requests are refused");
  const wrong = answer === null || isMoved ? null : (mistake(options, answer) ?? (await databaseMistake(options)));
  if (wrong && !stopping()) {
    // What the server has logged about it is on its way to the terminal.
    await Promise.race([hasSaidWhy.then(() => sleep(500)), sleep(15_000), ended]);
    wrangler.kill("SIGTERM");
    await ended;
    throw new Error(wrong);
  }
  if (answer !== null && !stopping()) {
    if (tls.ca) say(`The certificate is signed by ${tls.ca}`);
    console.log(`ready https://${urlHost(options)} server_name=${options["server-name"]}`);
    const fire = () => localGet(options, "/__scheduled?cron=*+*+*+*+*");
    const timer = setInterval(fire, Number(options["cron-seconds"]) * 1000);
    ended.then(() => clearInterval(timer));
  }
  await ended;
  if (!stopping()) throw new Error("the server has ended by itself");
}

/** Shows what a program prints, which ends when nobody reads it; the answer comes when our server has logged an error there. */
function passOn(program) {
  return new Promise((resolve) => {
    for (const [from, to] of [[program.stdout, process.stdout], [program.stderr, process.stderr]]) {
      to.on("error", () => program.kill("SIGTERM"));
      let line = "";
      from.setEncoding("utf8").on("data", (text) => {
        to.write(text);
        const lines = (line + text).split("\n");
        line = lines.pop();
        if (lines.some((said) => said.includes('"level":"error"'))) resolve();
      });
    }
  });
}

/** The host and port that reach the server from this machine. */
function urlHost(options) {
  const host = options.ip === "127.0.0.1" ? "localhost" : options.ip.includes(":") ? `[${options.ip}]` : options.ip;
  return `${host}:${options.port}`;
}

/** A port that nobody listens on, and that no outgoing connection takes before it is used: systems take theirs from 32,768 upwards. */
async function freePort() {
  for (let number = 0; number < INSPECTOR_PORTS.count; number++) {
    const port = INSPECTOR_PORTS.first + ((process.pid + number) % INSPECTOR_PORTS.count);
    if (await isFree(port)) return port;
  }
  throw new Error("no port is free for the inspector");
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = createServer().on("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
