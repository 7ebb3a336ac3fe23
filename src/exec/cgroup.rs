//! Control groups (v2): a leaf for each run that lives longer than a moment, below the group that the runner is in, where
//! the system has handed that group over (`Delegate=yes` of a unit).
//!
//! Nothing leaves its group by clearing its environment, changing its session or losing its parents, so in a leaf a run is
//! found and ended whatever it does. Without unsafe code a child cannot be born there: it is moved. A move takes the
//! kernel some milliseconds, longer than a short command lives; so it is made on a thread of its own, and only once a run
//! is [`SETTLED`] or is to be ended. All that descends from the leader is moved then. What has until then lost its
//! environment, its session and its parents, all three, is not found.
//!
//! ```text
//! due ──── settled, or to be ended ────▶ entering ────▶ in its leaf
//!  └ over before, or nothing delegated: off  └ refused: off
//! ```
//!
//! Owns the leaves. Never sets a limit and never turns a controller on: without one a group may hold processes and
//! groups at once.

use super::proc::{self, Process};
use rustix::fs::{Access, access, getxattr};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// A run of this age is worth a group of its own.
const SETTLED: Duration = Duration::from_millis(20);

/// Looks for descendants that are not in the leaf yet: they may fork while they are moved.
const ROUNDS: usize = 16;

/// By which systemd says that a group is its members' own.
const DELEGATED: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// What the names of leaves begin with.
const LEAF: &str = "run-";

/// The group that this process is in, handed over to it.
pub(super) struct Nest {
    folder: PathBuf,
    /// As `/proc/PID/cgroup` has it.
    name: String,
    /// Leaves that were not empty when their run was over, or that a former runner left.
    outlived: Mutex<Vec<PathBuf>>,
}

impl Nest {
    /// Our own group; none where there is no such thing, it is not ours to change, or nobody has handed it over.
    pub(super) fn find() -> Option<Arc<Nest>> {
        let name = name_of("self")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let folder = mounts.lines().find_map(|mount| folder_in(mount, &name))?;
        let may_write = |path: &Path| access(path, Access::WRITE_OK).is_ok();
        let is_ours = is_delegated(&folder) && may_write(&folder) && may_write(&folder.join("cgroup.procs"));
        is_ours.then(|| {
            let outlived = Mutex::new(leaves(&folder));
            Arc::new(Nest { folder, name, outlived })
        })
    }

    /// The leaf of a run as a runner that died left it.
    pub(super) fn left_by(self: &Arc<Self>, run: &str) -> Option<Leaf> {
        let folder = self.leaf(run);
        folder.is_dir().then(|| Leaf { folder, nest: Arc::clone(self) })
    }

    fn leaf(&self, run: &str) -> PathBuf {
        self.folder.join(format!("{LEAF}{run}"))
    }

    /// Makes a run's leaf and moves its tree there.
    fn enclose(self: &Arc<Self>, run: &str, leader: u32) -> io::Result<Leaf> {
        self.tidy();
        let folder = self.leaf(run);
        fs::create_dir(&folder)?;
        let leaf = Leaf { folder, nest: Arc::clone(self) };
        for _ in 0..ROUNDS {
            // Whoever has been moved elsewhere, by systemd-run for one, stays there.
            let outside = |pid: &u32| name_of(&pid.to_string()).is_some_and(|name| name == self.name);
            let found: Vec<_> = proc::descendants(leader).into_iter().filter(outside).collect();
            if found.is_empty() {
                break;
            }
            for pid in found {
                // One that has ended meanwhile is no loss.
                let _ = fs::write(leaf.folder.join("cgroup.procs"), pid.to_string());
            }
        }
        Ok(leaf)
    }

    /// Removes the leaves that have become empty.
    fn tidy(&self) {
        self.outlived.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder| !is_removed(folder));
    }
}

fn leaves(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with(LEAF)).map(|entry| entry.path()).collect()
}

fn is_removed(leaf: &Path) -> bool {
    match fs::remove_dir(leaf) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The name of a process's group.
fn name_of(pid: &str) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Where the group of this name is, if this line of `mountinfo` is of a mount that shows it.
fn folder_in(mount: &str, name: &str) -> Option<PathBuf> {
    let (mount, what) = mount.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let below = Path::new(name).strip_prefix(root).ok()?;
    (what.split(' ').next() == Some("cgroup2")).then(|| Path::new(point).join(below))
}

fn is_delegated(folder: &Path) -> bool {
    DELEGATED.iter().any(|name| {
        let mut value = [0; 8];
        getxattr(folder, *name, &mut value).is_ok_and(|length| value.get(..length) == Some(&b"1"[..]))
    })
}

/// The group of one run. Dropped, it goes as soon as it is empty.
pub(super) struct Leaf {
    folder: PathBuf,
    nest: Arc<Nest>,
}

impl Leaf {
    /// Who lives in it.
    pub(super) fn living(&self) -> Vec<Process> {
        let pids = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        pids.lines().filter_map(|pid| proc::alive(pid.parse().ok()?)).collect()
    }

    /// True while something lives in it or in a group that was made in it.
    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.folder.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Sends KILL to all at once, also to who is just being forked; kernels before 5.14 cannot.
    pub(super) fn kill(&self) {
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if !is_removed(&self.folder) {
            self.nest.outlived.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.folder));
        }
    }
}

/// How far a run is on its way into its leaf.
pub(super) enum Enclosure {
    Off,
    Due { at: Instant, nest: Arc<Nest>, run: String, leader: u32 },
    Entering(oneshot::Receiver<io::Result<Leaf>>),
    In(Leaf),
}

impl Enclosure {
    /// For a run that has just begun.
    pub(super) fn new(nest: Option<Arc<Nest>>, run: &str, leader: u32) -> Enclosure {
        match nest {
            Some(nest) => Enclosure::Due { at: Instant::now() + SETTLED, nest, run: run.to_owned(), leader },
            None => Enclosure::Off,
        }
    }

    /// Moves the run when it is time, and never comes back. Nothing is lost where this is dropped.
    pub(super) async fn keep(&mut self) {
        if let Enclosure::Due { at, .. } = self {
            sleep_until(*at).await;
            self.begin();
        }
        self.settle().await;
        std::future::pending().await
    }

    /// Moves the run now, where that has not been done; its leaf.
    pub(super) async fn close(&mut self) -> Option<&Leaf> {
        self.begin();
        self.settle().await;
        self.leaf()
    }

    /// Waits for a move that has begun: until then the leader must not be reaped.
    pub(super) async fn settle(&mut self) {
        let Enclosure::Entering(entering) = self else { return };
        *self = match entering.await {
            Ok(Ok(leaf)) => Enclosure::In(leaf),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a run gets no group of its own");
                Enclosure::Off
            }
            Err(_) => Enclosure::Off,
        };
    }

    /// Where the run is in it.
    pub(super) fn leaf(&self) -> Option<&Leaf> {
        match self {
            Enclosure::In(leaf) => Some(leaf),
            _ => None,
        }
    }

    fn begin(&mut self) {
        *self = match std::mem::replace(self, Enclosure::Off) {
            Enclosure::Due { nest, run, leader, .. } => enter(nest, run, leader),
            other => other,
        };
    }
}

/// Begins the move. Where no thread can be had, because some command has taken all there are, the run does without.
fn enter(nest: Arc<Nest>, run: String, leader: u32) -> Enclosure {
    let (tell, told) = oneshot::channel();
    let mover = thread::Builder::new().name("move".to_owned());
    // A run that is over before it has been moved does not wait: its leaf goes.
    match mover.spawn(move || drop(tell.send(nest.enclose(&run, leader)))) {
        Ok(_) => Enclosure::Entering(told),
        Err(error) => {
            tracing::warn!(%error, "a run gets no group of its own");
            Enclosure::Off
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_found_where_the_mount_shows_it() {
        let line =
            |root: &str, point: &str, kind: &str| format!("30 25 0:26 {root} {point} rw shared:9 - {kind} none rw");
        let find = |root, point, kind, name: &str| folder_in(&line(root, point, kind), name);
        assert_eq!(find("/", "/sys/fs/cgroup", "cgroup2", "/a/b"), Some("/sys/fs/cgroup/a/b".into()));
        assert_eq!(find("/", "/sys/fs/cgroup/unified", "cgroup2", "/a"), Some("/sys/fs/cgroup/unified/a".into()));
        assert_eq!(find("/a", "/mnt", "cgroup2", "/a/b"), Some("/mnt/b".into()), "a mount of a part");
        assert_eq!(find("/a", "/mnt", "cgroup2", "/ab"), None, "a mount of another part");
        assert_eq!(find("/", "/sys/fs/cgroup/pids", "cgroup", "/a"), None, "version 1");
        assert_eq!(folder_in("30 25 0:26 / - cgroup2", "/a"), None);
    }
}
