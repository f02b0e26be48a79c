// What a user of the client module writes: tsc checks it against wscast.d.ts, and never runs it.

import { Room, type RoomMessage, type SendError, type Unconfirmed } from "../../static/wscast.js";

class Socket {
  constructor(readonly url: string, readonly protocols: string[]) {}
}

const room = new Room("wss://example.com/lobby", {
  name: "Ann",
  since: null,
  token: async () => "t",
  resend: "ask",
  WebSocket: Socket,
});

async function read(): Promise<string | null> {
  for await (const { id, time, from, name, data, mine } of room) {
    const known: [string | null, number, string | undefined, string | undefined, boolean] = [id, time.getTime(), from, name, mine];
    const size: number = typeof data === "string" ? data.length : data.byteLength;
    if (known && size) break;
  }
  const all: readonly Unconfirmed[] = room.unconfirmed;
  all.forEach((it) => (typeof it.data === "string" ? room.resend(it) : room.discard(it)));
  return room.lastId;
}

async function write(): Promise<string> {
  try {
    const sent = await room.send(new Uint8Array([1]));
    return sent.confirmed ? sent.id : "unknown";
  } catch (error) {
    const { code, status, retryAfter } = error as SendError;
    return `${code} ${(status ?? 0) + (retryAfter ?? 0)}`;
  }
}

room.addEventListener("message", (event) => {
  const message: RoomMessage = event;
  const target: EventTarget | null = event.target;
  return [message, target];
});
room.addEventListener("gap", ({ missed }) => (missed ?? 0) + 1);
room.addEventListener("open", ({ text, resumed }) => (resumed ? text.length : 0));
room.addEventListener("close", ({ code, reason, retryIn }) => code + reason.length + (retryIn ?? 0));
room.addEventListener("clients", ({ count }) => count + (room.clients ?? 0));
room.addEventListener("end", () => room.close(), { once: true });

// @ts-expect-error It cannot be changed.
room.lastId = "1-1";
// @ts-expect-error There is no such policy.
new Room("/lobby", { resend: "sometimes" });
// @ts-expect-error A number is no message.
room.send(5);

export const all = Promise.all([read(), write()]);
