//! A try that is one child process: what `shell` and `exec` have in common.
//!
//! Owns the bounds of such a run, the variables that a child finds, and how its end reads as an outcome. Never looks
//! at a body.

use super::fault::{stopped, with_causes};
use super::{Context, KILL_GRACE, Work};
use crate::exec::runner::{RUN_VARIABLE, RunError};
use crate::exec::{Captured, Cut, Exit, How, Limits, Spec};
use crate::model::error_event::Code;
use crate::model::record::{INLINE_OUTPUT, Outcome, Output, RecordError};
use crate::model::state::State;
use crate::model::time::format_duration;
use std::ffi::OsString;
use std::time::Duration;

/// Where a child starts unless its message says otherwise: as under systemd, a place that is always there.
pub(super) const CWD: &str = "/";

/// How long what a child left in the background may hold its output: the result of `daemon &` comes without delay.
const DRAIN: Duration = Duration::from_millis(200);

/// Runs `spec` with the message's timeout, and with variables that tell the child what it runs for:
/// `EDGEWARD_MSG_NODE`, `…_ID`, `…_FROM`, `…_SEQ`, `…_ATTEMPT`, and the mark of the try. A try that has begun already is
/// taken up where it stands.
pub(super) async fn run(mut spec: Spec, work: &Work, cx: &Context) -> Outcome {
    // Last, so that no message can give its processes another try's mark.
    spec.env.extend(variables(work, cx));
    let timeout = work.message.settings.timeout;
    let limits = Limits {
        timeout,
        grace: KILL_GRACE,
        keep: INLINE_OUTPUT,
        drain: DRAIN,
        file: cx.output_bytes,
        kill_left: cx.kill_left,
    };
    let started = |process| cx.processes.started(process);
    match cx.runner.run(&cx.run, &spec, &limits, &cx.stop, &started).await {
        Ok(exit) => {
            if exit.left_running {
                tracing::info!(id = %work.message.id, "a process that the command started lives on");
            }
            outcome(&exit, timeout)
        }
        Err(error @ RunError::Stopped) => stopped(&error.to_string()),
        Err(error @ RunError::Lost) => Outcome::ended(State::Interrupted, Code::Interrupted, error.to_string()),
        Err(error @ (RunError::Failed(_) | RunError::NoRoom(_) | RunError::NoRunner(_))) => {
            Outcome::ended(State::Failed, Code::Spawn, with_causes(&error))
        }
    }
}

fn variables(work: &Work, cx: &Context) -> [(OsString, OsString); 6] {
    let message = &work.message;
    [
        ("EDGEWARD_MSG_NODE", cx.node.to_string()),
        ("EDGEWARD_MSG_ID", message.id.to_string()),
        ("EDGEWARD_MSG_FROM", message.subject.from.to_string()),
        ("EDGEWARD_MSG_SEQ", message.at.seq.to_string()),
        ("EDGEWARD_MSG_ATTEMPT", work.attempt.to_string()),
        (RUN_VARIABLE, cx.run.to_string()),
    ]
    .map(|(name, value)| (name.into(), value.into()))
}

fn outcome(exit: &Exit, timeout: Duration) -> Outcome {
    let (exit_code, signal, ending) = match exit.how {
        How::Exited(code) => (Some(code), None, format!("exit code {code}")),
        How::Signalled(signal) => (None, Some(signal), format!("ended by signal {signal}")),
        How::Unknown => (None, None, "how it ended is not known".to_owned()),
    };
    let failure = match (exit.ended_by, exit.how) {
        (Some(Cut::TimedOut), _) => {
            let text = format!("not done after {}: {ending}", format_duration(timeout));
            Some((State::TimedOut, Code::TimedOut, text))
        }
        (Some(Cut::Stopped), _) => Some((State::Interrupted, Code::Interrupted, format!("was stopped: {ending}"))),
        (None, How::Exited(0)) => None,
        // It may have done all of its work: said as it is, and never tried again.
        (None, How::Unknown) => Some((State::Interrupted, Code::Interrupted, ending)),
        (None, _) => Some((State::Failed, Code::Failed, ending)),
    };
    let left = if exit.left_running { "; something that it started lives on" } else { "" };
    let (state, error) = match failure {
        None => (State::Succeeded, None),
        Some((state, code, text)) => (state, Some(RecordError::new(code, text + left))),
    };
    Outcome {
        state,
        exit_code,
        signal,
        stdout: output(&exit.stdout),
        stderr: output(&exit.stderr),
        error,
        ..Outcome::succeeded()
    }
}

fn output(captured: &Captured) -> Output {
    Output { head: captured.head().to_vec(), tail: captured.tail().to_vec(), total: captured.total }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Node, error, text, until, work};
    use super::*;
    use crate::exec;

    fn sh(script: &str) -> Spec {
        Spec { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], ..Spec::default() }
    }

    async fn run_in(node: &Node, script: &str, timeout: Duration) -> Outcome {
        let mut work = work("shell", "");
        work.message.settings.timeout = timeout;
        run(sh(script), &work, &node.cx).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_exit_code_decides() {
        let node = Node::new();
        let good = run_in(&node, "echo out; echo err >&2", LONG).await;
        assert_eq!((good.state, good.exit_code, good.error), (State::Succeeded, Some(0), None));
        assert_eq!((text(&good.stdout), text(&good.stderr)), ("out\n".into(), "err\n".into()));

        let node = node.again();
        let bad = run_in(&node, "echo half; exit 3", LONG).await;
        assert_eq!((bad.state, bad.exit_code), (State::Failed, Some(3)));
        assert_eq!(error(&bad), (Code::Failed, "exit code 3"));
        assert_eq!(text(&bad.stdout), "half\n");

        let node = node.again();
        let killed = run_in(&node, "kill -9 $$", LONG).await;
        assert_eq!((killed.state, killed.exit_code, killed.signal), (State::Failed, None, Some(9)));
        assert_eq!(error(&killed), (Code::Failed, "ended by signal 9"));
    }

    #[tokio::test]
    async fn a_timeout_kills_and_keeps_what_there_was() {
        let outcome = run_in(&Node::new(), "echo begun; sleep 1000", Duration::from_secs(2)).await;
        assert_eq!((outcome.state, outcome.signal), (State::TimedOut, Some(15)));
        assert_eq!(error(&outcome), (Code::TimedOut, "not done after 2s: ended by signal 15"));
        assert_eq!(text(&outcome.stdout), "begun\n");
    }

    #[tokio::test]
    async fn a_stop_ends_it() {
        let node = Node::new();
        let stop = async {
            until("it runs", || node.started().first().copied()).await;
            node.cx.stop.cancel();
        };
        let (outcome, ()) = tokio::join!(run_in(&node, "sleep 1000", LONG), stop);
        assert_eq!((outcome.state, error(&outcome).0), (State::Interrupted, Code::Interrupted));

        let node = node.again();
        node.cx.stop.cancel();
        let late = run_in(&node, "true", LONG).await;
        assert_eq!(error(&late), (Code::Interrupted, "was stopped before it began"));
        assert_eq!(node.started().len(), 1, "nothing starts after a stop");
    }

    #[tokio::test]
    async fn a_child_knows_what_it_runs_for() {
        let node = Node::new();
        let mut spec = sh(
            "echo $$ $EDGEWARD_MSG_NODE $EDGEWARD_MSG_ID $EDGEWARD_MSG_FROM $EDGEWARD_MSG_SEQ $EDGEWARD_MSG_ATTEMPT $EDGEWARD_RUN; sleep 0.2",
        );
        spec.env = vec![(RUN_VARIABLE.into(), "forged".into())];
        let mut work = work("shell", "");
        work.attempt = 2;
        let outcome = run(spec, &work, &node.cx).await;
        let pid = node.started()[0].pid;
        assert_eq!(text(&outcome.stdout), format!("{pid} n1 x1 ops 7 2 {}\n", node.cx.run));
    }

    #[tokio::test]
    async fn what_cannot_start_fails_with_the_reason() {
        let node = Node::new();
        let spec = Spec { cwd: Some("/no/such/folder".into()), ..sh("true") };
        let outcome = run(spec, &work("shell", ""), &node.cx).await;
        let (code, message) = error(&outcome);
        assert_eq!((outcome.state, code), (State::Failed, Code::Spawn));
        assert!(message.contains("\"/no/such/folder\": No such file"), "{message}");
        assert!(node.started().is_empty());
    }

    #[tokio::test]
    async fn what_was_left_in_the_background_is_told_beside_an_error_only() {
        for (script, message) in [
            ("sleep 1000 & echo up", None),
            ("sleep 1000 & echo up; exit 1", Some("exit code 1; something that it started lives on")),
        ] {
            let node = Node::new();
            let outcome = run_in(&node, script, LONG).await;
            assert_eq!(text(&outcome.stdout), "up\n");
            assert_eq!(outcome.error.as_ref().map(|error| error.message.as_str()), message);
            let mark = exec::Marker { key: RUN_VARIABLE, value: node.cx.run.to_string() };
            let left = exec::kill_leftover(None, &mark, Duration::ZERO).await;
            assert_eq!(left.found.len(), 1);
        }
    }

    #[tokio::test]
    async fn what_was_left_in_the_background_may_be_ended() {
        let mut node = Node::new();
        node.cx.kill_left = true;
        let outcome = run_in(&node, "sleep 1000 & echo $!; exit 1", LONG).await;
        assert_eq!(error(&outcome), (Code::Failed, "exit code 1"));
        let mark = exec::Marker { key: RUN_VARIABLE, value: node.cx.run.to_string() };
        assert_eq!(exec::find_marked(&mark), []);
    }

    #[tokio::test]
    async fn a_try_is_taken_up_and_never_begun_again() {
        let node = Node::new();
        let count = node.folder.path().join("count");
        let script = format!("echo x >> {}; sleep 0.3; echo done; exit 3", count.display());
        let first = tokio::time::timeout(Duration::from_millis(100), run_in(&node, &script, LONG)).await;
        assert!(first.is_err(), "{first:?}");
        for _ in 0..2 {
            let outcome = run_in(&node, &script, LONG).await;
            assert_eq!((outcome.exit_code, text(&outcome.stdout)), (Some(3), "done\n".into()));
        }
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
    }

    #[tokio::test]
    async fn large_output_keeps_head_tail_and_size() {
        let script = "echo first; head -c 1000000 /dev/zero; echo last";
        let outcome = run_in(&Node::new(), script, LONG).await;
        let Output { head, tail, total } = outcome.stdout;
        assert_eq!((total, head.len() + tail.len()), (1_000_011, INLINE_OUTPUT));
        assert!(head.starts_with(b"first\n") && tail.ends_with(b"last\n"));
    }

    #[tokio::test]
    async fn an_end_that_is_not_known_is_not_a_failure() {
        let limits = Limits { timeout: LONG, grace: KILL_GRACE, keep: 0, drain: DRAIN, file: 0, kill_left: false };
        let exit = exec::spawn(&sh("true"), &limits).await.unwrap().wait(Node::new().cx.stop).await;
        let outcome = outcome(&Exit { how: How::Unknown, ..exit }, LONG);
        assert_eq!((outcome.state, outcome.exit_code), (State::Interrupted, None));
        assert_eq!(error(&outcome), (Code::Interrupted, "how it ended is not known"));
    }
}
