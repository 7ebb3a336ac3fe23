//! Orphans: what a command left behind becomes the runner's child when its own parents die, so that nothing gets out of
//! sight; here they are reaped when they end.
//!
//! Never takes the status of a child that somebody waits for.

use super::super::{leader, proc};
use rustix::process::{WaitId, WaitIdOptions, getpid, set_child_subreaper, waitid};
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

/// After a signal: several deaths are looked at together.
const SETTLE: Duration = Duration::from_millis(100);

/// The orphans of this process.
pub(super) struct Orphans(Signal);

impl Orphans {
    /// Has orphans come to this process.
    pub(super) fn adopt() -> io::Result<Orphans> {
        set_child_subreaper(Some(getpid()))?;
        Ok(Orphans(signal(SignalKind::child())?))
    }

    /// Reaps them for ever.
    pub(super) async fn reap(mut self) {
        while self.0.recv().await.is_some() {
            sleep(SETTLE).await;
            for pid in proc::children().into_iter().filter(|pid| !leader::is_known(*pid)) {
                if let Some(pid) = proc::group_id(pid) {
                    // One that lives is left as it is.
                    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
                }
            }
        }
    }
}
