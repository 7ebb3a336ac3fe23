//! One running `nats-server` with JetStream, a child of this process.
//!
//! Its folder holds everything of it: the written configuration, the log, the pid file, a lock file and
//! JetStream's store. It listens on 127.0.0.1 alone, whatever its configuration says. Two servers on one folder
//! are refused: the lock is held by the server process itself (see `guard`), so it ends when that does.
//! The server ends with this process in all cases; dropping a [`Server`] kills it at once.
//!
//! A server is ready when its port answers with a greeting that says JetStream is on. A free port is
//! chosen by the server and read from its ports file, so no other process can take it in between; a
//! restart keeps it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::guard::{self, Guard};
use super::ready;
use super::settings;

/// How long a start may take until the server is ready, unless the options say otherwise.
const READY: Duration = Duration::from_secs(10);
/// How long a server may take to stop before it is killed.
const STOPPING: Duration = Duration::from_secs(10);
/// How long the server before this one, whose parent may just have died, may take to free the folder.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How often files and ports are looked at while waiting.
const POLL: Duration = Duration::from_millis(10);
/// The log is put aside at a start when it is larger than this (bytes).
const LOG_LIMIT: u64 = 16 * 1024 * 1024;
/// Lines of the log in errors.
const TAIL: usize = 20;

/// How to run a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `nats-server` binary.
    pub binary: PathBuf,
    /// The folder of the server, made (mode 0700) when it is missing. JetStream's files are in
    /// `jetstream` below it.
    pub store_dir: PathBuf,
    /// The port for clients, on 127.0.0.1.
    pub port: Port,
    /// A configuration file to start from, such as the `nats-server.conf` of the repository. Its
    /// listener and its `jetstream` block are replaced.
    pub config: Option<PathBuf>,
    /// Configuration text that comes last: what it names replaces what was named before
    /// (`accounts`, `cluster`, `server_name`, a whole `jetstream` block, …).
    pub extra_config: String,
    /// Flush every stored message to the disk before it is acknowledged (`sync_interval: always`).
    pub sync_always: bool,
    /// Largest message body in bytes; the server's own default (1 MiB) when `None`.
    pub max_payload: Option<u64>,
    /// The log file, appended to.
    pub log: PathBuf,
    /// How long a start may take until the server is ready: 10 s unless set. A large store on a slow
    /// disk takes longer to recover.
    pub ready_within: Duration,
}

impl Options {
    /// A server in `store_dir` on a free port, with defaults for the rest; the log is in the folder.
    pub fn new(binary: impl Into<PathBuf>, store_dir: impl Into<PathBuf>) -> Self {
        let store_dir = store_dir.into();
        Self {
            binary: binary.into(),
            log: store_dir.join("nats-server.log"),
            store_dir,
            port: Port::Free,
            config: None,
            extra_config: String::new(),
            sync_always: false,
            max_payload: None,
            ready_within: READY,
        }
    }
}

/// Which port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Any free one.
    Free,
    /// This one when it is free, else any.
    Prefer(u16),
    /// This one or none.
    Exact(u16),
}

/// Why a server could not be started, or not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the server could not be read or written.
    #[error("the file `{}` cannot be used", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A path that cannot be written into a configuration.
    #[error("the path `{}` is not UTF-8 or has a quote or control character in it", .0.display())]
    Path(PathBuf),
    /// Another server is running on the folder.
    #[error("the folder `{}` is in use by another nats-server{}", .folder.display(), by(*.pid))]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The other server's pid, where it could be read.
        pid: Option<i32>,
    },
    /// It could not be started at all.
    #[error("nats-server could not be started")]
    Spawn(#[source] io::Error),
    /// It ended before it was ready.
    #[error("nats-server ended at its start ({status}); its log ends:\n{log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// It runs, but was not ready in time; it was killed.
    #[error("nats-server was not ready within {} s; its log ends:\n{log}", .within.as_secs())]
    NotReady {
        /// The time it had.
        within: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// It could not be waited for or signalled.
    #[error("nats-server could not be waited for or signalled")]
    Wait(#[source] io::Error),
}

impl RunError {
    /// Whether the server ended because another process has its port.
    fn port_taken(&self) -> bool {
        matches!(self, Self::Ended { log, .. } if log.contains("address already in use"))
    }
}

fn by(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// A started server. It ends when this is dropped, and when this process ends in any way.
#[derive(Debug)]
pub struct Server {
    options: Options,
    port: u16,
    life: Life,
}

#[derive(Debug)]
enum Life {
    Running(Running),
    Ended(ExitStatus),
    /// A restart failed, or is under way.
    Down,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// `None` once the child has ended.
    guard: Option<Guard>,
    pid: Pid,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub async fn start(mut options: Options) -> Result<Self, RunError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&options.store_dir)
            .map_err(io_error(&options.store_dir))?;
        options.store_dir = fs::canonicalize(&options.store_dir).map_err(io_error(&options.store_dir))?;
        let (wanted, or_any) = match options.port {
            Port::Free => (None, false),
            Port::Exact(port) => (Some(port), false),
            Port::Prefer(port) => (Some(port), true),
        };
        let (running, port) = match launch(&options, wanted).await {
            Err(error) if or_any && error.port_taken() => launch(&options, None).await?,
            outcome => outcome?,
        };
        Ok(Self { options, port, life: Life::Running(running) })
    }

    /// The address for clients, `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port for clients; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id, while it is not known to have ended.
    pub fn pid(&self) -> Option<u32> {
        match &self.life {
            Life::Running(running) => running.child.id(),
            Life::Ended(_) | Life::Down => None,
        }
    }

    /// The options it was started with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The last `lines` lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.options.log, 0, lines)
    }

    /// Waits until the server ends by itself (a crash, somebody's signal). May be dropped and called
    /// again.
    pub async fn exited(&mut self) -> Result<ExitStatus, RunError> {
        match &mut self.life {
            Life::Running(running) => {
                let status = running.wait().await?;
                self.life = Life::Ended(status);
                Ok(status)
            }
            Life::Ended(status) => Ok(*status),
            Life::Down => std::future::pending().await,
        }
    }

    /// Stops the server in order: INT, and KILL if it has not ended after ten seconds.
    pub async fn stop(mut self) -> Result<(), RunError> {
        self.end(Signal::INT).await
    }

    /// Kills the server (KILL) as a crash would, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), RunError> {
        self.end(Signal::KILL).await
    }

    /// Starts it again on the same port and folder; one that is still running is stopped first.
    pub async fn restart(&mut self) -> Result<(), RunError> {
        self.end(Signal::INT).await?;
        self.life = Life::Down;
        let end = Instant::now() + self.options.ready_within;
        loop {
            match launch(&self.options, Some(self.port)).await {
                // On loopback, a client that tries to come back may for a moment be connected to
                // itself and so hold the port.
                Err(error) if error.port_taken() && Instant::now() < end => sleep(POLL).await,
                outcome => {
                    self.life = Life::Running(outcome?.0);
                    return Ok(());
                }
            }
        }
    }

    async fn end(&mut self, signal: Signal) -> Result<(), RunError> {
        if let Life::Running(running) = &mut self.life {
            let status = running.end(signal).await?;
            self.life = Life::Ended(status);
        }
        Ok(())
    }
}

impl Running {
    async fn wait(&mut self) -> Result<ExitStatus, RunError> {
        let status = self.child.wait().await.map_err(RunError::Wait)?;
        self.guard.take().into_iter().for_each(Guard::disarm);
        Ok(status)
    }

    async fn end(&mut self, signal: Signal) -> Result<ExitStatus, RunError> {
        // Still a child that nobody has waited for, so the pid is its own.
        if self.child.id().is_some() {
            kill_process(self.pid, signal).map_err(|errno| RunError::Wait(errno.into()))?;
        }
        if let Ok(status) = timeout(STOPPING, self.wait()).await {
            return status;
        }
        self.child.start_kill().map_err(RunError::Wait)?;
        self.wait().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended. If it could not be killed, the watcher does it.
        if self.child.start_kill().is_ok() {
            self.guard.take().into_iter().for_each(Guard::disarm);
        }
    }
}

/// Starts the process and waits until it is ready; returns the port it listens on.
async fn launch(options: &Options, port: Option<u16>) -> Result<(Running, u16), RunError> {
    let folder = &options.store_dir;
    let lock = lock(folder).await?;
    let config = folder.join("nats-server.conf");
    fs::write(&config, settings::text(options)?).map_err(io_error(&config))?;
    let ports = folder.join("ports");
    match fs::remove_dir_all(&ports) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&ports)(error));
        }
        _ => fs::create_dir(&ports).map_err(io_error(&ports))?,
    }
    let (log, before) = open_log(&options.log).map_err(io_error(&options.log))?;
    let arguments = settings::arguments(&config, &ports, port)?;
    let (child, guard) = guard::spawn(&options.binary, &arguments, log, lock).map_err(RunError::Spawn)?;
    let gone = || RunError::Spawn(io::ErrorKind::NotFound.into());
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).ok_or_else(gone)?;
    let mut running = Running { child, guard: Some(guard), pid };
    let end = Instant::now() + options.ready_within;
    let log = || tail(&options.log, before, TAIL);
    tokio::select! {
        status = running.wait() => Err(RunError::Ended { status: status?, log: log() }),
        port = timeout_at(end, ready::port(&ports, POLL)) => match port {
            Ok(port) => Ok((running, port)),
            Err(_) => {
                running.end(Signal::KILL).await?;
                Err(RunError::NotReady { within: options.ready_within, log: log() })
            }
        },
    }
}

/// Takes the folder's lock. The file is handed to the server, which holds the lock until it ends.
async fn lock(folder: &Path) -> Result<File, RunError> {
    let path = folder.join("lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(io_error(&path))?;
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(io_error(&path)(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                let pid = fs::read_to_string(folder.join("nats-server.pid")).ok();
                let pid = pid.and_then(|text| text.trim().parse().ok());
                return Err(RunError::InUse { folder: folder.to_owned(), pid });
            }
            Err(TryLockError::WouldBlock) => sleep(POLL).await,
        }
    }
}

/// Opens the log for appending; returns its length as well.
fn open_log(path: &Path) -> io::Result<(File, u64)> {
    if fs::metadata(path).is_ok_and(|file| file.len() > LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let file = File::options().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// The last `lines` lines of the log from byte `start` on.
fn tail(log: &Path, start: u64, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let from = usize::try_from(start).unwrap_or(0).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[from..]);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RunError {
    let path = path.to_owned();
    |source| RunError::Io { path, source }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
