/// <reference lib="dom" />

/**
 * The client module of wscast, for browsers, and for Node 22 and later: `import { Room } from "…/-/wscast.js"`.
 *
 *     const room = new Room("wss://example.com/lobby", { name: "Ann" });
 *     room.send("hello").then(({ id }) => console.log(id), (error) => console.log(error.code));
 *     for await (const { name, data, mine } of room) console.log(name, data, mine);
 */

/** How to be in a room. */
export interface RoomOptions {
  /** What the messages sent here have as `name`: 1 to 64 characters, without control characters. */
  name?: string;
  /**
   * The id of the last message that is known, as {@link Room.lastId} has it: what came after it follows. Another text counts
   * as none.
   */
  since?: string | null;
  /** A secret that lets one in, of the characters that a subprotocol may have; a function is called for each connection. */
  token?: string | (() => string | Promise<string>);
  /**
   * `false`: messages go by POST, one after the other, and those sent here are left out of what is delivered. A server
   * that keeps no history, or is in echo mode, does not take them. What
   * looks like one of them waits for the answer, and what is behind it, for 5 seconds at most; then it is delivered.
   */
  echo?: boolean;
  /**
   * What happens to a message that was sent when the connection broke, and that has not come back when the next one has
   * told all up to its beginning. It may have arrived, or still arrive.
   *
   * - `never` (the default): its promise is rejected with the code `unconfirmed`.
   * - `ask`: its promise waits, and {@link Room.unconfirmed} has it, until it comes back after all, or until
   *   {@link Room.resend} or {@link Room.discard} is called.
   * - `always`: it is sent again, before all that is newer. It arrives at least once: the room may have it twice.
   *
   * What was not sent yet is sent when there is a connection, whatever this is.
   */
  resend?: "never" | "ask" | "always";
  /** The class of sockets, where the platform has none: `import { WebSocket } from "ws"`. */
  WebSocket?: new (url: string, protocols: string[]) => object;
}

/** A message of the room. */
export interface RoomMessage {
  /** Its id, which grows; null from a server that tells none. */
  readonly id: string | null;
  /** When it was published; when it came, from a server that does not tell. */
  readonly time: Date;
  /** The connection that sent it, if one did: {@link Room.you} of its sender then. */
  readonly from?: string;
  /** What its sender calls itself. */
  readonly name?: string;
  /** Text, or bytes. */
  readonly data: string | Uint8Array;
  /** Whether it was sent here, be it over an earlier connection. */
  readonly mine: boolean;
}

/** What has become of a message. */
export type Sent =
  | {
      /** It is in the log of the room, with this id. */
      readonly confirmed: true;
      readonly id: string;
      /** When it was published; not known of a POST. */
      readonly time?: Date;
    }
  | {
      /** It has left; a server that tells no ids cannot say more. */
      readonly confirmed: false;
      readonly id?: undefined;
      readonly time?: undefined;
    };

/** Why {@link Room.send} was rejected. */
export interface SendError extends Error {
  /**
   * - `too-big`: over the maximum of the server, and not sent.
   * - `closed`: the room was closed before it was sent.
   * - `unconfirmed`: it may have arrived, or still arrive.
   * - `discarded`: {@link Room.discard} was called; it may have arrived, too.
   * - `refused`: a POST was answered with `status`, and the message of the error is the server's reason.
   * - `forbidden`, `unavailable`, or what else the server calls it: it is not in the room.
   */
  readonly code: "too-big" | "closed" | "unconfirmed" | "discarded" | "refused" | "forbidden" | "unavailable" | (string & {});
  /** The status of a POST that was refused. */
  readonly status?: number;
  /** Seconds after which it may be taken. */
  readonly retryAfter?: number;
}

/** A message that may have arrived, or not. */
export interface Unconfirmed {
  readonly data: string | Uint8Array;
}

/** There is a connection. */
export interface OpenEvent extends Event {
  /** The greeting of the server. */
  readonly text: string;
  /** Whether nothing is missing since {@link Room.lastId}. */
  readonly resumed: boolean;
}

/** A connection has ended, or a try to have one has failed. */
export interface CloseEvent extends Event {
  /** The close code of RFC 6455; 1006 where there was none. */
  readonly code: number;
  readonly reason: string;
  /** Milliseconds until the next try; null if there is none, as the room is closed. */
  readonly retryIn: number | null;
}

/** Messages are missing here, or may be. */
export interface GapEvent extends Event {
  /** How many; null if it is not known. */
  readonly missed: number | null;
}

/** The number of clients has changed. */
export interface ClientsEvent extends Event {
  readonly count: number;
}

/** The events of a room, by their names. */
export interface RoomEvents {
  message: Event & RoomMessage;
  gap: GapEvent;
  open: OpenEvent;
  close: CloseEvent;
  clients: ClientsEvent;
  /** Nothing more will come in this room. It is closed then. */
  end: Event;
}

/**
 * A room, and the connection to it, which is made again whenever it breaks, until {@link close}, the end of the room, or a
 * close with 1008 or 4000 to 4999. What a server refuses with an HTTP status is tried again as well, as no script sees that:
 * the log of the server has the reason. It keeps a Node process alive until then.
 *
 * `for await (const message of room)` gets every message from there on, across connections: none twice, and none is
 * missing unless a `gap` event says so. Each loop gets all of them, and keeps what it has not read yet. It ends with the room.
 * To get all from the beginning, a loop begins before anything else is awaited; `lastId` moves on without it.
 */
export class Room extends EventTarget implements AsyncIterable<RoomMessage> {
  /**
   * @param url of the room: `wss://`, `ws://`, or the same with `https://`, `http://`; in a page it may be relative.
   * @throws {TypeError} if it is another address, the name is too long, or there is no WebSocket.
   */
  constructor(url: string | URL, options?: RoomOptions);

  /** `waiting` is for the next try. */
  readonly state: "connecting" | "open" | "waiting" | "closed";
  /** The id of the last message delivered: keep it, and give it back as `since`. */
  readonly lastId: string | null;
  /** The name of this connection, as `from` has it; null without one, and with servers that do not tell. */
  readonly you: string | null;
  /** How many clients the room has, with this one; null if it is not known. */
  readonly clients: number | null;
  /** With `resend: "ask"`: the messages for which {@link resend} or {@link discard} is waited. */
  readonly unconfirmed: readonly Unconfirmed[];

  /**
   * Sends a message, when there is a connection. The promise is fulfilled when the message is in the log, and rejected with
   * a {@link SendError} when it is not, or when that cannot be known: so it has to be handled, or Node ends with it.
   */
  send(data: string | ArrayBuffer | ArrayBufferView): Promise<Sent>;
  /** Sends one, or all, of {@link unconfirmed} again. */
  resend(message?: Unconfirmed): void;
  /** Gives one, or all, of {@link unconfirmed} up. */
  discard(message?: Unconfirmed): void;
  /** Leaves the room, for good. */
  close(): void;

  [Symbol.asyncIterator](): AsyncGenerator<RoomMessage, void, undefined>;

  addEventListener<K extends keyof RoomEvents>(
    type: K,
    listener: ((this: Room, event: RoomEvents[K]) => unknown) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<K extends keyof RoomEvents>(
    type: K,
    listener: ((this: Room, event: RoomEvents[K]) => unknown) | null,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
}
