-- What the database of wscast holds; docs/database.md describes it.

CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    -- 0 while a server runs that delivers messages before they are safe: if it ends like that, some may be lost.
    is_certain INTEGER NOT NULL,
    -- No message is published in an older epoch.
    epoch_min INTEGER NOT NULL,
    -- The newest epoch of all rooms that are forgotten.
    epoch_max INTEGER NOT NULL,
    -- Written to find out whether anything can be written.
    probe BLOB
);

INSERT INTO store VALUES (1, 1, 0, 0, NULL);

CREATE TABLE room (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    -- The first message that is kept, which is last_seq + 1 where none is, and the last one that was published.
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    -- What --retain-bytes counts.
    bytes INTEGER NOT NULL,
    -- Unix times in seconds: of the first message that is kept, and of the last one that was published.
    oldest INTEGER,
    newest INTEGER NOT NULL
);

CREATE INDEX room_oldest ON room (oldest) WHERE oldest IS NOT NULL;
CREATE INDEX room_newest ON room (newest);

-- With rowids, as SQLite would give each message of more than 1 KiB a page of its own without them.
CREATE TABLE message (
    room INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    -- Unix time in milliseconds.
    at INTEGER NOT NULL,
    -- The connection that sent it (`from` in JSON), what that called itself, and its Idempotency-Key.
    sender TEXT,
    name TEXT,
    key TEXT,
    -- How many clients the room had, of a message with a key.
    clients INTEGER,
    -- TEXT of a text message, BLOB of a binary one.
    body NOT NULL,
    PRIMARY KEY (room, seq)
);

CREATE INDEX message_key ON message (room, key) WHERE key IS NOT NULL;

CREATE VIEW history AS
SELECT
    room.name AS room,
    message.epoch || '-' || message.seq AS id,
    strftime('%Y-%m-%dT%H:%M:%fZ', message.at / 1000.0, 'unixepoch') AS at,
    message.name AS name,
    CASE typeof(message.body) WHEN 'text' THEN message.body END AS text
FROM room JOIN message ON message.room = room.id;
