//! The journal's tables. They only ever grow: an older release opens a newer journal and leaves alone what it does not
//! know.

/// Marks the file as edgeward's (`PRAGMA application_id`): "edgw".
pub(super) const APPLICATION_ID: i32 = 0x6564_6777;

/// `PRAGMA user_version`; raised when a table or column is added.
pub(super) const VERSION: i32 = 6;

/// Columns that came after version 1: table, column, type.
pub(super) const LATER_COLUMNS: [(&str, &str, &str); 7] = [
    ("messages", "name", "TEXT"),       // the method, with its lane token behind a dot
    ("messages", "chunks", "INTEGER"),  // of output, of all tries that are over
    ("outbox", "message", "INTEGER"),   // the message whose terminal record it is, where that is kept once published
    ("messages", "granted", "INTEGER"), // tries that a directive has added
    ("messages", "target", "TEXT"),     // to whom it was: a node or @group
    ("messages", "to_end", "INTEGER"),  // the try that an order ends, whichever agent carries that out
    ("messages", "end_by", "TEXT"),     // who gave that order
];

pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS lanes (
    id     INTEGER PRIMARY KEY,
    kind   INTEGER NOT NULL,
    sender TEXT NOT NULL,
    method TEXT NOT NULL,
    lane   TEXT NOT NULL DEFAULT '',
    UNIQUE (kind, sender, method, lane)
);

CREATE TABLE IF NOT EXISTS messages (
    id          INTEGER PRIMARY KEY,      -- in the order of taking
    stream      INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    stored_at   INTEGER NOT NULL,         -- ns, the broker's clock
    msg_id      TEXT NOT NULL,
    sender      TEXT NOT NULL,
    kind        INTEGER NOT NULL,
    lane        INTEGER,                  -- null: never queued; means nothing once finished
    phase       INTEGER NOT NULL,         -- 0 queued, 1 running, 2 waiting, 3 finished
    attempt     INTEGER NOT NULL DEFAULT 0,
    state       TEXT,                     -- once finished
    received_at INTEGER NOT NULL,         -- ns, as the node knows the broker's clock
    started_at  INTEGER,
    finished_at INTEGER,
    original    INTEGER,                  -- the row whose copy this is
    pid         INTEGER,
    pid_start   INTEGER,
    boot        TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS messages_stored ON messages (stream, seq, stored_at);
CREATE UNIQUE INDEX IF NOT EXISTS messages_identity ON messages (sender, msg_id, kind) WHERE original IS NULL;
CREATE INDEX IF NOT EXISTS messages_open ON messages (lane, id) WHERE phase < 3;

CREATE TABLE IF NOT EXISTS bodies (
    id      INTEGER PRIMARY KEY,          -- the message's
    subject TEXT NOT NULL,
    headers TEXT NOT NULL,                -- JSON: [[name, value], …]
    body    BLOB NOT NULL
);

CREATE TABLE IF NOT EXISTS cancels (
    sender   TEXT NOT NULL,               -- whose message
    msg_id   TEXT NOT NULL,
    asked_by TEXT NOT NULL,
    until    INTEGER NOT NULL,            -- ns, the broker's clock; kept so long for what may still come
    PRIMARY KEY (sender, msg_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cancels_until ON cancels (until);
CREATE TABLE IF NOT EXISTS records (       -- terminal records of commands, published, to be published again
    id      INTEGER PRIMARY KEY,          -- the message's
    subject TEXT NOT NULL,
    body    BLOB NOT NULL                 -- without output where that made it large
);

CREATE TABLE IF NOT EXISTS outputs (       -- tries whose output is published, until all of it is and the try is settled
    run     TEXT PRIMARY KEY,             -- its name with the runner
    message INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    subject TEXT NOT NULL,                -- of its chunks, without the number
    base    INTEGER NOT NULL,             -- chunks of earlier tries
    sent    INTEGER NOT NULL DEFAULT 0,   -- of this try's chunks, those that are stored
    total   INTEGER                       -- how many there are, once it is over
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS processes (     -- those that were ever stopped, restarted or failed
    name          TEXT PRIMARY KEY,
    stopped_by    TEXT,                   -- null: it is not stopped
    changed_at    INTEGER,                -- ns
    restarts      INTEGER NOT NULL DEFAULT 0,
    last_error    TEXT,
    last_error_at INTEGER
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS failures (      -- the last error events, for directives that name one, and to be counted
    id      INTEGER PRIMARY KEY,
    error   TEXT NOT NULL,                -- the event's id
    code    TEXT NOT NULL,
    process TEXT,
    message INTEGER,                      -- the message that failed
    at      INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS failures_error ON failures (error);

CREATE TABLE IF NOT EXISTS repeats (       -- error events of one kind, within one window
    kind    TEXT PRIMARY KEY,             -- code, severity, process
    since   INTEGER NOT NULL,             -- ns
    told    INTEGER NOT NULL,             -- how many were told one by one
    held    INTEGER NOT NULL DEFAULT 0,   -- how many are counted and not told yet
    subject TEXT,                         -- the last of these
    body    BLOB
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS positions (
    stream    INTEGER PRIMARY KEY,
    seq       INTEGER NOT NULL,           -- the last message taken
    stored_at INTEGER NOT NULL,
    size      INTEGER NOT NULL            -- what it cost on the link
);

CREATE TABLE IF NOT EXISTS outbox (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    class   INTEGER NOT NULL,
    subject TEXT NOT NULL,
    headers TEXT NOT NULL,
    body    BLOB NOT NULL,
    parked  TEXT                          -- why it cannot be published
);
CREATE INDEX IF NOT EXISTS outbox_open ON outbox (class, id) WHERE parked IS NULL;
";

/// What is derived from the tables and counted in memory: the bytes of bodies held, in all (0), by sender (1), by lane
/// (2). Triggers keep it, so that it is part of every transaction, whoever writes. At the start lanes are counted one by
/// one, along their index: grouping would hold every body in memory.
pub(super) const HELD: &str = "
PRAGMA temp_store = MEMORY;
CREATE TEMP TABLE held (what INTEGER, owner, bytes INTEGER NOT NULL, PRIMARY KEY (what, owner)) WITHOUT ROWID;
INSERT INTO held SELECT what, owner, bytes FROM (
    SELECT 2 AS what, l.id AS owner,
           (SELECT sum(octet_length(b.subject) + octet_length(b.headers) + octet_length(b.body))
            FROM main.messages m JOIN main.bodies b ON b.id = m.id WHERE m.lane = l.id AND m.phase < 3) AS bytes
    FROM main.lanes l) WHERE bytes > 0;
INSERT INTO held SELECT 1, l.sender, sum(h.bytes) FROM held h JOIN main.lanes l ON l.id = h.owner
    WHERE h.what = 2 GROUP BY l.sender;
INSERT INTO held SELECT 0, '', coalesce(sum(bytes), 0) FROM held WHERE what = 1;
CREATE TEMP TRIGGER held_more AFTER INSERT ON main.bodies BEGIN
    INSERT INTO held
        SELECT w.what, CASE w.what WHEN 0 THEN '' WHEN 1 THEN m.sender ELSE m.lane END,
               octet_length(NEW.subject) + octet_length(NEW.headers) + octet_length(NEW.body)
        FROM messages m, (SELECT 0 AS what UNION ALL SELECT 1 UNION ALL SELECT 2) w
        WHERE m.id = NEW.id AND m.lane IS NOT NULL
        ON CONFLICT (what, owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TEMP TRIGGER held_less AFTER DELETE ON main.bodies BEGIN
    UPDATE held SET bytes = bytes - octet_length(OLD.subject) - octet_length(OLD.headers) - octet_length(OLD.body)
        WHERE (what = 0 AND owner = '')
           OR (what = 1 AND owner = (SELECT sender FROM messages WHERE id = OLD.id))
           OR (what = 2 AND owner = (SELECT lane FROM messages WHERE id = OLD.id));
    DELETE FROM held WHERE bytes <= 0 AND (
              (what = 1 AND owner = (SELECT sender FROM messages WHERE id = OLD.id))
           OR (what = 2 AND owner = (SELECT lane FROM messages WHERE id = OLD.id)));
END;
";
