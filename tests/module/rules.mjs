// The rules of the client module, on a clock and a WebSocket that the tests drive. Run by tests/it/client_module.rs.

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

// ---- The world of the module ----

let time = 1000;
const intervals = new Set();
performance.now = () => time;
globalThis.setInterval = (act) => intervals.add(act) && act;
globalThis.clearInterval = (act) => intervals.delete(act);
const { Room } = await import("../../static/wscast.js");

/** Lets all that is settled be noticed. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

/** Lets time pass, in steps of the module's clock. */
async function pass(milliseconds) {
  for (const end = time + milliseconds; time < end; ) {
    time += 250;
    for (const act of intervals) act();
    await settled();
  }
}

const sockets = [];

class FakeWebSocket {
  readyState = 0;
  bufferedAmount = 0;
  protocol = "";
  sent = [];

  constructor(url, protocols) {
    Object.assign(this, { url: new URL(url), protocols });
    sockets.push(this);
  }

  send(data) {
    this.sent.push(data);
  }

  close() {
    this.readyState = 2;
  }

  open(protocol) {
    Object.assign(this, { protocol, readyState: 1 });
    this.onopen?.({});
  }

  tell(event) {
    this.onmessage?.({ data: typeof event === "object" ? JSON.stringify(event) : event });
  }

  welcome(you, more = {}) {
    this.open("wscast.v1.json");
    const limits = { max_message_size: 100, ping_interval: 10, ping_timeout: 5 };
    this.tell({ type: "welcome", you, text: "hi", last_id: null, resumed: false, missed: 0, clients: 1, ...limits, ...more });
  }

  message(id, text, more = {}) {
    this.tell({ type: "message", id, time: "2026-11-22T18:31:57.123Z", text, ...more });
  }

  shut(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
}

const newest = () => sockets.at(-1);
const rooms = [];
afterEach(() => {
  for (const room of rooms.splice(0)) room.close();
  assert.equal(intervals.size, 0);
});

/** A room, what it has told, and the fate of each message. */
function enter(options = {}) {
  const room = new Room("ws://test/lobby", { WebSocket: FakeWebSocket, ...options });
  rooms.push(room);
  const told = [];
  for (const type of ["open", "close", "gap", "clients", "end"]) {
    room.addEventListener(type, (event) => {
      const { isTrusted, ...fields } = Object.fromEntries(Object.entries(event));
      told.push({ type, ...fields });
    });
  }
  const got = [];
  room.addEventListener("message", ({ data }) => got.push(data));
  const fates = {};
  const send = (data, key = data) => {
    fates[key] = null;
    room.send(data).then(
      (it) => (fates[key] = it.id ?? it),
      (it) => (fates[key] = it.code),
    );
  };
  return { room, told, got, fates, send, ofType: (type) => told.filter((it) => it.type === type) };
}

async function joined(options, welcome) {
  const it = enter(options);
  await settled();
  newest().welcome("A", welcome);
  return it;
}

/** Breaks the connection and opens the next one. */
async function rejoined(you, welcome) {
  newest().shut();
  const before = sockets.length;
  await pass(4000);
  assert.equal(sockets.length, before + 1);
  newest().welcome(you, welcome);
}

// ---- One's own messages ----

test("a message is settled when it comes back, in the order of sending", async () => {
  const { send, fates } = await joined();
  for (const [key, text] of [["a", "x"], ["b", "x"], ["c", "y"]]) send(text, key);
  newest().message("1-1", "x", { from: "A" });
  newest().message("1-2", "x", { from: "B" });
  newest().message("1-3", "x", { from: "A" });
  await settled();
  assert.deepEqual(fates, { a: "1-1", b: "1-3", c: null });
});

test("an error rejects exactly the message that it numbers, be it early or late", async () => {
  const { send, fates } = await joined();
  for (const key of ["a", "b", "c", "d", "e"]) send(key === "d" ? "y" : "x", key);
  newest().tell({ type: "error", code: "unavailable", message: 2, retry_after: 2 });
  newest().message("1-1", "x", { from: "A" });
  newest().message("1-2", "y", { from: "A" });
  newest().message("1-3", "x", { from: "A" });
  newest().tell({ type: "error", code: "forbidden", message: 3 });
  await settled();
  assert.deepEqual(fates, { a: "1-1", b: "unavailable", c: "forbidden", d: "1-2", e: "1-3" });
});

test("one that an error rejects is not taken for a later one with the same text", async () => {
  const { send, fates } = await joined();
  for (const key of ["a", "b"]) send("x", key);
  newest().tell({ type: "error", code: "unavailable", message: 1 });
  newest().message("1-1", "x", { from: "A" });
  await settled();
  assert.deepEqual(fates, { a: "unavailable", b: "1-1" });
});

test("what has not come back by the end of the replay is not confirmed, and not before it", async () => {
  const { send, fates, room } = await joined();
  ["a", "b", "c"].forEach((it) => send(it));
  newest().message("1-1", "a", { from: "A" });
  newest().shut();
  send("d");
  await pass(1000);
  newest().welcome("B", { resumed: true, last_id: "1-3" });
  assert.equal(newest().url.searchParams.get("since"), "1-1");
  assert.deepEqual(newest().sent, ["d"]);
  newest().message("1-2", "b", { from: "A" });
  await settled();
  assert.deepEqual(fates, { a: "1-1", b: "1-2", c: null, d: null });
  newest().message("1-3", "of another", { from: "X" });
  await settled();
  assert.deepEqual(fates, { a: "1-1", b: "1-2", c: "unconfirmed", d: null });
  newest().message("1-4", "d", { from: "B" });
  await settled();
  assert.equal(fates.d, "1-4");
  assert.equal(room.lastId, "1-4");
});

test("a replay of nothing ends with the welcome, or where two signs of life have nothing between", async () => {
  for (const [resumed, last_id] of [[true, "1-1"], [false, null], [false, "2-9"]]) {
    const { send, fates } = await joined();
    newest().message("1-1", "of another");
    send("a");
    await rejoined("B", { resumed, last_id });
    if (last_id === "2-9") {
      newest().tell({ type: "alive" });
      newest().tell({ type: "clients", count: 2 });
      newest().tell({ type: "alive" });
      await settled();
      assert.equal(fates.a, null);
      newest().tell({ type: "alive" });
    }
    await settled();
    assert.equal(fates.a, "unconfirmed");
  }
});

test("a replay whose end is not kept ends with what is behind it", async () => {
  const { send, fates } = await joined();
  newest().message("1-1", "of another");
  send("a");
  await rejoined("B", { resumed: false, missed: 2, last_id: "1-3" });
  newest().message("1-4", "of another");
  await settled();
  assert.equal(fates.a, "unconfirmed");
});

test("with ask the promise waits, and a late return, resend() or discard() settles it", async () => {
  const { send, fates, room } = await joined({ resend: "ask" });
  ["a", "b", "c", "d"].forEach((it) => send(it));
  await rejoined("B");
  assert.deepEqual(room.unconfirmed.map(({ data }) => data), ["a", "b", "c", "d"]);
  newest().message("1-1", "a", { from: "A" });
  room.resend(room.unconfirmed[1]);
  room.discard(room.unconfirmed[1]);
  assert.deepEqual(newest().sent, ["c"]);
  assert.deepEqual(room.unconfirmed.map(({ data }) => data), ["b"]);
  newest().message("1-2", "c", { from: "B" });
  await settled();
  assert.deepEqual(fates, { a: "1-1", b: null, c: "1-2", d: "discarded" });
  room.resend();
  assert.deepEqual(newest().sent, ["c", "b"]);
  assert.deepEqual(room.unconfirmed, []);
});

test("one that waits to be sent again is not when it comes back late", async () => {
  const { send, fates, room } = await joined({ resend: "ask" });
  send("a");
  await rejoined("B");
  newest().shut();
  room.resend();
  await pass(2000);
  newest().welcome("C", { last_id: "1-1" });
  newest().readyState = 0;
  newest().message("1-1", "a", { from: "A" });
  await settled();
  assert.equal(fates.a, "1-1");
});

test("with always it is sent again after the replay and before what is newer, and settled once", async () => {
  const { send, fates, got } = await joined({ resend: "always" });
  ["a", "b"].forEach((it) => send(it));
  newest().shut();
  send("c");
  await pass(1000);
  newest().welcome("B", { last_id: "1-1" });
  assert.deepEqual(newest().sent, []);
  newest().message("1-1", "a", { from: "A" });
  assert.deepEqual(newest().sent, ["b", "c"]);
  newest().message("1-2", "b", { from: "A" });
  newest().message("1-3", "b", { from: "B" });
  newest().message("1-4", "c", { from: "B" });
  await settled();
  assert.deepEqual(fates, { a: "1-1", b: "1-2", c: "1-4" });
  assert.deepEqual(got, ["a", "b", "b", "c"]);
});

test("with always a message is sent once over each connection", async () => {
  const { send, fates } = await joined({ resend: "always" });
  send("a");
  await rejoined("B");
  assert.deepEqual(newest().sent, ["a"]);
  await rejoined("C");
  assert.deepEqual(newest().sent, ["a"]);
  newest().message("1-1", "a", { from: "A" });
  await rejoined("D");
  assert.deepEqual(newest().sent, []);
  await settled();
  assert.equal(fates.a, "1-1");
});

test("a placeholder of what was discarded keeps the order of what comes late", async () => {
  const { send, fates, room } = await joined({ resend: "ask" });
  send("x", "a");
  send("x", "b");
  await rejoined("B");
  room.discard(room.unconfirmed[0]);
  newest().message("1-1", "x", { from: "A" });
  await settled();
  assert.deepEqual(fates, { a: "discarded", b: null });
  newest().message("1-2", "x", { from: "A" });
  await settled();
  assert.equal(fates.b, "1-2");
});

test("what a gap may contain is not claimed", async () => {
  const { send, fates, ofType } = await joined();
  ["a", "b"].forEach((it) => send(it));
  newest().tell({ type: "gap", missed: 3 });
  newest().message("1-9", "b", { from: "A" });
  await settled();
  assert.deepEqual(fates, { a: "unconfirmed", b: "unconfirmed" });
  assert.deepEqual(ofType("gap"), [{ type: "gap", missed: 3 }]);
});

test("a message over the maximum is rejected before it is sent, and what is none at once", async () => {
  const { send, fates, room } = await joined();
  send("é".repeat(51), "large");
  send(new Uint8Array(100), "fits");
  await settled();
  assert.equal(fates.large, "too-big");
  assert.deepEqual(newest().sent, [new Uint8Array(100)]);
  for (const it of [5, {}, null]) await assert.rejects(room.send(it), TypeError);
});

test("bytes are copied, and known again", async () => {
  const { send, fates } = await joined();
  const bytes = new Uint8Array([0, 1, 2, 3]).subarray(1);
  send(bytes, "view");
  send(bytes.buffer, "buffer");
  send(new Uint16Array([0x100]), "words");
  bytes.fill(9);
  ["AQID", "AAECAw==", "AAE="].forEach((binary, at) => newest().tell({ type: "message", id: `1-${at + 1}`, from: "A", binary }));
  await settled();
  assert.deepEqual(fates, { view: "1-1", buffer: "1-2", words: "1-3" });
});

test("close() rejects what is open, with the truth", async () => {
  const { send, fates, room, ofType } = await joined({ resend: "ask" });
  send("a");
  newest().shut();
  send("b");
  room.close();
  send("c");
  await settled();
  assert.deepEqual(fates, { a: "unconfirmed", b: "closed", c: "closed" });
  assert.deepEqual(ofType("close").at(-1), { type: "close", code: 1000, reason: "", retryIn: null });
});

// ---- What is delivered ----

test("nothing comes twice, and what may be missing is told", async () => {
  const { got, ofType, room } = await joined();
  newest().message("5-1", "a");
  newest().message("5-2", "b");
  await rejoined("B", { resumed: false, missed: null, last_id: "6-4" });
  ["5-1", "5-2", "6-3", "6-4", "6-4"].forEach((id) => newest().message(id, id));
  assert.deepEqual(got, ["a", "b", "6-3", "6-4"]);
  assert.deepEqual(ofType("gap"), [{ type: "gap", missed: null }]);
  newest().message("no id", "c");
  assert.equal(room.lastId, null);
  await rejoined("C", { resumed: true });
  assert.equal(newest().url.searchParams.get("since"), "");
});

test("a loop gets everything from its beginning on, across connections, until the end", async () => {
  const { room, ofType } = await joined();
  const texts = async (most = Infinity) => {
    const all = [];
    for await (const { data } of room) if (all.push(data) >= most) break;
    return all;
  };
  const [all, one] = [texts(), texts(1)];
  newest().message("1-1", "a");
  await rejoined("B", { resumed: true, last_id: "1-1" });
  const late = texts();
  newest().message("1-2", "b");
  newest().tell({ type: "end" });
  assert.deepEqual(await Promise.all([all, one, late, texts()]), [["a", "b"], ["a"], ["b"], []]);
  assert.equal(ofType("end").length, 1);
  assert.equal(room.state, "closed");
});

test("one's own messages are known, those of earlier connections as well", async () => {
  const { room } = await joined();
  const mine = [];
  room.addEventListener("message", (event) => mine.push(event.mine));
  newest().message("1-1", "a", { from: "A" });
  await rejoined("B");
  newest().message("1-2", "b", { from: "A" });
  newest().message("1-3", "c", { from: "B" });
  newest().message("1-4", "d", { from: "X" });
  newest().message("1-5", "e");
  assert.deepEqual(mine, [true, true, true, false, false]);
});

test("types, fields and texts that are unknown are passed over", async () => {
  const { got, room } = await joined();
  for (const it of ["no JSON", "null", "[]", "7", "{}", '{"type":"constructor"}', '{"type":"message","id":"1-1"}']) newest().tell(it);
  newest().tell({ type: "message", id: "1-2", binary: "%" });
  newest().message("1-3", "a", { unknown: 1 });
  assert.deepEqual(got, ["a"]);
  assert.equal(room.state, "open");
});

// ---- The connection ----

test("it comes back ever later, and as late as a close asks for", async () => {
  const { ofType, room } = await joined();
  newest().shut(1001, "retry-after=7");
  const { retryIn } = ofType("close")[0];
  assert.ok(retryIn >= 7000 && retryIn <= 7700, `${retryIn}`);
  await pass(6750);
  assert.equal(room.state, "waiting");
  await pass(1250);
  for (const most of [1000, 2000, 4000]) {
    newest().shut();
    const { retryIn } = ofType("close").at(-1);
    assert.ok(retryIn >= most / 2 && retryIn <= most, `${retryIn}`);
    await pass(most + 250);
  }
  newest().welcome("B");
  await pass(6000);
  newest().shut();
  assert.ok(ofType("close").at(-1).retryIn <= 500);
});

test("some codes end it", async () => {
  for (const [code, state] of [[1008, "closed"], [4000, "closed"], [4999, "closed"], [1000, "waiting"], [3999, "waiting"], [1013, "waiting"]]) {
    const { room } = await joined();
    newest().shut(code, "");
    assert.equal(room.state, state, `${code}`);
  }
});

test("a silent connection is given up in time, and a living one is kept", async () => {
  const { room } = await joined();
  const socket = newest();
  for (let i = 0; i < 5; i++) {
    await pass(10_000);
    socket.tell({ type: "alive" });
  }
  await pass(14_750);
  assert.equal(room.state, "open");
  await pass(750);
  assert.equal(room.state, "waiting");
});

test("there is patience with a replay, with large messages and after them, and without pings always", async () => {
  const patient = async (welcome, act, most) => {
    const { room, ofType } = await joined({}, { max_message_size: 1e7, ...welcome });
    act(newest());
    await pass(most - 250);
    assert.equal(room.state, "open");
    await pass(1000);
    return ofType("close").length ? "lost" : "open";
  };
  assert.equal(await patient({ last_id: "1-2" }, () => {}, 60_000), "lost");
  assert.equal(await patient({ last_id: "1-2" }, (it) => it.message("1-2", "a"), 15_000), "lost");
  assert.equal(await patient({}, (it) => it.message("1-2", "a".repeat(65_536)), 60_000), "lost");
  assert.equal(await patient({}, (it) => it.tell({ type: "large", bytes: 100_000 }), 60_000), "lost");
  assert.equal(await patient({}, (it) => it.tell({ type: "large", bytes: 1_600_000 }), 100_000), "lost");
  assert.equal(await patient({ ping_interval: 100, ping_timeout: 20, last_id: "1-2" }, () => {}, 120_000), "lost");
  assert.equal(await patient({ ping_interval: 0 }, () => {}, 1_000_000), "open");
});

test("a clock that is late kills nothing that lives", async () => {
  const { room } = await joined();
  time += 3_600_000;
  for (const act of intervals) act();
  newest().tell({ type: "alive" });
  await pass(14_000);
  assert.equal(room.state, "open");
});

test("no connection, or no welcome, is a failure after ten seconds", async () => {
  for (const isOpen of [false, true]) {
    const { room, ofType } = enter({ token: "t" });
    await settled();
    if (isOpen) newest().open("wscast.v1.json");
    await pass(10_000);
    assert.notEqual(room.state, "waiting");
    await pass(250);
    assert.equal(room.state, "waiting");
    assert.equal(ofType("close").length, 1);
  }
});

test("a room that is closed while it asks for a token connects no more", async () => {
  const { room } = enter({ token: async () => "t" });
  const before = sockets.length;
  room.close();
  await settled();
  assert.equal(sockets.length, before);
});

test("a token is asked for at each connection and offered beside the format", async () => {
  let count = 0;
  const { room } = enter({ token: async () => (++count === 2 ? Promise.reject(new Error("none today")) : `t${count}`) });
  await settled();
  assert.deepEqual(newest().protocols, ["wscast.v1.json", "bearer.t1"]);
  newest().shut();
  await pass(1000);
  assert.equal(room.state, "waiting");
  await pass(1500);
  assert.deepEqual(newest().protocols, ["wscast.v1.json", "bearer.t3"]);
});

// ---- Plain servers ----

/** The tries to connect to a server that knows no protocol, up to the one that it accepts. */
async function refusesProtocols() {
  assert.deepEqual(newest().protocols, ["wscast.v1.json"]);
  newest().shut();
  await settled();
  assert.deepEqual(newest().protocols, []);
  const probe = newest();
  probe.open("");
  await settled();
  // It is there now: so it may know the protocol after all.
  assert.equal(probe.readyState, 2);
  assert.deepEqual(newest().protocols, ["wscast.v1.json"]);
  newest().shut();
  await settled();
  assert.deepEqual(newest().protocols, []);
}

test("a server that comes late is asked for its protocol again, and again after a restart", async () => {
  const { room, got } = enter();
  await settled();
  newest().shut();
  await settled();
  newest().shut();
  await pass(1000);
  assert.deepEqual(newest().protocols, ["wscast.v1.json"]);
  newest().shut();
  await settled();
  assert.deepEqual(newest().protocols, []);
  newest().open("");
  await settled();
  newest().welcome("me");
  newest().message("1-1", "a");
  assert.deepEqual([room.you, room.lastId, got], ["me", "1-1", ["a"]]);
  newest().shut();
  await pass(1000);
  newest().shut();
  await pass(2000);
  assert.deepEqual(newest().protocols, ["wscast.v1.json"]);
});

test("a failure is noticed where no close follows the error, as in Node 22", async () => {
  const { room, ofType } = await joined();
  newest().shut();
  await pass(1000);
  const failed = newest();
  // Node tells of it once more as it is closed.
  failed.close = () => failed.onerror({ target: failed });
  failed.onerror({ target: failed });
  assert.equal(room.state, "waiting");
  assert.equal(ofType("close").length, 2);
  await pass(2000);
  assert.notEqual(newest(), failed);
  // Of a connection that is given up, nothing counts.
  failed.onerror({ target: failed });
  assert.equal(room.state, "connecting");
});

test("what cannot be is refused at once", () => {
  for (const [url, options] of [
    ["ftp://example.com/"],
    ["ws://example.com/", { name: "x".repeat(65) }],
    ["ws://example.com/", { WebSocket: null }],
  ]) {
    assert.throws(() => new Room(url, options), TypeError);
  }
  enter({ name: "👩‍🚀".repeat(21) });
});

test("a plain server is tried without a protocol, and what has left is sent", async () => {
  const { room, send, fates, got, ofType } = enter({ resend: "ask" });
  await settled();
  await refusesProtocols();
  send("a");
  newest().open("");
  assert.deepEqual(newest().sent, []);
  newest().bufferedAmount = 1;
  await pass(500);
  assert.deepEqual(newest().sent, ["a"]);
  assert.equal(fates.a, null);
  newest().bufferedAmount = 0;
  await pass(250);
  assert.deepEqual(fates.a, { confirmed: false });
  newest().tell('{"type":"end"}');
  assert.deepEqual(got, ['{"type":"end"}']);
  newest().bufferedAmount = 1;
  send("b");
  newest().shut();
  await pass(1000);
  newest().open("");
  assert.equal(room.unconfirmed[0].data, "b");
  assert.equal(ofType("gap").length, 1);
});

test("a failure that no close follows is one, and only once", async () => {
  const { room, ofType } = enter({ token: "t" });
  await settled();
  const socket = newest();
  socket.close = () => socket.onerror({ target: socket });
  socket.onerror({ target: socket });
  assert.equal(room.state, "waiting");
  socket.shut();
  assert.equal(ofType("close").length, 1);
  await pass(1000);
  assert.notEqual(newest(), socket);
  newest().welcome("A");
  newest().onerror({ target: newest() });
  newest().shut(1013, "too slow");
  assert.deepEqual(ofType("close").map(({ code }) => code), [1006, 1013]);
});

test("a server that accepts and closes at once swallows nothing", async () => {
  const { send, fates } = enter();
  send("a");
  await settled();
  newest().open("");
  await pass(250);
  newest().shut(1013);
  assert.deepEqual(newest().sent, []);
  assert.equal(fates.a, null);
});

// ---- By POST ----

/** A room that posts, and its requests, which the test answers. */
async function posting() {
  const requests = [];
  globalThis.fetch = (url, options) => new Promise((resolve, reject) => requests.push({ url: new URL(url), ...options, resolve, reject }));
  globalThis.setTimeout = (act) => setImmediate(act);
  const it = await joined({ echo: false, name: "Ann", token: "t" });
  const answer = async (status, body = {}) => {
    requests.at(-1).resolve(new Response(JSON.stringify(body), { status }));
    await settled();
    await settled();
  };
  return { ...it, requests, answer };
}

test("a message goes by POST, and is left out of what is delivered, be it early or late", async () => {
  const { send, fates, got, requests, answer, room } = await posting();
  send("a");
  send("b");
  await settled();
  assert.equal(requests.length, 1);
  const { url, method, headers, body } = requests[0];
  assert.deepEqual([url.protocol, url.pathname, url.searchParams.get("name"), method], ["http:", "/lobby", "Ann", "POST"]);
  assert.deepEqual([headers.Authorization, body.type, await body.text()], ["Bearer t", "text/plain", "a"]);
  newest().message("1-1", "of a connection", { from: "X" });
  newest().message("1-2", "a");
  newest().message("1-3", "later");
  assert.deepEqual(got, ["of a connection"]);
  assert.equal(room.lastId, "1-1");
  await answer(201, { id: "1-2" });
  assert.deepEqual(got, ["of a connection", "later"]);
  assert.equal(room.lastId, "1-3");
  assert.equal(await requests[1].body.text(), "b");
  newest().message("1-4", "b");
  newest().shut();
  await pass(1000);
  assert.equal(newest().url.searchParams.get("since"), "1-4");
  newest().welcome("B", { resumed: true, last_id: "1-4" });
  await answer(201, { id: "1-5" });
  assert.deepEqual(got, ["of a connection", "later", "b"]);
  newest().message("1-5", "b");
  newest().message("1-6", "c");
  assert.deepEqual(got, ["of a connection", "later", "b", "c"]);
  assert.deepEqual(fates, { a: "1-2", b: "1-5" });
});

test("messages of others wait for the answer to a POST, but not for long", async () => {
  const { send, got } = await posting();
  send("a");
  await settled();
  newest().message("1-1", "a");
  newest().message("1-2", "of another", { from: "X" });
  await pass(4500);
  assert.deepEqual(got, []);
  await pass(1000);
  assert.deepEqual(got, ["a", "of another"]);
});

test("a POST is tried again with the same key, and rejected where the server refuses it", async () => {
  const { send, fates, requests, answer } = await posting();
  send("a");
  await settled();
  requests[0].reject(new TypeError("no network"));
  await settled();
  await settled();
  await answer(503);
  await answer(429);
  await answer(200, { id: "1-1" });
  assert.equal(new Set(requests.map(({ headers }) => headers["Idempotency-Key"])).size, 1);
  assert.equal(requests.length, 4);
  send("b");
  await settled();
  await answer(422);
  assert.deepEqual(fates, { a: "1-1", b: "refused" });
  assert.notEqual(requests[4].headers["Idempotency-Key"], requests[3].headers["Idempotency-Key"]);
  send("c");
  for (let i = 0; i < 8; i++) {
    await settled();
    await answer(503);
  }
  assert.equal(fates.c, "unconfirmed");
});
