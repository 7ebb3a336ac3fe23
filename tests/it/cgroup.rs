//! Where a control group is handed over to the agent, what hides from its environment, its session and its parents is
//! found and ended, too.

use crate::harness::{Fleet, Group, SOON, gone, wait_until};
use edgeward::model::state::State;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs;
use std::path::Path;

const SHELL: &str = "fleet.msg.ship1.command.ops.shell";

async fn hidden(path: &Path) -> Pid {
    let pid = wait_until(SOON, "it to hide", async || {
        fs::read_to_string(path).ok().and_then(|text| text.strip_suffix('\n')?.parse().ok())
    });
    Pid::from_raw(pid.await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_hides_from_the_end_of_its_run() {
    let Some(group) = Group::make("hides") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let hide =
        |name: &str| format!("env -i /usr/bin/setsid /bin/sh -c 'echo $$ > {}; exec sleep 1000'", path(name).display());
    // At once, below a parent that lives; or later, and on its own.
    let now = |name: &str| format!("{} & sleep 1000", hide(name));
    let later = |name: &str| format!("sleep 0.3; ({} > /dev/null 2>&1 &); sleep 1000", hide(name));
    let mut fleet = Fleet::start(&["ship1"]).await;
    group.enter(fleet.agent("ship1").pid());

    for (id, script) in [("now", now("now")), ("later", later("later"))] {
        fleet.publish(SHELL, &[("Fleet-Timeout", "2s"), ("Fleet-Id", id)], script).await;
        let pid = hidden(&path(id)).await;
        assert_eq!(fleet.record("ship1", "ops", "shell", id).await.state, State::TimedOut, "{id}");
        gone(pid).await;
    }

    fleet.publish(SHELL, &[("Fleet-Id", "cancelled")], later("cancelled")).await;
    let pid = hidden(&path("cancelled")).await;
    assert!(group.leaf_of(pid).is_some(), "{:?}", group.leaves());
    fleet.publish("fleet.msg.ship1.control.ops.cancel", &[], json!({"id": "cancelled"}).to_string()).await;
    assert_eq!(fleet.record("ship1", "ops", "shell", "cancelled").await.state, State::Cancelled);
    gone(pid).await;

    // The next runner finds it by the name of its group.
    fleet.publish(SHELL, &[("Fleet-Id", "orphaned")], later("orphaned")).await;
    let pid = hidden(&path("orphaned")).await;
    kill_process(fleet.agent("ship1").runner().expect("a runner"), Signal::KILL).unwrap();
    assert_eq!(fleet.record("ship1", "ops", "shell", "orphaned").await.state, State::Interrupted);
    gone(pid).await;
    group.cleared().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_running_is_seen_in_its_group_and_its_group_goes_with_it() {
    let Some(group) = Group::make("left") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (path, go) = (folder.path().join("pid"), folder.path().join("go"));
    let mut fleet = Fleet::start(&["ship1"]).await;
    group.enter(fleet.agent("ship1").pid());
    let script = format!(
        "sleep 0.3; (env -i /usr/bin/setsid /bin/sh -c 'echo $$ > {}; exec sleep 1000' > /dev/null 2>&1 &)
         until test -e {}; do sleep 0.02; done; exit 1",
        path.display(),
        go.display()
    );
    let id = fleet.command("ship1", "shell", script).await;
    let pid = hidden(&path).await;
    fs::write(&go, "").unwrap();
    let told = fleet.record("ship1", "ops", "shell", &id).await;
    assert_eq!(told.error.unwrap().message, "exit code 1; something that it started lives on");
    assert!(group.leaf_of(pid).is_some(), "{:?}", group.leaves());
    kill_process(pid, Signal::KILL).unwrap();
    gone(pid).await;
    // Groups that have become empty go with the next run that gets one.
    fleet.run("ship1", "shell", "sleep 0.3").await;
    group.cleared().await;
}
