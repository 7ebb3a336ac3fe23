//! The file of a run: what it wrote, in chunks, and at the end what became of it. Only ever added to.
//!
//! ```text
//! "edgeward run 1\n", then records:
//! kind (1 byte) · length (4, big endian) · offset (8, big endian) · that many bytes
//!   1  standard output      offset: where in the stream these bytes stand
//!   2  standard error
//!   3  started              JSON {"pid","start_time"}
//!   9  ended                JSON, an exit; nothing follows
//! ```
//!
//! That it exists says that the run was begun, so it is made before the process is. The first records of each stream
//! follow each other without a gap; beyond the bound comes its tail alone, at its true offset. A record that is cut short
//! (the runner was killed as it wrote) counts as not there, and kinds that are not known are passed over. Nothing here
//! is synced: it is for the death of processes, not of the host.
//!
//! A chunk is one record is one message of output: what is written here decides how it is published, whoever reads.

use super::super::{Captured, Exit};
use super::wire::ExitFrame;
use crate::model::process::Started;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const MAGIC: &[u8] = b"edgeward run 1\n";
const HEADER: usize = 13;
const STARTED: u8 = 3;
const ENDED: u8 = 9;

/// The largest chunk: a broker that takes no message above 64 KiB takes it.
const CHUNK: usize = 32 * 1024;

/// The longest that output stays in memory: what a watching operator lags behind, and what a killed runner loses.
const FLUSH_AFTER: Duration = Duration::from_millis(250);

/// A record of another build that is longer is not read into memory.
const LONGEST: u64 = 16 << 20;

/// Which stream a chunk is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputKind {
    fn number(self) -> u8 {
        match self {
            OutputKind::Stdout => 1,
            OutputKind::Stderr => 2,
        }
    }

    fn of(number: u8) -> Option<OutputKind> {
        match number {
            1 => Some(OutputKind::Stdout),
            2 => Some(OutputKind::Stderr),
            _ => None,
        }
    }

    /// As headers name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OutputKind::Stdout => "stdout",
            OutputKind::Stderr => "stderr",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StartedFrame {
    pid: u32,
    start_time: u64,
}

/// A run's file, as its runner writes it.
pub(in crate::exec) struct RunFile {
    file: Arc<File>,
}

impl RunFile {
    /// Makes it; it must not be there.
    pub(super) fn create(path: &Path) -> io::Result<RunFile> {
        let mut file = File::options().append(true).create_new(true).mode(0o600).open(path)?;
        match file.write_all(MAGIC) {
            Ok(()) => Ok(RunFile { file: Arc::new(file) }),
            Err(error) => {
                // Nothing has begun, and it may be asked for again. Where it stays, that is refused.
                let _ = fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Opens one that [`empty`] has left.
    pub(super) fn reuse(path: &Path) -> io::Result<RunFile> {
        Ok(RunFile { file: Arc::new(File::options().append(true).open(path)?) })
    }

    /// What one of its streams writes to, at most `most` bytes and the tail.
    pub(super) fn stream(&self, kind: OutputKind, most: u64) -> StreamLog {
        let file = Arc::clone(&self.file);
        StreamLog { file, kind, pending: Vec::new(), due: None, offset: 0, most, full: false }
    }

    /// Notes the process, for whoever has to end what is left of it.
    pub(super) fn started(&self, started: Started) -> io::Result<()> {
        let frame = StartedFrame { pid: started.pid, start_time: started.start_time };
        append(&self.file, STARTED, 0, &serde_json::to_vec(&frame)?)
    }

    /// Notes the end.
    pub(super) fn ended(&self, exit: &Exit) -> io::Result<()> {
        append(&self.file, ENDED, 0, &serde_json::to_vec(&ExitFrame::from(exit))?)
    }
}

/// Takes out of a run's file all that is of the run; an error where it is none that a run could be given.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let begin = MAGIC.len() as u64;
    if file.metadata()?.len() < begin {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // Not to nothing: file systems write at once what comes after that.
    file.set_len(begin)
}

/// Adds one record, wholly or not at all.
fn append(file: &File, kind: u8, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut record = Vec::with_capacity(HEADER + bytes.len());
    record.push(kind);
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(&offset.to_be_bytes());
    record.extend_from_slice(bytes);
    let mut left = record.as_slice();
    while !left.is_empty() {
        let written = match (&mut &*file).write(left) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            written => written,
        };
        match written {
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Half a record would hide all that follow.
                let half = (record.len() - left.len()) as u64;
                file.set_len(file.metadata()?.len().saturating_sub(half))?;
                return Err(error);
            }
        }
    }
    Ok(())
}

/// One stream's way into the file.
pub(in crate::exec) struct StreamLog {
    file: Arc<File>,
    kind: OutputKind,
    pending: Vec<u8>,
    /// When what is pending has to be written.
    due: Option<Instant>,
    /// Where in the stream the pending bytes begin.
    offset: u64,
    most: u64,
    /// The bound is reached, or the disk: only the tail is still to come.
    full: bool,
}

impl StreamLog {
    /// Takes what the stream gave.
    pub(in crate::exec) fn push(&mut self, mut bytes: &[u8]) {
        while !self.full && !bytes.is_empty() {
            let room = self.most - self.offset - self.pending.len() as u64;
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(CHUNK - self.pending.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == CHUNK || !bytes.is_empty() {
                self.flush();
                self.full |= self.offset >= self.most;
            } else {
                self.due.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
            }
        }
    }

    /// When [`StreamLog::flush`] is to be called, where something is pending.
    pub(in crate::exec) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what is pending as one chunk.
    pub(in crate::exec) fn flush(&mut self) {
        self.due = None;
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        match append(&self.file, self.kind.number(), self.offset, &pending) {
            Ok(()) => self.offset += pending.len() as u64,
            Err(error) => {
                tracing::warn!(%error, "output cannot be kept; its ends and its size are");
                self.full = true;
            }
        }
    }

    /// The stream has ended.
    pub(in crate::exec) fn finish(mut self, captured: &Captured) {
        self.flush();
        let (total, tail) = (captured.total, captured.tail());
        let begin = self.offset.max(total - tail.len() as u64);
        let missing = usize::try_from(total - begin).unwrap_or(0);
        if missing > 0
            && let Err(error) = append(&self.file, self.kind.number(), begin, &tail[tail.len() - missing..])
        {
            tracing::warn!(%error, "the tail of an output cannot be kept");
        }
    }
}

/// A piece of output, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of which stream.
    pub kind: OutputKind,
    /// Where in that stream it begins.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Reads the chunks of a run's file in order, also while it grows.
pub struct Chunks {
    file: BufReader<File>,
    /// Where the next record begins.
    at: u64,
    ended: bool,
}

enum Record {
    Chunk(Chunk),
    Started(Started),
    Ended(Vec<u8>),
    Other,
}

impl Chunks {
    /// Opens a run's file.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is something else.
    pub fn open(path: &Path) -> io::Result<Chunks> {
        let mut file = BufReader::new(File::open(path)?);
        let mut magic = Vec::new();
        file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        // One killed as it began has nothing in it.
        if !MAGIC.starts_with(&magic) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the file of a run"));
        }
        Ok(Chunks { file, at: MAGIC.len() as u64, ended: false })
    }

    /// The next chunk; none where there is none yet, or no more.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        while let Some(record) = self.next_record()? {
            match record {
                Record::Chunk(chunk) => return Ok(Some(chunk)),
                Record::Ended(_) => self.ended = true,
                Record::Started(_) | Record::Other => {}
            }
        }
        Ok(None)
    }

    /// True once the end has been read: no chunk follows.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn next_record(&mut self) -> io::Result<Option<Record>> {
        self.file.seek(SeekFrom::Start(self.at))?;
        let mut header = Vec::with_capacity(HEADER);
        self.file.by_ref().take(HEADER as u64).read_to_end(&mut header)?;
        let Some((kind, length, offset)) = parse(&header) else { return Ok(None) };
        let whole = self.file.get_ref().metadata()?.len();
        let end = self.at + HEADER as u64 + length;
        if end > whole {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        if length <= LONGEST {
            self.file.by_ref().take(length).read_to_end(&mut bytes)?;
        }
        self.at = end;
        Ok(Some(match (OutputKind::of(kind), kind) {
            (Some(kind), _) => Record::Chunk(Chunk { kind, offset, bytes }),
            (None, STARTED) => serde_json::from_slice::<StartedFrame>(&bytes).map_or(Record::Other, |frame| {
                Record::Started(Started { pid: frame.pid, start_time: frame.start_time })
            }),
            (None, ENDED) => Record::Ended(bytes),
            _ => Record::Other,
        }))
    }
}

fn parse(header: &[u8]) -> Option<(u8, u64, u64)> {
    let (kind, rest) = header.split_first()?;
    let (length, offset) = rest.split_first_chunk::<4>()?;
    let offset = offset.first_chunk::<8>()?;
    Some((*kind, u32::from_be_bytes(*length).into(), u64::from_be_bytes(*offset)))
}

/// What a run's file tells of its life.
pub(super) struct Told {
    /// Its process, where it had one.
    pub(super) started: Option<Started>,
    /// Its end, where it came to that.
    pub(super) exit: Option<Exit>,
}

/// Reads what became of a run; none where it has no file.
pub(super) fn read(path: &Path) -> io::Result<Option<Told>> {
    let mut chunks = match Chunks::open(path) {
        Ok(chunks) => chunks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut told = Told { started: None, exit: None };
    while let Some(record) = chunks.next_record()? {
        match record {
            Record::Started(started) => told.started = Some(started),
            Record::Ended(bytes) => told.exit = serde_json::from_slice::<ExitFrame>(&bytes).ok().map(Exit::from),
            Record::Chunk(_) | Record::Other => {}
        }
    }
    Ok(Some(told))
}
