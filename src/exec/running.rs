//! One run from start to result: reads both streams all the time, feeds stdin, watches the
//! clock and the stop token, and gathers the result.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use rustix::fs::{OFlags, fcntl_setfl};
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::capture::Recorder;
use super::cgroup::{Enclosure, Nest};
use super::leader::Leader;
use super::leftover::{self, Marker, Signs};
use super::runner::StreamLog;
use super::user::Account;
use super::{Captured, Cut, Exit, Limits, SpawnError, Spec, Stdin, command, group, proc};
use crate::model::process::Started;

/// Bytes asked for at once; on the stack, so that a quiet run holds no buffer.
const READ_SIZE: usize = 16 * 1024;

/// Reads of one stream before the other stream, the clock and other tasks have their turn.
const READS_PER_TURN: usize = 16;

/// What a pipe can hold at most without privileges (`/proc/sys/fs/pipe-max-size`): read once more
/// after the drain, so that what was written before the child ended is never lost.
const PIPE_MOST: usize = 1024 * 1024;

/// A started child. Dropping it, or the future of [`Running::wait`], kills the process group.
#[must_use = "dropping it kills the child"]
pub struct Running {
    started: Started,
    since: Instant,
    limits: Limits,
    leader: Leader,
    pipes: Pipes,
    mark: Option<Marker>,
    enclosure: Enclosure,
}

/// What a run of the runner has besides.
#[derive(Default)]
pub(super) struct Extras {
    /// What all its processes carry in their environment.
    pub(super) mark: Option<Marker>,
    /// Where its output goes: standard output, standard error.
    pub(super) logs: Option<[StreamLog; 2]>,
    /// Where it gets a control group, which has the mark's value for its name.
    pub(super) nest: Option<Arc<Nest>>,
}

/// Starts the child; the account is that of `spec.user`.
pub(super) fn start(
    spec: &Spec,
    account: Option<&Account>,
    limits: &Limits,
    extras: Extras,
) -> Result<Running, SpawnError> {
    let mut child = command::spawn(spec, account)?;
    let pid = child.id();
    let ends = Ends::take(&mut child);
    let leader = Leader::new(child); // from here on a failure kills and reaps
    let pipes = ends
        .open(&spec.stdin, limits.keep, extras.logs)
        .map_err(|source| SpawnError::Io { program: spec.program.clone().into(), source })?;
    let started = Started { pid, start_time: proc::start_time(pid).unwrap_or(0) };
    let enclosure = Enclosure::new(extras.nest, extras.mark.as_ref().map_or("", |mark| &mark.value), pid);
    Ok(Running { started, since: Instant::now(), limits: *limits, leader, pipes, mark: extras.mark, enclosure })
}

impl Running {
    /// Which process it is.
    #[must_use]
    pub fn started(&self) -> Started {
        self.started
    }

    /// Waits for the end, which a cancelled `stop` or the timeout brings about. Comes back in any
    /// case, at the latest some seconds after timeout, grace and drain together.
    pub async fn wait(mut self, stop: CancellationToken) -> Exit {
        let ended_by = self.child_or_cut(&stop).await;
        if ended_by.is_some() {
            self.end_tree().await;
        }
        self.enclosure.settle().await;
        self.drain(&stop, ended_by.is_some()).await;
        if self.limits.kill_left && ended_by.is_none() && self.lives_on() {
            self.end_tree().await;
            self.drain(&stop, true).await;
        }
        let group = self.leader.group().to_vec();
        let lived_on = self.lives_on();
        let how = self.leader.reap();
        // Only now is the dead leader no member any more.
        let left_running = lived_on || !group::members(&group).is_empty();
        let (stdout, stderr) = self.pipes.finish();
        Exit { how, ended_by, stdout, stderr, left_running, took: self.since.elapsed() }
    }

    /// Whether something that the child started lives after it: it holds the output, is in its control group, or has
    /// become ours. Cheap where nothing does.
    fn lives_on(&self) -> bool {
        self.pipes.are_held()
            || self.enclosure.leaf().is_some_and(|leaf| !leaf.living().is_empty())
            || leftover::is_orphaned(self.leader.group(), self.mark.as_ref())
    }

    async fn child_or_cut(&mut self, stop: &CancellationToken) -> Option<Cut> {
        let left = self.limits.timeout.saturating_sub(self.since.elapsed());
        tokio::select! {
            biased;
            () = self.leader.ended() => None,
            () = stop.cancelled() => Some(Cut::Stopped),
            () = sleep(left) => Some(Cut::TimedOut),
            () = self.pipes.pump_for_ever() => None,
            () = self.enclosure.keep() => None,
        }
    }

    async fn end_tree(&mut self) {
        let end = async {
            let group = self.leader.group().to_vec();
            let signs = Signs { marker: self.mark.as_ref(), leaf: self.enclosure.close().await };
            leftover::end(group, signs, self.limits.grace).await;
            // Already so, unless it hangs in the kernel.
            let _ = timeout(group::KILL_WAIT, self.leader.ended()).await;
        };
        tokio::select! {
            () = end => {}
            () = self.pipes.pump_for_ever() => {}
        }
    }

    /// The child has ended: the rest of its output. Where a background process holds the pipes,
    /// waits for it as long as `Limits::drain` allows, a stop ending the wait.
    async fn drain(&mut self, stop: &CancellationToken, stopped: bool) {
        self.pipes.stdin = None;
        let stop = async {
            if stopped {
                std::future::pending::<()>().await;
            }
            stop.cancelled().await;
        };
        tokio::select! {
            biased;
            () = self.pipes.pump() => return,
            () = sleep(self.limits.drain) => {}
            () = stop => {}
        }
        self.pipes.sweep();
    }
}

/// Our ends of the child's pipes, as the standard library gives them.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Ends {
    fn take(child: &mut Child) -> Self {
        Self {
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
        }
    }

    fn open(self, stdin: &Stdin, keep: usize, logs: Option<[StreamLog; 2]>) -> io::Result<Pipes> {
        let [log, error_log] = logs.map_or([None, None], |logs| logs.map(Some));
        let stdin = match (self.stdin, stdin) {
            (Some(fd), Stdin::Bytes(bytes)) => {
                Some(Feed { pipe: pipe::Sender::from_owned_fd(fd)?, bytes: bytes.clone() })
            }
            _ => None,
        };
        Ok(Pipes {
            stdin,
            stdout: Stream::open(self.stdout, keep, log)?,
            stderr: Stream::open(self.stderr, keep, error_log)?,
        })
    }
}

struct Pipes {
    stdin: Option<Feed>,
    stdout: Stream,
    stderr: Stream,
}

impl Pipes {
    /// Moves bytes until both streams have ended. Nothing is lost where it is dropped before.
    async fn pump(&mut self) {
        tokio::join!(self.stdout.read(), self.stderr.read(), feed(&mut self.stdin));
    }

    async fn pump_for_ever(&mut self) {
        self.pump().await;
        std::future::pending().await
    }

    /// Takes what is in the pipes right now.
    fn sweep(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            // Not `try_read`, which trusts what the runtime last heard of the pipe.
            stream.take(PIPE_MOST / READ_SIZE, |pipe, buffer| Ok(rustix::io::read(pipe, buffer)?));
        }
    }

    fn are_held(&self) -> bool {
        self.stdout.pipe.is_some() || self.stderr.pipe.is_some()
    }

    fn finish(self) -> (Captured, Captured) {
        (self.stdout.finish(), self.stderr.finish())
    }
}

/// One output stream; the pipe is closed at its end.
struct Stream {
    pipe: Option<pipe::Receiver>,
    record: Recorder,
    log: Option<StreamLog>,
}

impl Stream {
    fn open(fd: Option<OwnedFd>, keep: usize, log: Option<StreamLog>) -> io::Result<Self> {
        let pipe = fd.map(receiver).transpose()?;
        Ok(Self { pipe, record: Recorder::new(keep), log })
    }

    async fn read(&mut self) {
        while let Some(pipe) = &self.pipe {
            let due = self.log.as_ref().and_then(StreamLog::due);
            let readable = match due {
                Some(due) if due > Instant::now() => timeout_at(due, pipe.readable()).await.unwrap_or(Ok(())),
                _ => {
                    if let Some(log) = &mut self.log {
                        log.flush();
                    }
                    pipe.readable().await
                }
            };
            if readable.is_err() {
                self.pipe = None;
            } else if self.take(READS_PER_TURN, pipe::Receiver::try_read) {
                // Waiting for a readable pipe alone would never give way to others.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Reads without waiting, `most` times; whether there may be more.
    fn take(&mut self, most: usize, read: impl Fn(&pipe::Receiver, &mut [u8]) -> io::Result<usize>) -> bool {
        let mut buffer = [0; READ_SIZE];
        for _ in 0..most {
            let Some(pipe) = &self.pipe else { return false };
            match read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(read) => {
                    self.record.push(&buffer[..read]);
                    if let Some(log) = &mut self.log {
                        log.push(&buffer[..read]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
        true
    }

    fn finish(self) -> Captured {
        let captured = self.record.finish();
        if let Some(log) = self.log {
            log.finish(&captured);
        }
        captured
    }
}

/// Our end of a pipe that the standard library has just made: it need not be asked what it is.
fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

/// What is still to be written to the child.
struct Feed {
    pipe: pipe::Sender,
    bytes: Bytes,
}

/// Writes all of it, then closes the pipe, also where the child has stopped reading.
async fn feed(stdin: &mut Option<Feed>) {
    while let Some(Feed { pipe, bytes }) = stdin {
        if bytes.is_empty() || pipe.writable().await.is_err() {
            break;
        }
        match pipe.try_write(bytes) {
            Ok(written) => bytes.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *stdin = None;
}
