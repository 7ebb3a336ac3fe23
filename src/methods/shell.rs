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
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

    fn outlives_agent(&self) -> bool {
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
    let path = cx.runner.place().script(&cx.run);
    match keep_script(path.clone(), work.body.clone()).await {
        Ok(()) => process::run(spec(vec![path.into()]), work, cx).await,
        Err(outcome) => outcome,
    }
}

fn spec(args: Vec<OsString>) -> Spec {
    Spec { program: "/bin/sh".into(), args, cwd: Some(CWD.into()), ..Spec::default() }
}

/// Puts a script that is too long for an argument into a file that only the agent's user may read. It stays with the
/// run, which may outlive the agent, and goes with the run's other files.
async fn keep_script(path: PathBuf, script: Bytes) -> Result<(), Outcome> {
    match tokio::task::spawn_blocking(move || write_script(&path, &script)).await {
        Ok(written) => written.map_err(Outcome::from),
        Err(error) => Err(Outcome::ended(State::Failed, Code::Io, format!("cannot write the script: {error}"))),
    }
}

/// Whole or not at all: the shell of an earlier agent may be reading it.
fn write_script(path: &Path, script: &[u8]) -> Result<(), Fault> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new.sh");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(script)?;
        fs::rename(&new, path)
    };
    write().map_err(|source| Fault { doing: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Node, error, text, until, work};
    use super::*;
    use std::time::Duration;

    async fn run_in(node: &Node, body: impl Into<Vec<u8>>) -> Outcome {
        Shell.run(&work("shell", body), &node.cx).await
    }

    fn has_script(node: &Node) -> bool {
        node.cx.runner.place().script(&node.cx.run).exists()
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
        let filled = format!("echo \"$#\" #{}", "x".repeat(INLINE_SCRIPT - 11));
        for (script, in_file) in [(filled.clone(), false), (filled + "x", true), (long("echo $0"), true)] {
            assert_eq!(script.len() > INLINE_SCRIPT, in_file);
            let node = Node::new();
            let outcome = run_in(&node, script).await;
            assert_eq!((outcome.state, outcome.exit_code), (State::Succeeded, Some(0)), "{:?}", outcome.error);
            assert_eq!(has_script(&node), in_file);
        }
    }

    #[tokio::test]
    async fn a_long_script_is_private_and_goes_with_the_run() {
        let node = Node::new();
        let outcome = run_in(&node, long("stat -c %a \"$0\"; pwd; cat; exit 5")).await;
        assert_eq!((text(&outcome.stdout), outcome.exit_code), ("600\n/\n".into(), Some(5)));
        assert!(has_script(&node));
        node.cx.runner.forget(&node.cx.run);
        assert_eq!(node.cx.runner.place().names().unwrap(), []);
    }

    #[tokio::test]
    async fn a_long_script_stays_with_a_run_that_is_left() {
        let node = Node::new();
        let (work, cx) = (work("shell", long("sleep 0.5; exit 6")), node.cx.clone());
        let run = tokio::spawn(async move { Shell.run(&work, &cx).await });
        until("it runs", || node.started().first().copied()).await;
        run.abort();
        assert!(run.await.unwrap_err().is_cancelled());
        assert!(has_script(&node));
        assert_eq!(run_in(&node, long("sleep 0.5; exit 6")).await.exit_code, Some(6));
        assert_eq!(node.started().len(), 2, "told once more, of the same process");
        assert_eq!(node.started()[0], node.started()[1]);
    }

    #[tokio::test]
    async fn a_script_that_cannot_be_kept_fails_with_its_path() {
        let node = Node::new();
        let in_the_way = node.cx.runner.place().script(&node.cx.run).with_extension("new.sh");
        std::fs::create_dir(&in_the_way).unwrap();
        let outcome = run_in(&node, long("true")).await;
        let (code, message) = error(&outcome);
        assert_eq!((outcome.state, code), (State::Failed, Code::Io));
        assert!(message.contains(node.cx.runner.place().folder().to_str().unwrap()), "{message}");
    }

    #[tokio::test]
    async fn the_messages_timeout_holds() {
        let mut work = work("shell", "sleep 1000");
        work.message.settings.timeout = Duration::from_millis(200);
        assert!(Shell.outlives_agent());
        assert_eq!(Shell.run(&work, &Node::new().cx).await.state, State::TimedOut);
    }
}
