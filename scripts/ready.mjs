// Whether the server that `npm run dev` has started works: what is wrong is told in one sentence.

import { request } from "node:https";

/** What is wrong where the server's keys are not answered as our own: the whole way was gone, from TLS to the secrets. */
export function mistake(options, { status, body }) {
  if (status !== 200) {
    return `the server does not work and answers ${status} ${body.trim()}; its log above says why (a setting or the signing key?)`;
  }
  let name;
  try {
    name = JSON.parse(body).server_name;
  } catch {
    return "the program that answers there is not a homeserver";
  }
  return name === options["server-name"] ? null : `the server calls itself ${name}, not ${options["server-name"]}`;
}

/** What is wrong where the server cannot look up an alias in its database, which its keys are answered without. */
export async function databaseMistake(options, get = localGet) {
  const alias = encodeURIComponent(`#ready:${options["server-name"]}`);
  const answer = await get(options, `/_matrix/client/v3/directory/room/${alias}`);
  if (answer === null || answer.status < 500) return null;
  return `the server cannot use its database and answers ${answer.status}; its log above says why`;
}

/** The status and body that our own server answers with; `null` where it does not answer. */
export function localGet(options, path) {
  return new Promise((resolve) => {
    // This connection stays on this machine and asks only whether the server is there.
    const target = { host: options.ip, port: options.port, path, rejectUnauthorized: false, agent: false };
    const call = request({ ...target, timeout: 60_000 }, (answer) => {
      let body = "";
      answer.setEncoding("utf8").on("data", (data) => (body += data));
      answer.on("end", () => resolve({ status: answer.statusCode, body })).on("error", () => resolve(null));
    });
    call.on("error", () => resolve(null)).on("timeout", () => call.destroy());
    call.end();
  });
}
