// node heap.mjs PORT: how many bytes of JavaScript's heap the isolates use, by the inspector at this port, a line each time one is asked
// for on stdin.

import { createInterface } from "node:readline";

const base = `http://127.0.0.1:${process.argv[2]}`;

for await (const _ of createInterface({ input: process.stdin })) console.log(await used().catch(() => 0));
process.exit();

async function used() {
  const targets = await (await fetch(`${base}/json`)).json();
  const each = await Promise.all(targets.map(({ webSocketDebuggerUrl }) => usedBy(webSocketDebuggerUrl)));
  return Math.max(0, ...each);
}

function usedBy(url) {
  return new Promise((resolve, reject) => {
    // The inspector answers to those pages alone that run here.
    const socket = new WebSocket(url, { headers: { Origin: "http://localhost" } });
    setTimeout(() => reject(new Error("the inspector does not answer")), 5_000).unref();
    socket.onopen = () => socket.send(JSON.stringify({ id: 1, method: "Runtime.getHeapUsage" }));
    socket.onerror = reject;
    socket.onmessage = ({ data }) => {
      const { id, result } = JSON.parse(data);
      if (id !== 1) return;
      socket.close();
      resolve(result.usedSize);
    };
  });
}
