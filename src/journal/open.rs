//! Opening a journal: the state folder, its lock, the checks, the pragmas.
//!
//! Owns the rule that a journal that is foreign, another node's or in use is refused with clear words, and that a
//! damaged one of ours is moved aside.

use super::damage::{self, CHECKED_AT_START};
use super::error::JournalError;
use super::health::Condition;
use super::mark::{Mark, MarkFile};
use super::meta::{self, Key};
use super::schema::{APPLICATION_ID, HELD, LATER_COLUMNS, TABLES, VERSION};
use super::writer::Writer;
use crate::model::id::JournalId;
use crate::model::name::NodeName;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// What bodies may take in a journal, unless told otherwise: 1 GiB.
pub const SPACE: u64 = 1 << 30;

/// Its name in the folder.
pub(super) const FILE: &str = "journal.db";

/// A node's journal. Cheap to clone; all clones share one writer.
#[derive(Clone)]
pub struct Journal {
    pub(super) writer: Writer,
    folder: PathBuf,
    /// The file as it was opened: its device and inode.
    file: Option<(u64, u64)>,
    id: JournalId,
    pub(super) boot: Option<Arc<str>>,
    /// What bodies may take, in bytes.
    pub(super) space: u64,
    /// Held as long as the journal is open.
    _lock: Arc<File>,
}

/// Pages that SQLite may hold in memory, in KiB: what is read and written lies close together.
const CACHE_KIB: i64 = 512;

/// What the write-ahead log may keep of its largest size, in bytes.
const WAL_KEPT: i64 = 16 << 20;

/// A journal just opened.
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// True where it was made now.
    pub is_new: bool,
}

impl Journal {
    /// Opens the journal in `folder`, or makes it. `boot` names this boot of the host: runs are noted with it. Blocks.
    pub fn open(folder: &Path, node: &NodeName, boot: Option<&str>) -> Result<Opened, JournalError> {
        make_folder(folder)?;
        let lock = lock(folder)?;
        let (file, replaced) = whole(folder)?;
        let (id, is_new) = match file.identity {
            Some((id, theirs)) if theirs == node.as_str() => (id, false),
            Some((_, theirs)) => {
                let path = folder.join(FILE);
                return Err(JournalError::OtherNode { path, theirs, ours: node.to_string() });
            }
            None => (begin(&file.connection, node, replaced.as_deref())?, true),
        };
        file.connection.execute_batch(HELD)?;
        let mark = MarkFile::write(folder, &Mark { id, commits: file.commits })?;
        let lock = Arc::new(lock);
        let writer = Writer::start(file.connection, file.commits, mark, Arc::clone(&lock))?;
        let (boot, folder) = (boot.map(Into::into), folder.to_owned());
        let file = inode(&folder.join(FILE));
        let journal = Journal { writer, folder, file, id, boot, space: SPACE, _lock: lock };
        Ok(Opened { journal, is_new })
    }

    /// True where the file that was opened is still the one that stands in the folder: what is kept is found by the next
    /// agent.
    pub fn is_in_place(&self) -> bool {
        inode(&self.path()) == self.file
    }

    /// Bodies that wait may take this many bytes: no lane more than a quarter of it, no sender more than half.
    #[must_use]
    pub fn with_space(self, bytes: u64) -> Journal {
        Journal { space: bytes, ..self }
    }

    /// How the journal is, to look at or to wait for.
    pub fn health(&self) -> watch::Receiver<Condition> {
        self.writer.health().watch()
    }

    /// How many commits have failed since it was opened.
    pub fn failures(&self) -> u64 {
        self.writer.health().failures()
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// The journal's id, for ever.
    pub fn id(&self) -> JournalId {
        self.id
    }

    /// The state folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn make_folder(folder: &Path) -> Result<(), JournalError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|e| JournalError::Folder { path: folder.to_owned(), reason: format!("cannot be made: {e}") })
}

fn lock(folder: &Path) -> Result<File, JournalError> {
    let path = folder.join("agent.lock");
    let fail = |reason: String| JournalError::Folder { path: path.clone(), reason };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| fail(format!("cannot be written: {e}")))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        return Err(JournalError::InUse { path: folder.to_owned(), pid: text.trim().parse().ok() });
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(|e| fail(e.to_string()))?;
    Ok(file)
}

/// A file that was looked at.
struct Examined {
    connection: Connection,
    identity: Option<(JournalId, String)>,
    commits: u64,
}

/// The journal in `folder`, or a new one where it is damaged, with a sentence about that.
fn whole(folder: &Path) -> Result<(Examined, Option<String>), JournalError> {
    let path = folder.join(FILE);
    let mark = Mark::read(folder);
    let found = match damage::note(folder) {
        Some(reason) => Err(JournalError::Damaged(reason)),
        None => examine(&path, mark.as_ref()),
    };
    match found {
        // What nothing says to be ours is left alone.
        Err(JournalError::Damaged(reason)) if mark.is_none() && !has_our_id(&path) => {
            Err(JournalError::Foreign { path, reason })
        }
        Err(JournalError::Damaged(reason)) => {
            let replaced = damage::move_aside(folder, &reason)?;
            Ok((examine(&path, None)?, Some(replaced)))
        }
        found => Ok((found?, None)),
    }
}

/// True where the file's header has our application id, whatever else is wrong with it.
pub(super) fn has_our_id(path: &Path) -> bool {
    const AT: usize = 68;
    let mut header = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.get(AT..AT + 4) == Some(&APPLICATION_ID.to_be_bytes()[..])
}

fn examine(path: &Path, mark: Option<&Mark>) -> Result<Examined, JournalError> {
    let unusable = |error: JournalError| match error {
        JournalError::Unwritable(reason) => JournalError::Folder { path: path.to_owned(), reason },
        error => error,
    };
    let connection = Connection::open(path).map_err(|e| unusable(e.into()))?;
    prepare(&connection, path).map_err(unusable)?;
    connection.set_prepared_statement_cache_capacity(64);
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() <= CHECKED_AT_START) {
        damage::check(&connection)?;
    }
    let identity = identity(&connection)?;
    let commits = meta::get(&connection, Key::Commits)?.and_then(|text| text.parse().ok()).unwrap_or(0);
    match (mark, &identity) {
        (Some(mark), None) => {
            Err(JournalError::Damaged(format!("it is missing or empty; it was the journal {}", mark.id)))
        }
        (Some(mark), Some((id, _))) if mark.id == *id && mark.commits > commits => {
            Err(JournalError::Damaged(format!("its last {} commits are gone", mark.commits - commits)))
        }
        _ => Ok(Examined { connection, identity, commits }),
    }
}

/// A journal begins: it gets its id.
fn begin(connection: &Connection, node: &NodeName, replaced: Option<&str>) -> Result<JournalId, JournalError> {
    let id = JournalId::fresh();
    let tx = connection.unchecked_transaction()?;
    meta::put(&tx, Key::Journal, &id.to_string())?;
    meta::put(&tx, Key::Node, node.as_str())?;
    if let Some(replaced) = replaced {
        meta::put(&tx, Key::Replaced, replaced)?;
    }
    tx.commit()?;
    Ok(id)
}

/// Whose a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    /// A journal.
    Ours,
    /// Nobody's yet.
    New,
    /// Another program's.
    Foreign,
}

pub(super) fn kind(connection: &Connection) -> Result<FileKind, JournalError> {
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
    Ok(match (application, tables) {
        (application, 1..) if application == i64::from(APPLICATION_ID) => FileKind::Ours,
        (0, 0) => FileKind::New,
        (application, 0) if application == i64::from(APPLICATION_ID) => FileKind::New,
        _ => FileKind::Foreign,
    })
}

pub(super) fn foreign(path: &Path) -> JournalError {
    JournalError::Foreign { path: path.to_owned(), reason: "another program's database".to_owned() }
}

fn prepare(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let kind = kind(connection)?;
    if kind == FileKind::Foreign {
        return Err(foreign(path));
    }
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    if kind == FileKind::New {
        // Only a new file can take this.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is asked for is not always what is had: read it back, since everything rests on it.
    if pragma("synchronous")? != 2 {
        return Err(JournalError::Sqlite("SQLite does not keep synchronous=FULL".to_owned()));
    }
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // Without this a plan may depend on the values of a statement, which then is read and planned anew for each of them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // All or nothing: tables without our id would be another program's to the next agent.
    let tx = connection.unchecked_transaction()?;
    tx.execute_batch(TABLES)?;
    for (table, column, kind) in LATER_COLUMNS {
        if !tx.column_exists(None, table, column)? {
            tx.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
        }
    }
    if kind == FileKind::New {
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    if version < i64::from(VERSION) {
        tx.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(tx.commit()?)
}

pub(super) fn identity(connection: &Connection) -> Result<Option<(JournalId, String)>, JournalError> {
    let (Some(id), Some(node)) = (meta::get(connection, Key::Journal)?, meta::get(connection, Key::Node)?) else {
        return Ok(None);
    };
    let id = uuid::Uuid::parse_str(&id).map_err(|e| JournalError::Damaged(format!("its id `{id}`: {e}")))?;
    Ok(Some((JournalId(id), node)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::when_free;
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[test]
    fn a_journal_keeps_its_id_and_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path(), &node("ship1"), None).unwrap();
        assert!(first.is_new);
        let id = first.journal.id();
        assert!(matches!(
            Journal::open(dir.path(), &node("ship1"), None),
            Err(JournalError::InUse { pid: Some(_), .. })
        ));
        drop(first);
        let again = when_free(dir.path(), "ship1", None).unwrap();
        assert!(!again.is_new && again.journal.id() == id);
        drop(again);
        let error = when_free(dir.path(), "ship2", None).err().unwrap().to_string();
        assert!(error.contains("node `ship1`"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "not a database, but long enough to be taken for one at first sight").unwrap();
        assert!(matches!(Journal::open(dir.path(), &node("n"), None), Err(JournalError::Foreign { .. })));
        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
        drop(other);
        assert!(matches!(Journal::open(dir.path(), &node("n"), None), Err(JournalError::Foreign { .. })));
    }

    #[test]
    fn a_journal_is_made_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        // As one begins that is killed before the transaction that makes it is over.
        let begun = Connection::open(&path).unwrap();
        begun.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        drop(begun);
        // Nobody may write the last page that it takes: what was made before that must not stay.
        let short = Connection::open(&path).unwrap();
        short.pragma_update_and_check(None, "max_page_count", 20, |_| Ok(())).unwrap();
        prepare(&short, &path).unwrap_err();
        drop(short);
        assert_eq!(kind(&Connection::open(&path).unwrap()).unwrap(), FileKind::New);
        assert!(Journal::open(dir.path(), &node("n"), None).unwrap().is_new);
    }

    #[test]
    fn a_newer_journal_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::open(dir.path(), &node("n"), None).unwrap());
        let newer = Connection::open(dir.path().join(FILE)).unwrap();
        newer.execute_batch("ALTER TABLE messages ADD COLUMN mood TEXT; PRAGMA user_version = 99;").unwrap();
        drop(newer);
        assert!(when_free(dir.path(), "n", None).is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_told() {
        let error = Journal::open(Path::new("/proc/nothing"), &node("n"), None).err().unwrap().to_string();
        assert!(error.contains("/proc/nothing"), "{error}");
    }
}
