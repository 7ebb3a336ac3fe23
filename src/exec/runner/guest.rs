//! A connection to the runner: what its agent asks, and what it is told of the run that it asks for.
//!
//! Decides nothing about runs, and nothing that is sent here can end the runner.

use super::super::Limits;
use super::RunName;
use super::core::{Core, Given, Stage};
use super::wire::{self, Ask, ExitFrame, SpecFrame, Tell, VERSION};
use crate::model::process::Started;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// The start of a run that is over sooner is not told: its end tells all, and the agent is woken once.
const SHORT: Duration = Duration::from_millis(5);

/// A run is gone without an end: its agent has to ask again.
fn vanished() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// A connection; counted as long as it lives.
pub(super) struct Guest {
    core: Arc<Core>,
}

impl Guest {
    pub(super) fn new(core: &Arc<Core>) -> Guest {
        core.table().guests += 1;
        core.changed.notify_one();
        Guest { core: Arc::clone(core) }
    }

    pub(super) async fn serve(&self, stream: UnixStream) -> io::Result<()> {
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
                let no_room = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                let error = format!("cannot keep {path:?}: {error}");
                return wire::send(to, &Tell::Failed { error, no_room }).await;
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
                Stage::Failed(error) => return wire::send(to, &Tell::Failed { error, no_room: false }).await,
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
