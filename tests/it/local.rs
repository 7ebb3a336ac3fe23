//! `up` and `demo`: everything on one machine, and nothing left behind.

use crate::harness::{Cli, Process, SOON, wait_until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// The nats-server of a state folder.
pub(crate) fn broker_pid(state: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(state.join("nats/nats-server.pid")).ok()?.trim().parse().ok()?)
}

pub(crate) async fn gone(pid: Pid) {
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    // One that has ended and that nobody has waited for yet is gone, too.
    let zombie = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "));
    wait_until(SOON, "the end of nats-server", async || test_kill_process(pid).is_err() || zombie()).await;
}

/// `up`, started, with the address that it tells because the usual port is in use.
pub(crate) async fn up() -> (Process, String) {
    up_with(&[]).await
}

/// The same with more variables in its environment.
pub(crate) async fn up_with(variables: &[(&str, &str)]) -> (Process, String) {
    // By us until the last test has ended, or by somebody else.
    static TAKEN: OnceLock<Option<TcpListener>> = OnceLock::new();
    TAKEN.get_or_init(|| TcpListener::bind("127.0.0.1:4222").ok());
    let mut up = Process::new("up", &["up", "--node", "ship1"]);
    let state = up.state_dir().display().to_string();
    up.set_env("EDGEWARD_STATE_DIR", &state);
    up.set_env("EDGEWARD_AGENT__INTERVAL", "1s");
    variables.iter().for_each(|(name, value)| up.set_env(name, value));
    up.start();
    let url = wait_until(SOON, "the line to export", async || {
        let said = up.stdout();
        said.lines().find_map(|line| line.strip_prefix("export NATS_URL=").map(str::to_owned)).ok_or(said)
    })
    .await;
    (up, url)
}

#[tokio::test]
async fn up_brings_everything_up_keeps_it_up_and_takes_it_down() {
    let (mut up, url) = up().await;
    let cli = Cli::edgeward(&url);
    assert_eq!(cli.run(&["run", "ship1", "echo hi"]).await.ok(), "hi\n");

    let first = broker_pid(&up.state_dir()).unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = wait_until(SOON, "another nats-server", async || {
        broker_pid(&up.state_dir()).filter(|pid| *pid != first).ok_or("the first pid")
    })
    .await;
    wait_until(SOON, "the node to answer again", async || {
        let said = cli.run(&["run", "ship1", "echo again"]).await;
        if said.stdout == "again\n" { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;

    assert!(up.stop().await.success());
    gone(second).await;
}

#[tokio::test]
async fn a_killed_up_leaves_no_broker_and_goes_on_where_it_was() {
    let (mut killed, url) = up().await;
    assert_eq!(Cli::edgeward(&url).run(&["run", "ship1", "echo one", "--id", "one"]).await.ok(), "one\n");
    let pid = broker_pid(&killed.state_dir()).unwrap();
    killed.kill();
    gone(pid).await;

    killed.start();
    let url = wait_until(SOON, "the second address", async || {
        killed.stdout().lines().filter_map(|line| line.strip_prefix("export NATS_URL=")).nth(1).map(str::to_owned)
    })
    .await;
    assert_eq!(Cli::edgeward(&url).run(&["result", "one"]).await.ok(), "one\n");
    assert!(killed.stop().await.success());
}

#[tokio::test]
async fn the_demo_comes_out_right_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::edgeward("nats://127.0.0.1:1").env("TMPDIR", folder.path().to_str().unwrap());
    for verb in ["demo", "up"] {
        let said = cli.run(&[verb, "--server", "nats://127.0.0.1:1"]).await.exits(2);
        assert!(said.stderr.contains("has a broker of its own: --server is for others"), "{said:?}");
    }
    let said = cli.run(&["agent", "--context", "work"]).await.exits(78);
    assert!(said.stderr.contains("--context is for the operator's verbs"), "{said:?}");
    let said = cli.within(Duration::from_secs(60)).run(&["demo"]).await.ok();
    for part in [
        "6 x 7 is 42 on ship1",
        "6 x 7 is 42 on ship2",
        "6 x 7 is 42 on central",
        "exit code 3",
        "timed_out",
        "waits at the broker: queued",
        "better late",
        "anchor is up",
        "all of it came out right",
    ] {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
    assert!(!said.contains('✗'), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "its folder is still there");
}

#[tokio::test]
async fn a_kept_demo_stays_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Process::new("demo", &["demo", "--keep"]);
    demo.set_env("TMPDIR", folder.path().to_str().unwrap());
    demo.start();
    let url = wait_until(SOON, "the invitation", async || {
        let said = demo.stdout();
        let url = said.split("--server ").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
        url.ok_or(said)
    })
    .await;
    assert_eq!(Cli::edgeward(&url).run(&["run", "central", "echo still here"]).await.ok(), "still here\n");
    assert!(demo.is_running());
    demo.signal(Signal::INT);
    assert!(demo.exited(SOON).await.success());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "its folder is still there");
}
