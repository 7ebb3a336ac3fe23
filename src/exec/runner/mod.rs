//! The runner: one small process per agent that is the parent of all its commands and outlives it.
//!
//! Owns what a command's life outside the agent takes: the socket and its frames (`wire`), the file of a run (`file`),
//! the process that serves (`serve`), its runs (`core`) and its connections (`guest`), the agent's handle on it
//! (`client`). Never knows a message, a journal or a broker: a run is a name, a [`Spec`](super::Spec) and
//! [`Limits`](super::Limits). The protocol, its states and what each crash does are in `docs/design/runner.md`.
//!
//! One rule carries all: **`start` is idempotent by name.** A run's file is made, and may not exist before, ahead of its
//! process; it goes only once the end is safe in the journal. So whoever asks again, a new agent or an old one whose
//! runner died, is never given a second run (`judge`):
//!
//! ```text
//! start NAME:  it runs here          → attach: `started`, and `ended` when it has
//!              file with an end      → `ended`, as it was
//!              file without an end   → a runner died with it: what is left of it is ended; `lost`
//!              no file, with a spec  → file, process, `started`
//!              no file, no spec      → `absent`: it never began
//! ```
//!
//! Why one process and not one per command: starting this binary again takes longer than a shell does, a hop over a
//! Unix socket a twentieth of a millisecond.

mod client;
mod core;
mod file;
mod guest;
mod place;
mod reap;
mod serve;
mod wire;

use serde::{Deserialize, Serialize};
use std::fmt;

pub use client::{RunError, Runner};
pub(super) use file::StreamLog;
pub use file::{Chunk, Chunks, OutputKind};
pub use place::Place;
pub use serve::{Role, ServeError, serve};

/// The variable that marks all processes of a run; its value is the run's name.
pub const RUN_VARIABLE: &str = "EDGEWARD_RUN";

/// A run's name, unique for ever, and good as the name of a file: 1–120 of `[A-Za-z0-9._-]`, no leading dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunName(String);

/// A text that names no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a run")]
pub struct BadRunName(String);

impl RunName {
    /// A name made of a journal's id, the number of a message in it, and which try it is.
    #[must_use]
    pub fn numbered(journal: &str, row: i64, attempt: u32) -> RunName {
        RunName(format!("{journal}.{row}.{attempt}"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunName {
    type Error = BadRunName;

    fn try_from(text: String) -> Result<Self, BadRunName> {
        let fits = (1..=120).contains(&text.len()) && !text.starts_with('.');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if fits && text.bytes().all(plain) { Ok(Self(text)) } else { Err(BadRunName(text)) }
    }
}

impl From<RunName> for String {
    fn from(name: RunName) -> String {
        name.0
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is known of a run when somebody asks to start it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It runs here.
    Here,
    /// Its file tells its end.
    Ended,
    /// It has a file, without an end.
    Begun,
    /// There is no file.
    Nothing,
}

/// What is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Attach,
    TellEnd,
    Lost,
    Begin,
    Absent,
}

/// The whole decision whether a run begins.
fn judge(known: Known, has_spec: bool) -> Answer {
    match known {
        Known::Here => Answer::Attach,
        Known::Ended => Answer::TellEnd,
        Known::Begun => Answer::Lost,
        Known::Nothing if has_spec => Answer::Begin,
        Known::Nothing => Answer::Absent,
    }
}

#[cfg(test)]
mod tests;
