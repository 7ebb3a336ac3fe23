//! The runs of a runner: the table of those that go on, how one begins, lives and ends, and when nobody needs them.
//!
//! Each run is a task that waits for its process and writes its end into its file. Its way:
//!
//! ```text
//! starting → failed                    its file goes: nothing ran
//! starting → running → ended           the end is in the file, the run leaves the table
//!                      ended, kept     the file could not be written: it stays in the table until an agent has it
//! ```
//!
//! Never reads or writes a socket.

use super::super::cgroup::Nest;
use super::super::leftover::end_leftover;
use super::super::running::{self, Extras};
use super::super::user::Account;
use super::super::{Exit, Limits, Marker, SpawnError, Spec};
use super::file::{self, OutputKind, RunFile};
use super::place::Place;
use super::wire::SpecFrame;
use super::{Answer, Known, RUN_VARIABLE, RunName, judge};
use crate::killpoint::{Point, here as reached};
use crate::model::process::Started;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long a runner that nobody needs stays: an agent that is started again finds it.
const LINGER: Duration = Duration::from_secs(3);

/// From TERM to KILL, for what nobody wants any more.
const DISCARD_GRACE: Duration = Duration::from_secs(5);

/// Where a run stands.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Starting,
    Running(Started),
    Ended(Arc<Exit>),
    Failed(String),
}

/// A run in the table.
pub(super) struct Entry {
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
pub(super) struct Table {
    pub(super) runs: BTreeMap<RunName, Entry>,
    pub(super) guests: usize,
    /// The last agent has said that none follows.
    pub(super) left: bool,
}

type Variables = Arc<Vec<(OsString, OsString)>>;

pub(super) struct Core {
    pub(super) place: Place,
    /// Where runs get control groups.
    nest: Option<Arc<Nest>>,
    table: Mutex<Table>,
    /// What commands start from, as the last agent told.
    pub(super) base: Mutex<Variables>,
    pub(super) changed: Notify,
}

impl Core {
    pub(super) fn new(place: Place, nest: Option<Arc<Nest>>) -> Core {
        Core { place, nest, table: Mutex::default(), base: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when nobody needs this process any more.
    pub(super) async fn idle(&self, end: &CancellationToken) {
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
    pub(super) fn start(
        self: &Arc<Self>,
        name: &RunName,
        spec: Option<SpecFrame>,
        limits: &Limits,
    ) -> io::Result<Given> {
        let here = self.table().runs.get(name).map(|entry| entry.stage.clone());
        // Nearly all are new: making the file asks at once whether it was there.
        let claim = if here.is_none() && spec.is_some() { self.claim(name)? } else { None };
        let told = if here.is_some() || claim.is_some() { None } else { file::read(&self.place.run(name))? };
        let known = match (&here, &told) {
            (Some(_), _) => Known::Here,
            (None, None) => Known::Nothing,
            (None, Some(told)) if told.exit.is_some() => Known::Ended,
            (None, Some(_)) => Known::Begun,
        };
        Ok(match (judge(known, spec.is_some()), here, told, spec.zip(claim)) {
            (Answer::Attach, Some(stage), ..) => Given::Here(stage),
            (Answer::Begin, .., Some((spec, file))) => {
                reached(Point::RunClaimed);
                let base = Arc::clone(&self.base.lock().unwrap_or_else(PoisonError::into_inner));
                Given::Here(self.begin(name, spec.into_spec(base), *limits, file))
            }
            (Answer::TellEnd, _, Some(file::Told { exit: Some(exit), .. }), _) => Given::Over(exit),
            (Answer::Lost, _, told, _) => Given::Lost(told.and_then(|told| told.started)),
            _ => Given::Absent,
        })
    }

    /// A new run's file; none where there is one already.
    fn claim(&self, name: &RunName) -> io::Result<Option<RunFile>> {
        let path = self.place.run(name);
        let claimed = match self.place.take_spare(name) {
            Ok(true) => RunFile::reuse(&path),
            Ok(false) => RunFile::create(&path),
            Err(error) => Err(error),
        };
        match claimed {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
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
        file: RunFile,
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
    pub(super) fn told(&self, name: &RunName) {
        let mut table = self.table();
        if table.runs.get(name).is_some_and(Entry::is_over) {
            table.runs.remove(name);
            self.changed.notify_one();
        }
    }

    pub(super) fn stop(&self, name: &RunName) {
        if let Some(entry) = self.table().runs.get(name) {
            entry.stop.cancel();
        }
    }

    pub(super) async fn discard(&self, name: &RunName) {
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
        let logs = [OutputKind::Stdout, OutputKind::Stderr].map(|kind| file.stream(kind, limits.file));
        let account = match &spec.user {
            None => None,
            Some(user) => Some(Account::find(user).await?),
        };
        let extras = Extras { mark: Some(mark(name)), logs: Some(logs), nest: self.nest.clone() };
        running::start(spec, account.as_ref(), limits, extras)
    }

    /// Ends what is left of a run whose runner died.
    pub(super) async fn end_rest(&self, name: &RunName, leader: Option<Started>, grace: Duration) {
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

/// What there is of a run that was asked for.
pub(super) enum Given {
    Here(watch::Receiver<Stage>),
    Over(Exit),
    Lost(Option<Started>),
    Absent,
}
