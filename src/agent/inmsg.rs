//! `inmsg.txt`: messages that are sent by writing a file into the state folder.
//!
//! ```text
//! inmsg.txt, readable and complete → renamed to inmsg.claimed → parsed
//!   good → outbox + the file's mark, one commit → inmsg.claimed removed
//!   bad  → error event + the file's mark, one commit → inmsg.txt.error written → put back as inmsg.txt (.bad if taken)
//! at a start with inmsg.claimed there: its mark is in the journal → only the last step is done again; else all of it
//! ```
//!
//! The mark is inode, time of change and hash of the content; a rename keeps them, so that a crash between any two steps
//! neither loses nor doubles a message, while equal text written later is a new one. Text that is not yet complete JSON
//! is waited for. What is no plain file, or may not be read, is complained of like a bad one and left where it is.
//!
//! The folder is watched, so that a file is seen as it is written, and at rest nothing runs. What the watch cannot see is
//! found by looking: often while a file is being written, else now and then.

use super::node::Node;
use super::watch::Watch;
use crate::journal::{Class, Key, Report};
use crate::killpoint::{Point, here};
use crate::model::error_event::{Code, Severity};
use crate::model::header::{RawHeaders, names};
use crate::model::id::MessageId;
use crate::model::infile::{self, Draft, FileError, MAX_FILE};
use crate::model::name::{Sender, Target};
use crate::model::subject::MsgSubject;
use rustix::fs::{AtFlags, CWD, RenameFlags, renameat_with};
use sha2::{Digest, Sha256};
use std::fs::{self, File, FileType};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// How often the folder is looked at whatever the watch tells; two system calls each time.
const LOOK: Duration = Duration::from_secs(2);

/// How often while a file is being written.
const LOOK_SOON: Duration = Duration::from_millis(250);

/// How long text that is not complete may stay unchanged before it counts as bad.
const COMPLETE_WITHIN: Duration = Duration::from_secs(2);

/// Room that is left for the header of a replay.
const REPLAY_ROOM: usize = 4096;

/// Watches the file until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let files = Files::new(node.journal.folder());
    // Before the first look: what comes behind that is told.
    let watch = Watch::new(node.journal.folder());
    let mut complaint = String::new();
    loop {
        let wait = match look(&node, &files).await {
            Ok(Seen::BeingWritten) => LOOK_SOON,
            Ok(Seen::Settled) => LOOK,
            Err(error) => {
                // Said once, not at every look.
                if complaint != error.to_string() {
                    complaint = error.to_string();
                    tracing::error!(path = %files.inmsg.display(), %error, "inmsg.txt");
                }
                LOOK
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = watch.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What a look has found.
enum Seen {
    /// A file that may not be complete yet.
    BeingWritten,
    /// Nothing to be done until something changes.
    Settled,
}

/// The files of the protocol.
#[derive(Debug, Clone)]
struct Files {
    inmsg: PathBuf,
    claimed: PathBuf,
    bad: PathBuf,
    error: PathBuf,
}

impl Files {
    fn new(folder: &Path) -> Files {
        let file = |name: &str| folder.join(name);
        Files {
            inmsg: file("inmsg.txt"),
            claimed: file("inmsg.claimed"),
            bad: file("inmsg.txt.bad"),
            error: file("inmsg.txt.error"),
        }
    }
}

/// What is there under a name.
enum Found {
    Content(Content),
    /// Something that is not read.
    Unusable {
        mark: String,
        reason: String,
    },
}

/// A file's content with what tells it from every other.
struct Content {
    bytes: Vec<u8>,
    mark: String,
    age: Duration,
}

async fn look(node: &Node, files: &Files) -> io::Result<Seen> {
    if !files.claimed.exists() {
        let content = match read(&files.inmsg)? {
            None => return Ok(Seen::Settled),
            Some(Found::Content(content)) => content,
            Some(Found::Unusable { mark, reason }) => {
                if !(is_known_bad(node, &mark).await? && files.error.exists()) {
                    complain(node, files, &mark, &reason).await?;
                }
                return Ok(Seen::Settled);
            }
        };
        let is_fresh = content.age < COMPLETE_WITHIN;
        if content.bytes.is_empty() {
            return Ok(if is_fresh { Seen::BeingWritten } else { Seen::Settled });
        }
        if is_known_bad(node, &content.mark).await? {
            return Ok(Seen::Settled);
        }
        if matches!(parse(node, &content.bytes), Err(FileError::Incomplete { .. })) && is_fresh {
            return Ok(Seen::BeingWritten);
        }
        fs::rename(&files.inmsg, &files.claimed)?;
        here(Point::Claimed);
    }
    // What was claimed may have grown since it was read.
    let content = match read(&files.claimed)? {
        None => return Ok(Seen::Settled),
        Some(Found::Content(content)) => content,
        Some(Found::Unusable { reason, .. }) => return Err(io::Error::other(reason)),
    };
    match parse(node, &content.bytes).and_then(|drafts| messages(node, &drafts)) {
        Ok(reports) => accept(node, files, &content, reports).await?,
        Err(error) => put_back(node, files, &content, &error.to_string()).await?,
    }
    Ok(Seen::Settled)
}

fn parse(node: &Node, bytes: &[u8]) -> Result<Vec<Draft>, FileError> {
    infile::parse(bytes, &|method| node.registry.kind_of(method))
}

async fn is_known_bad(node: &Node, mark: &str) -> io::Result<bool> {
    let known: Option<String> = node.journal.meta(Key::BadInmsg).await.map_err(io::Error::other)?;
    Ok(known.as_deref() == Some(mark))
}

/// The messages go into the outbox together with the file's mark; then the file may go.
async fn accept(node: &Node, files: &Files, content: &Content, reports: Vec<Report>) -> io::Result<()> {
    let count = reports.len();
    let fresh = node.journal.report_once(Key::Inmsg, content.mark.clone(), reports).await.map_err(io::Error::other)?;
    here(Point::Accepted);
    if fresh {
        tracing::info!(messages = count, "inmsg.txt taken");
        node.wakes.ring(Class::Message);
    }
    // As long as a bad file is kept, so is its reason.
    if !files.bad.exists() {
        remove(&files.error)?;
    }
    remove(&files.claimed)
}

async fn put_back(node: &Node, files: &Files, content: &Content, reason: &str) -> io::Result<()> {
    complain(node, files, &content.mark, &format!("inmsg.txt: {reason}")).await?;
    // Never over a file that somebody has written since.
    match renameat_with(CWD, &files.claimed, CWD, &files.inmsg, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(_) => fs::rename(&files.claimed, &files.bad),
    }
}

/// Says once what is wrong with the thing of this mark: an error event, and the reason in a file beside it.
async fn complain(node: &Node, files: &Files, mark: &str, reason: &str) -> io::Result<()> {
    let event = node.event(Severity::Warning, Code::BadInmsg, reason);
    let fresh = node
        .journal
        .report_once(Key::BadInmsg, mark.to_owned(), vec![node.error_report(&event)])
        .await
        .map_err(io::Error::other)?;
    if fresh {
        tracing::warn!(reason, "inmsg.txt is not accepted");
        node.wakes.ring(Class::Error);
    }
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&files.error)?;
    writeln!(file, "{reason}")?;
    file.sync_data()
}

/// The messages of these drafts, one for each target, as they are published.
fn messages(node: &Node, drafts: &[Draft]) -> Result<Vec<Report>, FileError> {
    let limit = node.broker.max_payload().saturating_sub(REPLAY_ROOM);
    let mut reports = Vec::new();
    for (at, draft) in drafts.iter().enumerate() {
        if draft.body.len() > limit {
            let reason = format!("message {} has a body of {} bytes; {limit} is the limit", at + 1, draft.body.len());
            return Err(FileError::Bad { at: infile::Place { line: 1, column: 1 }, field: None, reason });
        }
        let id = draft.headers.id.clone().unwrap_or_else(MessageId::fresh);
        reports.extend(draft.to.iter().map(|to| message(node, draft, to, &id)));
    }
    Ok(reports)
}

fn message(node: &Node, draft: &Draft, to: &Target, id: &MessageId) -> Report {
    let subject = MsgSubject {
        to: to.clone(),
        kind: draft.kind,
        from: Sender::from(node.name.clone()),
        method: draft.method.clone(),
        lane: draft.lane.clone(),
    };
    let mut headers = RawHeaders::default().with(names::MSG_ID, format!("{}.{id}.{to}", node.name));
    let mut ours = draft.headers.clone();
    ours.id = Some(id.clone());
    ours.write(draft.kind, &mut headers);
    Report { class: Class::Message, subject: node.names.message(&subject), headers, body: draft.body.clone() }
}

fn read(path: &Path) -> io::Result<Option<Found>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let unusable = |what: String| {
        let mark = format!("{}:{}.{}", metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Some(Found::Unusable { mark, reason: format!("{name} {what}") })
    };
    // Before it is opened: who writes into a pipe would take that for a reader.
    if let Some(what) = other_than_a_file(metadata.file_type()) {
        return Ok(unusable(format!("is {what}, and is not read: only a plain file is")));
    }
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = File::options().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(unusable(format!("may not be read by the agent: {error}")));
        }
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    let hash = Sha256::digest(&bytes);
    let mark = format!("{}:{}.{}:{}:{hash:x}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
    let age =
        metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or(Duration::MAX);
    Ok(Some(Found::Content(Content { bytes, mark, age })))
}

/// What it is, where that is no plain file.
fn other_than_a_file(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_symlink() => Some("a symbolic link"),
        kind if kind.is_dir() => Some("a folder"),
        kind if kind.is_fifo() => Some("a named pipe"),
        _ => Some("a device or socket"),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
