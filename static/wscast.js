// A room of a wscast server, for browsers and Node 22 or later: see wscast.d.ts.

const JSON_FORMAT = "wscast.v1.json";
const ID = /^(\d{1,19})-(\d{1,19})$/; // as a server takes it back
const PATIENCE = 10_000; // milliseconds

const now = () => performance.now();
const same = (a, b) => typeof a === typeof b && a.length === b.length && `${a}` === `${b}`;
const error = (code, message, more) => Object.assign(new Error(message), { code, ...more });
const unknown = (code) => error(code, "It may have arrived, or not");
const over = () => error("closed", "The room is closed");

/** Until the next try: ever longer and never all at once, or what is asked for ("retry after 5 s"). */
function delay(tries, reason) {
  const own = Math.min(30_000, 500 * 2 ** tries) * (1 - Math.random() / 2);
  const [, time = 0, unit] = /\bretry[- ]after[ :=]*(\d+(?:\.\d+)?) ?(ms|m)?/i.exec(reason) ?? [];
  const asked = Math.min(time * ({ ms: 1, m: 60_000 }[unit] ?? 1000), 3_600_000);
  return Math.max(own, asked * (1 + Math.random() / 10));
}

/** Messages from a link of their chain on, which leads to later ones alone: those that all loops have read are free. */
async function* follow(link) {
  for (let it; (it = await link).message; link = it.next) yield it.message;
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

  let socket, began, opened, due; // times: of the last try, of the connection, when the clock acts
  let looks = 0; // of the clock, since then
  let tries = 0;
  let offers = true; // a protocol
  let lost = false; // whether there was a connection before
  let limit, max; // milliseconds without an event, bytes of a message
  let ready = false; // to send
  let until = null; // the id that ends the replay
  let alives = 0; // in a row
  let line; // our messages of this connection: { you, sent: by number, count, back: the last to return }
  let lines = []; // and of earlier ones
  let waiting = []; // to be sent
  let posting;
  let held = []; // from a message on that may be the one being posted
  let tell, tail; // the next message
  const ours = new Set(); // connections, and ids of POSTs
  const seen = new Map(); // the last number of each epoch
  const life = new AbortController();
  const clock = setInterval(tick, 250);

  const emit = (type, fields) => room.dispatchEvent(Object.assign(new Event(type), fields));
  const bearer = () => (typeof token === "function" ? token() : token);
  const extend = () => (tail = new Promise((resolve) => (tell = resolve)));
  const start = () => flush((ready = true));
  const lose = () => socket && closed({ code: 1006, reason: "" });
  const release = () => held.splice(0).forEach(deliver);

  async function connect() {
    const own = (socket = {});
    room.state = "connecting";
    began = now();
    due = began + PATIENCE;
    try {
      const secret = await bearer();
      if (socket !== own) return;
      const last = held.at(-1)?.id ?? room.lastId;
      url.searchParams.set("since", last ?? "");
      socket = new WebSocket(url.href, secret ? [JSON_FORMAT, `bearer.${secret}`] : offers ? [JSON_FORMAT] : []);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => open(last);
      socket.onerror = () => {}; // Some throw it where nothing listens. A close follows.
      socket.onclose = closed;
    } catch (fault) {
      if (socket === own) closed({ code: 1006, reason: `${fault}` });
    }
  }

  function open(last) {
    const isJson = socket.protocol === JSON_FORMAT;
    opened = now();
    due = isJson ? opened + PATIENCE : Infinity;
    lines.push((line = { sent: new Map(), count: 0, back: 0 }));
    if (!isJson) welcome({}, lost);
    socket.onmessage = ({ data }) => {
      if (!isJson) {
        start();
        return deliver({ id: null, time: new Date(), data: typeof data === "string" ? data : new Uint8Array(data), mine: false });
      }
      try {
        heed(JSON.parse(data), data.length, last);
      } catch {
        // What is no event is passed over.
      }
    };
  }

  function drop() {
    if (socket) socket.onopen = socket.onmessage = socket.onclose = null;
    socket?.close?.();
    ready = false;
    until = socket = line = room.you = null;
  }

  function closed({ code, reason }) {
    drop();
    // A browser takes it for a failure when a server knows none of the protocols offered.
    if (!opened && !lost && !token && !(offers = !offers)) return void connect();
    if (opened && now() - opened > 5000) tries = 0;
    lost ||= opened > 0;
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
    if (room.state === "closed") return;
    drop();
    clearInterval(clock);
    life.abort();
    room.state = "closed";
    const sent = lines.flatMap((it) => [...it.sent.values()]);
    for (const item of [...sent, ...waiting, posting]) settle(item, item?.sent ? unknown("unconfirmed") : over());
    release();
    tell({});
    emit("close", { code, reason, retryIn: null });
  }

  function tick() {
    if (now() < due) looks = 0;
    else if (room.state === "waiting") connect();
    // At the second look: a clock that is late comes before the events of the meantime.
    else if (looks++) lose();
    if (room.you || room.state !== "open") return;
    // A server that is full accepts, and closes at once: what waits would be lost.
    if (!ready && now() - opened > 300) start();
    // Where nothing returns, what has left is all there is to know.
    if (!ready || socket.bufferedAmount) return;
    for (const item of line.sent.values()) settle(item, { confirmed: false });
    line.sent.clear();
  }

  function heed(event, size, last) {
    const { type, missed = null, count, bytes = 0, code, message, retry_after: retryAfter } = event;
    alives = type === "alive" ? alives + 1 : 0;
    // A message is seen only when it is whole, and large ones may follow each other.
    const isSlow = () => until || type === "large" || size > 65_536;
    if (type === "welcome") welcome(event, last);
    if (type === "message") receive(event);
    if (type === "clients") emit(type, { count: (room.clients = count) });
    if (type === "error") settle(line.sent.get(message), error(code, "The server did not take it", { retryAfter }));
    if (type === "gap") {
      judge();
      emit(type, { missed });
    }
    // With nothing between two of them the replay is over.
    if (alives > 1 && until) judge(line);
    due = now() + (isSlow() ? Math.max(limit, 60_000, bytes / 16) : limit);
    if (type !== "end") return;
    emit(type);
    finish(1000, "");
  }

  function welcome(event, last) {
    const { you = null, text = "", resumed = false, missed = null, last_id = null, ping_interval, ping_timeout } = event;
    ({ clients: room.clients = null, max_message_size: max = Infinity } = event);
    limit = ping_interval ? (ping_interval + ping_timeout) * 1000 : Infinity;
    room.you = line.you = you;
    if (you) remember(you);
    until = last_id === last ? null : last_id;
    room.state = "open";
    emit("open", { text, resumed });
    if (last && !resumed) emit("gap", { missed });
    if (!until) judge(line);
    if (you) start();
  }

  function receive({ id, time, from, name, text, binary }) {
    const [, epoch, number] = ID.exec(id) ?? [];
    if (number <= seen.get(epoch)) return;
    seen.set(epoch, +number);
    const data = text ?? Uint8Array.from(atob(binary), (it) => it.charCodeAt());
    const message = { id: epoch ? id : null, time: new Date(time), from, name, data, mine: ours.has(from) };
    if (message.mine) comeBack(message);
    if (held.length || (posting && !from && same(posting.data, data))) held.push(message);
    else deliver(message);
    if (id === until) judge(line);
  }

  function deliver(message) {
    room.lastId = message.id;
    if (ours.delete(message.id)) return;
    tell({ message, next: extend() });
    emit("message", message);
  }

  function remember(it) {
    if (ours.add(it).size > 1000) ours.delete(ours.values().next().value);
  }

  // Our messages of a connection return in the order in which they were sent. What has not, when the connection has
  // broken and the next one has told all up to its welcome, is not confirmed; it may still come.

  function send(data) {
    return new Promise((resolve, reject) => {
      const isText = typeof data === "string";
      if (isText) data = data.toWellFormed?.() ?? data;
      else if (data.byteLength >= 0) data = new Uint8Array(data.buffer ?? data, data.byteOffset, data.byteLength).slice();
      else throw new TypeError("A message is a string, an ArrayBuffer or a view of one");
      if (room.state === "closed") throw over();
      const body = new Blob([data], { type: isText ? "text/plain" : "application/octet-stream" });
      waiting.push({ data, body, resolve, reject });
      flush();
    });
  }

  function settle(item, result) {
    if (!item) return;
    item.done = true;
    item.line = null;
    unlist(item);
    if (result instanceof Error) item.reject(result);
    else item.resolve(result);
  }

  /** Takes one, or all, off those that are not confirmed. */
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

  /** After the replay, or a gap: what has not returned, but on this line, is not confirmed. */
  function judge(but) {
    until = null;
    const open = lines.flatMap((own) => [...own.sent.values()].filter((it) => own !== but && it.line === own));
    for (const item of open) item.line = null;
    if (resend === "always") waiting = [...open, ...waiting];
    else if (resend === "ask") room.unconfirmed = [...room.unconfirmed, ...open];
    else for (const item of open) settle(item, unknown("unconfirmed"));
    lines = lines.filter((it) => it === line || [...it.sent.values()].some(({ done }) => !done));
    flush();
  }

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
        const signal = AbortSignal.any([life.signal, AbortSignal.timeout(PATIENCE + (body.size >> 4))]);
        const answer = await fetch(url.href.replace("ws", "http"), { method: "POST", headers, body, signal });
        const { ok, status } = answer;
        if (ok) {
          const { id } = await answer.json();
          remember(id);
          return { id, confirmed: true };
        }
        if (status < 500 && status !== 408 && status !== 429) return error("refused", await answer.text(), { status });
        after = `retry after ${answer.headers.get("retry-after")}`;
      } catch {
        // It may have arrived: the key keeps it from being published twice.
      }
      await new Promise((resolve) => setTimeout(resolve, delay(tries, after)).unref?.());
    }
    return unknown("unconfirmed");
  }

  Object.assign(room, {
    lastId: ID.test(since) ? since : null,
    unconfirmed: [],
    send,
    resend(item) {
      waiting = [...unlist(item), ...waiting];
      flush();
    },
    discard: (item) => unlist(item).forEach((it) => settle(it, unknown("discarded"))),
    close: () => finish(1000, ""),
    [Symbol.asyncIterator]: () => follow(tail),
  });
  for (const type of ["online", "pageshow", "visibilitychange", "offline"]) {
    globalThis.addEventListener?.(type, type === "offline" ? lose : hurry, { signal: life.signal });
  }
  extend();
  connect();
}
