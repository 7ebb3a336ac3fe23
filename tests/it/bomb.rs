//! Commands that fork without end: the node goes on beside them, and nothing is left of them after their time.
//!
//! Each runs as a user that is nobody's and may have a few processes only: what it fills is that, not the machine.

use crate::harness::{Fleet, SOON, wait_until};
use edgeward::model::state::State;
use std::fs;
use std::os::unix::fs::MetadataExt;

const USER: u32 = 64_123;
const MOST: usize = 150;

/// The processes of that user, dead ones that nobody has reaped among them.
fn count() -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| entry.metadata().is_ok_and(|process| process.is_dir() && process.uid() == USER)).count()
}

async fn goes_on_beside(bomb: &str) {
    let fleet = Fleet::start(&["ship1"]).await;
    // Looked at once more before it goes off.
    let script = format!(
        "BOMB='{bomb}'; export BOMB
         exec prlimit --nproc={MOST} setpriv --reuid={USER} --regid={USER} --clear-groups /bin/sh -c '
         test $(id -u) = {USER} && grep -q \"^Max processes  *{MOST} \" /proc/self/limits || exit 9
         eval \"$BOMB\"; exec sleep 1000'"
    );
    let headers = [("Fleet-Timeout", "3s"), ("Fleet-Id", "bomb")];
    fleet.publish("fleet.msg.ship1.command.ops.shell.bomb", &headers, script).await;
    wait_until(SOON, "it to go off", async || count() > MOST / 2).await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    assert_eq!(fleet.run("ship1", "shell", "echo hi").await.stdout.as_deref(), Some("hi\n"));
    assert!(count() > 0, "it was over before anything was tried beside it");

    let record = fleet.record("ship1", "ops", "shell", "bomb").await;
    assert_eq!(record.state, State::TimedOut, "{record:?}");
    wait_until(SOON, "the last of it to be reaped", async || count() == 0).await;
    assert_eq!(fleet.run("ship1", "shell", "echo hi").await.stdout.as_deref(), Some("hi\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_ended_by_its_timeout() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: no other user can be had, so nothing keeps a bomb from the machine");
        return;
    }
    // In one group; and each process in a session of its own, its parents gone.
    goes_on_beside("f() { f | f & }; f").await;
    goes_on_beside(r#"setsid /bin/sh -c "$BOMB" & setsid /bin/sh -c "$BOMB" &"#).await;
}
