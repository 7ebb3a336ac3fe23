//! What `/proc` tells of processes. Reads only; without a `/proc` it knows of none.

use crate::model::process::Started;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::process::{Pid, getpid};

/// The id of this boot of the host, if the system tells: [`Started`] is of no use in another.
#[must_use]
pub fn boot_id() -> Option<&'static str> {
    static ID: OnceLock<Option<String>> = OnceLock::new();
    ID.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned())
    })
    .as_deref()
}

/// A living process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) started: Started,
    /// Its process group.
    pub(super) group: u32,
}

/// The start time of a process, also of one that is dead but not yet reaped.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    Some(read(pid)?.process.started.start_time)
}

/// The process of this pid, where it lives.
pub(super) fn alive(pid: u32) -> Option<Process> {
    read(pid).filter(|stat| !stat.dead).map(|stat| stat.process)
}

/// All living processes that can be seen; `None` where there is no `/proc`.
pub(super) fn living() -> Option<Vec<Process>> {
    read(getpid().as_raw_nonzero().get().unsigned_abs())?;
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    });
    Some(pids.filter_map(read).filter(|stat| !stat.dead).map(|stat| stat.process).collect())
}

/// The living or dead children of our first thread, to which orphans come and which starts all commands where they do;
/// none where the kernel does not list them.
pub(super) fn children() -> Vec<u32> {
    // Asked after each command: opening it costs ten times as much as reading it.
    static LIST: OnceLock<Option<File>> = OnceLock::new();
    let open = || File::open(format!("/proc/self/task/{}/children", std::process::id())).ok();
    let Some(list) = LIST.get_or_init(open) else { return Vec::new() };
    let mut text = Vec::new();
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = list.read_at(&mut part, text.len() as u64) {
        text.extend_from_slice(&part[..read]);
    }
    pids(&String::from_utf8_lossy(&text)).collect()
}

fn pids(list: &str) -> impl Iterator<Item = u32> {
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok())
}

fn children_of(pid: &str) -> Vec<u32> {
    let lists = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = lists.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| pids(&list).collect::<Vec<_>>()).collect()
}

/// A process and all that descends from it, as far as the parents in between live.
pub(super) fn descendants(of: u32) -> Vec<u32> {
    let mut found = vec![of];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        let new: Vec<_> = children_of(&pid.to_string()).into_iter().filter(|child| !found.contains(child)).collect();
        found.extend(new);
    }
    found
}

/// Whether the process was started with `key=value` in its environment, as far as we may look.
pub(super) fn has_env(pid: u32, key: &str, value: &str) -> bool {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let wanted = format!("{key}={value}");
    environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
}

/// The id as the kernel's calls take it, never 0 or 1: as a group those would mean our own group
/// and every process there is.
pub(super) fn group_id(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?).filter(|_| raw > 1)
}

struct Stat {
    process: Process,
    dead: bool,
}

fn read(pid: u32) -> Option<Stat> {
    // One read gives all of it; a line is at most half as long.
    let mut line = [0; 2048];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut line).ok()?;
    parse(pid, line.get(..length)?)
}

/// The program's name, in brackets, may hold anything but NUL: what counts is after the last one.
fn parse(pid: u32, stat: &[u8]) -> Option<Stat> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?; // field 3
    let group = fields.nth(1)?.parse().ok()?; // 5
    let threads: u64 = fields.nth(14)?.parse().ok()?; // 20
    let start_time = fields.nth(1)?.parse().ok()?; // 22
    Some(Stat {
        process: Process { started: Started { pid, start_time }, group },
        // A process whose first thread has ended shows as a zombie while others run.
        dead: matches!(state, "X" | "x") || (state == "Z" && threads <= 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_the_name() {
        let line = b"77 (a) R 1 (b) S 5 70 70 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 987654 1 2";
        let stat = parse(77, line).unwrap();
        assert_eq!(stat.process.started, Started { pid: 77, start_time: 987_654 });
        assert_eq!(stat.process.group, 70);
        assert!(!stat.dead);
        assert!(parse(77, b"77 (a").is_none());
        assert!(parse(77, b"77 (a) S 5").is_none());
    }

    #[test]
    fn a_zombie_with_threads_is_not_dead() {
        let line = |threads| format!("7 (a) Z 5 70 70 0 -1 0 1 2 3 4 5 6 7 8 20 0 {threads} 0 9 1");
        assert!(parse(7, line(1).as_bytes()).unwrap().dead);
        assert!(!parse(7, line(2).as_bytes()).unwrap().dead);
    }

    #[test]
    fn groups_that_mean_others_are_refused() {
        assert!(group_id(0).is_none());
        assert!(group_id(1).is_none());
        assert!(group_id(u32::MAX).is_none());
        assert!(group_id(2).is_some());
    }

    #[test]
    fn we_live() {
        let pid = std::process::id();
        assert!(living().unwrap().iter().any(|process| process.started.pid == pid));
        assert!(start_time(pid).unwrap() > 0);
    }
}
