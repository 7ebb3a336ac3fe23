//! Processes that a run left behind: finding them by the mark that their environment carries, and ending them without
//! ever hitting a stranger who got the same pid.

use std::time::Duration;

use rustix::process::{Pid, getpgrp};
use tokio::time::{Instant, sleep};

use super::cgroup::Leaf;
use super::group;
use super::leader;
use super::proc::{self, Process};
use crate::model::process::Started;

/// Between two sweeps for what started while the last one went on.
const SWEEP_AGAIN: Duration = Duration::from_millis(5);

/// An environment variable, set through `Spec::env`, that tells the processes of one run from all
/// others. A child that clears its environment loses it.
#[derive(Clone, Debug)]
pub struct Marker {
    /// Name of the variable.
    pub key: &'static str,
    /// Value, unique to the run.
    pub value: String,
}

impl Marker {
    fn is_on(&self, process: &Process) -> bool {
        proc::has_env(process.started.pid, self.key, &self.value)
    }
}

/// What tells the processes of a run from all others, besides their group.
#[derive(Clone, Copy, Default)]
pub(super) struct Signs<'a> {
    pub(super) marker: Option<&'a Marker>,
    pub(super) leaf: Option<&'a Leaf>,
}

impl Signs<'_> {
    fn groups(self) -> Vec<Pid> {
        let mut found = self.marker.map(marked).unwrap_or_default();
        found.extend(self.leaf.map(Leaf::living).unwrap_or_default());
        groups_of(&found)
    }

    fn kill(self) -> bool {
        let is_populated = self.leaf.is_some_and(Leaf::is_populated);
        if let Some(leaf) = self.leaf.filter(|_| is_populated) {
            leaf.kill();
        }
        is_populated
    }
}

/// What [`kill_leftover`] met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// The processes of the run that lived; all got TERM.
    pub found: Vec<Started>,
    /// Those that live on: hung in the kernel, or not ours to signal.
    pub alive: Vec<Started>,
}

/// The living processes that were started with the marker, as far as this user may look: runs
/// whose pid was never written down, and their descendants.
#[must_use]
pub fn find_marked(marker: &Marker) -> Vec<Started> {
    marked(marker).iter().map(|process| process.started).collect()
}

/// Ends what is left of a run of this boot: TERM, after `grace` KILL.
///
/// The `leader`'s group is ended if he is still the same process, or, he being dead, if a member of the group carries
/// the marker; and every group with a marked member is. The caller's own group never is. Comes back within `grace` and
/// some seconds.
pub async fn kill_leftover(leader: Option<Started>, marker: &Marker, grace: Duration) -> Leftover {
    end_leftover(leader, marker, None, grace).await
}

/// The same for a run that may have a control group.
pub(super) async fn end_leftover(
    leader: Option<Started>,
    marker: &Marker,
    leaf: Option<&Leaf>,
    grace: Duration,
) -> Leftover {
    let signs = Signs { marker: Some(marker), leaf };
    let mut groups = signs.groups();
    groups.extend(leader.and_then(|leader| group_of(leader, marker)).filter(|group| !groups.contains(group)));
    if groups.is_empty() {
        return Leftover::default();
    }
    let found = group::members(&groups).into_iter().map(|one| one.started).collect();
    let alive = end(groups, signs, grace).await.into_iter().map(|one| one.started).collect();
    Leftover { found, alive }
}

/// Ends these groups and every group with a member that bears a sign, also one that is made meanwhile: TERM, after
/// `grace` KILL. Tells who is left.
pub(super) async fn end(mut groups: Vec<Pid>, signs: Signs<'_>, grace: Duration) -> Vec<Process> {
    let more = signs.groups();
    groups.extend(more.into_iter().filter(|group| !groups.contains(group)).collect::<Vec<_>>());
    let mut left = group::end(&groups, grace).await;
    // Who forks faster than it is looked, or left his group as he was told to end, gets no more grace.
    let since = Instant::now();
    loop {
        let more = signs.groups();
        if !signs.kill() && more.is_empty() || since.elapsed() > group::KILL_WAIT {
            left.extend(group::members(&more));
            return left;
        }
        group::kill(&more);
        sleep(SWEEP_AGAIN).await;
    }
}

/// Whether a living process of the groups or with the marker is our own child although nobody here waits for it: its
/// parents have died. That comes about only in a process that orphans come to; there it tells of everything that lives on.
pub(super) fn is_orphaned(groups: &[Pid], marker: Option<&Marker>) -> bool {
    let mut orphans = proc::children().into_iter().filter(|pid| !leader::is_known(*pid)).filter_map(proc::alive);
    orphans.any(|orphan| {
        let grouped = groups.iter().any(|group| proc::group_id(orphan.group) == Some(*group));
        grouped || marker.is_some_and(|marker| marker.is_on(&orphan))
    })
}

fn marked(marker: &Marker) -> Vec<Process> {
    let mut processes = proc::living().unwrap_or_default();
    processes.retain(|process| marker.is_on(process));
    processes
}

/// The leader's group, if it is still his: the kernel does not give a number away again while a
/// group of that number has members.
fn group_of(leader: Started, marker: &Marker) -> Option<Pid> {
    let group = not_ours(leader.pid)?;
    let members: Vec<_> = group::members(&[group]);
    let same = members.iter().any(|member| member.started == leader);
    (same || members.iter().any(|member| marker.is_on(member))).then_some(group)
}

fn groups_of(processes: &[Process]) -> Vec<Pid> {
    let mut groups: Vec<u32> = processes.iter().map(|process| process.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups.into_iter().filter_map(not_ours).collect()
}

fn not_ours(group: u32) -> Option<Pid> {
    proc::group_id(group).filter(|group| *group != getpgrp())
}
