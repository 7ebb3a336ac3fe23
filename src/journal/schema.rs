//! The journal's tables. They only ever grow: an older release opens a newer journal and leaves alone what it does not
//! know.

/// Marks the file as edgeward's (`PRAGMA application_id`): "edgw".
pub(super) const APPLICATION_ID: i32 = 0x6564_6777;

/// `PRAGMA user_version`; raised when a table or column is added.
pub(super) const VERSION: i32 = 2;

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
    lane        INTEGER,                  -- null: never queued
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
