// The Worker as it is built, but that a test can reset its object, as the platform may at any time: what the object has in memory is
// gone, and whatever it was doing ends there. And a test can ask which paths have reached the object since then.

import { DurableObject } from "cloudflare:workers";
import Worker, { Homeserver as Built } from "../../build/index.js";

const RESET = "/__reset";
const REACHED = "/__reached";

export default class extends Worker {
  async fetch(request) {
    const path = new URL(request.url).pathname;
    if (path !== RESET && path !== REACHED) return super.fetch(request);
    const { OBJECT, SERVER_NAME } = this.env;
    const object = OBJECT.get(OBJECT.idFromName(SERVER_NAME));
    if (path === REACHED) return object.fetch(request);
    try {
      await object.fetch(request);
      return new Response("it was not reset", { status: 500 });
    } catch (error) {
      return new Response(String(error));
    }
  }
}

export class Homeserver extends DurableObject {
  constructor(context, env) {
    super(context, env);
    this.built = new Built(context, env);
    this.reached = [];
  }

  fetch(request) {
    const path = new URL(request.url).pathname;
    if (path === RESET) this.ctx.abort("a test resets it");
    if (path === REACHED) return Response.json(this.reached);
    this.reached.push(`${request.method} ${path}`);
    return this.built.fetch(request);
  }
}
