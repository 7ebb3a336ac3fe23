//! Control groups (version 2) of a test's own.

use super::wait::{SOON, wait_until};
use rustix::fs::{XattrFlags, setxattr};
use rustix::process::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A group that is handed over, as `Delegate=yes` does it. What is in it is killed when it is dropped.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// None, and said aloud, where this machine gives none.
    pub fn make(name: &str) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let made = mounts.lines().find_map(|mount| {
            let mut words = mount.split(' ').skip(1);
            let (point, kind) = (words.next()?, words.next()?);
            let folder = Path::new(point).join(format!("edgeward-test-{name}-{}", std::process::id()));
            (kind == "cgroup2" && fs::create_dir(&folder).is_ok()).then(|| Group(folder))
        });
        let delegated = |group: &Group| setxattr(&group.0, "user.delegate", b"1", XattrFlags::empty()).is_ok();
        let made = made.filter(delegated);
        if made.is_none() {
            eprintln!("SKIPPED: no control group (version 2) can be made here");
        }
        made
    }

    /// The file that takes pids.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Moves a process into it.
    pub fn enter(&self, pid: Pid) {
        fs::write(self.procs(), pid.as_raw_nonzero().to_string()).unwrap();
    }

    /// The groups in it that runs have.
    pub fn leaves(&self) -> Vec<PathBuf> {
        inside(&self.0)
    }

    /// The one that this process is in.
    pub fn leaf_of(&self, pid: Pid) -> Option<PathBuf> {
        let pid = pid.as_raw_nonzero().to_string();
        self.leaves().into_iter().find(|leaf| {
            let inside = fs::read_to_string(leaf.join("cgroup.procs")).unwrap_or_default();
            inside.lines().any(|line| line == pid)
        })
    }

    /// Waits until it has none any more.
    pub async fn cleared(&self) {
        wait_until(SOON, "the groups of runs to go", async || self.leaves().is_empty()).await;
    }
}

fn inside(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

fn remove(group: &Path) -> bool {
    for inner in inside(group) {
        remove(&inner);
    }
    fs::remove_dir(group).is_ok()
}

impl Drop for Group {
    fn drop(&mut self) {
        let since = Instant::now();
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        while since.elapsed() < Duration::from_secs(5) && !remove(&self.0) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
