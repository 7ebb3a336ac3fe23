//! The runner's own process: it listens, starts what it is asked to, and stays until nobody needs it.
//!
//! One thread. Each connection is a task that answers its agent; each run is a task that waits for its process and
//! writes its end into its file. They meet in the table of runs. The way of a run there:
//!
//! ```text
//! starting → failed                    its file goes: nothing ran
//! starting → running → ended           the end is in the file, the run leaves the table
//!                      ended, kept     the file could not be written: it stays in the table until an agent has it
//! ```
//!
//! Ends by itself when no agent is connected and nothing runs, and on SIGTERM, which ends all runs first. It decides
//! nothing about messages, and nothing that it is sent can end it.

use super::super::cgroup::Nest;
use super::super::leftover::end_leftover;
use super::super::running::{self, Extras};
use super::super::user::Account;
use super::super::{Exit, Limits, Marker, SpawnError, Spec};
use super::file::{self, OutputKind, RunFile};
use super::place::Place;
use super::reap::Orphans;
use super::wire::{self, Ask, ExitFrame, SpecFrame, Tell, VERSION};
use super::{Answer, Known, RUN_VARIABLE, RunName, judge};
use crate::killpoint::{Point, here as reached};
use crate::model::process::Started;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a runner that nobody needs stays: an agent that is started again finds it.
const LINGER: Duration = Duration::from_secs(3);

/// From TERM to KILL, for what nobody wants any more.
const DISCARD_GRACE: Duration = Duration::from_secs(5);

/// The start of a run that is over sooner is not told: its end tells all, and the agent is woken once.
const SHORT: Duration = Duration::from_millis(5);

/// Between two tries to accept where that fails (no descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Why a runner cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another one serves this folder.
    #[error("a runner serves {0} already")]
    Taken(PathBuf),
    /// A file, or the socket, cannot be used.
    #[error("{path} cannot be used")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Orphans do not come here.
    #[error("orphans cannot be adopted")]
    Orphans(#[source] io::Error),
}

/// Whether orphans of the whole process come here; not where other parts of the process have children of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The runner is all that this process is.
    Process,
    /// It is a part of a process that is more.
    Part,
}

/// Serves a folder until nobody needs it, or until `end`, which ends all runs.
///
/// # Errors
/// It cannot begin.
pub async fn serve(place: Place, role: Role, end: CancellationToken) -> Result<(), ServeError> {
    let lock = take_lock(&place)?;
    let address = place.socket().map_err(|source| ServeError::Io { path: place.folder().to_owned(), source })?;
    // Left by one that was killed: we have the lock.
    let _ = fs::remove_file(&address.path);
    let listener = UnixListener::bind(&address.path)
        .map_err(|source| ServeError::Io { path: place.folder().join("runner.sock"), source })?;
    let orphans = match role {
        Role::Process => Some(Orphans::adopt().map_err(ServeError::Orphans)?),
        Role::Part => None,
    };
    let nest = orphans.as_ref().and_then(|_| Nest::find());
    let core = Arc::new(Core { place, nest, table: Mutex::default(), base: Mutex::default(), changed: Notify::new() });
    tracing::debug!(folder = %core.place.folder().display(), "runner");
    tokio::select! {
        () = accept(&core, &listener) => {}
        () = core.idle(&end) => {}
        () = reap(orphans) => {}
    }
    // Before the lock goes: another one binds its own.
    let _ = fs::remove_file(&address.path);
    drop(lock);
    Ok(())
}

async fn reap(orphans: Option<Orphans>) {
    match orphans {
        Some(orphans) => orphans.reap().await,
        None => std::future::pending().await,
    }
}

fn take_lock(place: &Place) -> Result<File, ServeError> {
    let path = place.lock();
    let fault = |source| ServeError::Io { path: path.clone(), source };
    let mut lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(fault)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| ServeError::Taken(place.folder().to_owned()))?;
    lock.set_len(0).map_err(fault)?;
    // For people, and for who has to end it.
    let _ = writeln!(lock, "{}", std::process::id());
    Ok(lock)
}

async fn accept(core: &Arc<Core>, listener: &UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream) => {
                let guest = Guest::new(core);
                tokio::spawn(async move {
                    if let Err(error) = guest.serve(stream).await {
                        tracing::debug!(%error, "an agent's connection");
                    }
                });
            }
            Ok(_) => tracing::warn!("another user's connection is refused"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// The folder is closed to others; should somebody open it, this still holds.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// Where a run stands.
#[derive(Clone, Debug)]
enum Stage {
    Starting,
    Running(Started),
    Ended(Arc<Exit>),
    Failed(String),
}

/// A run in the table.
struct Entry {
    stop: CancellationToken,
    stage: watch::Receiver<Stage>,
    /// Its file goes when it ends.
    discarded: bool,
}

impl Entry {
    fn is_over(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Ended(_))
    }
}

#[derive(Default)]
struct Table {
    runs: BTreeMap<RunName, Entry>,
    guests: usize,
    /// The last agent has said that none follows.
    left: bool,
}

type Variables = Arc<Vec<(OsString, OsString)>>;

struct Core {
    place: Place,
    /// Where runs get control groups.
    nest: Option<Arc<Nest>>,
    table: Mutex<Table>,
    /// What commands start from, as the last agent told.
    base: Mutex<Variables>,
    changed: Notify,
}

impl Core {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when nobody needs this process any more.
    async fn idle(&self, end: &CancellationToken) {
        loop {
            let ending = end.is_cancelled();
            let (guests, runs, left) = {
                let table = self.table();
                let runs = table.runs.values().filter(|entry| !ending || !entry.is_over()).count();
                (table.guests, runs, table.left)
            };
            if ending {
                self.table().runs.values().for_each(|entry| entry.stop.cancel());
            }
            match (guests, runs, ending) {
                (_, 0, true) => return,
                (0, 0, false) if left => return,
                (0, 0, false) => tokio::select! {
                    () = sleep(LINGER) => return,
                    () = self.changed.notified() => {}
                    () = end.cancelled() => {}
                },
                _ => tokio::select! {
                    () = self.changed.notified() => {}
                    () = end.cancelled(), if !ending => {}
                },
            }
        }
    }

    /// The run of this name: begun now where that may be, else as it is.
    fn start(self: &Arc<Self>, name: &RunName, spec: Option<SpecFrame>, limits: &Limits) -> io::Result<Given> {
        let here = self.table().runs.get(name).map(|entry| entry.stage.clone());
        let told = if here.is_some() { None } else { file::read(&self.place.run(name))? };
        let known = match (&here, &told) {
            (Some(_), _) => Known::Here,
            (None, None) => Known::Nothing,
            (None, Some(told)) if told.exit.is_some() => Known::Ended,
            (None, Some(_)) => Known::Begun,
        };
        Ok(match (judge(known, spec.is_some()), here, told, spec) {
            (Answer::Attach, Some(stage), ..) => Given::Here(stage),
            (Answer::Begin, .., Some(spec)) => {
                let file = RunFile::create(&self.place.run(name))?;
                reached(Point::RunClaimed);
                let base = Arc::clone(&self.base.lock().unwrap_or_else(PoisonError::into_inner));
                Given::Here(self.begin(name, spec.into_spec(base), *limits, file))
            }
            (Answer::TellEnd, _, Some(file::Told { exit: Some(exit), .. }), _) => Given::Over(exit),
            (Answer::Lost, _, told, _) => Given::Lost(told.and_then(|told| told.started)),
            _ => Given::Absent,
        })
    }

    fn begin(self: &Arc<Self>, name: &RunName, spec: Spec, limits: Limits, file: RunFile) -> watch::Receiver<Stage> {
        let (tell, stage) = watch::channel(Stage::Starting);
        let stop = CancellationToken::new();
        let entry = Entry { stop: stop.clone(), stage: stage.clone(), discarded: false };
        self.table().runs.insert(name.clone(), entry);
        let (core, name) = (Arc::clone(self), name.clone());
        tokio::spawn(async move {
            core.live(&name, &spec, &limits, file, &stop, &tell).await;
            core.changed.notify_one();
        });
        stage
    }

    /// A run's life.
    async fn live(
        &self,
        name: &RunName,
        spec: &Spec,
        limits: &Limits,
        mut file: RunFile,
        stop: &CancellationToken,
        tell: &watch::Sender<Stage>,
    ) {
        let running = match self.spawn(name, spec, limits, &file).await {
            Ok(running) => running,
            Err(error) => {
                self.place.remove(name);
                self.table().runs.remove(name);
                let _ = tell.send(Stage::Failed(with_causes(&error)));
                return;
            }
        };
        let started = running.started();
        // Without it what is left of the run is found by its mark alone.
        let noted = file.started(started);
        reached(Point::RunStarted);
        let _ = tell.send(Stage::Running(started));
        let exit = Arc::new(running.wait(stop.clone()).await);
        let kept = noted.and_then(|()| file.ended(&exit));
        reached(Point::RunEnded);
        let discarded = self.table().runs.get(name).is_some_and(|entry| entry.discarded);
        if discarded {
            self.place.remove(name);
        }
        match kept {
            Err(error) if !discarded => tracing::warn!(%name, %error, "the end of a run is kept in memory"),
            _ => drop(self.table().runs.remove(name)),
        }
        let _ = tell.send(Stage::Ended(exit));
    }

    /// An agent has the end of a run: one that is not in its file need not be kept any longer.
    fn told(&self, name: &RunName) {
        let mut table = self.table();
        if table.runs.get(name).is_some_and(Entry::is_over) {
            table.runs.remove(name);
            self.changed.notify_one();
        }
    }

    fn stop(&self, name: &RunName) {
        if let Some(entry) = self.table().runs.get(name) {
            entry.stop.cancel();
        }
    }

    async fn discard(&self, name: &RunName) {
        self.told(name);
        if let Some(entry) = self.table().runs.get_mut(name) {
            entry.discarded = true;
            entry.stop.cancel();
            return;
        }
        match file::read(&self.place.run(name)) {
            Ok(Some(told)) if told.exit.is_none() => self.end_rest(name, told.started, DISCARD_GRACE).await,
            _ => {}
        }
        self.place.remove(name);
    }

    async fn spawn(
        &self,
        name: &RunName,
        spec: &Spec,
        limits: &Limits,
        file: &RunFile,
    ) -> Result<running::Running, SpawnError> {
        let logs = file.stream(OutputKind::Stdout, limits.file).and_then(|out| {
            let err = file.stream(OutputKind::Stderr, limits.file)?;
            Ok([out, err])
        });
        let logs = logs.map_err(|source| SpawnError::Io { program: spec.program.clone().into(), source })?;
        let account = match &spec.user {
            None => None,
            Some(user) => Some(Account::find(user).await?),
        };
        let extras = Extras { mark: Some(mark(name)), logs: Some(logs), nest: self.nest.clone() };
        running::start(spec, account.as_ref(), limits, extras)
    }

    /// Ends what is left of a run whose runner died.
    async fn end_rest(&self, name: &RunName, leader: Option<Started>, grace: Duration) {
        let leaf = self.nest.as_ref().and_then(|nest| nest.left_by(&name.to_string()));
        let leftover = end_leftover(leader, &mark(name), leaf.as_ref(), grace).await;
        if !leftover.found.is_empty() {
            tracing::info!(%name, processes = leftover.found.len(), "ended what a former runner had started");
        }
    }
}

fn mark(name: &RunName) -> Marker {
    Marker { key: RUN_VARIABLE, value: name.to_string() }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A run is gone without an end: its agent has to ask again.
fn vanished() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// What there is of a run that was asked for.
enum Given {
    Here(watch::Receiver<Stage>),
    Over(Exit),
    Lost(Option<Started>),
    Absent,
}

/// A connection; counted as long as it lives.
struct Guest {
    core: Arc<Core>,
}

impl Guest {
    fn new(core: &Arc<Core>) -> Guest {
        core.table().guests += 1;
        core.changed.notify_one();
        Guest { core: Arc::clone(core) }
    }

    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (from, mut to) = stream.into_split();
        let mut from = BufReader::new(from);
        while let Some(ask) = wire::next(&mut from).await? {
            match ask {
                Ask::Hello { env, .. } => {
                    *self.core.base.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(wire::variables(env));
                    let runs = {
                        let mut table = self.core.table();
                        table.left = false;
                        table.runs.keys().cloned().collect()
                    };
                    wire::send(&mut to, &Tell::Hello { v: VERSION, runs }).await?;
                }
                Ask::Start { run, spec, limits } => {
                    let limits = limits.into();
                    tokio::select! {
                        biased;
                        told = self.follow(&run, spec, &limits, &mut to) => told?,
                        // The agent has gone. The run goes on.
                        heard = self.heed(&mut from) => return heard,
                    }
                }
                Ask::Leave => {
                    self.core.table().left = true;
                    return Ok(());
                }
                Ask::Stop { run } => self.core.stop(&run),
                Ask::Discard { run } => self.core.discard(&run).await,
                Ask::Unknown => tracing::debug!("a frame of another build is passed over"),
            }
        }
        Ok(())
    }

    /// Ends a run where its agent asks for that; comes back when the agent has gone.
    async fn heed(&self, from: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
        while let Some(ask) = wire::next(from).await? {
            if let Ask::Stop { run } = ask {
                self.core.stop(&run);
            }
        }
        Ok(())
    }

    /// Tells of one run until it is over.
    async fn follow(
        &self,
        run: &RunName,
        spec: Option<SpecFrame>,
        limits: &Limits,
        to: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let given = match self.core.start(run, spec, limits) {
            Ok(given) => given,
            Err(error) => {
                let path = self.core.place.run(run);
                let error = format!("cannot keep {path:?}: {error}");
                return wire::send(to, &Tell::Failed { error }).await;
            }
        };
        let mut stage = match given {
            Given::Here(stage) => stage,
            Given::Over(exit) => return wire::send(to, &Tell::Ended { exit: ExitFrame::from(&exit) }).await,
            Given::Lost(leader) => {
                self.core.end_rest(run, leader, limits.grace).await;
                return wire::send(to, &Tell::Lost).await;
            }
            Given::Absent => return wire::send(to, &Tell::Absent).await,
        };
        loop {
            let now = stage.borrow_and_update().clone();
            match now {
                Stage::Starting => {}
                Stage::Running(Started { pid, start_time }) => {
                    if let Ok(changed) = timeout(SHORT, stage.changed()).await {
                        changed.map_err(|_| vanished())?;
                        continue;
                    }
                    wire::send(to, &Tell::Started { pid, start_time }).await?;
                }
                Stage::Failed(error) => return wire::send(to, &Tell::Failed { error }).await,
                Stage::Ended(exit) => {
                    wire::send(to, &Tell::Ended { exit: ExitFrame::from(&*exit) }).await?;
                    self.core.told(run);
                    return Ok(());
                }
            }
            stage.changed().await.map_err(|_| vanished())?;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.core.table().guests -= 1;
        self.core.changed.notify_one();
    }
}
