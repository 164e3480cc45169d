// The Worker as it is built, but that a test can reset its object, as the platform may at any time: what the object has in memory is
// gone, and whatever it was doing ends there. A test can ask which paths have reached the object since then and how many transactions
// it has begun, and what the Worker in front answers a request while the object has a large batch in hand.

import { DurableObject } from "cloudflare:workers";
import Worker, { Homeserver as Built } from "../../build/index.js";

const RESET = "/__reset";
const REACHED = "/__reached";
const TRANSACTIONS = "/__transactions";
const CROWDED = "/__crowded";

// Whatever it is counted as, nothing else has room beside it.
const LARGE = 14 << 20;

export default class extends Worker {
  async fetch(request) {
    const path = new URL(request.url).pathname;
    if (![RESET, REACHED, TRANSACTIONS, CROWDED].includes(path)) return super.fetch(request);
    const { OBJECT, SERVER_NAME } = this.env;
    const object = OBJECT.get(OBJECT.idFromName(SERVER_NAME));
    if (path === REACHED || path === TRANSACTIONS) return object.fetch(request);
    if (path === CROWDED) return Response.json(await this.whileCrowded(object, await request.json()));
    try {
      await object.fetch(request);
      return new Response("it was not reset", { status: 500 });
    } catch (error) {
      return new Response(String(error));
    }
  }

  // What a request is answered while a large batch is on its way into the object, which gets it first, and when that is done; and
  // what came of the batch.
  async whileCrowded(object, { path, body }) {
    const { readable, writable } = new TransformStream();
    const headers = { "verge-length": String(LARGE) };
    const batch = object.fetch("https://object/batch", { method: "POST", headers, body: readable });
    const ask = async () => {
      const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
      const answer = await super.fetch(new Request(`https://front${path}`, init));
      return { status: answer.status, retryAfter: answer.headers.get("retry-after"), body: await answer.json() };
    };
    const meanwhile = await ask();
    const writer = writable.getWriter();
    await writer.write(new TextEncoder().encode('{"batch":[]}'));
    await writer.close();
    const outcome = await (await batch).json();
    return { meanwhile, outcome, afterwards: await ask() };
  }
}

export class Homeserver extends DurableObject {
  constructor(context, env) {
    super(context, env);
    const begin = context.storage.transactionSync.bind(context.storage);
    this.transactions = 0;
    context.storage.transactionSync = (work) => {
      this.transactions += 1;
      return begin(work);
    };
    this.built = new Built(context, env);
    this.reached = [];
  }

  fetch(request) {
    const path = new URL(request.url).pathname;
    if (path === RESET) this.ctx.abort("a test resets it");
    if (path === REACHED) return Response.json(this.reached);
    if (path === TRANSACTIONS) return Response.json(this.transactions);
    this.reached.push(`${request.method} ${path}`);
    return this.built.fetch(request);
  }
}
