//! Ending trees of processes: the one place where signals are sent. What identifies a tree is
//! its process group; whoever calls vouches that the groups are still those that he means.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::time::{Instant, sleep};

use super::proc::{self, Process};
use crate::model::process::Started;

/// How long the kernel is given to end what got KILL; only a hung system call takes longer.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(2);

/// First and longest pause between two looks at the groups. A look reads all of `/proc`, which
/// takes some milliseconds on a busy host.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// Ends all members of the groups: TERM, after `grace` KILL. Comes back when none lives, and in
/// any case [`KILL_WAIT`] after KILL; tells who is left.
pub(super) async fn end(groups: &[Pid], grace: Duration) -> Vec<Process> {
    signal(groups, Signal::TERM);
    signal(groups, Signal::CONT); // a stopped process could not act on TERM
    if gone_within(groups, grace).await {
        return Vec::new();
    }
    kill(groups);
    gone_within(groups, KILL_WAIT).await;
    members(groups)
}

/// Sends KILL and does not wait.
pub(super) fn kill(groups: &[Pid]) {
    signal(groups, Signal::KILL);
}

/// The living members. Without `/proc` a group that still exists shows as its leader.
pub(super) fn members(groups: &[Pid]) -> Vec<Process> {
    // The cheap question first; a zombie counts as a member there.
    let groups: Vec<u32> = groups
        .iter()
        .filter(|group| test_kill_process_group(**group) != Err(rustix::io::Errno::SRCH))
        .map(|group| group.as_raw_nonzero().get().unsigned_abs())
        .collect();
    if groups.is_empty() {
        return Vec::new();
    }
    match proc::living() {
        Some(all) => all.into_iter().filter(|one| groups.contains(&one.group)).collect(),
        None => {
            groups.into_iter().map(|group| Process { started: Started { pid: group, start_time: 0 }, group }).collect()
        }
    }
}

/// A group that is gone, or whose members are not ours to signal, is seen by looking at it.
fn signal(groups: &[Pid], signal: Signal) {
    for group in groups {
        let _ = kill_process_group(*group, signal);
    }
}

async fn gone_within(groups: &[Pid], patience: Duration) -> bool {
    let since = Instant::now();
    let mut pause = FIRST_LOOK;
    loop {
        if members(groups).is_empty() {
            return true;
        }
        let left = patience.saturating_sub(since.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}
