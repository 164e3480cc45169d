// How workerd's own D1 runs SQL. `node plans.mjs MIGRATIONS < statements.json` reads a JSON list of statements and prints, as
// JSON, the tables, and the plan of each statement (a list of lines) as planned without statistics and with those of a database
// of 100 rooms.

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Miniflare, convertV4MiniflareOptions } from "miniflare";

const ROOMS = 100;
const ROWS = 5_000;

const statements = JSON.parse(readFileSync(0, "utf8"));
const runtime = new Miniflare(
  convertV4MiniflareOptions({
    modules: true,
    script: "export default { fetch: () => new Response() }",
    compatibilityDate: "2026-06-01",
    d1Databases: { DB: "plans" },
  }),
);
try {
  const database = await runtime.getD1Database("DB");
  await migrate(database, process.argv[2]);
  const tables = await rows(database, "SELECT name FROM sqlite_master WHERE type = 'table'");
  const names = tables.map((table) => table.name).filter((name) => !/^(sqlite|_cf)_/.test(name));
  const plans = [await explain(database)];
  for (const name of names) await fill(database, name);
  await database.prepare("ANALYZE").run();
  plans.push(await explain(database));
  console.log(JSON.stringify({ tables: names, plans }));
} finally {
  await runtime.dispose();
}

async function migrate(database, folder) {
  // The table in which wrangler, and the object, note the migrations.
  await database.prepare("CREATE TABLE d1_migrations (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE)").run();
  for (const file of readdirSync(folder).sort()) {
    const text = readFileSync(join(folder, file), "utf8").replaceAll(/--[^\n]*/g, "");
    const parts = text.split(/;\s*(?:\n|$)/).map((statement) => statement.trim());
    for (const statement of parts.filter(Boolean)) await database.prepare(statement).run();
  }
}

/** Puts rows into a table; those with a room are of 100 rooms. */
async function fill(database, table) {
  const columns = await rows(database, `PRAGMA table_info(${table})`);
  const value = ({ name, type }) => (type === "INTEGER" ? "i" : `'${name}' || (i % ${name === "room_id" ? ROOMS : ROWS})`);
  const sql =
    `WITH RECURSIVE number(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < ${ROWS}) ` +
    `INSERT OR IGNORE INTO ${table} SELECT ${columns.map(value).join(", ")} FROM number`;
  if (table !== "streams") await database.prepare(sql).run();
}

async function explain(database) {
  const plans = [];
  for (const sql of statements) {
    const parameters = Math.max(0, ...Array.from(sql.matchAll(/\?(\d+)/g), (match) => Number(match[1])));
    const explained = database.prepare(`EXPLAIN QUERY PLAN ${sql}`).bind(...Array(parameters).fill(null));
    plans.push((await explained.all()).results.map((row) => row.detail));
  }
  return plans;
}

async function rows(database, sql) {
  return (await database.prepare(sql).all()).results;
}
