//! Records: the durable account of what became of a message, and what a handler says about its run.
//!
//! Owns the JSON shape of acks, progress and late records, and how much output travels inline. Never publishes.

use super::error_event::Code;
use super::header::{RawHeaders, names};
use super::id::{JournalId, MessageId, MsgRef, StreamSeq};
use super::message::Kind;
use super::state::State;
use super::time::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// How many bytes of each output stream travel inside an ack: the first and the last half of it.
pub const INLINE_OUTPUT: usize = 16 * 1024;

/// Who wrote a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The node itself.
    Node,
    /// The hub, for what no node can answer.
    Hub,
}

/// Why a message did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordError {
    /// A stable code.
    pub code: Code,
    /// One line for people.
    pub message: String,
}

impl RecordError {
    /// A code with its line; control characters are escaped.
    pub fn new(code: Code, message: impl AsRef<str>) -> RecordError {
        let clean = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
        RecordError { code, message: message.as_ref().chars().take(1000).map(clean).collect() }
    }
}

/// The stored message whose copy this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateOf {
    /// The copy's original: its stream.
    pub stream: super::message::StreamKind,
    /// Its sequence.
    pub seq: StreamSeq,
    /// When it was stored.
    pub stored_at: Timestamp,
}

/// One record, as it is stored in `FLEET_ACKS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The format: 1.
    pub v: u32,
    /// The message's id.
    pub id: MessageId,
    /// The stream that holds the message, by its name on the broker.
    pub stream: String,
    /// Its sequence there.
    pub seq: StreamSeq,
    /// The node, or `_`.
    pub node: String,
    /// The sender, or `_`.
    pub from: String,
    /// The kind, where it could be read.
    pub kind: Option<Kind>,
    /// The method or verb, or `_`.
    pub method: String,
    /// The lane token.
    pub lane: Option<String>,
    /// What became of it.
    pub state: State,
    /// The exit code of a command that exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Output, where it is UTF-8.
    pub stdout: Option<String>,
    /// Error output, where it is UTF-8.
    pub stderr: Option<String>,
    /// Output in base64, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Error output in base64, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// The true size of the output.
    pub stdout_bytes: u64,
    /// The true size of the error output.
    pub stderr_bytes: u64,
    /// True where part of the output was left out here.
    pub truncated: bool,
    /// How many chunks are stored in `FLEET_OUTPUT`.
    pub chunks: u64,
    /// The SHA-256 of the last try's chunks, one after the other.
    pub output_sha256: Option<String>,
    /// Why it did not succeed.
    pub error: Option<RecordError>,
    /// The try, from 1; 0 where none began.
    pub attempt: u32,
    /// When the broker stored the message.
    pub stored_at: Timestamp,
    /// When the node took it.
    pub received_at: Option<Timestamp>,
    /// When the last try began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
    /// The node's journal.
    pub journal: Option<JournalId>,
    /// True where this id already had another message's record, and this one has a longer name.
    pub id_reused: bool,
    /// Who wrote this.
    pub by: By,
    /// On `duplicate` records: the message whose copy this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<DuplicateOf>,
}

impl Record {
    /// A record with what is known of every message; no output, no times of a run.
    pub fn bare(id: MessageId, at: MsgRef, stream: String, node: &str, state: State, by: By) -> Record {
        Record {
            v: 1,
            id,
            stream,
            seq: at.seq,
            node: node.to_owned(),
            from: "_".to_owned(),
            kind: None,
            method: "_".to_owned(),
            lane: None,
            state,
            exit_code: None,
            signal: None,
            stdout: None,
            stderr: None,
            stdout_base64: None,
            stderr_base64: None,
            stdout_bytes: 0,
            stderr_bytes: 0,
            truncated: false,
            chunks: 0,
            output_sha256: None,
            error: None,
            attempt: 0,
            stored_at: at.stored_at,
            received_at: None,
            started_at: None,
            finished_at: None,
            journal: None,
            id_reused: false,
            by,
            duplicate_of: None,
        }
    }

    /// True where this record is about the message stored at `at` in the stream of this name.
    pub fn is_about(&self, stream: &str, at: MsgRef) -> bool {
        self.stream == stream && self.seq == at.seq && self.stored_at == at.stored_at
    }

    /// Puts in what a run gave.
    pub fn set_outcome(&mut self, outcome: &Outcome) {
        self.state = outcome.state;
        self.exit_code = outcome.exit_code;
        self.signal = outcome.signal;
        self.error = outcome.error.clone();
        self.chunks = outcome.chunks.as_ref().map_or(0, |chunks| chunks.count);
        self.output_sha256 = outcome.chunks.as_ref().map(|chunks| chunks.sha256.clone());
        self.set_output(&outcome.stdout, &outcome.stderr, INLINE_OUTPUT);
    }

    /// The same without its output; that it was cut, and the true sizes, are told.
    #[must_use]
    pub fn without_output(self) -> Record {
        let had_output = self.stdout_bytes > 0 || self.stderr_bytes > 0;
        Record {
            stdout: self.stdout.map(|_| String::new()),
            stderr: self.stderr.map(|_| String::new()),
            stdout_base64: None,
            stderr_base64: None,
            truncated: self.truncated || had_output,
            ..self
        }
    }

    fn set_output(&mut self, stdout: &Output, stderr: &Output, keep: usize) {
        (self.stdout, self.stdout_base64) = stdout.inline(keep);
        (self.stderr, self.stderr_base64) = stderr.inline(keep);
        (self.stdout_bytes, self.stderr_bytes) = (stdout.total, stderr.total);
        self.truncated = stdout.is_cut(keep) || stderr.is_cut(keep);
    }

    /// The record's JSON with as much of the outcome's output as fits into `limit` bytes, encoded. Without output, and
    /// with a cut message, it always fits into 4 KiB.
    pub fn encode_with(mut self, outcome: &Outcome, limit: usize) -> Vec<u8> {
        self.set_outcome(outcome);
        let mut keep = INLINE_OUTPUT;
        loop {
            let encoded = self.encode();
            if encoded.len() <= limit || keep == 0 {
                return encoded;
            }
            keep = if keep > 256 { keep / 2 } else { 0 };
            self.set_output(&outcome.stdout, &outcome.stderr, keep);
        }
    }

    /// The record's JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Serializing this struct cannot fail: its keys are strings and it holds no foreign type.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The headers that repeat the main facts, for readers that fetch headers only.
    pub fn headers(&self) -> RawHeaders {
        RawHeaders::default()
            .with(names::STATE, self.state.as_str())
            .with(names::STREAM, self.stream.as_str())
            .with(names::SEQ, self.seq.to_string())
            .with(names::STORED_AT, self.stored_at.to_string())
    }

    /// The output as bytes: what was written, or its head and tail.
    pub fn stdout_bytes_inline(&self) -> Vec<u8> {
        inline_bytes(self.stdout.as_deref(), self.stdout_base64.as_deref())
    }

    /// The error output as bytes: what was written, or its head and tail.
    pub fn stderr_bytes_inline(&self) -> Vec<u8> {
        inline_bytes(self.stderr.as_deref(), self.stderr_base64.as_deref())
    }
}

fn inline_bytes(text: Option<&str>, base64: Option<&str>) -> Vec<u8> {
    match (text, base64) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => BASE64.decode(encoded).unwrap_or_default(),
        (None, None) => Vec::new(),
    }
}

/// What one output stream of a run gave: all of it while it is small, else its head and tail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// The first bytes.
    pub head: Vec<u8>,
    /// The last bytes, empty where `head` is everything.
    pub tail: Vec<u8>,
    /// How many bytes there were.
    pub total: u64,
}

impl Output {
    /// Output that is all there.
    pub fn whole(bytes: impl Into<Vec<u8>>) -> Output {
        let head = bytes.into();
        Output { total: head.len() as u64, head, tail: Vec::new() }
    }

    fn is_cut(&self, keep: usize) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64 || self.head.len() + self.tail.len() > keep
    }

    /// As text, or as base64 where it is not UTF-8; a line in the middle tells how much was left out.
    fn inline(&self, keep: usize) -> (Option<String>, Option<String>) {
        let bytes = if self.is_cut(keep) { self.cut(keep) } else { [&self.head[..], &self.tail[..]].concat() };
        match String::from_utf8(bytes) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(BASE64.encode(error.as_bytes()))),
        }
    }

    fn cut(&self, keep: usize) -> Vec<u8> {
        let kept = [&self.head[..], &self.tail[..]].concat();
        let half = keep / 2;
        let mut head = half.min(self.head.len());
        let mut tail = kept.len().saturating_sub(half).max(head);
        // Do not split a character: text that was UTF-8 stays UTF-8.
        let inside = |at: usize| kept.get(at).is_some_and(|b| b & 0b1100_0000 == 0b1000_0000);
        (0..3).for_each(|_| head -= usize::from(head > 0 && inside(head)));
        (0..3).for_each(|_| tail += usize::from(inside(tail)));
        let left_out = self.total.saturating_sub((head + kept.len() - tail) as u64);
        let marker = format!("\n[... {left_out} bytes left out ...]\n");
        [&kept[..head], marker.as_bytes(), &kept[tail..]].concat()
    }
}

/// What a handler's try gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `succeeded`, `failed`, `timed_out`, `cancelled`, `interrupted`, or `refused`, `expired` for what never began.
    pub state: State,
    /// The exit code of a command that exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its output.
    pub stdout: Output,
    /// Its error output.
    pub stderr: Output,
    /// What of it is stored in `FLEET_OUTPUT`, where anything is.
    pub chunks: Option<Chunked>,
    /// Why it did not succeed.
    pub error: Option<RecordError>,
}

/// Output that is stored in `FLEET_OUTPUT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunked {
    /// How many chunks there are, of all tries.
    pub count: u64,
    /// The SHA-256 of the last try's, in hexadecimal.
    pub sha256: String,
}

impl Outcome {
    /// Done, with nothing to say.
    pub fn succeeded() -> Outcome {
        Outcome {
            state: State::Succeeded,
            exit_code: None,
            signal: None,
            stdout: Output::default(),
            stderr: Output::default(),
            chunks: None,
            error: None,
        }
    }

    /// Ended in another state, and why.
    pub fn ended(state: State, code: Code, message: impl AsRef<str>) -> Outcome {
        Outcome { state, error: Some(RecordError::new(code, message)), ..Outcome::succeeded() }
    }
}

#[cfg(test)]
mod tests;
