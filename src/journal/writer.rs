//! The one thread that writes: it takes what has been asked for, does it in one transaction, and answers after the commit.
//!
//! Owns the connection, group commit, the count of commits, and that what follows from one is done at once, before anybody
//! is answered ([`Tx`]). What is *lazy* waits for the next commit that somebody waits for, or for [`LAZY`]: doing it again
//! after a crash is harmless, so it is not worth a sync of its own. What only reads is answered at once and does not see
//! the lazy.

use super::error::JournalError;
use super::fresh::Fresh;
use super::health::Health;
use super::mark::MarkFile;
use super::meta::{self, Key};
use super::part::{Follows, Tx, in_part};
use rusqlite::{Connection, Transaction};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Requests that may wait for the writer; who asks for more waits.
const QUEUE: usize = 1024;

/// Requests that share one commit at most, so that none waits long for its answer.
const GROUP: usize = 512;

/// How long a lazy write may wait for company.
const LAZY: Duration = Duration::from_millis(100);

/// After so long without a request the memory that SQLite does not need is given back.
const REST: Duration = Duration::from_secs(1);

/// One request: does its part inside a transaction, answers once that is committed.
trait Job: Send {
    fn run(&mut self, tx: &Transaction<'_>) -> Result<Follows, JournalError>;
    fn answer(self: Box<Self>, commit: Result<(), JournalError>);
    fn haste(&self) -> Haste;
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// A commit.
    Write,
    /// The next commit.
    Lazy,
    /// None.
    Read,
}

struct Call<F, T> {
    haste: Haste,
    work: Option<F>,
    result: Option<Result<T, JournalError>>,
    answer: Option<oneshot::Sender<Result<T, JournalError>>>,
}

impl<F, T> Job for Call<F, T>
where
    F: FnOnce(&Tx<'_>) -> Result<T, JournalError> + Send,
    T: Send,
{
    fn run(&mut self, tx: &Transaction<'_>) -> Result<Follows, JournalError> {
        let Some(work) = self.work.take() else { return Ok(Follows::default()) };
        let done = in_part(tx, work);
        let (result, follows) = match done {
            Ok((value, follows)) => (Ok(value), Ok(follows)),
            Err(error) => (Err(error.clone()), Err(error)),
        };
        self.result = Some(result);
        follows
    }

    fn answer(mut self: Box<Self>, commit: Result<(), JournalError>) {
        let result = self.result.take().unwrap_or(Err(JournalError::Closed));
        match self.answer.take() {
            // Whoever asked may have gone; then nobody needs the answer.
            Some(answer) => drop(answer.send(commit.and(result))),
            None => {
                // What the disk does not take is told once, for all.
                if let Err(error) = commit.and(result)
                    && !error.may_heal()
                {
                    tracing::warn!(%error, "journal");
                }
            }
        }
    }

    fn haste(&self) -> Haste {
        self.haste
    }
}

/// The way to the writer thread. It ends when the last handle is gone.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    health: Arc<Health>,
    fresh: Arc<Fresh>,
}

impl Writer {
    /// Starts the thread. It has a small runtime of its own, for waiting with a timeout.
    /// `commits` is how many the journal has seen; the mark follows. `lock` is held until the last of it is written.
    pub(super) fn start(
        connection: Connection,
        commits: u64,
        mark: MarkFile,
        lock: Arc<File>,
    ) -> Result<Writer, JournalError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (health, fresh) = (Arc::new(Health::new()), Arc::<Fresh>::default());
        let shared = (Arc::clone(&health), Arc::clone(&fresh));
        let file = Ledger { connection, commits, mark, health: shared.0, fresh: shared.1, told: None, _lock: lock };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| JournalError::Sqlite(format!("no runtime for the writer: {e}")))?;
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || runtime.block_on(write(file, queue)))
            .map_err(|e| JournalError::Sqlite(format!("no thread for the writer: {e}")))?;
        Ok(Writer { jobs, health, fresh })
    }

    /// The end of the outbox, as far as it is known in memory.
    pub(super) fn fresh(&self) -> &Arc<Fresh> {
        &self.fresh
    }

    /// How the journal is.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Does `work` in a transaction; returns once it is durable.
    pub(super) async fn call<T, F>(&self, work: F) -> Result<T, JournalError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, JournalError> + Send + 'static,
    {
        self.ask(Haste::Write, work).await
    }

    /// Does `work`, which only reads.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T, JournalError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, JournalError> + Send + 'static,
    {
        self.ask(Haste::Read, work).await
    }

    async fn ask<T, F>(&self, haste: Haste, work: F) -> Result<T, JournalError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, JournalError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let call = Call { haste, work: Some(work), result: None, answer: Some(answer) };
        self.jobs.send(Box::new(call)).await.map_err(|_| JournalError::Closed)?;
        answered.await.map_err(|_| JournalError::Closed)?
    }

    /// Has `work` done with the next commit.
    pub(super) async fn lazily<F>(&self, work: F) -> Result<(), JournalError>
    where
        F: FnOnce(&Tx<'_>) -> Result<(), JournalError> + Send + 'static,
    {
        let call = Call { haste: Haste::Lazy, work: Some(work), result: None, answer: None };
        self.jobs.send(Box::new(call)).await.map_err(|_| JournalError::Closed)
    }
}

async fn write(mut ledger: Ledger, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    let mut group: Vec<Box<dyn Job>> = Vec::new();
    // When the oldest lazy request of the group is to be done at the latest.
    let mut due = None;
    // When it has been quiet long enough.
    let mut rest = None;
    loop {
        let next = match due.or(rest) {
            None => Ok(queue.recv().await),
            Some(at) => timeout_at(at, queue.recv()).await,
        };
        rest = match next {
            Err(_) if group.is_empty() => {
                ledger.rest();
                None
            }
            _ => Some(Instant::now() + REST),
        };
        let closed = matches!(next, Ok(None));
        let mut now = next.is_err() || closed;
        let mut job = next.ok().flatten();
        while let Some(one) = job.take() {
            match one.haste() {
                Haste::Read if !now => ledger.read(one),
                haste => {
                    now |= haste != Haste::Lazy;
                    group.push(one);
                }
            }
            if group.len() < GROUP {
                job = queue.try_recv().ok();
            }
        }
        if now || group.len() >= GROUP {
            ledger.commit(std::mem::take(&mut group));
        }
        due = if group.is_empty() { None } else { due.or_else(|| Some(Instant::now() + LAZY)) };
        if closed {
            return;
        }
    }
}

/// The file with what is known of it.
struct Ledger {
    connection: Connection,
    commits: u64,
    mark: MarkFile,
    health: Arc<Health>,
    fresh: Arc<Fresh>,
    /// When the log was last told that it cannot be written.
    told: Option<Instant>,
    /// Goes last: nobody opens what may still be written.
    _lock: Arc<File>,
}

impl Ledger {
    fn rest(&self) {
        if let Err(error) = self.connection.release_memory() {
            tracing::debug!(%error, "memory is kept");
        }
    }

    fn read(&mut self, mut job: Box<dyn Job>) {
        let done = self.connection.transaction().map_err(JournalError::from).and_then(|tx| {
            // Its own error is in its answer.
            if let Err(error) = job.run(&tx) {
                self.health.failed(&error, &mut self.told);
            }
            tx.commit().map_err(JournalError::from)
        });
        job.answer(done);
    }

    fn commit(&mut self, mut group: Vec<Box<dyn Job>>) {
        if group.is_empty() {
            return;
        }
        self.fresh.grows(true);
        let committed = self.try_commit(&mut group);
        self.fresh.grows(false);
        let done = match committed {
            Ok(Follows { added }) => {
                self.commits += 1;
                self.fresh.kept(added);
                Ok(())
            }
            Err(error) => {
                self.fresh.forget();
                self.health.failed(&error, &mut self.told);
                Err(error)
            }
        };
        group.into_iter().for_each(|job| job.answer(done.clone()));
        // Nobody waits for the mark: it may be behind.
        if done.is_ok() {
            self.mark.note(self.commits);
        }
    }

    fn try_commit(&mut self, group: &mut [Box<dyn Job>]) -> Result<Follows, JournalError> {
        let tx = self.connection.transaction()?;
        let (mut whole, mut all) = (true, Follows::default());
        for job in group {
            match job.run(&tx) {
                Ok(Follows { added }) => all.added.extend(added),
                Err(error) => {
                    whole &= !error.may_heal();
                    self.health.failed(&error, &mut self.told);
                    // SQLite takes the whole transaction back where the disk fails; what comes after would stand outside.
                    if tx.is_autocommit() {
                        return Err(error);
                    }
                }
            }
        }
        meta::put(&tx, Key::Commits, &(self.commits + 1).to_string())?;
        tx.commit()?;
        if whole {
            self.health.good();
        }
        Ok(all)
    }
}
