//! The child itself: knowing when it has ended without reaping it, and seeing that it is reaped
//! in the end. Until then neither its pid nor its group's number can become someone else's, so
//! that signals to the group always meet the right one.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::{How, group, proc};

/// Between two looks at a child of which nothing better can be told.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The children that somebody here waits for: whoever reaps orphans must leave these alone.
static KNOWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn known() -> MutexGuard<'static, BTreeSet<u32>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a child was started here and is waited for.
pub(super) fn is_known(pid: u32) -> bool {
    known().contains(&pid)
}

/// A child and its group. Dropped before [`Leader::reap`], the group gets KILL.
pub(super) struct Leader {
    child: Option<Child>,
    group: Option<Pid>,
    watch: Watch,
}

/// What tells that a child may have ended.
enum Watch {
    /// A descriptor of this one process: no signal handler, no look at other children.
    #[cfg(target_os = "linux")]
    Pidfd(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>),
    /// SIGCHLD, of any child, where there are no such descriptors.
    Signal(Signal),
    /// Neither could be had (no descriptors left): looked at again and again.
    Blind,
}

impl Leader {
    pub(super) fn new(child: Child) -> Self {
        let group = proc::group_id(child.id());
        known().insert(child.id());
        Self { child: Some(child), group, watch: Watch::new(group) }
    }

    /// The group it leads.
    pub(super) fn group(&self) -> &[Pid] {
        self.group.as_slice()
    }

    /// Comes back once the child has ended; it stays a zombie.
    pub(super) async fn ended(&mut self) {
        while !self.has_ended() {
            self.watch.changed().await;
            if self.has_ended() {
                return;
            }
            // The signal of another child, or a debugger that has not let go of ours yet.
            sleep(LOOK_AGAIN).await;
        }
    }

    fn has_ended(&self) -> bool {
        let Some(pid) = self.group else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error means that it is no longer there to wait for.
        !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
    }

    /// Takes the status. A child that has still not ended is left to a thread to reap.
    pub(super) fn reap(mut self) -> How {
        match self.child.take().map(take_status) {
            Some(Ok(Some(status))) => how(status),
            Some(Err(child)) => {
                self.child = Some(child);
                How::Unknown
            }
            None | Some(Ok(None)) => How::Unknown,
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        group::kill(self.group());
        if let Err(mut child) = take_status(child) {
            let pid = child.id();
            // A thread, not a task: it must also work while the runtime goes down. Where no
            // thread can be had, the zombie stays until the agent ends.
            let reaper = std::thread::Builder::new().name("reap".to_owned());
            let _ = reaper.spawn(move || {
                let _ = child.wait();
                known().remove(&pid);
            });
        }
    }
}

/// The status of a child that has ended, none where it cannot be had; `Err` gives back one that
/// has not ended.
fn take_status(mut child: Child) -> Result<Option<ExitStatus>, Child> {
    let pid = child.id();
    let taken = match child.try_wait() {
        Ok(Some(status)) => Some(status),
        Ok(None) => return Err(child),
        Err(_) => None,
    };
    known().remove(&pid);
    Ok(taken)
}

fn how(status: ExitStatus) -> How {
    match (status.code(), status.signal()) {
        (Some(code), _) => How::Exited(code),
        (None, Some(signal)) => How::Signalled(signal),
        (None, None) => How::Unknown,
    }
}

impl Watch {
    fn new(pid: Option<Pid>) -> Self {
        #[cfg(target_os = "linux")]
        if let Some(watch) = pid.and_then(Self::pidfd) {
            return watch;
        }
        #[cfg(not(target_os = "linux"))]
        let _ = pid;
        signal(SignalKind::child()).map_or(Self::Blind, Self::Signal)
    }

    #[cfg(target_os = "linux")]
    #[expect(
        deprecated,
        reason = "unsound only for types that may change their descriptor; an OwnedFd never does, \
                  and what replaces it is unsafe"
    )]
    fn pidfd(pid: Pid) -> Option<Self> {
        use rustix::process::{PidfdFlags, pidfd_open};
        use tokio::io::{Interest, unix::AsyncFd};
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        AsyncFd::with_interest(pidfd, Interest::READABLE).ok().map(Self::Pidfd)
    }

    /// May come back early, at once even; the child itself has the say.
    async fn changed(&mut self) {
        match self {
            #[cfg(target_os = "linux")]
            Self::Pidfd(pidfd) => drop(pidfd.readable().await),
            Self::Signal(signal) => drop(signal.recv().await),
            Self::Blind => {}
        }
    }
}
