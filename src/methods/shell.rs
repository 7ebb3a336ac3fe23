//! `shell` (command): the body is a script for `/bin/sh`.
//!
//! Owns how the script gets to the shell. The script may hold any bytes but NUL, runs in `/`, and reads `/dev/null`.

use super::fault::Fault;
use super::process::{self, CWD};
use super::{Context, Handler, Work};
use crate::exec::Spec;
use crate::model::admit::{BodyFacts, MethodFacts};
use crate::model::error_event::Code;
use crate::model::message::Kind;
use crate::model::record::{Outcome, RecordError};
use crate::model::state::State;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The longest script given as an argument; the kernel takes 128 KiB, its NUL included.
const INLINE_SCRIPT: usize = 100 * 1024;

/// The method.
pub(super) struct Shell;

impl Handler for Shell {
    fn name(&self) -> &'static str {
        "shell"
    }

    fn facts(&self) -> MethodFacts {
        MethodFacts { kind: Kind::Command, check }
    }

    fn run<'a>(&'a self, work: &'a Work, cx: &'a Context) -> BoxFuture<'a, Outcome> {
        run(work, cx).boxed()
    }

    fn keeps_timeout(&self) -> bool {
        true
    }
}

fn check(body: &[u8]) -> Result<BodyFacts, RecordError> {
    if body.is_empty() {
        return Err(RecordError::new(Code::BadBody, "the body, a script, is empty"));
    }
    match body.iter().position(|byte| *byte == 0) {
        Some(at) => Err(RecordError::new(Code::BadBody, format!("the script has a NUL byte at offset {at}"))),
        None => Ok(BodyFacts::default()),
    }
}

async fn run(work: &Work, cx: &Context) -> Outcome {
    if work.body.len() <= INLINE_SCRIPT {
        // Without `--` a script that begins with `-` or `+` would be read as options.
        let args = vec!["-c".into(), "--".into(), OsString::from_vec(work.body.to_vec())];
        return process::run(spec(args), work, cx).await;
    }
    match ScriptFile::create(&cx.run_dir, work.body.clone()).await {
        Ok(file) => process::run(spec(vec![file.path.clone().into()]), work, cx).await,
        Err(outcome) => outcome,
    }
}

fn spec(args: Vec<OsString>) -> Spec {
    Spec { program: "/bin/sh".into(), args, cwd: Some(CWD.into()), ..Spec::default() }
}

/// A script too long for an argument, in a file that only the agent's user may read. Goes when it is dropped.
struct ScriptFile {
    path: PathBuf,
}

impl ScriptFile {
    async fn create(folder: &Path, script: Bytes) -> Result<ScriptFile, Outcome> {
        let path = folder.join(format!("script-{}.sh", Uuid::new_v4()));
        // Where the caller goes away meanwhile, the task's result is dropped, and the file with it.
        match tokio::task::spawn_blocking(move || ScriptFile::write(path, &script)).await {
            Ok(written) => written.map_err(Outcome::from),
            Err(error) => Err(Outcome::ended(State::Failed, Code::Io, format!("cannot write the script: {error}"))),
        }
    }

    fn write(path: PathBuf, script: &[u8]) -> Result<ScriptFile, Fault> {
        let fault = |source| Fault { doing: "write", path: path.clone(), source };
        // The shell starts in another folder than ours.
        let path = std::path::absolute(&path).map_err(fault)?;
        let mut file = create_private(&path).map_err(fault)?;
        let script_file = ScriptFile { path: path.clone() };
        file.write_all(script).map_err(fault)?;
        Ok(script_file)
    }
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = ?self.path, %error, "cannot remove a script");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Node, error, text, until, work};
    use super::*;
    use std::time::Duration;

    async fn run_in(node: &Node, body: impl Into<Vec<u8>>) -> Outcome {
        Shell.run(&work("shell", body), &node.cx).await
    }

    fn files(node: &Node) -> Vec<PathBuf> {
        std::fs::read_dir(&node.cx.run_dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// A script of more than `INLINE_SCRIPT` bytes that ends with these lines.
    fn long(end: &str) -> String {
        format!(": {}\n{end}", "x".repeat(INLINE_SCRIPT))
    }

    #[test]
    fn an_empty_script_and_nul_are_refused() {
        assert_eq!(check(b"").unwrap_err().code, Code::BadBody);
        assert_eq!(check(b"echo \0").unwrap_err().message, "the script has a NUL byte at offset 5");
        assert_eq!(check(b"\xff\n"), Ok(BodyFacts::default()));
    }

    #[tokio::test]
    async fn a_script_runs_in_the_root_folder_and_reads_nothing() {
        let outcome = run_in(&Node::new(), "pwd; cat; echo two; exit 4").await;
        assert_eq!((text(&outcome.stdout), outcome.exit_code), ("/\ntwo\n".into(), Some(4)));
    }

    #[tokio::test]
    async fn bytes_arrive_as_they_were_sent() {
        let outcome = run_in(&Node::new(), *b"printf %s '\xff\xfe\x01'").await;
        assert_eq!(outcome.stdout.head, b"\xff\xfe\x01");
    }

    #[tokio::test]
    async fn a_script_is_never_read_as_options() {
        for script in ["-c 'echo no'", "+x", "--help"] {
            let outcome = run_in(&Node::new(), script).await;
            assert_eq!((outcome.exit_code, text(&outcome.stdout)), (Some(127), String::new()), "{script}");
        }
    }

    #[tokio::test]
    async fn both_sides_of_the_limit_run() {
        let node = Node::new();
        let filled = format!("echo \"$#\" #{}", "x".repeat(INLINE_SCRIPT - 11));
        for (script, in_file) in [(filled.clone(), false), (filled + "x", true), (long("echo $0"), true)] {
            assert_eq!(script.len() > INLINE_SCRIPT, in_file);
            let outcome = run_in(&node, script).await;
            assert_eq!((outcome.state, outcome.exit_code), (State::Succeeded, Some(0)), "{:?}", outcome.error);
        }
        assert_eq!(files(&node), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn a_long_script_is_private_and_goes_after_the_run() {
        let node = Node::new();
        let outcome = run_in(&node, long("stat -c %a \"$0\"; pwd; cat; exit 5")).await;
        assert_eq!((text(&outcome.stdout), outcome.exit_code), ("600\n/\n".into(), Some(5)));
        assert_eq!(files(&node), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn a_long_script_is_found_where_the_agent_was_told_a_relative_folder() {
        let mut node = Node::new();
        let here = std::env::current_dir().unwrap();
        let folder = tempfile::tempdir_in(&here).unwrap();
        node.cx.run_dir = folder.path().strip_prefix(&here).unwrap().to_owned();
        assert_eq!(run_in(&node, long("true")).await, Outcome { exit_code: Some(0), ..Outcome::succeeded() });
    }

    #[tokio::test]
    async fn a_long_script_goes_with_a_run_that_is_dropped() {
        let node = Node::new();
        let (work, cx) = (work("shell", long("sleep 1000")), node.cx.clone());
        let run = tokio::spawn(async move { Shell.run(&work, &cx).await });
        until("it runs", || node.started().first().copied()).await;
        assert_eq!(files(&node).len(), 1);
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        assert_eq!(files(&node), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn a_script_that_cannot_be_kept_fails_with_its_path() {
        let node = Node::new();
        std::fs::remove_dir(&node.cx.run_dir).unwrap();
        let outcome = run_in(&node, long("true")).await;
        let (code, message) = error(&outcome);
        assert_eq!((outcome.state, code), (State::Failed, Code::Io));
        assert!(message.contains(node.cx.run_dir.to_str().unwrap()), "{message}");
    }

    #[tokio::test]
    async fn the_messages_timeout_holds() {
        let mut work = work("shell", "sleep 1000");
        work.message.settings.timeout = Duration::from_millis(200);
        assert!(Shell.keeps_timeout());
        assert_eq!(Shell.run(&work, &Node::new().cx).await.state, State::TimedOut);
    }
}
