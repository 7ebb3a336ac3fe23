//! The runner's folder: which file is where. `run` below the agent's state folder, closed to everybody else.
//!
//! Owns names of files, nothing in them.

use super::RunName;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What an address of a Unix socket can hold, its NUL left out.
const LONGEST_ADDRESS: usize = 107;

const RUN: &str = "run";
const SCRIPT: &str = "sh";

/// The folder, made where it was not there.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
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
        Ok(Place { folder })
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
        for path in [self.run(name), self.script(name)] {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a file of a run"),
            }
        }
    }
}

/// The path of a socket, good as long as this lives.
pub(super) struct Address {
    pub(super) path: PathBuf,
    _folder: Option<File>,
}
