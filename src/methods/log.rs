//! `log` (event): appends the body to `<log dir>/<from>/<lane>.log` as one line, `<stored_at> <from> <id> <body>`.
//!
//! Owns the line's form and the files, which only the agent's user can read. A message without a lane goes to
//! `default.log`, one with a lane of that name too: both names are in the contract, and each line tells whose it is.
//! Success means that the line is on disk, once: a later try looks for it at the end of the file before it writes,
//! though not in files that were rotated away meanwhile. Never follows a link below the log folder.

use super::fault::{Fault, stopped};
use super::{Context, Handler, Work};
use crate::model::admit::{BodyFacts, MethodFacts};
use crate::model::error_event::Code;
use crate::model::message::Kind;
use crate::model::record::{Outcome, RecordError};
use crate::model::state::State;
use futures::future::{BoxFuture, FutureExt};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fsync, mkdirat, openat};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How far back a later try looks for its line: more than other lanes can have put behind it in a crash and a restart.
const LOOK_BACK: u64 = 1024 * 1024;

/// The pause between two looks at a file that another lane, or someone else, holds locked.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The method.
pub(super) struct Log;

impl Handler for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn facts(&self) -> MethodFacts {
        MethodFacts { kind: Kind::Event, check }
    }

    fn run<'a>(&'a self, work: &'a Work, cx: &'a Context) -> BoxFuture<'a, Outcome> {
        run(work, cx).boxed()
    }
}

fn check(body: &[u8]) -> Result<BodyFacts, RecordError> {
    match body {
        b"" | b"\n" | b"\r\n" => Err(RecordError::new(Code::BadBody, "the line is empty")),
        _ => Ok(BodyFacts::default()),
    }
}

async fn run(work: &Work, cx: &Context) -> Outcome {
    let entry = Entry::new(work, cx);
    let abandoned = CancellationToken::new();
    // A try that was given up must not write behind the back of the next one.
    let _guard = abandoned.clone().drop_guard();
    let write = tokio::task::spawn_blocking(move || entry.append(&abandoned));
    tokio::select! {
        biased;
        () = cx.stop.cancelled() => stopped("was stopped; the line may have been written"),
        written = write => match written {
            Ok(written) => written.map_or_else(Outcome::from, |()| Outcome::succeeded()),
            Err(error) => Outcome::ended(State::Failed, Code::Io, format!("cannot write the line: {error}")),
        },
    }
}

/// One line and where it goes.
struct Entry {
    log_dir: PathBuf,
    /// The sender: a folder.
    from: String,
    /// The file in it.
    file: String,
    /// With its newline.
    line: String,
    /// An earlier try may have written it.
    again: bool,
}

impl Entry {
    /// Names are single tokens of letters, digits, `_` and `-`: none leads anywhere else.
    fn new(work: &Work, cx: &Context) -> Entry {
        let message = &work.message;
        let (from, id, stored_at) = (&message.subject.from, &message.id, message.at.stored_at);
        let lane = message.subject.lane.as_ref().map_or("default", |lane| lane.as_str());
        Entry {
            log_dir: cx.log_dir.clone(),
            from: from.to_string(),
            file: format!("{lane}.log"),
            line: format!("{stored_at} {from} {id} {}\n", escape(&work.body)),
            again: work.attempt > 1,
        }
    }

    /// Puts the line on disk, unless it is there already.
    fn append(&self, abandoned: &CancellationToken) -> Result<(), Fault> {
        let (root, folder) = self.folders()?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
        let file = openat(&folder, &self.file, flags | NO_LINKS, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(self.fault("open"))?);
        self.lock(&file, abandoned)?;
        let before = regular_size(&file).map_err(self.fault("read"))?;
        let present = self.look(&file, before).map_err(self.fault("read"))?;
        self.write(&file, before, present).map_err(self.fault("write"))?;
        if before == 0 || self.again {
            // The file's name, and its folder's, have to last as well.
            fsync(&folder).and_then(|()| fsync(&root)).map_err(self.fault("sync"))?;
        }
        Ok(())
    }

    /// The log folder, wherever it is, and the sender's in it, which is no link.
    fn folders(&self) -> Result<(OwnedFd, OwnedFd), Fault> {
        let root_fault = |source| Fault { doing: "open", path: self.log_dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.log_dir).map_err(root_fault)?;
        let root = openat(CWD, &self.log_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| root_fault(errno.into()))?;
        let path = self.log_dir.join(&self.from);
        let fault = |errno: Errno| Fault { doing: "open", path: path.clone(), source: errno.into() };
        match mkdirat(&root, &self.from, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fault(errno)),
        }
        let folder = openat(&root, &self.from, OFlags::DIRECTORY | NO_LINKS, Mode::empty()).map_err(fault)?;
        Ok((root, folder))
    }

    /// Waits until the file is ours alone: two lanes may share it, and a try that was given up may still be writing.
    fn lock(&self, file: &File, abandoned: &CancellationToken) -> Result<(), Fault> {
        loop {
            let locked = flock(file, FlockOperation::NonBlockingLockExclusive);
            if abandoned.is_cancelled() {
                return Err(self.fault("lock")(Errno::CANCELED));
            }
            match locked {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
                Err(errno) => return Err(self.fault("lock")(errno)),
            }
        }
    }

    /// Looks at the file's end.
    fn look(&self, file: &File, size: u64) -> io::Result<Present> {
        let back = if self.again { LOOK_BACK + self.line.len() as u64 } else { 1 };
        let start = size.saturating_sub(back);
        let mut tail = vec![0; usize::try_from(size - start).unwrap_or(0)];
        file.read_exact_at(&mut tail, start)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        // What comes before the first newline may be the end of a longer line.
        let cut = usize::from(start > 0);
        let mut lines = tail[..whole].split_inclusive(|byte| *byte == b'\n').skip(cut);
        Ok(if self.again && lines.any(|line| line == self.line.as_bytes()) {
            Present::Line
        } else if whole < tail.len() {
            Present::HalfLine
        } else {
            Present::Nothing
        })
    }

    /// Writes what is missing and syncs; where that fails, the file is left as it was.
    fn write(&self, mut file: &File, before: u64, present: Present) -> io::Result<()> {
        let text = match present {
            Present::Line => String::new(),
            Present::HalfLine => format!("\n{}", self.line),
            Present::Nothing => self.line.clone(),
        };
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() && !text.is_empty() {
            // Also after a failed sync: the kernel forgets which pages it could not write, so a line that is merely
            // seen again later would prove nothing.
            if let Err(error) = file.set_len(before) {
                tracing::warn!(path = ?self.path(), %error, "cannot take back a half-written line");
            }
        }
        written
    }

    fn path(&self) -> PathBuf {
        self.log_dir.join(&self.from).join(&self.file)
    }

    fn fault<E: Into<io::Error>>(&self, doing: &'static str) -> impl FnOnce(E) -> Fault {
        move |source| Fault { doing, path: self.path(), source: source.into() }
    }
}

/// How whatever is opened below the log folder is opened.
const NO_LINKS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

fn regular_size(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(io::Error::other("is no regular file")) }
}

/// What a file ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Present {
    /// The line is there already.
    Line,
    /// A line that a crash cut off.
    HalfLine,
    /// Nothing that matters.
    Nothing,
}

/// The bytes as one line of text from which they can be had back: `\\` is a backslash, `\n`, `\r`, `\t` as everywhere,
/// `\xNN` one byte (other control characters, and what is not UTF-8), `\u{…}` one character that would act on the
/// terminal or break the line (C1 controls, U+2028, U+2029, changes of the writing direction).
fn escape(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_escaped(&mut line, c));
        chunk.invalid().iter().for_each(|byte| push_byte(&mut line, *byte));
    }
    line
}

fn push_escaped(line: &mut String, c: char) {
    match c {
        '\\' => line.push_str("\\\\"),
        '\n' => line.push_str("\\n"),
        '\r' => line.push_str("\\r"),
        '\t' => line.push_str("\\t"),
        '\0'..='\x1f' | '\x7f' => push_byte(line, c as u8),
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            line.extend(c.escape_unicode());
        }
        _ => line.push(c),
    }
}

fn push_byte(line: &mut String, byte: u8) {
    // Writing to a string cannot fail.
    let _ = write!(line, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests;
