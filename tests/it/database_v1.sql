-- A database of schema version 1, as sqlite3's .dump writes it, with the pragmas that it leaves out. It stays as it is, also when
-- the schema changes: what has been released has to be opened.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 2004050788;
PRAGMA user_version = 1;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
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
INSERT INTO store VALUES(1,1,0,0,NULL);
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
INSERT INTO room VALUES(1,'/',1795627683134619,1,1,78,1795627683,1795627683);
INSERT INTO room VALUES(2,'/lobby',1795627683166985,5,9,373,1795627683,1795627684);
INSERT INTO room VALUES(3,'/orders',1795627683477755,1,1,84,1795627683,1795627683);
INSERT INTO room VALUES(4,'/%C3%A9',1795627683545599,1,1,94,1795627683,1795627683);
INSERT INTO room VALUES(5,'/empty',1795627683618561,1,1,64,1795627683,1795627683);
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
INSERT INTO message VALUES(1,1,1795627683134619,1795627683134,NULL,NULL,NULL,NULL,'the first room');
INSERT INTO message VALUES(2,5,1795627683166985,1795627683366,NULL,'Ann',NULL,NULL,'message 5');
INSERT INTO message VALUES(2,6,1795627683166985,1795627683382,NULL,'Ann',NULL,NULL,'message 6');
INSERT INTO message VALUES(2,7,1795627683166985,1795627683418,NULL,'Émile',NULL,NULL,X'0001ff');
INSERT INTO message VALUES(2,8,1795627683166985,1795627684263,'cf8GVwpbWJ9OEX6H','Bob',NULL,NULL,'by WebSocket');
INSERT INTO message VALUES(2,9,1795627683166985,1795627684263,'cf8GVwpbWJ9OEX6H','Bob',NULL,NULL,X'0001');
INSERT INTO message VALUES(3,1,1795627683477755,1795627683486,NULL,NULL,'order-17',0,'ordered once');
INSERT INTO message VALUES(4,1,1795627683545599,1795627683545,NULL,NULL,NULL,NULL,replace('zwei\nZeilen: „äöü“ it''s','\n',char(10)));
INSERT INTO message VALUES(5,1,1795627683618561,1795627683618,NULL,NULL,NULL,NULL,'');
CREATE INDEX room_oldest ON room (oldest) WHERE oldest IS NOT NULL;
CREATE INDEX room_newest ON room (newest);
CREATE INDEX message_key ON message (room, key) WHERE key IS NOT NULL;
CREATE VIEW history AS
SELECT
    room.name AS room,
    message.epoch || '-' || message.seq AS id,
    strftime('%Y-%m-%dT%H:%M:%fZ', message.at / 1000.0, 'unixepoch') AS at,
    message.name AS name,
    CASE typeof(message.body) WHEN 'text' THEN message.body END AS text
FROM room JOIN message ON message.room = room.id;
COMMIT;
