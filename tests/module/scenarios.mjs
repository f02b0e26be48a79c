// What real clients do in real rooms, in Node and in a browser; tests/it/client_module.rs judges what they report.

const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

/** A room, and what it has told. */
function enter(Room, url, options) {
  const room = new Room(url, options);
  const told = { seen: [], gaps: [], closes: [], opens: 0, counts: [] };
  const reading = (async () => {
    for await (const { id, data, from, name, mine } of room) {
      told.seen.push({ id, text: typeof data === "string" ? data.slice(0, 40) : null, size: data.length, from, name, mine });
    }
  })();
  room.addEventListener("gap", ({ missed }) => told.gaps.push(missed));
  room.addEventListener("close", ({ code, reason, retryIn }) => told.closes.push({ code, reason, retryIn }));
  room.addEventListener("open", () => (told.opens += 1));
  room.addEventListener("clients", ({ count }) => told.counts.push(count));
  return { room, told, reading };
}

async function until(what, done, patience = 30_000) {
  for (const end = performance.now() + patience; !done(); await pause(10)) {
    if (performance.now() > end) throw new Error(`it does not come to be: ${what}`);
  }
}

export const scenarios = {
  /** Sends many messages while the connection suffers, and reports the fate of each. */
  async cut(Room, { url, count, options }) {
    const { room, told, reading } = enter(Room, url, options);
    const fates = [];
    const again = [];
    const answers = [];
    const answer = setInterval(() => {
      for (const it of options.resend === "ask" ? room.unconfirmed : []) {
        const isAgain = Math.random() < 0.5;
        if (isAgain) again.push(it.data);
        if (isAgain) room.resend(it);
        else room.discard(it);
      }
    }, 50);
    for (let i = 0; i < count; i++) {
      const text = `${options.name} ${i}`;
      const fate = room.send(text).then(({ id, confirmed }) => ({ text, id, confirmed }), ({ code }) => ({ text, code }));
      answers.push(fate.then((it) => fates.push(it)));
      if (i % 3 === 0) await pause(20 * Math.random());
    }
    await Promise.all(answers);
    clearInterval(answer);
    // All that came before it has been read when this one is.
    let end;
    do end = await room.send("end").catch(() => null);
    while (!end);
    await until("the end", () => told.seen.some(({ id }) => id === end.id));
    room.close();
    await reading;
    return { fates, again, ...told };
  },

  /** Ten clients in each of two rooms, who all say something. */
  async talk(Room, { url, options }) {
    const rooms = ["a", "b"].map((path) => Array.from({ length: 10 }, (_, i) => enter(Room, `${url}${path}`, { ...options, name: `${path}${i} é` })));
    const all = rooms.flat();
    await until("ten clients each", () => all.every(({ room }) => room.clients === 10));
    const started = performance.now();
    await Promise.all(all.map(({ room }, i) => Promise.all([room.send(`one of ${i}`), room.send(`two of ${i}`)])));
    await until("twenty messages each", () => all.every(({ told }) => told.seen.length === 20));
    const took = performance.now() - started;
    const yous = all.map(({ room }) => room.you);
    rooms[0][0].room.close();
    rooms[0][1].room.close();
    const left = performance.now();
    await until("eight clients", () => rooms[0].slice(2).every(({ room }) => room.clients === 8));
    const noticed = performance.now() - left;
    for (const { room, reading } of all) {
      room.close();
      await reading;
    }
    return { took, noticed, yous, seen: rooms.map((it) => it.map(({ told }) => told.seen)), gaps: all.flatMap(({ told }) => told.gaps) };
  },

  /** Reads until a message says "end", then sends one. */
  async read(Room, { url, options }) {
    const { room, told, reading } = enter(Room, url, options);
    await until("the end", () => told.seen.some(({ text }) => text === "end"), 300_000);
    await room.send("read");
    room.close();
    await reading;
    return told;
  },

  /** Waits until the connection is taken for dead. */
  async wait(Room, { url, options }) {
    const { room, told } = enter(Room, url, options);
    await until("a close", () => told.closes.length, 60_000);
    room.close();
    return told;
  },

  /** Sends to a server that tells nothing, and gets it back. */
  async plain(Room, { url, options }) {
    const { room, told, reading } = enter(Room, url, options);
    const sent = [await room.send("one"), await room.send(new Uint8Array([1, 2, 3]))];
    await until("both", () => told.seen.length >= 2);
    room.close();
    await reading;
    return { sent, ...told };
  },

  /** Two that speak by POST. */
  async post(Room, { url, options }) {
    const [a, b] = ["Ann", "Bob"].map((name) => enter(Room, url, { ...options, name, echo: false }));
    await until("both", () => a.told.opens && b.told.opens);
    const texts = Array.from({ length: 20 }, (_, i) => (i % 2 ? "\ufeffthe same" : `${i} é`));
    const [ids] = await Promise.all([a, b].map(({ room }) => Promise.all(texts.map((it) => room.send(it)))));
    await until("the other's", () => [a, b].every(({ told }) => told.seen.length >= texts.length));
    const refused = await a.room.send("x".repeat(2e6)).catch(({ code, status }) => code);
    await a.room.send("end");
    await until("the end", () => b.told.seen.some(({ text }) => text === "end"));
    for (const it of [a, b]) it.room.close();
    return { ids, refused, a: a.told.seen, b: b.told.seen };
  },
};
