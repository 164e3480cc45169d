// The Worker as it is built, but that a test can reset its object, as the platform may at any time: what the object has in memory is
// gone, and whatever it was doing ends there.

import { DurableObject } from "cloudflare:workers";
import Worker, { Homeserver as Built } from "../../build/index.js";

const RESET = "/__reset";

export default class extends Worker {
  async fetch(request) {
    if (new URL(request.url).pathname !== RESET) return super.fetch(request);
    const { OBJECT, SERVER_NAME } = this.env;
    try {
      await OBJECT.get(OBJECT.idFromName(SERVER_NAME)).fetch(request);
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
  }

  fetch(request) {
    if (new URL(request.url).pathname === RESET) this.ctx.abort("a test resets it");
    return this.built.fetch(request);
  }
}
