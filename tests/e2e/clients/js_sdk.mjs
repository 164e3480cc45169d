// What people do with matrix-js-sdk and its encryption. Run by `test_11_clients.py`, with the servers as JSON in the first argument:
// `{ here, neighbour, there, synapse }`, each `{ base, user, password }`. Prints a line for each thing that they have done.

import assert from "node:assert/strict";
import { ReceiptType, RoomMemberEvent } from "matrix-js-sdk";
import { Person, insist, step, until, useUpKeys, verifyBySas } from "./person.mjs";

const servers = JSON.parse(process.argv[2]);
const encrypted = { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } };

let alice, bob, carl, room;
await step("three people log in", async () => {
  [alice, bob, carl] = await Promise.all([
    Person.logIn(servers.here, "ALICE1"),
    Person.logIn(servers.there, "BOB1"),
    Person.logIn(servers.synapse, "CARL1"),
  ]);
});
const all = [alice, bob, carl];
const others = (person) => all.filter((other) => other !== person);

await step("cross-signing keys are set up", async () => {
  for (const person of all) {
    const authUploadDeviceSigningKeys = person.confirm();
    await person.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys });
    await until(() => person.trustsDevice(person), `the own device of ${person.userId} is signed`);
  }
});

await step("and replaced, with the password", async () => {
  const authUploadDeviceSigningKeys = alice.confirm();
  const before = await alice.crypto.getCrossSigningKeyId();
  await alice.crypto.bootstrapCrossSigning({ setupNewCrossSigning: true, authUploadDeviceSigningKeys });
  assert.equal(alice.confirmed, 1);
  assert.notEqual(await alice.crypto.getCrossSigningKeyId(), before);
  await until(() => alice.trustsDevice(alice), "the own device is signed anew");
});

/** An encrypted room of these people. */
async function meet(host, ...guests) {
  const invite = guests.map((guest) => guest.userId);
  const { room_id } = await host.client.createRoom({ invite, initial_state: [encrypted] });
  for (const guest of guests) await guest.joinInvited(room_id);
  for (const person of [host, ...guests]) await person.sees(room_id, host, ...guests);
  return room_id;
}

await step("they meet in an encrypted room", async () => {
  room = await meet(alice, bob, carl);
});

async function isReadByAll(speaker, text, hearers = others(speaker)) {
  const eventId = await speaker.say(room, text);
  for (const hearer of hearers) assert.equal(await hearer.reads(room, eventId), text);
  return eventId;
}

let first;
await step("all read what the others say", async () => {
  first = await isReadByAll(alice, "Alice is here");
  await isReadByAll(bob, "Bob is here");
  await isReadByAll(carl, "Carl is here");
});

await step("users verify each other by SAS in rooms of two", async () => {
  for (const [asking, asked] of [[alice, bob], [carl, alice]]) {
    const request = await asking.crypto.requestVerificationDM(asked.userId, await meet(asking, asked));
    await verifyBySas(asking, request, asked);
    await until(() => asking.trusts(asked), `${asking.userId} trusts ${asked.userId}`);
    await until(() => asked.trusts(asking), `${asked.userId} trusts ${asking.userId}`);
    assert(await asking.trustsDevice(asked));
  }
});

let recoveryKey;
await step("a key backup is made", async () => {
  const key = await alice.crypto.createRecoveryKeyFromPassphrase();
  recoveryKey = key.privateKey;
  const createSecretStorageKey = async () => key;
  await alice.crypto.bootstrapSecretStorage({ createSecretStorageKey, setupNewKeyBackup: true });
  assert(await alice.crypto.isSecretStorageReady());
  const { backupInfo, trustInfo } = await alice.crypto.checkKeyBackupAndEnable();
  assert(trustInfo.trusted);
  const count = async () => (await alice.ask("GET", "/room_keys/version")).count;
  await until(async () => (await count()) >= 3, "the keys of three people are in the backup");
  assert.equal(backupInfo.algorithm, "m.megolm_backup.v1.curve25519-aes-sha2");
});

await step("a second device is verified by SAS, over to-device messages, and is given the secrets", async () => {
  const second = await Person.logIn(servers.here, "ALICE2");
  await until(() => alice.knows(second), "the first device knows of the second");
  await until(() => second.knows(alice), "the second device knows of the first");
  const request = await second.crypto.requestOwnUserVerification();
  await verifyBySas(second, request, alice);
  await until(() => second.trustsDevice(second), "the second device is signed");
  const status = () => second.crypto.getCrossSigningStatus();
  const given = async () => Object.values((await status()).privateKeysCachedLocally).every(Boolean);
  await until(given, "the private keys have come from the first device");
  await until(() => second.crypto.getSessionBackupPrivateKey(), "the backup's key has come from the first device");
  for (const other of others(alice)) await until(() => other.trustsDevice(second), `${other.userId} trusts it`);
  // Whoever speaks now, speaks to both devices.
  for (const other of others(alice)) await isReadByAll(other, `to both of Alice, from ${other.userId}`, [alice, second]);
  await isReadByAll(second, "from the second device", all);
  await second.client.logout(true);
  for (const other of others(alice)) await until(async () => !(await other.knows(second)), `${other.userId} knows that it is gone`);
});

await step("a third device restores the backup and reads what was said before it was there", async () => {
  const third = await Person.logIn(servers.here, "ALICE3", recoveryKey);
  await until(() => third.crypto.userHasCrossSigningKeys(), "it knows the public keys");
  await third.crypto.bootstrapCrossSigning({});
  await until(() => third.trustsDevice(third), "the third device is signed");
  await third.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
  const restored = await third.crypto.restoreKeyBackup();
  assert(restored.imported >= 3, JSON.stringify(restored));
  assert.equal(await third.reads(room, first), "Alice is here");
  await third.client.logout(true);
});

await step("typing, receipts and presence are seen by the others", async () => {
  for (const person of all) {
    for (const other of others(person)) {
      const seen = () => other.room(room).getMember(person.userId);
      const typing = (whether) => person.client.sendTyping(room, whether, whether ? 30_000 : 0);
      const types = () => typing(false).then(() => typing(true));
      await insist(types, () => seen().typing, `${other.userId} sees ${person.userId} type`);
      const ceases = () => typing(true).then(() => typing(false));
      await insist(ceases, () => !seen().typing, `${other.userId} sees that ${person.userId} has ceased`);
      const read = [];
      const reads = async () => {
        read.push(await isReadByAll(other, `read this, ${person.userId}`, [person]));
        await person.client.sendReadReceipt(person.event(room, read.at(-1)), ReceiptType.Read);
      };
      const isRead = () => read.includes(other.room(room).getEventReadUpTo(person.userId, true));
      await insist(reads, isRead, `${other.userId} sees the receipt of ${person.userId}`);
      const statuses = [];
      const shows = async () => {
        statuses.push(`seen at ${Date.now()}`);
        await person.client.setPresence({ presence: "unavailable", status_msg: statuses.at(-1) });
      };
      const isShown = () => statuses.includes(other.client.getUser(person.userId)?.presenceStatusMsg);
      await insist(shows, isShown, `${other.userId} sees the presence of ${person.userId}`);
    }
  }
}, 600);

await step("one-time keys are used up, the fallback key is taken, and one-time keys are made anew", async () => {
  alice.stop();
  const before = await useUpKeys(servers.neighbour, alice);
  assert(before.oneTime.length > 0);
  const newcomer = await Person.logIn(servers.there, "BOB2");
  await newcomer.sees(room, ...all);
  const eventId = await newcomer.say(room, "by the fallback key");
  await alice.start();
  assert.equal(await alice.reads(room, eventId), "by the fallback key");
  const left = async () => (await alice.ask("POST", "/keys/upload", {})).one_time_key_counts.signed_curve25519;
  await until(async () => (await left()) >= before.oneTime.length, "one-time keys are there again");
  const after = await useUpKeys(servers.neighbour, alice);
  assert.deepEqual(after.oneTime.filter((name) => before.oneTime.includes(name)), []);
  newcomer.stop();
});

all.forEach((person) => person.stop());
console.log("done");
process.exit(0);
