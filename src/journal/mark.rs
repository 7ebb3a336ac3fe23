//! The mark beside the journal: whose it is, and how many commits it has seen.
//!
//! Owns `journal.mark`. SQLite drops the end of a write-ahead log that was cut without a word, and an empty file is a
//! new database to it; a journal that has gone back in time would run messages a second time. The number here is
//! written after each commit, so it is never ahead of a journal that is whole. It is not synced: behind is harmless.

use super::error::JournalError;
use crate::model::id::JournalId;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const NAME: &str = "journal.mark";

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) id: JournalId,
    pub(super) commits: u64,
}

impl Mark {
    /// The mark in a state folder; `None` where there is none that can be read.
    pub(super) fn read(folder: &Path) -> Option<Mark> {
        let text = std::fs::read_to_string(folder.join(NAME)).ok()?;
        let (id, commits) = text.trim_end().split_once(' ')?;
        Some(Mark { id: JournalId(uuid::Uuid::parse_str(id).ok()?), commits: commits.parse().ok()? })
    }
}

/// The mark of an open journal.
pub(super) struct MarkFile {
    file: File,
    at: u64,
}

impl MarkFile {
    /// Writes a mark, whole or not at all.
    pub(super) fn write(folder: &Path, mark: &Mark) -> Result<MarkFile, JournalError> {
        let (path, fresh) = (folder.join(NAME), folder.join("journal.mark.new"));
        let text = format!("{} {:020}\n", mark.id, mark.commits);
        let write = || -> std::io::Result<File> {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_data()?;
            std::fs::rename(&fresh, &path)?;
            Ok(file)
        };
        let file = write().map_err(|e| JournalError::Folder { path: path.clone(), reason: e.to_string() })?;
        Ok(MarkFile { file, at: text.len() as u64 - 21 })
    }

    /// Notes a commit. A mark that stays behind does no harm, so an error is not one.
    pub(super) fn note(&self, commits: u64) {
        if let Err(error) = self.file.write_all_at(format!("{commits:020}").as_bytes(), self.at) {
            tracing::debug!(%error, "the journal's mark stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path()), None);
        let id = JournalId::fresh();
        let file = MarkFile::write(dir.path(), &Mark { id, commits: 7 }).unwrap();
        assert_eq!(Mark::read(dir.path()), Some(Mark { id, commits: 7 }));
        file.note(123_456);
        assert_eq!(Mark::read(dir.path()), Some(Mark { id, commits: 123_456 }));
    }
}
