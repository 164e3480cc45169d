// Hydrogen, a whole web client, in a headless Chromium. Run by `test_11_clients.py`, with JSON in the first argument:
// `{ here, there, artifacts, browser }`, the servers as for `js_sdk.mjs`, the folder in which the picture of the page is kept, and
// that in which the browser is.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium as browsers } from "playwright-core";
import { PATIENCE, Person, step, until } from "./person.mjs";

const told = JSON.parse(process.argv[2]);
const { resolve } = createRequire(import.meta.url);
const MEGOLM = "m.megolm.v1.aes-sha2";

/** Serves the page: its program in one file, and what the packages bring. */
async function servePage() {
  const program = join(dirname(fileURLToPath(import.meta.url)), "hydrogen_page.mjs");
  // What olm asks of Node where it runs in Node.
  const external = ["crypto", "fs", "path"];
  const options = { bundle: true, format: "esm", write: false, target: "es2022", logLevel: "error", external };
  const bundle = await build({ entryPoints: [program], ...options });
  const style = '<link rel="stylesheet" href="/assets/theme-element-light.css">';
  const html = `<!doctype html><meta charset="utf-8">${style}<body class="hydrogen"><script type="module" src="/page.js"></script>`;
  const serviceWorker = await readFile(join(dirname(resolve("hydrogen-view-sdk")), "sw.js"));
  const made = { "/": html, "/page.js": bundle.outputFiles[0].text, "/sw.js": serviceWorker };
  const folders = {
    "/assets/": dirname(resolve("hydrogen-view-sdk/main.js")),
    "/olm/": dirname(resolve("@matrix-org/olm")),
  };
  const types = { ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".svg": "image/svg+xml" };
  const server = createServer(async (request, response) => {
    const path = normalize(new URL(request.url, "http://localhost").pathname);
    const prefix = Object.keys(folders).find((prefix) => path.startsWith(prefix));
    const file = prefix && join(folders[prefix], path.slice(prefix.length));
    const body = made[path] ?? (file && (await readFile(file).catch(() => null)));
    const type = path === "/" ? "text/html" : (types[extname(path)] ?? "application/octet-stream");
    response.writeHead(body ? 200 : 404, { "Content-Type": type }).end(body ?? "");
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  return server;
}

/** Starts the browser of the package, unpacked into a folder of this project. */
async function launch() {
  const unpacked = join(told.browser, "unpacked");
  // What a run that was ended has begun to unpack would be taken for the whole.
  if (!existsSync(unpacked)) await rm(told.browser, { recursive: true, force: true });
  await mkdir(told.browser, { recursive: true });
  process.env.TMPDIR = told.browser;
  // The package brings the libraries that the browser needs, but uses them only where it expects none.
  process.env.AWS_EXECUTION_ENV = "AWS_Lambda_nodejs22.x";
  const { default: chromium } = await import("@sparticuz/chromium");
  const executablePath = await chromium.executablePath();
  // The configuration that it brings looks for the fonts in /tmp. Without any, no text can be entered.
  const fonts = join(told.browser, "fonts");
  const places = `<dir>${join(fonts, "fonts")}</dir><cachedir>${join(told.browser, "fonts-cache")}</cachedir>`;
  await writeFile(join(fonts, "fonts.conf"), `<?xml version="1.0"?><fontconfig>${places}</fontconfig>\n`);
  await writeFile(unpacked, "");
  // What a server tells of other origins must count, and pages are processes of their own as in a real browser.
  const kept = chromium.args.filter((arg) => !["--disable-web-security", "--single-process"].includes(arg));
  // Node verifies our server's certificate; a browser cannot be told of the authority by an option.
  const args = [...kept, "--ignore-certificate-errors"];
  return browsers.launch({ executablePath, args, headless: true, timeout: PATIENCE * 1000 });
}

const server = await servePage();
const browser = await launch();
const page = await browser.newPage();
page.setDefaultTimeout(PATIENCE * 1000);
const complaints = [];
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));

try {
  let partner, room;
  await step("the partner logs in", async () => {
    partner = await Person.logIn(told.there, "PARTNER");
  });

  await step("Hydrogen logs in", async () => {
    await page.goto(`http://localhost:${server.address().port}/`);
    await page.fill("#homeserver", told.here.base);
    await page.locator("#homeserver").blur();
    await page.fill("#username", told.here.user);
    await page.fill("#password", told.here.password);
    await page.click("button[type=submit]");
    await page.waitForSelector(".LeftPanel");
  });

  await step("it makes an encrypted room, and invites", async () => {
    await page.click(".LeftPanel button.create");
    await page.click(".menu .create, .menu button:has-text('Create')");
    await page.fill(".CreateRoomView #name", "Made with Hydrogen");
    await page.click(".CreateRoomView button[type=submit]");
    await page.click('.RoomList a:has-text("Made with Hydrogen")');
    await write(`/invite ${partner.userId}`);
    const invited = () => partner.client.getRooms().find((room) => room.getMyMembership() === "invite");
    room = (await until(invited, "the partner is invited")).roomId;
    await partner.joinInvited(room);
    await partner.sees(room, partner);
    await page.waitForSelector(`.AnnouncementView:has-text("joined")`);
  });

  await step("both read what the other says", async () => {
    await write("Hello from Hydrogen");
    const heard = () => partner.texts(room).find(([, text]) => text === "Hello from Hydrogen");
    const [event] = await until(heard, "the partner reads it");
    assert.equal(event.getWireContent().algorithm, MEGOLM);
    await partner.say(room, "Hello Hydrogen");
    await page.waitForSelector('.Timeline_message:has-text("Hello Hydrogen")');
  });
  partner.stop();
} catch (error) {
  console.log([...complaints, await page.locator("body").innerText()].join("\n").slice(-3000));
  throw error;
} finally {
  await page.screenshot({ path: join(told.artifacts, "hydrogen.png") });
  await browser.close();
  server.close();
}
console.log("done");
process.exit(0);

/** Writes into the composer, and sends it. */
async function write(text) {
  const composer = page.locator(".MessageComposer textarea");
  await composer.fill(text);
  await composer.press("Enter");
}
