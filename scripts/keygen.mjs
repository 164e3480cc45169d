// npm run keygen: prints a new signing key, one line as in Synapse's signing.key.

import { randomBytes, randomInt } from "node:crypto";
import { isMain } from "./common.mjs";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/** A new `ed25519 a_AbCd <unpadded base64 seed>`. */
export function newSigningKey() {
  const version = Array.from({ length: 4 }, () => LETTERS[randomInt(LETTERS.length)]).join("");
  return `ed25519 a_${version} ${randomBytes(32).toString("base64").replace(/=+$/, "")}`;
}

if (isMain(import.meta.url)) console.log(newSigningKey());
