//! Running one child process and telling what truly became of it.
//!
//! Owns: how a child is started (environment, working directory, user), how its output is read
//! in bounded memory, how it and its process group are ended, and how processes that an earlier
//! agent left behind are found. It knows nothing of messages, the broker or the journal, and
//! never decides whether something may be run.
//!
//! A run is [`spawn`], then [`Running::wait`]. Each child leads a process group of its own, and
//! that group is what a timeout, a stop or a dropped wait ends; with it go those who left the
//! group by `setsid`, where they carry the mark of the run or are in its control group. What lives on after a child that
//! ended by itself is told ([`Exit::left_running`]) or ended, too ([`Limits::kill_left`]).
//! All killing is in `group`.
//!
//! A node's commands run in a process that outlives the agent: [`runner`].

mod capture;
mod cgroup;
mod command;
mod env;
mod group;
mod leader;
mod leftover;
mod proc;
pub mod runner;
mod running;
mod user;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use crate::model::process::Started;
pub use capture::Captured;
pub use leftover::{Leftover, Marker, find_marked, kill_leftover};
pub use proc::boot_id;
pub use running::Running;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// The program: a name searched for in the child's `PATH`, or a path; a relative path
    /// starts at `cwd`.
    pub program: OsString,
    /// Arguments after the program's own name.
    pub args: Vec<OsString>,
    /// Working directory; the agent's own where `None`.
    pub cwd: Option<PathBuf>,
    /// Set over the cleaned environment; of equal names the last counts.
    pub env: Vec<(OsString, OsString)>,
    /// The environment to start from, cleaned in any case; this process's own where `None`.
    pub base: Option<Arc<Vec<(OsString, OsString)>>>,
    /// What the child reads.
    pub stdin: Stdin,
    /// Login name to run as: uid, gid, supplementary groups, `HOME`, `USER`, `LOGNAME` and
    /// `SHELL` become his. Needs root, and `setpriv` (util-linux), because the standard library
    /// cannot set supplementary groups without unsafe code. A program that this user may not
    /// execute ends with exit code 126 or 127 and a line on stderr.
    pub user: Option<String>,
}

/// What a child reads on its standard input.
#[derive(Clone, Debug, Default)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// These bytes, then the end. A child that does not read them is no error.
    Bytes(Bytes),
}

/// Bounds of one run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start to the TERM of the group.
    pub timeout: Duration,
    /// From TERM to KILL.
    pub grace: Duration,
    /// Bytes kept of each of the two streams: its first and its last half.
    pub keep: usize,
    /// After the child has ended, how long a process that it left behind may hold the output
    /// open before the result is given without it.
    pub drain: Duration,
    /// Bytes of each of the two streams that a run's file holds; beyond them its tail alone.
    pub file: u64,
    /// What lives on when the child has ended is ended, too.
    pub kill_left: bool,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Exit {
    /// How the child itself ended.
    pub how: How,
    /// Why the group was ended; `None` where the child ended by itself.
    pub ended_by: Option<Cut>,
    /// What was written to standard output.
    pub stdout: Captured,
    /// What was written to standard error.
    pub stderr: Captured,
    /// Something that the child started lives on, in its group or holding its output.
    pub left_running: bool,
    /// From the start to here.
    pub took: Duration,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Not known: it did not die of KILL in time (hung in the kernel), or its status was taken
    /// by someone else.
    Unknown,
}

/// Why a run was ended from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// [`Limits::timeout`] passed.
    TimedOut,
    /// The token given to [`Running::wait`] was cancelled.
    Stopped,
}

/// Why a child could not be started. Nothing runs then.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No such program.
    #[error("program {program:?} not found")]
    NotFound {
        /// As given, or as searched for.
        program: PathBuf,
    },
    /// The program may not be executed.
    #[error("no permission to execute {program:?}")]
    NotPermitted {
        /// As found.
        program: PathBuf,
    },
    /// The program is a script, or needs a loader, that is not there.
    #[error("the interpreter of {program:?} is not found")]
    NoInterpreter {
        /// As found.
        program: PathBuf,
    },
    /// The working directory is missing, no directory, or closed to us.
    #[error("cannot enter working directory {path:?}")]
    Cwd {
        /// As given.
        path: PathBuf,
        /// What the kernel says of it.
        source: io::Error,
    },
    /// The system knows no such user.
    #[error("no such user {user:?}")]
    NoSuchUser {
        /// As given.
        user: String,
    },
    /// The user exists, but cannot be switched to.
    #[error("cannot run as user {user:?}: {why}")]
    User {
        /// As given.
        user: String,
        /// What is missing.
        why: &'static str,
    },
    /// A NUL byte, which no program can be given.
    #[error("NUL byte in {place}")]
    Nul {
        /// Where, counting arguments from 1.
        place: String,
    },
    /// An environment name that is empty or holds `=`.
    #[error("bad environment name {name:?}")]
    EnvName {
        /// As given.
        name: OsString,
    },
    /// Arguments and environment are more than the kernel takes.
    #[error("arguments and environment of {program:?} are too long")]
    TooLong {
        /// As found.
        program: PathBuf,
    },
    /// Anything else: no memory, no process to be had, no file descriptor.
    #[error("cannot start {program:?}")]
    Io {
        /// As found.
        program: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Starts the child; must be called on a tokio runtime with I/O and time.
///
/// It only waits where `spec.user` is not in `/etc/passwd` and the system's other sources are
/// asked. [`Limits::timeout`] counts from here.
///
/// # Errors
/// [`SpawnError`], and then nothing runs.
pub async fn spawn(spec: &Spec, limits: &Limits) -> Result<Running, SpawnError> {
    let account = match &spec.user {
        None => None,
        Some(name) => Some(user::Account::find(name).await?),
    };
    running::start(spec, account.as_ref(), limits, running::Extras::default())
}

#[cfg(test)]
mod tests;
