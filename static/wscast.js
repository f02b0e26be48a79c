// A room of a wscast server, for browsers and Node 22 or later. wscast.d.ts says how to use it.

const JSON_PROTOCOL = "wscast.v1.json";
const ID = /^(\d{1,19})-(\d{1,19})$/; // as a server takes it back
const OPEN_PATIENCE = 10_000; // milliseconds
const OPEN_ENDED = "It may have arrived, or not";

const now = () => performance.now();
const error = (code, message, more) => Object.assign(new Error(message), { code, ...more });
const same = (a, b) => typeof a === typeof b && a.length === b.length && `${a}` === `${b}`;

function attempt(read) {
  try {
    return read();
  } catch {
    return null;
  }
}

function remember(set, value) {
  if (set.add(value).size > 1000) set.delete(set.values().next().value);
}

/** Milliseconds until the next try: ever more and never all at once, or what is asked for ("retry after 5 s"). */
function delay(tries, reason) {
  const own = Math.min(30_000, 500 * 2 ** tries) * (1 - Math.random() / 2);
  const asked = /\bretry[- ]after[ :=]*(\d+(?:\.\d+)?) ?(ms|m)?/i.exec(reason);
  if (!asked) return own;
  const unit = { ms: 1, m: 60_000 }[asked[2]?.toLowerCase()] ?? 1000;
  return Math.max(own, Math.min(asked[1] * unit, 3_600_000) * (1 + Math.random() / 10));
}

/** A link of the chain of messages. It leads to later ones alone: what all loops have read is free. */
function link() {
  const it = {};
  it.next = new Promise((resolve) => (it.tell = resolve));
  return it;
}

async function* follow({ next }) {
  for (let it; (it = await next).message; next = it.next) yield it.message;
}

export class Room extends EventTarget {
  constructor(url, options = {}) {
    super();
    run(this, new URL(url, globalThis.location?.href), options);
  }
}

function run(room, url, { name, since, token, echo, resend, WebSocket = globalThis.WebSocket }) {
  url.protocol = url.protocol.replace("http", "ws");
  url.hash = "";
  if (!/^wss?:/.test(url) || !WebSocket) throw new TypeError("A room needs a ws:// or wss:// address, and a WebSocket");
  url.searchParams.set("clients", "");
  if (name) url.searchParams.set("name", name);

  let socket = null;
  let began, opened, due; // times: of the last try, of the connection, and when the clock acts
  let looks = 0; // of the clock, since then
  let tries = 0;
  let offers = true; // a protocol
  let lost = false; // whether there was a connection before
  let limit; // milliseconds without an event
  let max; // bytes of a message
  let ready = false; // to send
  let until = null; // the id that ends the replay
  let alives = 0; // in a row
  let line = null; // our messages of this connection: { you, sent: by number, count, back: the number of the last to return }
  let lines = []; // with earlier ones, whose messages may return
  let waiting = []; // to be sent
  let posting = null;
  let held = []; // messages from one on that may be the one being posted
  let tail = link();
  const posted = new Set(); // ids
  const yous = new Set();
  const seen = new Map(); // the last number of each epoch
  const over = new AbortController();
  const clock = setInterval(tick, 250);

  const emit = (type, fields) => room.dispatchEvent(Object.assign(new Event(type), fields));
  const bearer = async () => (typeof token === "function" ? token() : token);

  // ---- The connection ----

  async function connect() {
    const own = (socket = {});
    room.state = "connecting";
    began = now();
    due = began + OPEN_PATIENCE;
    try {
      const secret = await bearer();
      if (socket !== own) return;
      const last = held.at(-1)?.id ?? room.lastId;
      url.searchParams.set("since", last ?? "");
      socket = new WebSocket(url.href, secret ? [JSON_PROTOCOL, `bearer.${secret}`] : offers ? [JSON_PROTOCOL] : []);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => open(last);
      socket.onerror = () => {}; // Some throw it where nothing listens. A close follows.
      socket.onclose = closed;
    } catch (fault) {
      if (socket === own) closed({ code: 1006, reason: `${fault}` });
    }
  }

  function open(last) {
    opened = now();
    due = opened + OPEN_PATIENCE;
    lines.push((line = { sent: new Map(), count: 0, back: 0 }));
    if (socket.protocol === JSON_PROTOCOL) {
      socket.onmessage = ({ data }) => heed(data, last);
      return;
    }
    due = Infinity;
    socket.onmessage = ({ data }) => {
      start();
      deliver({ id: null, time: new Date(), data: typeof data === "string" ? data : new Uint8Array(data), mine: false });
    };
    welcome({}, lost);
  }

  function start() {
    ready = true;
    flush();
  }

  function drop() {
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    socket?.close?.();
    ready = false;
    until = socket = line = room.you = null;
  }

  function lose() {
    if (socket) closed({ code: 1006, reason: "" });
  }

  function closed({ code, reason }) {
    drop();
    // A browser takes it for a failure when a server knows none of the protocols offered.
    if (!opened && !lost && !token && !(offers = !offers)) return void connect();
    lost ||= opened > 0;
    if (opened && now() - opened > 5000) tries = 0;
    opened = 0;
    // A server that refuses would refuse again.
    if (code === 1008 || (code >= 4000 && code < 5000)) return finish(code, reason);
    const retryIn = delay(tries++, reason);
    due = now() + retryIn;
    room.state = "waiting";
    emit("close", { code, reason, retryIn });
  }

  /** Tries at once, as something has changed; but not more than once a second. */
  function hurry() {
    if (room.state === "waiting" && !globalThis.document?.hidden) due = Math.min(due, began + 1000);
  }

  function finish(code, reason) {
    drop();
    clearInterval(clock);
    room.state = "closed";
    over.abort();
    for (const item of [...lines.flatMap(({ sent }) => [...sent.values()]), posting, ...waiting]) {
      settle(item, item?.sent ? error("unconfirmed", OPEN_ENDED) : error("closed", "The room is closed"));
    }
    release();
    tail.tell({});
    emit("close", { code, reason, retryIn: null });
  }

  function tick() {
    if (now() < due) looks = 0;
    else if (room.state === "waiting") connect();
    // At the second look: a clock that is late comes before the events of the meantime.
    else if (looks++) lose();
    if (!line || room.you || room.state !== "open") return;
    // A server that is full accepts, and closes at once: what waits would be lost.
    if (!ready && now() - opened > 300) start();
    // Of one that tells nothing, what has left is all there is to know.
    if (!ready || socket.bufferedAmount) return;
    for (const item of line.sent.values()) settle(item, { confirmed: false });
    line.sent.clear();
  }

  // ---- Events ----

  function heed(data, last) {
    const event = attempt(() => JSON.parse(data)) ?? {};
    const { type, missed = null, count, bytes = 0, code, message, retry_after: retryAfter } = event;
    alives = type === "alive" ? alives + 1 : 0;
    if (type === "welcome") welcome(event, last);
    if (type === "message") receive(event);
    if (type === "clients") emit(type, { count: (room.clients = count) });
    if (type === "error") settle(line.sent.get(message), error(code, "The server did not take it", { retryAfter }));
    if (type === "gap") {
      judge();
      emit(type, { missed });
    }
    // Nothing came between the two: nothing is left of the replay.
    if (until && alives > 1) judge(line, (room.lastId = until));
    // A script sees a message only when it is whole, and large ones may follow each other.
    const slow = until || type === "large" || data.length > 65_536;
    due = now() + (slow ? Math.max(limit, 60_000, bytes / 16) : limit);
    if (type !== "end") return;
    emit(type);
    room.close();
  }

  function welcome(event, last) {
    const { text = "", resumed = false, missed = null, last_id = null, ping_interval, ping_timeout } = event;
    ({ you: line.you = null, clients: room.clients = null, max_message_size: max = Infinity } = event);
    room.you = line.you;
    if (room.you) remember(yous, room.you);
    limit = ping_interval ? (ping_interval + ping_timeout) * 1000 : Infinity;
    until = last_id === last ? null : last_id;
    room.state = "open";
    emit("open", { text, resumed });
    if (last && !resumed) emit("gap", { missed });
    if (!until) judge(line);
    if (room.you) start();
  }

  function receive({ id, time, from, name, text, binary }) {
    const [, epoch, number] = ID.exec(id) ?? [];
    if (number <= seen.get(epoch)) return;
    seen.set(epoch, +number);
    const data = text ?? attempt(() => Uint8Array.from(atob(binary), (it) => it.charCodeAt()));
    const message = { id: epoch ? id : null, time: new Date(time), from, name, data, mine: yous.has(from) };
    if (message.mine) comeBack(message);
    if (held.length || (posting && !from && same(posting.data, data))) held.push(message);
    else deliver(message);
    if (id === until) judge(line);
  }

  function deliver(message) {
    room.lastId = message.id;
    if (posted.delete(message.id)) return;
    const { tell } = tail;
    tail = link();
    tell({ message, next: tail.next });
    emit("message", message);
  }

  function release() {
    for (const message of held.splice(0)) deliver(message);
  }

  // ---- One's own messages ----
  // Those of a connection return in the order in which they were sent. What has not when the connection broke and the
  // next one has told all up to its welcome, is not confirmed; it may still come.

  function send(data) {
    return new Promise((resolve, reject) => {
      if (typeof data === "string") data = data.toWellFormed?.() ?? data;
      else if (data.byteLength >= 0) data = new Uint8Array(data.buffer ?? data, data.byteOffset, data.byteLength).slice();
      else throw new TypeError("A message is a string, an ArrayBuffer or a view of one");
      if (room.state === "closed") throw error("closed", "The room is closed");
      const type = typeof data === "string" ? "text/plain" : "application/octet-stream";
      waiting.push({ data, body: new Blob([data], { type }), resolve, reject });
      flush();
    });
  }

  function settle(item, result) {
    if (!item) return;
    item.done = true;
    unlist(item);
    if (result instanceof Error) item.reject(result);
    else item.resolve(result);
  }

  /** Takes an item, or all, off those that are not confirmed. */
  function unlist(item) {
    const all = room.unconfirmed;
    room.unconfirmed = all.filter((it) => item && it !== item);
    return all.filter((it) => !item || it === item);
  }

  function next() {
    for (let item; (item = waiting.shift()); ) {
      if (item.body.size > max) settle(item, error("too-big", `A message has ${max} bytes at most`));
      if (!item.done) return Object.assign(item, { sent: true, line });
    }
  }

  function flush() {
    if (echo === false) return void post();
    // What is sent again goes first.
    if (!ready || (until && resend === "always" && lines[1])) return;
    for (let item; socket.readyState === 1 && (item = next()); socket.send(item.data)) line.sent.set(++line.count, item);
  }

  function comeBack({ id, time, from, data }) {
    const own = lines.find((it) => it.you === from);
    for (const [number, item] of own?.sent ?? []) {
      // One that was not taken leaves a hole.
      if (number <= own.back || !same(item.data, data)) continue;
      own.back = number;
      own.sent.delete(number);
      return settle(item, { id, time, confirmed: true });
    }
  }

  /** At the end of the replay, or where a part of it is missing: what has not returned, but on this line, is not confirmed. */
  function judge(but) {
    until = null;
    const again = [];
    for (const own of lines) {
      for (const item of own === but ? [] : own.sent.values()) {
        if (item.done || item.line !== own) continue;
        item.line = null;
        if (resend === "always") again.push(item);
        else if (resend === "ask") room.unconfirmed.push(item);
        else settle(item, error("unconfirmed", OPEN_ENDED));
      }
    }
    waiting = [...again, ...waiting];
    lines = lines.filter((it) => it === line || [...it.sent.values()].some(({ done }) => !done));
    flush();
  }

  // ---- By POST ----

  async function post() {
    while (!posting && (posting = next())) {
      settle(posting, await answerTo(posting.body));
      posting = null;
      release();
    }
  }

  async function answerTo(body) {
    const headers = { "Idempotency-Key": crypto.getRandomValues(new Uint8Array(16)).join("-") };
    for (let tries = 0; tries < 8 && room.state !== "closed"; tries++) {
      let after;
      try {
        const secret = await bearer();
        if (secret) headers.Authorization = `Bearer ${secret}`;
        const signal = AbortSignal.any([over.signal, AbortSignal.timeout(OPEN_PATIENCE + body.size / 16)]);
        const answer = await fetch(url.href.replace("ws", "http"), { method: "POST", headers, body, signal });
        const { ok, status } = answer;
        if (ok) {
          const { id } = await answer.json();
          remember(posted, id);
          return { id, confirmed: true };
        }
        if (status < 500 && status !== 408 && status !== 429) return error("refused", await answer.text(), { status });
        after = `retry after ${answer.headers.get("retry-after")}`;
      } catch {
        // It may have arrived; the key keeps it from being published twice.
      }
      await new Promise((resolve) => setTimeout(resolve, delay(tries, after)).unref?.());
    }
    return error("unconfirmed", OPEN_ENDED);
  }

  Object.assign(room, {
    lastId: ID.test(since) ? since : null,
    unconfirmed: [],
    send,
    resend(item) {
      waiting = [...unlist(item), ...waiting];
      flush();
    },
    discard: (item) => unlist(item).forEach((it) => settle(it, error("discarded", OPEN_ENDED))),
    close: () => room.state === "closed" || finish(1000, ""),
    [Symbol.asyncIterator]: () => follow(tail),
  });
  for (const type of ["online", "pageshow", "visibilitychange", "offline"]) {
    globalThis.addEventListener?.(type, type === "offline" ? lose : hurry, { signal: over.signal });
  }
  connect();
}
