// A person at a device with matrix-js-sdk, whose messages are encrypted.

import "fake-indexeddb/auto";
import assert from "node:assert/strict";
import { createClient, ClientEvent } from "matrix-js-sdk";
import { CryptoEvent, VerificationPhase, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

// The library's loggers, of which each has a level of its own, all end here.
console.debug = console.info = console.warn = () => {};

/** For so long, in seconds, something may take that happens in a moment on an idle machine: two transactions that Synapse
 * lets wait for a minute each, and some time more. */
export const PATIENCE = 180;

/** The first true value of `condition()`; throws with `what` where there is none in time. */
export async function until(condition, what, seconds = PATIENCE) {
  for (const deadline = Date.now() + seconds * 1000; ; ) {
    const value = await within(seconds + 10, what, condition());
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** As `until`, for what is lost on the way now and then and is not repeated: it is done again and again. A server that did not take
 * something is told nothing of the kind for a minute. */
export async function insist(does, isSeen, what) {
  let due = 0;
  return until(
    async () => {
      if (Date.now() >= due) {
        await does();
        due = Date.now() + 5_000;
      }
      return isSeen();
    },
    what,
  );
}

/** The value of a promise of the library; throws with `what` where it does not end in time. */
export async function within(seconds, what, underWay) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`stands still: ${what}`)), seconds * 1000);
  });
  return Promise.race([underWay, limit]).finally(() => clearTimeout(timer));
}

/** Does something, and prints what it was and how long it took. What never ends is named. */
export async function step(what, does, seconds = 2 * PATIENCE) {
  const start = performance.now();
  await within(seconds, what, does());
  console.log(`${what}: ${Math.round(performance.now() - start)} ms`);
}

export class Person {
  /** Logs in at a new device, which has uploaded its keys and syncs from then on. `server`: its `base`, the `user` and the `password`. */
  static async logIn(server, deviceId, recoveryKey) {
    const { base, user, password } = server;
    const identifier = { type: "m.id.user", user };
    const login = { type: "m.login.password", identifier, password, device_id: deviceId };
    const answer = await createClient({ baseUrl: base }).loginRequest(login);
    const person = new Person();
    Object.assign(person, { server, recoveryKey, deviceId, userId: answer.user_id, accessToken: answer.access_token });
    await person.start();
    return person;
  }

  /** Starts the program of the device, with what an earlier one has left of it. */
  async start() {
    const { userId, deviceId, accessToken } = this;
    const cryptoCallbacks = this.cryptoCallbacks();
    this.client = createClient({ baseUrl: this.server.base, userId, deviceId, accessToken, cryptoCallbacks });
    await this.client.initRustCrypto({ cryptoDatabasePrefix: `${userId}/${deviceId}` });
    this.crypto = this.client.getCrypto();
    this.requests = [];
    this.client.on(CryptoEvent.VerificationRequestReceived, (request) => this.requests.push(request));
    const prepared = new Promise((resolve) => {
      this.client.on(ClientEvent.Sync, (state) => state === "PREPARED" && resolve());
    });
    await this.client.startClient({ initialSyncLimit: 50, pollTimeout: 5000 });
    await prepared;
    const keys = { device_keys: { [this.userId]: [this.deviceId] } };
    const uploaded = async () => (await this.ask("POST", "/keys/query", keys)).device_keys[this.userId]?.[this.deviceId];
    await until(uploaded, `${this.deviceId} has uploaded its keys`);
  }

  stop() {
    this.client.stopClient();
  }

  /** A request of its own, beside what the library asks, and remembers. */
  ask(method, path, body) {
    return this.client.http.authedRequest(method, path, undefined, body);
  }

  /** Where the recovery key is had from when the library wants it. */
  cryptoCallbacks() {
    return {
      getSecretStorageKey: async ({ keys }) => this.recoveryKey && [Object.keys(keys)[0], this.recoveryKey],
      cacheSecretStorageKey: (_id, _info, key) => (this.recoveryKey = key),
    };
  }

  /** The password, where the server wants to see it again, and how often it wanted to. */
  confirm() {
    this.confirmed = 0;
    return async (request) => {
      try {
        return await request(null);
      } catch (error) {
        if (error.httpStatus !== 401) throw error;
        const { user, password } = this.server;
        this.confirmed += 1;
        const identifier = { type: "m.id.user", user };
        return request({ type: "m.login.password", identifier, password, session: error.data.session });
      }
    };
  }

  // Rooms

  room(roomId) {
    return this.client.getRoom(roomId);
  }

  async joinInvited(roomId) {
    await until(() => this.room(roomId)?.getMyMembership() === "invite", `${this.userId} is invited`);
    await this.client.joinRoom(roomId);
  }

  /** Waits until the room is encrypted and has these members. */
  async sees(roomId, ...people) {
    const members = () => this.room(roomId)?.getJoinedMembers().map((member) => member.userId) ?? [];
    const all = () => people.every((person) => members().includes(person.userId));
    await until(all, `${this.userId} sees ${people.map((person) => person.userId)}`);
    await until(() => this.crypto.isEncryptionEnabledInRoom(roomId), `${roomId} is encrypted for ${this.userId}`);
  }

  async say(roomId, text) {
    return (await this.client.sendTextMessage(roomId, text)).event_id;
  }

  /** The texts in the room that could be read: each event with its text. */
  texts(roomId) {
    const events = this.room(roomId)?.getLiveTimeline().getEvents() ?? [];
    const read = events.filter((event) => event.getType() === "m.room.message" && !event.isDecryptionFailure());
    return read.map((event) => [event, event.getContent().body]);
  }

  event(roomId, eventId) {
    return this.room(roomId)?.findEventById(eventId);
  }

  /** Waits until the event is there and decrypted, and answers with its text. */
  async reads(roomId, eventId) {
    const decrypted = () => {
      const event = this.event(roomId, eventId);
      return event?.getClearContent() && !event.isDecryptionFailure() && event;
    };
    const event = await until(decrypted, `${this.userId} at ${this.deviceId} reads ${eventId}`);
    assert.equal(event.getWireType(), "m.room.encrypted");
    return event.getContent().body;
  }

  // Devices

  async devicesOf(person) {
    return (await this.crypto.getUserDeviceInfo([person.userId], true)).get(person.userId) ?? new Map();
  }

  async knows(person) {
    return (await this.devicesOf(person)).has(person.deviceId);
  }

  /** Whether that device is signed by its owner, whom this device trusts. */
  async trustsDevice(person) {
    const status = await this.crypto.getDeviceVerificationStatus(person.userId, person.deviceId);
    return Boolean(status?.crossSigningVerified);
  }

  async trusts(person) {
    return (await this.crypto.getUserVerificationStatus(person.userId)).isCrossSigningVerified();
  }
}

/** Claims the one-time keys of a person's device until the fallback key is all that is left: the names of both. */
export async function useUpKeys(server, person) {
  const { base, user, password } = server;
  const login = { type: "m.login.password", identifier: { type: "m.id.user", user }, password };
  const { access_token: accessToken } = await createClient({ baseUrl: base }).loginRequest(login);
  const client = createClient({ baseUrl: base, accessToken });
  const body = { one_time_keys: { [person.userId]: { [person.deviceId]: "signed_curve25519" } } };
  for (const oneTime = []; ; ) {
    const answer = await client.http.authedRequest("POST", "/keys/claim", undefined, body);
    const [[name, key]] = Object.entries(answer.one_time_keys[person.userId][person.deviceId]);
    if (key.fallback) return { oneTime, fallback: name };
    assert(!oneTime.includes(name), `${name} is given out twice`);
    oneTime.push(name);
  }
}

/** Both compare the short strings of a verification that `mine` asks for, and say that they are the same. */
export async function verifyBySas(asking, mine, asked) {
  const id = await until(() => mine.transactionId, "the verification has an ID");
  const theirs = await until(() => asked.requests.find((request) => request.transactionId === id), `${asked.userId} is asked`);
  await theirs.accept();
  await until(() => mine.phase === VerificationPhase.Ready, `the request of ${asking.userId} is accepted`);
  const verifier = await mine.startVerification("m.sas.v1");
  const other = await until(() => theirs.verifier, `the verification has begun at ${asked.userId}`);
  const shown = [verifier, other].map((of) => new Promise((resolve) => of.on(VerifierEvent.ShowSas, resolve)));
  const verified = [verifier, other].map((of) => of.verify());
  const strings = Promise.race([Promise.all(shown), Promise.all(verified).then(() => assert.fail("no strings"))]);
  const [one, two] = await within(PATIENCE, `both ${asking.userId} and ${asked.userId} see the strings`, strings);
  assert.deepEqual(one.sas, two.sas);
  await Promise.all([one.confirm(), two.confirm()]);
  await within(PATIENCE, `${asking.userId} and ${asked.userId} have verified each other`, Promise.all(verified));
}
