//! The agent's handle on its runner: starts it where there is none, hands runs over, takes them up again.
//!
//! Each run has a connection to itself, so that nothing of one waits for another, and the next run takes it over: to make
//! one costs three wake-ups. One more says that an agent is there.
//! A connection that breaks is made anew and the same question asked again, which is safe: a run begins once by its name.
//! Dropping the future of [`Runner::run`] leaves the run alone; that is what an agent that goes does.

use super::super::{Exit, Limits, Spec, env};
use super::place::Place;
use super::wire::{self, Ask, LimitsFrame, SpecFrame, Tell, VERSION};
use super::{RunName, file};
use crate::model::jitter::Backoff;
use crate::model::process::Started;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a runner may take to answer `hello`.
const GREETING: Duration = Duration::from_secs(10);

/// How long an agent that goes for good waits for its runner.
const LEAVING: Duration = Duration::from_secs(2);

/// How long it is tried to get a runner for a run that has not been asked for yet.
const PATIENCE: Duration = Duration::from_secs(20);

/// First and longest wait before the next try.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Connections that wait for their next run.
const MOST_IDLE: usize = 16;

/// Why there is no end of a run to tell.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started; nothing ran.
    #[error("{0}")]
    Failed(String),
    /// Its file found no room on the disk for as long as it may take; nothing ran.
    #[error("{0}")]
    NoRoom(String),
    /// It was stopped before it began.
    #[error("was stopped before it began")]
    Stopped,
    /// The runner died with it.
    #[error("the runner died while it ran; it may have done part of its work")]
    Lost,
    /// No runner could be had; nothing ran.
    #[error("there is no runner: {0}")]
    NoRunner(#[source] io::Error),
}

/// The runner of one agent.
#[derive(Clone)]
pub struct Runner {
    place: Place,
    /// The program that becomes a runner by the arguments `runner --folder DIR`.
    program: PathBuf,
    shared: Arc<Mutex<Shared>>,
    /// Runs whose end the runner has told: it is done with their files.
    over: Arc<std::sync::Mutex<BTreeSet<RunName>>>,
}

#[derive(Default)]
struct Shared {
    /// Says that an agent is there.
    presence: Option<Link>,
    /// Connections whose run is over.
    idle: Vec<Link>,
    /// The process that this agent has started, to be reaped.
    child: Option<Child>,
}

struct Link {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Link {
    fn is_open(&self) -> bool {
        // The runner says nothing unasked: what can be read is the end.
        let mut byte = [0];
        matches!(self.from.get_ref().try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Runner {
    /// A handle; nothing is started before there is something to run.
    #[must_use]
    pub fn new(place: Place, program: PathBuf) -> Runner {
        Runner { place, program, shared: Arc::default(), over: Arc::default() }
    }

    /// Where its files are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Begins a run, or takes it up where it has begun or is over already, and waits for its end, which a cancelled
    /// `stop` brings about. `started` is told of its process once or, after a lost connection, again; not where
    /// it is over within milliseconds.
    ///
    /// # Errors
    /// There is no end to tell.
    pub async fn run(
        &self,
        run: &RunName,
        spec: &Spec,
        limits: &Limits,
        stop: &CancellationToken,
        started: &(dyn Fn(Started) + Send + Sync),
    ) -> Result<Exit, RunError> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let since = Instant::now();
        let mut asked = false;
        loop {
            let error = match self.link().await {
                Ok(mut link) => {
                    // A run that nobody wants any more is not begun; one that goes on is ended below.
                    let spec = (!stop.is_cancelled()).then(|| SpecFrame::from(spec));
                    let has_spec = spec.is_some();
                    let start = Ask::Start { run: run.clone(), spec, limits: LimitsFrame::from(limits) };
                    match wire::send(&mut link.to, &start).await {
                        Ok(()) => match self.follow(link, run, stop, started).await {
                            Ok(Some(Err(RunError::Stopped))) if asked => return Err(RunError::Lost),
                            Ok(Some(Err(RunError::NoRoom(error)))) => {
                                if since.elapsed() > limits.timeout {
                                    return Err(RunError::NoRoom(error));
                                }
                                io::Error::new(io::ErrorKind::StorageFull, error)
                            }
                            Ok(Some(told)) => return told,
                            Ok(None) => {
                                asked |= has_spec;
                                io::ErrorKind::UnexpectedEof.into()
                            }
                            Err(error) => {
                                asked |= has_spec;
                                error
                            }
                        },
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            tracing::debug!(%run, %error, "the runner is asked again");
            let waits_for_room = error.kind() == io::ErrorKind::StorageFull;
            if !asked && !waits_for_room && since.elapsed() > PATIENCE {
                return Err(RunError::NoRunner(error));
            }
            tokio::select! {
                () = sleep(backoff.next_wait()) => {}
                () = stop.cancelled(), if waits_for_room => {}
            }
        }
    }

    /// All runs that are known here, by their files or to a runner that lives; none is started for this.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn known(&self) -> io::Result<BTreeSet<RunName>> {
        let mut names = BTreeSet::from_iter(self.place.names()?);
        if let Ok((link, runs)) = self.greet().await {
            names.extend(runs);
            self.shared.lock().await.presence = Some(link);
        }
        Ok(names)
    }

    /// Whether a run is over, and its file tells how.
    #[must_use]
    pub fn has_ended(&self, run: &RunName) -> bool {
        file::read(&self.place.run(run)).is_ok_and(|told| told.is_some_and(|told| told.exit.is_some()))
    }

    /// Ends a run that nobody wants and takes its files away.
    ///
    /// # Errors
    /// It may go on, and there is no runner and none can be had.
    pub async fn discard(&self, run: &RunName) -> io::Result<()> {
        if self.has_ended(run) || !self.place.run(run).exists() && self.shared.lock().await.presence.is_none() {
            self.forget(run);
            return Ok(());
        }
        let mut link = self.link().await?;
        wire::send(&mut link.to, &Ask::Discard { run: run.clone() }).await
    }

    /// No agent follows this one: a runner with nothing to do ends at once. Waits for that, for a while.
    pub async fn leave(&self) {
        let mut shared = self.shared.lock().await;
        shared.idle.clear();
        if let Some(mut link) = shared.presence.take() {
            let _ = wire::send(&mut link.to, &Ask::Leave).await;
        }
        let Some(mut child) = shared.child.take() else { return };
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let gone = async {
            while let Ok(None) = child.try_wait() {
                sleep(backoff.next_wait()).await;
            }
        };
        let _ = timeout(LEAVING, gone).await;
    }

    /// The end of a run is safe elsewhere: takes its files away.
    pub fn forget(&self, run: &RunName) {
        if self.over().remove(run) {
            self.place.recycle(run);
        } else {
            self.place.remove(run);
        }
    }

    fn over(&self) -> MutexGuard<'_, BTreeSet<RunName>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for one run, to a runner that knows that we are there.
    async fn link(&self) -> io::Result<Link> {
        let mut shared = self.shared.lock().await;
        if !shared.presence.as_ref().is_some_and(Link::is_open) {
            shared.presence = None;
            shared.idle.clear();
            shared.presence = Some(self.present(&mut shared.child).await?);
        }
        while let Some(link) = shared.idle.pop() {
            if link.is_open() {
                return Ok(link);
            }
        }
        drop(shared);
        self.connect().await
    }

    async fn connect(&self) -> io::Result<Link> {
        let (from, to) = UnixStream::connect(&self.place.socket()?.path).await?.into_split();
        Ok(Link { from: BufReader::new(from), to })
    }

    /// Says that we are there, to a runner that is started where there is none.
    async fn present(&self, child: &mut Option<Child>) -> io::Result<Link> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let since = Instant::now();
        loop {
            let error = match self.greet().await {
                Ok((link, _)) => return Ok(link),
                Err(error) => error,
            };
            if since.elapsed() > GREETING {
                return Err(error);
            }
            // One that has not come to listening yet is given its time.
            if !matches!(child.as_mut().map(Child::try_wait), Some(Ok(None))) {
                *child = Some(self.launch()?);
            }
            sleep(backoff.next_wait()).await;
        }
    }

    async fn greet(&self) -> io::Result<(Link, Vec<RunName>)> {
        let mut link = self.connect().await?;
        let ours: Vec<_> = env::clean(std::env::vars_os());
        wire::send(&mut link.to, &Ask::Hello { v: VERSION, env: wire::pairs(&ours) }).await?;
        let answer = timeout(GREETING, wire::next(&mut link.from)).await;
        match answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Some(Tell::Hello { runs, .. }) => Ok((link, runs)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// What the runner tells of one run, and `stop` to it. None where the connection has ended before the run.
    async fn follow(
        &self,
        mut link: Link,
        run: &RunName,
        stop: &CancellationToken,
        started: &(dyn Fn(Started) + Send + Sync),
    ) -> io::Result<Option<Result<Exit, RunError>>> {
        let mut stopping = false;
        loop {
            let told = {
                let told = wire::next(&mut link.from);
                tokio::pin!(told);
                loop {
                    tokio::select! {
                        biased;
                        told = &mut told => break told?,
                        () = stop.cancelled(), if !stopping => {
                            stopping = true;
                            wire::send(&mut link.to, &Ask::Stop { run: run.clone() }).await?;
                        }
                    }
                }
            };
            let told = match told {
                None => return Ok(None),
                Some(Tell::Started { pid, start_time }) => {
                    started(Started { pid, start_time });
                    continue;
                }
                Some(Tell::Hello { .. } | Tell::Unknown) => continue,
                Some(Tell::Ended { exit }) => {
                    self.over().insert(run.clone());
                    Ok(exit.into())
                }
                Some(Tell::Failed { error, no_room: true }) => Err(RunError::NoRoom(error)),
                Some(Tell::Failed { error, no_room: false }) => Err(RunError::Failed(error)),
                Some(Tell::Lost) => Err(RunError::Lost),
                Some(Tell::Absent) => Err(RunError::Stopped),
            };
            // A `stop` that the runner has not read, or has read half of, would be one of the next run.
            if !stopping {
                self.keep(link).await;
            }
            return Ok(Some(told));
        }
    }

    async fn keep(&self, link: Link) {
        let idle = &mut self.shared.lock().await.idle;
        if idle.len() < MOST_IDLE {
            idle.push(link);
        }
    }

    /// Starts a runner: in a group of its own, so that a Ctrl-C for the agent is not one for the commands, and without
    /// the agent's secrets.
    fn launch(&self) -> io::Result<Child> {
        // What the agent's own parent left open would reach each command: a lock that it holds, a pipe that waits for its end.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let mut command = Command::new(&self.program);
        command.arg0("edgeward").arg("runner").arg("--folder").arg(self.place.folder());
        command.env_clear().envs(env::clean(std::env::vars_os()));
        command.envs(std::env::var_os("EDGEWARD_LOG").map(|level| ("EDGEWARD_LOG", level)));
        command.current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(inherited_log());
        command.spawn()
    }
}

/// The agent's own log, where it can be shared.
fn inherited_log() -> Stdio {
    let own = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3);
    own.map_or_else(|_| Stdio::null(), |fd| Stdio::from(File::from(fd)))
}
