// The Worker as it is built, but that a bench can ask how much memory its module has, in bytes.

import "./memory.mjs";
import Worker, { Homeserver } from "../../build/index.js";

export default class extends Worker {
  fetch(request) {
    if (new URL(request.url).pathname !== "/__memory") return super.fetch(request);
    return Response.json(globalThis.memories.map((memory) => memory.buffer.byteLength));
  }
}

export { Homeserver };
