//! A systemd of a test's own: the first process of its namespaces, in a control group of its own, with the test's units and
//! nothing of the machine's.

use super::group::Group;
use super::wait::{SOON, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const PROGRAM: &str = "/lib/systemd/systemd";

/// What systemd finds as its machine: `/run`, `/etc` and `/var/lib` are the test's, all else is as it is.
const BOOT: &str = r#"
set -e
echo 0 > "$GROUP"
exec unshare --fork --kill-child --pid --mount --uts --ipc --cgroup sh -ec '
    mount --make-rprivate /
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/lib
    mkdir /run/etc
    cp /etc/passwd /etc/group /etc/nsswitch.conf /run/etc
    mount --bind /run/etc /etc
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
    exec env -i container=other PATH="$PATH" SYSTEMD_UNIT_PATH="$UNITS" \
        "$PROGRAM" --system --unit=rest.target --log-target=console'
"#;

/// Units that systemd cannot be without.
const TARGETS: [&str; 6] = ["sysinit", "basic", "shutdown", "umount", "final", "rest"];

/// A running systemd; everything that it started ends with it.
#[derive(Debug)]
pub struct Systemd {
    /// Ends first, and all with it.
    group: Group,
    outer: Child,
    folder: TempDir,
}

impl Systemd {
    /// None, and said aloud, where this machine does not let us.
    pub async fn start(name: &str) -> Option<Systemd> {
        if !Path::new(PROGRAM).exists() {
            eprintln!("SKIPPED: no systemd on this machine; its units were not run");
            return None;
        }
        let group = Group::make(name)?;
        let folder = tempfile::tempdir().unwrap();
        let units = folder.path().join("units");
        fs::create_dir(&units).unwrap();
        for target in TARGETS {
            fs::write(units.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut boot = Command::new("sh");
        boot.args(["-c", BOOT]).env("GROUP", group.procs()).env("UNITS", units).env("PROGRAM", PROGRAM);
        boot.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut systemd = Systemd { group, outer: boot.spawn().unwrap(), folder };
        let up = wait_until(SOON, "systemd to run", async || {
            if systemd.outer.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Some(false);
            }
            systemd.ctl(&["is-active", "rest.target"]).filter(|said| said == "active").map(|_| true)
        });
        if !up.await {
            eprintln!("SKIPPED: no systemd can be run in namespaces here: {}", systemd.log());
            return None;
        }
        Some(systemd)
    }

    /// Where its units are.
    pub fn units(&self) -> PathBuf {
        self.folder.path().join("units")
    }

    /// What it and its services said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What `systemctl` says; `None` where it fails.
    pub fn ctl(&self, args: &[&str]) -> Option<String> {
        let outer = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
        let mut enter = Command::new("nsenter");
        enter.args(["--target", children.trim(), "--mount", "--pid", "--ipc", "--uts", "--cgroup", "systemctl"]);
        let output = enter.args(["--no-pager", "--no-ask-password"]).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The same where it must not fail.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        self.ctl(args).unwrap_or_else(|| panic!("systemctl {args:?} failed: {}", self.log()))
    }

    /// One property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.done(&["show", "--value", "--property", name, unit])
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // The first of its processes takes all others with it.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}
