//! Login accounts: finding one by name and the command that becomes it. Nothing is cached: an
//! account removed is an account refused.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;
use tokio_util::sync::CancellationToken;

use super::env::DEFAULT_PATH;
use super::{How, Limits, SpawnError, Spec, command, running};

/// `getent` may ask a directory over the network, and its answer is one line.
const GETENT_LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    grace: Duration::from_secs(1),
    keep: 64 * 1024,
    drain: Duration::from_millis(100),
    file: 0,
    kill_left: true,
};

/// What the system knows of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
    pub(super) shell: String,
}

impl Account {
    /// Looks in `/etc/passwd`, then asks `getent`, which knows directories on the network too.
    pub(super) async fn find(name: &str) -> Result<Self, SpawnError> {
        let unknown = || SpawnError::NoSuchUser { user: name.to_owned() };
        if name.is_empty() || name.starts_with('-') || name.contains([':', '\n', '\0']) {
            return Err(unknown());
        }
        let file = std::fs::read("/etc/passwd").unwrap_or_default();
        if let Some(account) = Self::parse(&file, name) {
            return Ok(account);
        }
        Self::parse(&getent(name).await, name).ok_or_else(unknown)
    }

    /// The line of `name` in text of the form of passwd(5).
    fn parse(passwd: &[u8], name: &str) -> Option<Self> {
        String::from_utf8_lossy(passwd).lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let [found, _, uid, gid, _, home, shell] = fields[..] else {
                return None;
            };
            (found == name).then_some(())?;
            Some(Self {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: home.to_owned(),
                shell: shell.to_owned(),
            })
        })
    }

    /// What login would set.
    pub(super) fn env(&self) -> [(&'static str, &str); 4] {
        [("HOME", &self.home), ("USER", &self.name), ("LOGNAME", &self.name), ("SHELL", &self.shell)]
    }

    /// Whether the agent itself is this user.
    pub(super) fn is_ours(&self) -> bool {
        geteuid().as_raw() == self.uid
    }

    /// A command that becomes the user and then executes `program`, in the same process.
    ///
    /// `env` is given by the sender. It must not reach `setpriv`, which starts as root:
    /// `LD_PRELOAD` would make root load his code. So `env` sets it, once the user is changed.
    pub(super) fn command<'a>(
        &self,
        program: &Path,
        env: impl Iterator<Item = &'a (OsString, OsString)>,
    ) -> Result<Command, SpawnError> {
        let error = |why| SpawnError::User { user: self.name.clone(), why };
        if !geteuid().is_root() {
            return Err(error("the agent does not run as root"));
        }
        let setpriv = tool("setpriv").ok_or_else(|| error("`setpriv` is not installed"))?;
        let mut command = Command::new(setpriv);
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
        command.args(["--init-groups", "--"]);
        let mut env = env.peekable();
        if env.peek().is_some() {
            if program.as_os_str().as_encoded_bytes().contains(&b'=') {
                return Err(error("the program's path holds `=`"));
            }
            command.arg(tool("env").ok_or_else(|| error("`env` is not installed"))?).arg("--");
            command.args(env.map(|(name, value)| {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                pair
            }));
        }
        command.arg(program);
        Ok(command)
    }
}

/// A program that root may be made to run: never searched for where a sender says.
fn tool(name: &str) -> Option<PathBuf> {
    command::search(name.as_ref(), DEFAULT_PATH.as_ref()).ok()
}

/// What `getent passwd NAME` writes; nothing where it fails or takes too long.
async fn getent(name: &str) -> Vec<u8> {
    let Some(program) = tool("getent") else {
        return Vec::new();
    };
    let spec = Spec { program: program.into(), args: vec!["passwd".into(), name.into()], ..Spec::default() };
    let Ok(run) = running::start(&spec, None, &GETENT_LIMITS, running::Extras::default()) else {
        return Vec::new();
    };
    let exit = run.wait(CancellationToken::new()).await;
    match exit.stdout.whole() {
        Some(text) if exit.how == How::Exited(0) => text.into_owned(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_passwd_are_read() {
        let text = b"root:x:0:0:root:/root:/bin/bash\nbad line\nbob:x:1000:100:\xff,,:/home/bob:\n";
        let bob = Account::parse(text, "bob").unwrap();
        assert_eq!((bob.uid, bob.gid, bob.home.as_str()), (1000, 100, "/home/bob"));
        assert_eq!(Account::parse(text, "bo"), None);
        assert_eq!(Account::parse(text, "1000"), None);
    }

    #[tokio::test]
    async fn names_that_are_no_names_are_unknown() {
        for name in ["", "-s", "a:b", "no-such-user-here", "0"] {
            let error = Account::find(name).await.unwrap_err();
            assert!(matches!(error, SpawnError::NoSuchUser { .. }), "{name}: {error}");
        }
        assert_eq!(Account::find("root").await.unwrap().uid, 0);
    }
}
