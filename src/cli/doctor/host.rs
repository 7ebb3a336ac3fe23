//! The machine: the state folder, its rights, and the disk that it is on.

use super::Finding;
use crate::journal::{LookError, look};
use rustix::fs::{Access, access, statvfs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Below this an agent soon takes nothing any more.
const LITTLE: u64 = 64 << 20;

/// Looks at the state folder; `wanted` is what the journal may take.
pub(super) fn look_at(folder: &Path, wanted: u64) -> Vec<Finding> {
    let shown = folder.display();
    let there = match std::fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let found = format!("{shown}: not there; no agent has run here");
            return vec![Finding::note("state", found, "fine for an operator's machine; an agent makes it")];
        }
        Err(error) => {
            return vec![Finding::bad("state", format!("{shown}: {error}"), "run this as the agent's user")];
        }
    };
    let mut findings = vec![rights(folder, &there)];
    findings.push(match look(folder, 0) {
        Ok(picture) => {
            let agent = picture.agent.map_or("no agent runs".to_owned(), |pid| format!("the agent runs, pid {pid}"));
            Finding::ok("journal", format!("of node {}: good, {} KiB; {agent}", picture.node, picture.bytes >> 10))
        }
        Err(LookError::Missing(_)) => Finding::note("journal", "none", "an agent makes it at its first start"),
        Err(LookError::Journal(error)) => Finding::bad(
            "journal",
            error.to_string(),
            "if it is damaged, the next start of the agent moves it aside and begins anew",
        ),
    });
    findings.extend(disk(folder, wanted));
    findings
}

fn rights(folder: &Path, there: &std::fs::Metadata) -> Finding {
    let shown = folder.display();
    let (mode, owner) = (there.mode() & 0o7777, there.uid());
    if !there.is_dir() {
        return Finding::bad("state", format!("{shown}: no folder"), "give another --state-dir");
    }
    if access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let found = format!("{shown}: not for this user (mode {mode:o}, owner {owner})");
        return Finding::bad("state", found, "run this as the agent's user, or give it to him: chown");
    }
    if mode & 0o077 != 0 {
        let found = format!("{shown}: others may look into it (mode {mode:o})");
        return Finding::bad("state", found, "it holds messages and their bodies: chmod 700");
    }
    Finding::ok("state", format!("{shown}: mode {mode:o}, writable"))
}

fn disk(folder: &Path, wanted: u64) -> Option<Finding> {
    let disk = statvfs(folder).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let found = format!("{} MiB free", free >> 20);
    Some(if free < LITTLE {
        Finding::bad("disk", found, "make space: an agent on a full disk takes nothing")
    } else if free < wanted {
        let mend = "less than `agent.journal_bytes`: make space, or set that lower";
        Finding::note("disk", found, mend)
    } else {
        Finding::ok("disk", found)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_is_told_by_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let verdict = |folder: &Path, wanted| {
            look_at(folder, wanted).into_iter().map(|finding| (finding.check, finding.verdict)).collect::<Vec<_>>()
        };
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(dir.path(), private).unwrap();
        let all_well = [("state", Verdict::Ok), ("journal", Verdict::Note), ("disk", Verdict::Ok)];
        assert_eq!(verdict(dir.path(), 1), all_well);
        assert_eq!(verdict(dir.path(), u64::MAX)[2], ("disk", Verdict::Note));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(verdict(dir.path(), 1)[0], ("state", Verdict::Bad));
        assert_eq!(verdict(&dir.path().join("none"), 1), [("state", Verdict::Note)]);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(verdict(&dir.path().join("file"), 1)[0], ("state", Verdict::Bad));
    }
}
