//! The runner's folder: which file is where. `run` below the agent's state folder, closed to everybody else.
//!
//! A run's file is made and goes at a rate of hundreds in a second, and file systems are slow at that (ext4 gives no inode
//! away again within five seconds, and looks at each one that it passes over). So a file that is no longer needed is
//! emptied and kept under another name, and the next run gets it back. Two processes pass them on through the folder, in
//! a ring of names: who takes and who gives goes on to the next name when it has worked.
//!
//! Owns names of files, nothing in them.

use super::{RunName, file};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What an address of a Unix socket can hold, its NUL left out.
const LONGEST_ADDRESS: usize = 107;

const RUN: &str = "run";
const SCRIPT: &str = "sh";
const SPARE: &str = "spare";

/// Emptied files that wait for their next run, at most.
const SPARES: usize = 16;

/// The folder, made where it was not there.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    ring: Arc<Ring>,
}

/// Which spare is given and which is taken next.
#[derive(Debug, Default)]
struct Ring {
    given: AtomicUsize,
    taken: AtomicUsize,
}

impl Place {
    /// Makes the folder, or takes it as it is; open to its owner alone in any case.
    ///
    /// # Errors
    /// It cannot be made, or is not ours.
    pub fn make(folder: &Path) -> io::Result<Place> {
        let folder = std::path::absolute(folder)?;
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
            }
            Err(error) => return Err(error),
        }
        Ok(Place { folder, ring: Arc::default() })
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Output and end of a run.
    #[must_use]
    pub fn run(&self, name: &RunName) -> PathBuf {
        self.folder.join(format!("{name}.{RUN}"))
    }

    /// A run's script, where it has one.
    #[must_use]
    pub fn script(&self, name: &RunName) -> PathBuf {
        self.folder.join(format!("{name}.{SCRIPT}"))
    }

    /// Held by the runner as long as it lives; its pid is in it.
    pub(super) fn lock(&self) -> PathBuf {
        self.folder.join("runner.lock")
    }

    /// Where the runner listens.
    pub(super) fn socket(&self) -> io::Result<Address> {
        let path = self.folder.join("runner.sock");
        if path.as_os_str().as_bytes().len() <= LONGEST_ADDRESS {
            return Ok(Address { path, _folder: None });
        }
        // Too long for an address: by way of an open folder, which has a short name.
        let folder = File::open(&self.folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/runner.sock", folder.as_raw_fd()));
        Ok(Address { path, _folder: Some(folder) })
    }

    /// The names of all runs that have files here.
    pub fn names(&self) -> io::Result<Vec<RunName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = PathBuf::from(entry?.file_name());
            let is_ours = path.extension().is_some_and(|extension| extension == RUN || extension == SCRIPT);
            let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_ours);
            names.extend(stem.and_then(|stem| RunName::try_from(stem.to_owned()).ok()));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Takes a run's files away. What is not there, or cannot be removed now, is left to the next start.
    pub fn remove(&self, name: &RunName) {
        remove(&self.run(name));
        remove(&self.script(name));
    }

    /// The same for a run that is over, so that nobody writes to its file any more: another run may have that.
    pub(super) fn recycle(&self, name: &RunName) {
        let run = self.run(name);
        if !file::empty(&run).is_ok_and(|()| self.keep_spare(&run)) {
            remove(&run);
        }
        remove(&self.script(name));
    }

    fn keep_spare(&self, run: &Path) -> bool {
        let at = self.ring.given.load(Ordering::Relaxed);
        let kept = renameat_with(CWD, run, CWD, self.spare(at), RenameFlags::NOREPLACE).is_ok();
        self.ring.given.store(at + usize::from(kept), Ordering::Relaxed);
        kept
    }

    /// Makes an emptied file that of this run; false where there is none. It is an error where the run has one already.
    pub(super) fn take_spare(&self, name: &RunName) -> io::Result<bool> {
        let at = self.ring.taken.load(Ordering::Relaxed);
        match renameat_with(CWD, self.spare(at), CWD, self.run(name), RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.ring.taken.store(at + 1, Ordering::Relaxed);
                Ok(true)
            }
            Err(Errno::EXIST) => Err(Errno::EXIST.into()),
            // None there, or a file system that cannot rename so.
            Err(_) => Ok(false),
        }
    }

    /// Removes all spares: what a power cut has made of them nobody knows.
    pub(super) fn clear_spares(&self) {
        (0..SPARES).for_each(|at| remove(&self.spare(at)));
    }

    fn spare(&self, at: usize) -> PathBuf {
        self.folder.join(format!("{}.{SPARE}", at % SPARES))
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a file of a run"),
    }
}

/// The path of a socket, good as long as this lives.
pub(super) struct Address {
    pub(super) path: PathBuf,
    _folder: Option<File>,
}
