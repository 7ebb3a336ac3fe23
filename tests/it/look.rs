//! `edgeward local`: what the node's own machine shows of it, without a link, and beside an agent that works.

use crate::harness::{Cli, Fleet, SOON, wait_until};
use edgeward::model::state::State;
use serde_json::Value;
use std::fs;

/// Nobody is at this address: `local` must not ask.
const NOBODY: &str = "nats://127.0.0.1:1";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_shows_itself_with_and_without_its_agent() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let state = state.to_str().unwrap().to_owned();
    let cli = Cli::edgeward(NOBODY);
    let local = ["local", "--state-dir", &state, "-o", "json"];
    let long = fleet.command("ship1", "shell", "sleep 1000").await;
    let queued = fleet.command("ship1", "shell", "true").await;
    assert_eq!(fleet.cli().run(&["ps", "stop", "ship1", "exec"]).await.code, Some(0));
    let shown = wait_until(SOON, "what runs to be shown", async || {
        let shown = json(&cli.run(&local).await.ok());
        let runs = shown["running"][0]["pid"].is_number() && shown["lanes"][0]["depth"] == 2;
        if runs { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    let pid = u64::try_from(fleet.agent("ship1").pid().as_raw_nonzero().get()).unwrap();
    assert_eq!(
        (&shown["node"], &shown["agent_pid"], &shown["condition"]),
        (&"ship1".into(), &pid.into(), &"good".into())
    );
    assert_eq!((&shown["running"][0]["id"], &shown["running"][0]["method"]), (&long.as_str().into(), &"shell".into()));
    assert_eq!(
        (&shown["lanes"][0]["lane"], &shown["lanes"][0]["running"]),
        (&"command.ops.shell".into(), &true.into())
    );
    assert_eq!((&shown["processes"][0]["name"], &shown["processes"][0]["stopped_by"]), (&"exec".into(), &"ops".into()));
    assert_eq!(shown["link"]["up"], true);
    // The agent goes on as if nobody had looked.
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);

    // The link goes: said with the reason, and what is to be told waits.
    fleet.broker.server.kill().await.unwrap();
    let shown = wait_until(SOON, "the lost link to be shown", async || {
        let shown = json(&cli.run(&local).await.ok());
        if shown["link"]["up"] == false && shown["link"]["error"].is_string() {
            Ok(shown)
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    assert!(shown["position"][0]["seq"].is_number(), "{shown}");
    let text = cli.run(&["local", "--state-dir", &state]).await.ok();
    for part in [&format!("the agent runs (pid {pid})"), "link: down for", "command.ops.shell", "stopped by ops", &long]
    {
        assert!(text.contains(part), "no `{part}` in {text}");
    }

    // After a kill it shows what the next start will find.
    fleet.agent("ship1").kill();
    let shown = json(&cli.run(&local).await.ok());
    assert_eq!((&shown["agent_pid"], &shown["running"][0]["id"]), (&Value::Null, &long.as_str().into()));
    fleet.broker.server.restart().await.unwrap();
    fleet.start_agent("ship1").await;
    // The command has lived on without its agent, and the queue behind it waits for its end.
    assert_eq!(fleet.cli().run(&["cancel", &long, "--from", "ops"]).await.code, Some(0));
    assert_eq!(fleet.record("ship1", "ops", "shell", &long).await.state, State::Cancelled);
    assert_eq!(fleet.record("ship1", "ops", "shell", &queued).await.state, State::Succeeded);
    assert_eq!(fleet.agent("ship1").stop().await.code(), Some(0));
    let shown = json(&cli.run(&local).await.ok());
    assert_eq!((shown["running"].as_array().map(Vec::len), &shown["outbox"]["acks"]), (Some(0), &0.into()));
    fleet.start_agent("ship1").await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_damaged_journal_is_said_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::edgeward(NOBODY);
    let state = folder.path().to_str().unwrap();
    let missing = cli.run(&["local", "--state-dir", state]).await.exits(2);
    assert!(missing.stderr.contains("no journal") && missing.stderr.contains(state), "{missing:?}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is made by looking");
    let journal = folder.path().join("journal.db");
    fs::write(&journal, "this is no database, ".repeat(200)).unwrap();
    let foreign = cli.run(&["local", "--state-dir", state]).await.exits(78);
    assert!(foreign.stderr.contains("not a journal") && !foreign.stderr.contains("hint:"), "{foreign:?}");
    fs::remove_file(&journal).unwrap();
    let other = rusqlite::Connection::open(&journal).unwrap();
    other.execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    drop(other);
    let before = fs::read(&journal).unwrap();
    let foreign = cli.run(&["local", "--state-dir", state]).await.exits(78);
    assert!(foreign.stderr.contains("not a journal of edgeward's: another program's database"), "{foreign:?}");
    assert_eq!(fs::read(&journal).unwrap(), before);

    let mut fleet = Fleet::start(&["ship1"]).await;
    assert_eq!(fleet.run("ship1", "ping", "").await.state, State::Succeeded);
    fleet.agent("ship1").stop().await;
    let state = fleet.agent("ship1").state_dir();
    let journal = state.join("journal.db");
    // What was written last is in the log beside it.
    fs::remove_file(state.join("journal.db-wal")).ok();
    let mut damaged = fs::read(&journal).unwrap();
    damaged[100..4096].fill(0xa5);
    fs::write(&journal, &damaged).unwrap();
    let said = cli.run(&["local", "--state-dir", state.to_str().unwrap()]).await.exits(78);
    assert!(said.stderr.contains("the journal is damaged") && said.stderr.contains("moves a damaged"), "{said:?}");
    assert_eq!(fs::read(&journal).unwrap(), damaged);
    // One that has lost its end.
    fs::remove_file(&journal).unwrap();
    let said = cli.run(&["local", "--state-dir", state.to_str().unwrap()]).await.exits(78);
    assert!(said.stderr.contains("missing"), "{said:?}");
}
