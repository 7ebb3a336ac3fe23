//! `inmsg.txt` and `acks.jsonl`: messages from node to node by files, over crashes at each step.

use crate::harness::{Fleet, Process, SOON, TestBroker, wait_until};
use edgeward::broker::{From, RawMessage};
use edgeward::model::id::StreamSeq;
use edgeward::model::state::State;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A message of ship1 to itself, with this text as its script.
fn shell(script: &str) -> String {
    json!({ "to": "ship1", "method": "shell", "body": script }).to_string()
}

fn make(folder: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
}

async fn all(fleet: &Fleet, stream: &str, filter: &str) -> Vec<RawMessage> {
    fleet.client.read_all(stream, filter, From::Seq(StreamSeq(1)), usize::MAX).await.unwrap()
}

/// What ship1 has sent: the bodies, in stream order.
async fn sent(fleet: &Fleet) -> Vec<String> {
    let messages = all(fleet, "FLEET_COMMANDS", "fleet.msg.*.command.ship1.>").await;
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}

async fn complaints(fleet: &Fleet) -> Vec<String> {
    let events = all(fleet, "FLEET_ERRORS", "fleet.error.ship1.warning.bad_inmsg").await;
    let text = |event: &RawMessage| serde_json::from_slice::<Value>(&event.body).unwrap()["message"].to_string();
    events.iter().map(text).collect()
}

/// Writes the file and waits until it was taken.
async fn taken(state: &Path, text: &str) {
    let path = state.join("inmsg.txt");
    fs::write(&path, text).unwrap();
    gone(state, "inmsg.txt").await;
}

async fn gone(state: &Path, name: &str) {
    let path = state.join(name);
    wait_until(SOON, format!("{name} to go"), async || !path.exists()).await;
}

async fn content(path: PathBuf, part: &str) -> String {
    wait_until(SOON, format!("`{part}` in {}", path.display()), async || {
        let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
        if text.contains(part) { Ok(text) } else { Err(text) }
    })
    .await
}

/// Everything that ship1 has sent up to now: messages keep their order, so nothing is behind the last one.
async fn sent_in_the_end(fleet: &mut Fleet) -> Vec<String> {
    let state = fleet.agent("ship1").state_dir();
    taken(&state, &shell("true # the end")).await;
    let mut all = wait_until(SOON, "the last message", async || {
        let all = sent(fleet).await;
        if all.last().is_some_and(|body| body == "true # the end") { Ok(all) } else { Err(format!("{all:?}")) }
    })
    .await;
    all.pop();
    all
}

#[tokio::test]
async fn messages_in_files_leave_once_each_and_in_order() {
    let mut fleet = Fleet::at(TestBroker::start().await, &[]).await;
    let agent = Process::agent("ship1", &fleet.broker.url());
    let state = agent.state_dir();
    make(&state);
    // There before the start.
    fs::write(state.join("inmsg.txt"), shell("echo early")).unwrap();
    fleet.add("ship1", agent);
    gone(&state, "inmsg.txt").await;
    // What is sent to a node that the hub does not know yet may end undeliverable.
    wait_until(SOON, "contact", async || fleet.status("ship1").await).await;
    let list = json!([
        { "to": ["ship1", "ship1"], "method": "shell", "body": "echo listed", "lane": "l", "id": "mine", "timeout": "5s" },
        { "toNode": "ship1", "commandOrEvent": "command", "method": "shellCommand", "data": ["echo", "alias"] },
        { "toNode": "ship1", "method": "textLogging", "data": ["a line"] },
    ]);
    taken(&state, &list.to_string()).await;
    taken(&state, &shell("echo same")).await;
    taken(&state, &shell("echo same")).await;
    let bodies = sent_in_the_end(&mut fleet).await;
    assert_eq!(bodies, ["echo early", "echo listed", r#"{"argv":["echo","alias"]}"#, "echo same", "echo same"]);
    let record = fleet.record("ship1", "ship1", "shell", "mine").await;
    assert_eq!((record.state, record.stdout.as_deref()), (State::Succeeded, Some("listed\n")));
    content(state.join("log/ship1/default.log"), "a line").await;
    assert!(!state.join("inmsg.txt.error").exists());
}

#[tokio::test]
async fn a_bad_file_is_put_back_and_told_once_until_it_changes() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let inmsg = state.join("inmsg.txt");
    let bad = "{\"to\": \"ship1\",\n \"mehtod\": \"shell\", \"body\": \"true\"}";
    fs::write(&inmsg, bad).unwrap();
    let reason = content(state.join("inmsg.txt.error"), "mehtod").await;
    assert!(reason.contains("line 2") && reason.contains("column 2"), "{reason}");
    wait_until(SOON, "the file to be back", async || inmsg.exists()).await;
    assert_eq!(fs::read_to_string(&inmsg).unwrap(), bad);
    // Over a restart, too, it is not told again: the next complaint is the second one.
    fleet.agent("ship1").kill();
    fleet.start_agent("ship1").await;
    fs::write(&inmsg, "{\"to\": \"ship1\"}").unwrap();
    content(state.join("inmsg.txt.error"), "`method`").await;
    let told = wait_until(SOON, "both events", async || {
        let told = complaints(&fleet).await;
        if told.len() >= 2 { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("line 2") && told[0].contains("mehtod") && told[1].contains("method"), "{told:?}");
    // Mended: taken, and the complaint goes.
    taken(&state, &shell("echo mended")).await;
    gone(&state, "inmsg.txt.error").await;
    assert_eq!(sent_in_the_end(&mut fleet).await, ["echo mended"]);
}

#[tokio::test]
async fn what_is_no_plain_file_is_told_once_and_not_read() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let (inmsg, elsewhere) = (state.join("inmsg.txt"), state.join("elsewhere"));
    fs::write(&elsewhere, shell("echo by a link")).unwrap();
    let mut told = 0;
    for kind in ["symbolic link", "folder", "named pipe"] {
        match kind {
            "symbolic link" => std::os::unix::fs::symlink(&elsewhere, &inmsg).unwrap(),
            "folder" => fs::create_dir(&inmsg).unwrap(),
            _ => rustix::fs::mkfifoat(rustix::fs::CWD, &inmsg, rustix::fs::Mode::RUSR).unwrap(),
        }
        content(state.join("inmsg.txt.error"), &format!("inmsg.txt is a {kind}")).await;
        told += 1;
        wait_until(SOON, "the event", async || complaints(&fleet).await.len() == told).await;
        // Over a restart, too, it is not told again: the next complaint is another one.
        fleet.agent("ship1").kill();
        fleet.start_agent("ship1").await;
        assert!(!fs::symlink_metadata(&inmsg).unwrap().file_type().is_file(), "it is left where it is");
        if kind == "folder" { fs::remove_dir(&inmsg) } else { fs::remove_file(&inmsg) }.unwrap();
    }
    taken(&state, &shell("echo mended")).await;
    gone(&state, "inmsg.txt.error").await;
    assert_eq!(sent_in_the_end(&mut fleet).await, ["echo mended"]);
    assert_eq!(complaints(&fleet).await.len(), told);
}

#[tokio::test]
async fn a_bad_file_is_kept_beside_a_new_one() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    fleet.agent("ship1").kill();
    // Claimed, found bad, and meanwhile somebody has written a new one.
    fs::write(state.join("inmsg.claimed"), "[1]").unwrap();
    fs::write(state.join("inmsg.txt"), shell("echo new")).unwrap();
    fleet.start_agent("ship1").await;
    gone(&state, "inmsg.txt").await;
    assert_eq!(fs::read_to_string(state.join("inmsg.txt.bad")).unwrap(), "[1]");
    let reason = content(state.join("inmsg.txt.error"), "line 1").await;
    assert!(reason.contains("column 2"), "{reason}");
    assert_eq!(sent_in_the_end(&mut fleet).await, ["echo new"]);
    assert!(state.join("inmsg.txt.error").exists(), "the reason stays as long as the bad file");
}

#[tokio::test]
async fn a_half_written_file_is_waited_for() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let inmsg = state.join("inmsg.txt");
    let whole = shell("echo whole");
    let begun = Instant::now();
    // A slow writer: each piece comes well after the agent has looked, all of them take longer than it waits for one.
    for end in [3, 10, 20, whole.len()] {
        fs::write(&inmsg, &whole[..end]).unwrap();
        if end < whole.len() {
            let written = Instant::now();
            wait_until(SOON, "some looks", async || written.elapsed() > Duration::from_millis(900)).await;
            assert!(inmsg.exists(), "taken after {:?}", begun.elapsed());
        }
    }
    gone(&state, "inmsg.txt").await;
    assert_eq!(sent_in_the_end(&mut fleet).await, ["echo whole"]);
    assert!(complaints(&fleet).await.is_empty());

    fs::write(&inmsg, &whole[..10]).unwrap();
    let reason = content(state.join("inmsg.txt.error"), "ends early").await;
    assert!(reason.contains("line 1"), "{reason}");
    wait_until(SOON, "the event", async || complaints(&fleet).await.len() == 1).await;
    assert!(inmsg.exists() && sent_in_the_end_is_unchanged(&fleet).await);
}

async fn sent_in_the_end_is_unchanged(fleet: &Fleet) -> bool {
    sent(fleet).await == ["echo whole", "true # the end"]
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_good_file_sends_it_once() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let file = |name: &str| state.join(name);

    // After the rename: nothing of it is in the journal.
    fleet.agent("ship1").kill();
    fs::write(file("inmsg.claimed"), shell("echo one")).unwrap();
    fleet.start_agent("ship1").await;
    gone(&state, "inmsg.claimed").await;

    // After the commit: the same file, not yet removed. A second name keeps it, inode, times and all.
    fs::write(file("new"), shell("echo two")).unwrap();
    fs::hard_link(file("new"), file("kept")).unwrap();
    fs::rename(file("new"), file("inmsg.txt")).unwrap();
    gone(&state, "inmsg.txt").await;
    gone(&state, "inmsg.claimed").await;
    fleet.agent("ship1").kill();
    fs::rename(file("kept"), file("inmsg.claimed")).unwrap();
    fleet.start_agent("ship1").await;
    gone(&state, "inmsg.claimed").await;

    assert_eq!(sent_in_the_end(&mut fleet).await, ["echo one", "echo two"]);
}

#[tokio::test]
async fn kills_at_any_moment_send_each_file_once() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    fleet.agent("ship1").kill();
    let mut written = Vec::new();
    for round in 0..40 {
        if !state.join("inmsg.txt").exists() && !state.join("inmsg.claimed").exists() {
            let body = format!("echo {}", written.len());
            fs::write(state.join("inmsg.txt"), shell(&body)).unwrap();
            written.push(body);
        }
        fleet.agent("ship1").start();
        // The moment of the kill is what this is about: from before the first look to after the last step.
        tokio::time::sleep(Duration::from_millis(4 + round)).await;
        fleet.agent("ship1").kill();
    }
    fleet.start_agent("ship1").await;
    gone(&state, "inmsg.txt").await;
    gone(&state, "inmsg.claimed").await;
    eprintln!("{} files over 40 kills", written.len());
    assert!((2..40).contains(&written.len()), "{} files: no kill came between", written.len());
    assert_eq!(sent_in_the_end(&mut fleet).await, written);
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_bad_file_tells_it_once() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let file = |name: &str| state.join(name);
    let back = async || wait_until(SOON, "the file to be back", async || file("inmsg.txt").exists()).await;

    // After the rename.
    fleet.agent("ship1").kill();
    fs::write(file("inmsg.claimed"), "{\"to\": 7}").unwrap();
    fleet.start_agent("ship1").await;
    back().await;

    // After the commit, without and with the reason written.
    for has_reason in [false, true] {
        fleet.agent("ship1").kill();
        fs::rename(file("inmsg.txt"), file("inmsg.claimed")).unwrap();
        if !has_reason {
            fs::remove_file(file("inmsg.txt.error")).unwrap();
        }
        fleet.start_agent("ship1").await;
        back().await;
        content(file("inmsg.txt.error"), "`to`").await;
    }

    // Errors keep their order, too: one more, then all are there.
    fs::write(file("inmsg.txt"), "7").unwrap();
    let told = wait_until(SOON, "the last event", async || {
        let told = complaints(&fleet).await;
        if told.last().is_some_and(|text| text.contains("an object")) { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert_eq!(told.len(), 2, "{told:?}");
}

#[tokio::test]
async fn a_message_written_offline_leaves_later_and_once() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    fleet.broker.server.kill().await.unwrap();
    taken(&state, &shell("echo offline")).await;
    gone(&state, "inmsg.claimed").await;
    fleet.agent("ship1").restart();
    fleet.broker.server.restart().await.unwrap();
    wait_until(SOON, "the message", async || {
        fleet.client.wait_up().await.map_err(|e| e.to_string())?;
        if sent(&fleet).await.is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!(sent_in_the_end(&mut fleet).await, ["echo offline"]);
}

#[tokio::test]
async fn results_come_back_to_the_sending_node_once_whatever_was_down() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let state = fleet.agent("ship1").state_dir();
    let to_ship2 =
        |id: &str, script: &str| json!({ "to": "ship2", "method": "shell", "body": script, "id": id }).to_string();
    let results = state.join("acks.jsonl");
    taken(&state, &to_ship2("first", "echo out; echo err >&2; exit 3")).await;
    let line: Value = serde_json::from_str(&content(results.clone(), "first").await).unwrap();
    assert_eq!((&line["state"], &line["exit_code"]), (&json!("failed"), &json!(3)));
    assert_eq!((&line["node"], &line["stdout"], &line["stderr"]), (&json!("ship2"), &json!("out\n"), &json!("err\n")));

    // The result comes while the sender is down.
    fleet.agent("ship2").kill();
    taken(&state, &to_ship2("second", "echo later")).await;
    wait_until(SOON, "the message", async || sent(&fleet).await.len() == 2).await;
    fleet.agent("ship1").kill();
    fleet.start_agent("ship2").await;
    assert_eq!(fleet.record("ship2", "ship1", "shell", "second").await.state, State::Succeeded);
    wait_until(SOON, "the hub's word", async || {
        all(&fleet, "FLEET_COMMANDS", "fleet.msg.ship1.control.hub.result").await.len() == 2
    })
    .await;
    fleet.start_agent("ship1").await;
    content(results.clone(), "second").await;

    for round in 3..6 {
        taken(&state, &to_ship2(&format!("round{round}"), "true")).await;
        fleet.agent("ship1").kill();
        fleet.start_agent("ship1").await;
        content(results.clone(), &format!("round{round}")).await;
    }
    let text = fs::read_to_string(&results).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["first", "second", "round3", "round4", "round5"]);
}

#[cfg(feature = "kill-points")]
#[tokio::test(flavor = "multi_thread")]
async fn the_first_result_of_all_is_not_doubled_by_a_crash_right_behind_it() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let message = |id: &str| json!({ "to": "ship1", "method": "shell", "body": "true", "id": id }).to_string();
    crate::kernel::dies_at(&mut fleet, edgeward::killpoint::Point::ResultWritten, async |_| {
        taken(&state, &message("first")).await;
    })
    .await;
    fleet.start_agent("ship1").await;
    taken(&state, &message("second")).await;
    let text = content(state.join("acks.jsonl"), "second").await;
    assert_eq!(text.lines().count(), 2, "{text}");
}
