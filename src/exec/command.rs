//! From a [`Spec`] to a process: environment, search for the program, and, where the kernel
//! refuses, what exactly it was that it refused.
//!
//! The program is searched for here: the standard library starts a child by the fast
//! `posix_spawn` only where it need not search in a `PATH` of the child's own.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::user::Account;
use super::{SpawnError, Spec, Stdin, env};

/// Starts the child in a process group of its own.
pub(super) fn spawn(spec: &Spec, account: Option<&Account>) -> Result<Child, SpawnError> {
    for (name, _) in &spec.env {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(SpawnError::EnvName { name: name.clone() });
        }
    }
    let base = match &spec.base {
        Some(base) => env::clean(base.iter().cloned()),
        None => env::clean(std::env::vars_os()),
    };
    let program = find(spec, &base)?;
    let mut command = match account.filter(|account| !account.is_ours()) {
        None => {
            let mut command = Command::new(&program);
            command.arg0(&spec.program).env_clear().envs(base);
            command.envs(account.iter().flat_map(|account| account.env()));
            command.envs(pairs(&spec.env));
            command
        }
        Some(account) => as_user(spec, account, &program, base)?,
    };
    command.args(&spec.args).process_group(0);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(match spec.stdin {
        Stdin::Null => Stdio::null(),
        Stdin::Bytes(_) => Stdio::piped(),
    });
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    command.spawn().map_err(|error| explain(spec, program, error))
}

/// Our own variables go in directly: they mean nothing to the tools that change the user, and
/// a marker is then there from the first moment.
fn as_user(
    spec: &Spec,
    account: &Account,
    program: &Path,
    base: Vec<(OsString, OsString)>,
) -> Result<Command, SpawnError> {
    let is_ours = |name: &OsStr| name.as_bytes().starts_with(b"EDGEWARD_");
    // The kernel will only be asked for the tool, so the program is looked at here.
    if let Err(error) = executable(&in_cwd(spec, program)) {
        return Err(explain(spec, program.to_owned(), error));
    }
    let given = spec.env.iter().filter(|(name, _)| !is_ours(name));
    let mut command = account.command(program, given)?;
    command.env_clear().envs(base).envs(account.env());
    command.envs(pairs(&spec.env).filter(|(name, _)| is_ours(name)));
    Ok(command)
}

fn pairs(env: &[(OsString, OsString)]) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    env.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
}

/// The program's path: as given where it holds a slash, else the first in the child's `PATH`.
fn find(spec: &Spec, base: &[(OsString, OsString)]) -> Result<PathBuf, SpawnError> {
    if spec.program.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(&spec.program));
    }
    let path = pairs(base).chain(pairs(&spec.env)).filter(|(name, _)| *name == "PATH").last();
    let path = path.map_or(env::DEFAULT_PATH.as_ref(), |(_, value)| value);
    search(&spec.program, path).map_err(|error| nul_place(spec).map_or(error, |place| SpawnError::Nul { place }))
}

/// The first executable file of that name in the directories of `path`. Directories that are not
/// absolute are passed over: what they mean would depend on where the agent was started.
pub(super) fn search(name: &OsStr, path: &OsStr) -> Result<PathBuf, SpawnError> {
    let mut forbidden = None;
    if !name.is_empty() {
        for directory in std::env::split_paths(path).filter(|path| path.is_absolute()) {
            let program = directory.join(name);
            match executable(&program) {
                Ok(()) => return Ok(program),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    forbidden.get_or_insert(program);
                }
                Err(_) => {}
            }
        }
    }
    Err(match forbidden {
        Some(program) => SpawnError::NotPermitted { program },
        None => SpawnError::NotFound { program: name.into() },
    })
}

fn executable(program: &Path) -> io::Result<()> {
    if !std::fs::metadata(program)?.is_file() {
        return Err(Errno::ACCESS.into());
    }
    Ok(access(program, Access::EXEC_OK)?)
}

/// Where a relative path of the program leads.
fn in_cwd(spec: &Spec, program: &Path) -> PathBuf {
    spec.cwd.as_ref().map_or_else(|| program.to_owned(), |cwd| cwd.join(program))
}

/// The kernel gives one number for several faults: looks which it was.
fn explain(spec: &Spec, program: PathBuf, source: io::Error) -> SpawnError {
    if let Some(place) = nul_place(spec) {
        return SpawnError::Nul { place };
    }
    if let Some(path) = &spec.cwd
        && let Err(source) = enter(path)
    {
        return SpawnError::Cwd { path: path.clone(), source };
    }
    let missing = || {
        let found = std::fs::metadata(in_cwd(spec, &program));
        found.is_err_and(|error| error.kind() != io::ErrorKind::PermissionDenied)
    };
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR) if missing() => SpawnError::NotFound { program },
        Some(Errno::NOENT) => SpawnError::NoInterpreter { program },
        Some(Errno::ACCESS | Errno::PERM) => SpawnError::NotPermitted { program },
        Some(Errno::TOOBIG) => SpawnError::TooLong { program },
        _ => SpawnError::Io { program, source },
    }
}

fn enter(path: &Path) -> io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(access(path, Access::EXEC_OK)?)
}

fn nul_place(spec: &Spec) -> Option<String> {
    let has_nul = |text: &OsStr| text.as_bytes().contains(&0);
    if has_nul(&spec.program) {
        return Some("the program's name".to_owned());
    }
    if let Some(at) = spec.args.iter().position(|arg| has_nul(arg)) {
        return Some(format!("argument {}", at + 1));
    }
    if spec.cwd.as_ref().is_some_and(|cwd| has_nul(cwd.as_os_str())) {
        return Some("the working directory".to_owned());
    }
    let (name, _) = pairs(&spec.env).find(|(name, value)| has_nul(name) || has_nul(value))?;
    Some(format!("environment variable {name:?}"))
}
