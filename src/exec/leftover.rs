//! Processes that an earlier agent left behind: finding them by the mark that their environment
//! carries, and ending them without ever hitting a stranger who got the same pid.

use std::time::Duration;

use rustix::process::{Pid, getpgrp};

use super::group;
use super::proc::{self, Process};
use crate::model::process::Started;

/// An environment variable, set through `Spec::env`, that tells the processes of one run from all
/// others. A child that clears its environment loses it.
#[derive(Clone, Copy, Debug)]
pub struct Marker<'a> {
    /// Name of the variable.
    pub key: &'a str,
    /// Value, unique to the run.
    pub value: &'a str,
}

impl Marker<'_> {
    fn is_on(&self, process: &Process) -> bool {
        proc::has_env(process.started.pid, self.key, self.value)
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
pub fn find_marked(marker: Marker<'_>) -> Vec<Started> {
    marked(marker).iter().map(|process| process.started).collect()
}

/// Ends what is left of a run of this boot: TERM, after `grace` KILL.
///
/// With a `leader`, his group is ended if he is still the same process, or, he being dead, if a
/// member of the group carries the marker. Without one (the agent died before it could write him
/// down) every group with a marked member is ended. The caller's own group never is. Comes back
/// within `grace` and some seconds.
pub async fn kill_leftover(leader: Option<Started>, marker: Marker<'_>, grace: Duration) -> Leftover {
    let groups = match leader {
        Some(leader) => group_of(leader, marker).into_iter().collect(),
        None => groups_of(&marked(marker)),
    };
    if groups.is_empty() {
        return Leftover::default();
    }
    let started = |processes: Vec<Process>| processes.iter().map(|one| one.started).collect();
    Leftover { found: started(group::members(&groups)), alive: started(group::end(&groups, grace).await) }
}

fn marked(marker: Marker<'_>) -> Vec<Process> {
    let mut processes = proc::living().unwrap_or_default();
    processes.retain(|process| marker.is_on(process));
    processes
}

/// The leader's group, if it is still his: the kernel does not give a number away again while a
/// group of that number has members.
fn group_of(leader: Started, marker: Marker<'_>) -> Option<Pid> {
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
