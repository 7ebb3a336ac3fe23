//! Files by which commands say how far they are, and for which they wait; and processes that are to end.

use super::wait::{SOON, wait_until};
use rustix::process::{Pid, test_kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder of such files.
#[derive(Debug)]
pub struct Marks(TempDir);

impl Marks {
    /// An empty one.
    pub fn new() -> Marks {
        Marks(tempfile::tempdir().unwrap())
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A script that says that it ran.
    pub fn touch(&self, name: &str) -> String {
        format!("touch {}", self.path(name).display())
    }

    /// True where such a script ran.
    pub fn ran(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// A script that says that it has begun, with its pid, and then takes long.
    pub fn long(&self, name: &str) -> String {
        let path = self.path(name);
        format!("echo said; echo $$ > {0}.new; mv {0}.new {0}; sleep 1000", path.display())
    }

    /// The pid of a long script, once it has begun.
    pub async fn pid(&self, name: &str) -> Pid {
        let path = self.path(name);
        wait_until(SOON, format!("`{name}` to begin"), async || pid_in(&path)).await
    }

    /// A script that notes that it runs, waits for `go`, and ends with 7 and output on both streams.
    pub fn waits_for_go(&self) -> String {
        let (began, go) = (self.path("began"), self.path("go"));
        format!(
            "echo $$ >> {}; echo begun; until test -e {}; do sleep 0.02; done; echo done; echo err >&2; exit 7",
            began.display(),
            go.display()
        )
    }

    /// Lets scripts that wait go on.
    pub fn go(&self) {
        fs::write(self.path("go"), "").unwrap();
    }

    /// How often such a script has begun.
    pub fn times_begun(&self) -> usize {
        lines(&self.path("began")).len()
    }

    /// The pid of the first one, once it has begun.
    pub async fn has_begun(&self) -> Pid {
        let began = self.path("began");
        pid(&wait_until(SOON, "it to begin", async || lines(&began).first().cloned()).await)
    }
}

/// The lines of a file; none where it is not there.
pub fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A pid as a script wrote it.
pub fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap_or_else(|e| panic!("{text:?}: {e}"))).expect("a pid")
}

fn pid_in(path: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(path).ok()?.trim().parse().ok()?)
}

/// Waits for the end of a process.
pub async fn gone(pid: Pid) {
    wait_until(SOON, format!("the end of process {pid:?}"), async || test_kill_process(pid).is_err()).await;
}
