//! A small disk that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Whether it is full.
#[derive(Debug, Clone, Copy)]
enum Full {
    Never,
    Now,
    Until(Instant),
}

/// A tmpfs of its own; unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
    full: Mutex<Full>,
}

impl SmallDisk {
    /// Mounts one. `Err` tells why this machine does not let us.
    pub fn mount(size: &str) -> Result<SmallDisk, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "edgeward-faults"]).arg(folder.path());
        let output = mount.output().map_err(|e| format!("mount: {e}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(SmallDisk { folder, full: Mutex::new(Full::Never) })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// True where it is full, or was so a moment ago: what ended for that may only now be looked at.
    pub fn was_full(&self, within: Duration) -> bool {
        match *self.full.lock().unwrap() {
            Full::Never => false,
            Full::Now => true,
            Full::Until(end) => end.elapsed() < within,
        }
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        *self.full.lock().unwrap() = Full::Now;
        let Ok(mut file) = File::create(self.ballast()) else { return };
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Gives it back.
    pub fn clear(&self) {
        // It may never have been made.
        let _ = fs::remove_file(self.ballast());
        let mut full = self.full.lock().unwrap();
        if matches!(*full, Full::Now) {
            *full = Full::Until(Instant::now());
        }
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.folder.path().display());
        }
    }
}
