// Test certificates: an own certificate authority, made once for each clone, and leaves for the names of servers.

import { X509Certificate, createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { isIP } from "node:net";
import { dirname, join } from "node:path";
import { output, work } from "./common.mjs";

/** A leaf that ends sooner is made anew. */
const LEFT_DAYS = 30;

/** The authority's key and certificate in `folder`, made where they are missing. */
export async function authority(folder = join(work, "ca")) {
  const [key, certificate] = [join(folder, "ca.key"), join(folder, "ca.crt")];
  if (!existsSync(certificate)) {
    // Several servers may be started at once: each makes its own, and the first one is there for all.
    mkdirSync(dirname(folder), { recursive: true });
    const made = mkdtempSync(`${folder}.`);
    await newKey(join(made, "ca.key"));
    await openssl(
      ["req", "-x509", "-new", "-key", join(made, "ca.key"), "-days", "3650", "-subj", "/CN=Verge development CA"],
      ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
      ["-out", join(made, "ca.crt")],
    );
    try {
      renameSync(made, folder);
    } catch (error) {
      rmSync(made, { recursive: true });
      if (!existsSync(certificate)) throw new Error(`${folder} is no certificate authority: remove it`, { cause: error });
    }
  }
  return { key, certificate };
}

/** A key and a certificate for `hosts` in `folder`, signed by `ca`; made where they are missing, are for others, or soon end. */
export async function leaf(folder, hosts, ca) {
  const [key, certificate, marker] = ["tls.key", "tls.crt", "tls.for"].map((name) => join(folder, name));
  const wanted = createHash("sha256").update(JSON.stringify(hosts)).update(readFileSync(ca.certificate)).digest("hex");
  const isFor = existsSync(marker) ? readFileSync(marker, "utf8") : null;
  if (isFor !== wanted || !existsSync(key) || !lasts(certificate)) {
    const [request, extensions] = [join(folder, "tls.csr"), join(folder, "tls.ext")];
    const names = hosts.map((host) => (isIP(host) ? `IP:${host}` : `DNS:${host}`));
    writeFileSync(
      extensions,
      `basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName=${names}\n`,
    );
    await newKey(key);
    await openssl(["req", "-new", "-key", key, "-subj", `/CN=${hosts[0].slice(0, 60)}`, "-out", request]);
    await openssl(
      ["x509", "-req", "-in", request, "-CA", ca.certificate, "-CAkey", ca.key, "-days", "825", "-CAcreateserial"],
      ["-extfile", extensions, "-out", certificate],
    );
    for (const file of [request, extensions]) rmSync(file);
    writeFileSync(marker, wanted);
  }
  return { key, certificate };
}

/** Whether the certificate is there, and does not end soon. */
function lasts(certificate) {
  if (!existsSync(certificate)) return false;
  const { validTo } = new X509Certificate(readFileSync(certificate));
  return Date.parse(validTo) > Date.now() + LEFT_DAYS * 86_400_000;
}

async function newKey(path) {
  writeFileSync(path, "", { mode: 0o600 });
  await openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path]);
}

async function openssl(...args) {
  if ((await output("openssl", args.flat())) === null) throw new Error(`openssl ${args.flat().join(" ")} failed`);
}
