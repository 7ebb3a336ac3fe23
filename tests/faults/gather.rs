//! Reading a history: the streams, the files, the journals.
//!
//! What does not read as it should is no history: that fails the run loudly.

use super::history::{At, Class, History, LogLine, Mark, Record, Row, Stored, Stream};
use edgeward::broker::{Broker, From, RawMessage};
use edgeward::model::id::StreamSeq;
use edgeward::model::time::Timestamp;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Reads streams as they grow.
#[derive(Debug)]
pub struct Reader {
    broker: Broker,
    next: BTreeMap<&'static str, u64>,
    /// Error events by code.
    pub errors: BTreeMap<String, usize>,
}

impl Reader {
    pub fn new(broker: Broker) -> Reader {
        Reader { broker, next: BTreeMap::new(), errors: BTreeMap::new() }
    }

    /// Adds what the streams hold by now.
    pub async fn read(&mut self, history: &mut History) -> Result<(), String> {
        // Records first: a message that comes in between is without a fate and looked at again.
        let records = self.more("FLEET_ACKS").await?;
        history.records.extend(records.iter().map(record));
        for (name, stream) in [("FLEET_COMMANDS", Stream::Commands), ("FLEET_EVENTS", Stream::Events)] {
            let messages = self.more(name).await?;
            history.stored.extend(messages.iter().map(|message| stored(stream, message)));
        }
        for event in self.more("FLEET_ERRORS").await? {
            let code = event.subject.rsplit('.').next().unwrap_or_default().to_owned();
            *self.errors.entry(code).or_default() += 1;
        }
        Ok(())
    }

    async fn more(&mut self, stream: &'static str) -> Result<Vec<RawMessage>, String> {
        let next = self.next.entry(stream).or_insert(1);
        let from = From::Seq(StreamSeq(*next));
        let found = self.broker.read_all(stream, ">", from, usize::MAX).await.map_err(|e| format!("{stream}: {e}"))?;
        if let Some(last) = found.last() {
            *next = last.seq.0 + 1;
        }
        Ok(found)
    }
}

/// The parts of a message's subject, and its id as the node and the hub know it.
fn stored(stream: Stream, message: &RawMessage) -> Stored {
    let mut tokens = message.subject.split('.').skip(2).map(str::to_owned);
    let mut token = || tokens.next().unwrap_or_default();
    let (to, kind, from, method) = (token(), token(), token(), token());
    let lane = tokens.collect::<Vec<_>>().join(".");
    let short = if stream == Stream::Commands { "s" } else { "e" };
    let id = message.headers.get("Fleet-Id").map_or_else(|| format!("{short}{}", message.seq.0), str::to_owned);
    let at = At::new(stream, message.seq.0);
    let mark = (method == "member").then(|| mark(&message.body)).flatten();
    Stored { at, subject: message.subject.clone(), to, kind, from, method, lane, id, mark }
}

fn mark(body: &[u8]) -> Option<(bool, String)> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let group = |verb: &str| value[verb].as_str().map(str::to_owned);
    group("join").map(|group| (true, group)).or_else(|| group("leave").map(|group| (false, group)))
}

fn record(message: &RawMessage) -> Record {
    let value: Value = serde_json::from_slice(&message.body).unwrap_or_else(|e| panic!("{}: {e}", message.subject));
    let class = match message.subject.split('.').nth(1) {
        Some("ack") => Class::Terminal,
        Some("progress") => Class::Progress,
        _ => Class::Late,
    };
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let time = |name: &str| value[name].as_str().and_then(|t| t.parse().ok()).map(Timestamp::nanos);
    let number = |name: &str| value[name].as_u64().unwrap_or(0);
    Record {
        class,
        subject: message.subject.clone(),
        about: At::new(stream_named(&text("stream")), number("seq")),
        state: text("state"),
        code: value["error"]["code"].as_str().unwrap_or_default().to_owned(),
        exit_code: value["exit_code"].as_i64(),
        attempt: u32::try_from(number("attempt")).unwrap_or(u32::MAX),
        stdout: text("stdout").into_bytes(),
        stdout_bytes: number("stdout_bytes"),
        taken: time("received_at"),
        finished: time("finished_at"),
        duplicate_of: value["duplicate_of"]["seq"].as_u64(),
    }
}

fn stream_named(name: &str) -> Stream {
    if name.ends_with("EVENTS") { Stream::Events } else { Stream::Commands }
}

/// The lines of `acks.jsonl`.
pub fn results(state: &Path) -> Vec<(At, String)> {
    let text = fs::read_to_string(state.join("acks.jsonl")).unwrap_or_default();
    let read = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", state.display()));
        let stream = stream_named(value["stream"].as_str().unwrap_or_default());
        let at = At::new(stream, value["seq"].as_u64().unwrap_or(0));
        (at, value["state"].as_str().unwrap_or_default().to_owned())
    };
    // A last line without its end is being written.
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(read).collect()
}

/// What the commands of a node wrote.
pub fn marks(file: &Path) -> Vec<Mark> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let read = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind @ ("s" | "e"), id, attempt, pid] = words[..] else { panic!("{}: {line:?}", file.display()) };
        let number = |text: &str| text.parse().unwrap_or_else(|e| panic!("{}: {line:?}: {e}", file.display()));
        Mark { is_end: kind == "e", id: id.to_owned(), attempt: number(attempt), pid: number(pid) }
    };
    text.lines().map(read).collect()
}

/// The lines that a node logged.
pub fn logs(state: &Path) -> Vec<LogLine> {
    let mut lines = Vec::new();
    for sender in folder(&state.join("log")) {
        for file in folder(&sender) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            lines.extend(text.lines().map(|line| {
                let words: Vec<&str> = line.splitn(4, ' ').collect();
                let [_, from, id, _] = words[..] else { panic!("{}: {line:?}", file.display()) };
                LogLine { from: from.to_owned(), file: name.clone(), id: id.to_owned() }
            }));
        }
    }
    lines
}

fn folder(path: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The rows of a journal whose agent has ended, and what waits in its outbox.
pub fn journal(state: &Path) -> Result<(Vec<Row>, Vec<String>), rusqlite::Error> {
    // Not read-only: SQLite may have to put right what the last kill left.
    let journal = Connection::open_with_flags(state.join("journal.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut rows = journal.prepare("SELECT stream, seq, phase, coalesce(state, '') FROM messages ORDER BY id")?;
    let rows = rows.query_map([], |row| {
        let stream = if row.get::<_, i64>(0)? == 0 { Stream::Commands } else { Stream::Events };
        let at = At::new(stream, row.get::<_, i64>(1)?.unsigned_abs());
        Ok(Row { at, is_finished: row.get::<_, i64>(2)? == 3, state: row.get(3)? })
    })?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let mut left = journal.prepare("SELECT subject || coalesce(' parked: ' || parked, '') FROM outbox ORDER BY id")?;
    let left = left.query_map([], |row| row.get(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok((rows, left))
}
