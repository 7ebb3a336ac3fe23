//! A small disk that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// A tmpfs of its own; unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
    is_full: AtomicBool,
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
        Ok(SmallDisk { folder, is_full: AtomicBool::new(false) })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        self.is_full.store(true, Ordering::SeqCst);
        let Ok(mut file) = File::create(self.ballast()) else { return };
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Gives it back.
    pub fn clear(&self) {
        // It may never have been made.
        let _ = fs::remove_file(self.ballast());
        self.is_full.store(false, Ordering::SeqCst);
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
