// A room of a wscast server: see wscast.d.ts.

const FORMAT = "wscast.v1.json";
const ID = /^(\d{1,19})-(\d{1,19})$/;


const now = () => performance.now();
const same = (a, b) => typeof a === typeof b && `${a}` === `${b}`;
const error = (code, message = "It may have arrived", more) => Object.assign(new Error(message), { code }, more);
function demand(is, message) {
	if (!is) throw new TypeError(message);
}
const over = () => error("closed", "The room is closed");

/** Ever longer, at random, or as asked. */
function delay(tries, reason) {
	const own = Math.min(3e4, 500 * 2 ** tries) * (1 - Math.random() / 2);
	const [, time = 0, unit] = /\bretry[- ]after[ :=]*(\d+(?:\.\d+)?) ?(ms|m)?/i.exec(reason) ?? [];
	return Math.max(own, Math.min(time * ({ ms: 1, m: 6e4 }[unit] ?? 1000), 3.6e6) * (1 + Math.random() / 10));
}

/** What all loops have read is free. */
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
	demand(/^wss?:/.test(url) && WebSocket, "Needs a ws:// address, and a WebSocket");
	demand([...(name ?? "")].length < 65, "A name has at most 64 characters");
	url.searchParams.set("clients", "");
	if (name) url.searchParams.set("name", name);

	let socket, line, posting, tell, tail, ready;
	let until; // the id that ends the replay
	let lost; // a connection, once
	let began, opened, posted, due;
	let limit, max; // of silence, in ms; of bytes
	let plain, probed; // no protocol is offered, or was
	let tries = 0;
	let alives = 0;
	let lines = []; // sent, by connection
	let waiting = [];
	let held = []; // behind what may be ours
	const ours = new Set(); // connections, POSTs
	const seen = new Map(); // the last of each epoch
	const life = new AbortController();
	const { signal } = life;
	const clock = setInterval(tick, 250);

	const emit = (type, fields) => room.dispatchEvent(Object.assign(new Event(type), fields));
	const bearer = () => (token?.call ? token() : token);
	const extend = () => (tail = new Promise((resolve) => (tell = resolve)));
	const start = () => flush((ready = true));
	const lose = () => socket && closed({ code: 1006, reason: "" });
	const hurry = () => room.state === "waiting" && !globalThis.document?.hidden && (due = Math.min(due, began + 1000));
	const release = () => held.splice(0).forEach(deliver);
	const sentOn = ({ sent }) => [...sent.values()];
	const asked = (item) => [...new Set(lines.flatMap(sentOn))].filter((it) => it.asks && (!item || it === item));

	async function connect() {
		drop();
		const own = (socket = {});
		room.state = "connecting";
		began = now();
		due = began + 1e4;
		try {
			const secret = await bearer();
			if (socket !== own) return;
			const last = held.at(-1)?.id ?? room.lastId;
			url.searchParams.set("since", last ?? "");
			socket = new WebSocket(url.href, secret ? [FORMAT, `bearer.${secret}`] : plain ? [] : [FORMAT]);
			socket.binaryType = "arraybuffer";
			socket.onopen = () => open(last);
			// Browsers add a close.
			socket.onerror = ({ target }) => target === socket && !opened && lose();
			socket.onclose = closed;
		} catch (fault) {
			if (socket === own) closed({ code: 1006, reason: `${fault}` });
		}
	}

	function open(last) {
		// Perhaps the first try came too early.
		if (plain && !probed) {
			plain = !(probed = true);
			return connect();
		}
		const isJson = socket.protocol === FORMAT;
		opened = now();
		due = isJson ? opened + 1e4 : Infinity;
		lines.push((line = { sent: new Map(), count: 0, back: 0 }));
		socket.onmessage = ({ data }) => {
			try {
				if (isJson) return heed(JSON.parse(data), data.length, last);
			} catch {
				return;
			}
			start();
			deliver({ id: null, time: new Date(), data: typeof data === "string" ? data : new Uint8Array(data), mine: false });
		};
		if (!isJson) welcome({}, lost);
	}

	function drop() {
		const old = socket ?? {};
		ready = until = socket = line = room.you = old.onopen = old.onmessage = old.onclose = null;
		old.close?.();
	}

	function closed({ code, reason }) {
		drop();
		// Browsers fail where no protocol is known.
		if (!opened && !lost && !token && (plain = !plain)) return connect();
		if (opened && now() - opened > 5000) tries = 0;
		lost ||= opened > 0;
		opened = 0;
		// It would refuse again.
		if (code === 1008 || code >= 4000) return finish(code, reason);
		room.state = "waiting";
		const retryIn = delay(tries++, reason);
		due = now() + retryIn;
		emit("close", { code, reason, retryIn });
	}

	function finish(code = 1000, reason = "") {
		if (signal.aborted) return;
		drop();
		clearInterval(clock);
		life.abort();
		room.state = "closed";
		for (const item of [...lines.flatMap(sentOn), ...waiting, posting]) settle(item, item?.sent ? error("unconfirmed") : over());
		release();
		tell({});
		emit("close", { code, reason, retryIn: null });
	}

	function tick() {
		const isDue = now() >= due;
		if (isDue && room.state === "waiting") connect();
		// Twice: a late clock comes before events.
		else if (isDue && due) due = 0;
		else if (isDue) lose();
		if (now() - posted > 5000) release();
		if (room.you || room.state !== "open") return;
		// A full server closes at once.
		if (!ready && now() - opened > 300) start();
		// It has left: no more is known.
		if (!ready || socket.bufferedAmount) return;
		for (const item of sentOn(line)) settle(item, { confirmed: false });
		line.sent.clear();
	}

	function heed(event, size, last) {
		const { type, missed = null, count, bytes = 0, code, message, retry_after: retryAfter } = event;
		alives = type === "alive" ? alives + 1 : 0;
		if (type === "welcome") welcome(event, last);
		if (type === "message") receive(event);
		if (type === "clients") emit(type, { count: (room.clients = count) });
		if (type === "error") {
			settle(line.sent.get(message), error(code, "Not taken", { retryAfter }));
			line.sent.delete(message);
		}
		if (type === "gap") judge(), emit(type, { missed });
		// The replay is over.
		if (alives > 1 && until) judge(line);
		// Scripts see whole messages alone.
		due = now() + (until || type === "large" || size > 65_536 ? Math.max(limit, 6e4, bytes / 16) : limit);
		if (type !== "end") return;
		emit(type);
		finish();
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
		comeBack(message);
		if (held[0] || (posting && !from && same(posting.data, data))) held.push(message);
		else deliver(message);
		// Or a later one: it may not be kept.
		const [, last, end] = ID.exec(until) ?? [];
		if (seen.get(last) >= end) judge(line);
	}

	function deliver(message) {
		room.lastId = message.id;
		if (ours.delete(message.id)) return;
		tell({ message, next: extend() });
		emit("message", message);
	}

	function remember(it) {
		const [oldest] = ours.add(it);
		if (ours.size > 1000) ours.delete(oldest);
	}

	// Ours return in order. What has not by the end of the next replay may still come.

	function send(data) {
		return new Promise((resolve, reject) => {
			const isText = typeof data === "string";
			if (isText) data = data.toWellFormed?.() ?? data;
			else {
				demand(data?.byteLength >= 0, "A message is a string or bytes");
				data = new Uint8Array(data.buffer ?? data, data.byteOffset, data.byteLength).slice();
			}
			if (signal.aborted) throw over();
			const body = new Blob([data], { type: isText ? "text/plain" : "application/octet-stream" });
			waiting.push({ data, body, resolve, reject });
			flush();
		});
	}

	function settle(item, result) {
		if (!item) return;
		item.done = true;
		item.line = item.asks = null;
		(result instanceof Error ? item.reject : item.resolve)(result);
	}

	function next() {
		for (let item; (item = waiting.shift()); ) {
			if (item.body.size > max) settle(item, error("too-big", `Over ${max} bytes`));
			if (!item.done) return Object.assign(item, { sent: true, line });
		}
	}

	function again(items) {
		for (const item of items) item.asks = false;
		waiting = [...items, ...waiting];
		flush();
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
			// One refused leaves a hole.
			if (number <= own.back || !same(item.data, data)) continue;
			own.back = number;
			own.sent.delete(number);
			return settle(item, { id, time, confirmed: true });
		}
	}

	/** What has not returned, but on this line, is unconfirmed. */
	function judge(but) {
		until = null;
		const open = lines.flatMap((own) => (own === but ? [] : sentOn(own).filter((it) => it.line === own)));
		for (const item of open) {
			item.line = null;
			if (resend === "ask") item.asks = true;
			else if (resend !== "always") settle(item, error("unconfirmed"));
		}
		lines = lines.filter((it) => it === line || sentOn(it).some(({ done }) => !done));
		again(resend === "always" ? open : []);
	}

	async function post() {
		while (!posting && (posting = next())) {
			posted = now();
			settle(posting, await answerTo(posting.body));
			posting = null;
			release();
		}
	}

	async function answerTo(body) {
		const headers = { "Idempotency-Key": crypto.getRandomValues(new Uint8Array(16)).join("-") };
		for (let tries = 0; tries < 8 && !signal.aborted; tries++) {
			let after;
			try {
				const secret = await bearer();
				if (secret) headers.Authorization = `Bearer ${secret}`;
				const end = AbortSignal.any([signal, AbortSignal.timeout(1e4 + (body.size >> 4))]);
				const answer = await fetch(url.href.replace("ws", "http"), { method: "POST", headers, body, signal: end });
				const { status } = answer;
				if (answer.ok) {
					const { id } = await answer.json();
					remember(id);
					return { id, confirmed: true };
				}
				if (status < 500 && ![408, 429].includes(status)) return error("refused", (await answer.text()).trim(), { status });
				after = `retry after ${answer.headers.get("retry-after")}`;
			} catch {} // The key keeps it single.
			await new Promise((resolve) => setTimeout(resolve, delay(tries, after)).unref?.());
		}
		return error("unconfirmed");
	}

	Object.defineProperty(room, "unconfirmed", { get: asked });
	Object.assign(room, {
		lastId: ID.test(since) ? since : null,
		send,
		resend: (item) => again(asked(item)),
		discard: (item) => asked(item).forEach((it) => settle(it, error("discarded"))),
		close: () => finish(),
		[Symbol.asyncIterator]: () => follow(tail),
	});
	for (const type of ["online", "pageshow", "visibilitychange", "offline"])
		globalThis.addEventListener?.(type, type === "offline" ? lose : hurry, { signal });
	extend();
	connect();
}
