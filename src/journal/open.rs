//! Opening a journal: the state folder, its lock, the checks, the pragmas.
//!
//! Owns the rule that a journal that is foreign, another node's or in use is refused with clear words.

use super::error::JournalError;
use super::meta::Key;
use super::schema::{APPLICATION_ID, TABLES, VERSION};
use super::writer::Writer;
use crate::model::id::JournalId;
use crate::model::name::NodeName;
use rusqlite::{Connection, OptionalExtension};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A node's journal. Cheap to clone; all clones share one writer.
#[derive(Clone)]
pub struct Journal {
    pub(super) writer: Writer,
    folder: PathBuf,
    id: JournalId,
    pub(super) boot: Option<Arc<str>>,
    /// Held as long as the journal is open.
    _lock: Arc<File>,
}

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
        let path = folder.join("journal.db");
        let connection = Connection::open(&path).map_err(|e| foreign(&path, &e))?;
        prepare(&connection, &path)?;
        connection.set_prepared_statement_cache_capacity(64);
        let known = identity(&connection)?;
        let (id, is_new) = match known {
            Some((id, theirs)) if theirs == node.as_str() => (id, false),
            Some((_, theirs)) => return Err(JournalError::OtherNode { path, theirs, ours: node.to_string() }),
            None => {
                let id = JournalId::fresh();
                super::meta::put(&connection, Key::Journal, &id.to_string())?;
                super::meta::put(&connection, Key::Node, node.as_str())?;
                (id, true)
            }
        };
        let writer = Writer::start(connection)?;
        let journal =
            Journal { writer, folder: folder.to_owned(), id, boot: boot.map(Into::into), _lock: Arc::new(lock) };
        Ok(Opened { journal, is_new })
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

fn foreign(path: &Path, error: &rusqlite::Error) -> JournalError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => {
            JournalError::Foreign { path: path.to_owned(), reason: "not an SQLite file".to_owned() }
        }
        _ => JournalError::Folder { path: path.to_owned(), reason: error.to_string() },
    }
}

fn prepare(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let pragma = |name: &str| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(|e| foreign(path, &e))
    };
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .map_err(|e| foreign(path, &e))?;
    if application != i64::from(APPLICATION_ID) && (tables > 0 || application != 0) {
        return Err(JournalError::Foreign { path: path.to_owned(), reason: "another program's database".to_owned() });
    }
    if tables == 0 {
        // Only a new file can take this.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(|e| foreign(path, &e))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is asked for is not always what is had: read it back, since everything rests on it.
    if pragma("synchronous")? != 2 {
        return Err(JournalError::Sqlite("SQLite does not keep synchronous=FULL".to_owned()));
    }
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.execute_batch(TABLES).map_err(|e| foreign(path, &e))?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    if version < i64::from(VERSION) {
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(())
}

fn identity(connection: &Connection) -> Result<Option<(JournalId, String)>, JournalError> {
    let get = |key: Key| {
        connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key.as_str()], |row| row.get::<_, String>(0))
            .optional()
    };
    let (Some(id), Some(node)) = (get(Key::Journal)?, get(Key::Node)?) else { return Ok(None) };
    let id = uuid::Uuid::parse_str(&id).map_err(|e| JournalError::Sqlite(format!("the journal's id `{id}`: {e}")))?;
    Ok(Some((JournalId(id), node)))
}

#[cfg(test)]
mod tests {
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
        let again = Journal::open(dir.path(), &node("ship1"), None).unwrap();
        assert!(!again.is_new && again.journal.id() == id);
        drop(again);
        let error = Journal::open(dir.path(), &node("ship2"), None).err().unwrap().to_string();
        assert!(error.contains("node `ship1`"), "{error}");
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        std::fs::write(&path, "not a database, but long enough to be taken for one at first sight").unwrap();
        assert!(matches!(Journal::open(dir.path(), &node("n"), None), Err(JournalError::Foreign { .. })));
        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
        drop(other);
        assert!(matches!(Journal::open(dir.path(), &node("n"), None), Err(JournalError::Foreign { .. })));
    }

    #[test]
    fn a_newer_journal_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::open(dir.path(), &node("n"), None).unwrap());
        let newer = Connection::open(dir.path().join("journal.db")).unwrap();
        newer.execute_batch("ALTER TABLE messages ADD COLUMN mood TEXT; PRAGMA user_version = 99;").unwrap();
        drop(newer);
        assert!(Journal::open(dir.path(), &node("n"), None).is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_told() {
        let error = Journal::open(Path::new("/proc/nothing"), &node("n"), None).err().unwrap().to_string();
        assert!(error.contains("/proc/nothing"), "{error}");
    }
}
