//! The environment that children start from: the agent's own, without what belongs to the
//! agent's service alone and without what may hold its secrets.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Where programs are searched for when the environment does not say.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Told by systemd to the agent about itself; a child that used them would speak in its name.
const SERVICE_NAMES: &[&str] =
    &["NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "FDSTORE"];

/// Starts of names: of the service too, and those that configure the agent, with its secrets.
const PREFIXES: &[&str] = &["WATCHDOG_", "LISTEN_", "MEMORY_PRESSURE_", "EDGEWARD_", "NATS_"];

/// `vars` without the agent's own, with a `PATH` in any case.
pub(super) fn clean(vars: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let mut kept: Vec<_> = vars.filter(|(name, _)| !is_own(name)).collect();
    if !kept.iter().any(|(name, _)| name == "PATH") {
        kept.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    kept
}

fn is_own(name: &OsStr) -> bool {
    SERVICE_NAMES.iter().any(|own| name == *own)
        || PREFIXES.iter().any(|start| name.as_bytes().starts_with(start.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(vars: &[(&str, &str)]) -> Vec<(String, String)> {
        clean(vars.iter().map(|(name, value)| (name.into(), value.into())))
            .into_iter()
            .map(|(name, value)| (name.into_string().unwrap(), value.into_string().unwrap()))
            .collect()
    }

    #[test]
    fn the_agents_own_are_left_out() {
        let own = [
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "CREDENTIALS_DIRECTORY",
            "LISTEN_FDS",
            "LISTEN_PID",
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "EDGEWARD_SERVER",
            "NATS_CREDS",
        ];
        let mut vars: Vec<_> = own.iter().map(|name| (*name, "secret")).collect();
        vars.extend([("PATH", "/bin"), ("LANG", "C"), ("MY_NATS_URL", "kept")]);
        let kept = cleaned(&vars);
        let kept: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(kept, ["PATH", "LANG", "MY_NATS_URL"]);
    }

    #[test]
    fn a_path_is_always_there() {
        assert_eq!(cleaned(&[]), [("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    }
}
