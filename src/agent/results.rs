//! `acks.jsonl`: what became of the commands that this node sent, one JSON object a line.
//!
//! Each result is appended once: the journal keeps the length up to which the file is whole, so that a line that a crash
//! cut off or left unnoticed is written again over itself.
//!
//! ```text
//! another file, or none so far → its length is kept → lines are written, and synced → their end is kept
//! ```

use super::node::Node;
use crate::journal::{Class, Entry, EntryId, Key};
use crate::killpoint::{Point, here};
use crate::model::jitter::Backoff;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Lines written at once.
const LINES: usize = 256;

/// Appends results until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let path = node.journal.folder().join("acks.jsonl");
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let wait = match append(&node, &path).await {
            Ok(0) => None,
            Ok(_) => continue,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "results cannot be written; trying again");
                Some(backoff.next_wait())
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = node.wakes.rung(Class::Result), if wait.is_none() => backoff.reset(),
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
        }
    }
}

async fn append(node: &Node, path: &Path) -> io::Result<usize> {
    let entries = node.journal.outbox(Class::Result, EntryId(0), LINES, 8 << 20).await.map_err(io::Error::other)?;
    if entries.is_empty() {
        return Ok(0);
    }
    let count = entries.len();
    let whole: Option<Mark> = node.journal.meta(Key::AcksLength).await.map_err(io::Error::other)?;
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
    let place: PathBuf = path.to_owned();
    let begin = tokio::task::spawn_blocking(move || place_in(&place, whole)).await.map_err(io::Error::other)??;
    if whole != Some(begin) {
        // Before anything is written to it: a crash behind that would find nothing to tell its lines by.
        node.journal.set_meta(Key::AcksLength, begin).await.map_err(io::Error::other)?;
    }
    let place: PathBuf = path.to_owned();
    let mark =
        tokio::task::spawn_blocking(move || write(&place, begin, &entries)).await.map_err(io::Error::other)??;
    here(Point::ResultWritten);
    node.journal.left(ids, Key::AcksLength, mark.to_string()).await.map_err(io::Error::other)?;
    Ok(count)
}

/// Which file, and up to where it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    inode: u64,
    length: u64,
}

impl Mark {
    fn of(file: &File) -> io::Result<Mark> {
        let metadata = file.metadata()?;
        Ok(Mark { inode: metadata.ino(), length: metadata.len() })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.inode, self.length)
    }
}

impl std::str::FromStr for Mark {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Mark, Self::Err> {
        let (inode, length) = text.split_once(':').unwrap_or((text, ""));
        Ok(Mark { inode: inode.parse()?, length: length.parse()? })
    }
}

/// From where on the file is written: up to where it is whole, or, where somebody has put another in its place or cut it,
/// its end. Makes it where there is none.
fn place_in(path: &Path, whole: Option<Mark>) -> io::Result<Mark> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let found = Mark::of(&file)?;
    if let Some(mark) = whole.filter(|mark| mark.inode == found.inode && mark.length <= found.length) {
        return Ok(mark);
    }
    // A power cut must not take a new file, with lines that the outbox has let go.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
    Ok(found)
}

fn write(path: &Path, begin: Mark, entries: &[Entry]) -> io::Result<Mark> {
    let mut file = File::options().write(true).open(path)?;
    let found = Mark::of(&file)?;
    if found.inode != begin.inode || found.length < begin.length {
        return Err(io::Error::other("another file has taken its place"));
    }
    // Longer than it is known to be whole: a crash came between writing and remembering.
    file.set_len(begin.length)?;
    file.seek(SeekFrom::End(0))?;
    let mut lines = Vec::new();
    for entry in entries {
        lines.extend_from_slice(&entry.report.body);
        lines.push(b'\n');
    }
    file.write_all(&lines)?;
    file.sync_data()?;
    Mark::of(&file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Report;
    use crate::model::header::RawHeaders;

    fn entry(text: &str) -> Entry {
        let report = Report {
            class: Class::Result,
            subject: String::new(),
            headers: RawHeaders::default(),
            body: text.to_owned().into(),
        };
        Entry { id: EntryId(1), report }
    }

    #[test]
    fn a_line_that_a_crash_left_unnoticed_is_not_doubled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks.jsonl");
        let (mut whole, mut text) = (None, String::new());
        for line in ["{\"a\":1}", "{\"b\":2}"] {
            let begin = place_in(&path, whole).unwrap();
            // Written, but the journal never heard of it.
            write(&path, begin, &[entry(line)]).unwrap();
            assert_eq!(place_in(&path, Some(begin)).unwrap(), begin);
            whole = Some(write(&path, begin, &[entry(line)]).unwrap());
            text += &format!("{line}\n");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_rotated_file_is_begun_anew_and_a_shortened_one_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks.jsonl");
        let mark = write(&path, place_in(&path, None).unwrap(), &[entry("one")]).unwrap();
        std::fs::rename(&path, dir.path().join("acks.jsonl.1")).unwrap();
        assert!(write(&path, mark, &[entry("two")]).is_err(), "there is none");
        std::fs::write(&path, "theirs\n").unwrap();
        assert!(write(&path, mark, &[entry("two")]).is_err(), "it is another");
        let begin = place_in(&path, Some(mark)).unwrap();
        write(&path, begin, &[entry("two")]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs\ntwo\n");
        std::fs::write(&path, "").unwrap();
        write(&path, place_in(&path, Some(begin)).unwrap(), &[entry("three")]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(Mark { inode: 7, length: 9 }.to_string().parse(), Ok(Mark { inode: 7, length: 9 }));
    }
}
