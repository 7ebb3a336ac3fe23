//! `edgeward doctor`: what is well is said to be, what is not is said with what to mend, and nothing is changed by looking.

use crate::accounts;
use crate::harness::{Cli, Fleet, Said};
use edgeward::broker::From;
use edgeward::model::id::StreamSeq;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn findings(said: &Said) -> Vec<Value> {
    said.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn verdict<'a>(all: &'a [Value], check: &str) -> (&'a str, &'a str) {
    let found = all.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("no {check} in {all:?}"));
    (found["verdict"].as_str().unwrap(), found["found"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_well_is_told_so_and_nothing_is_stored_by_looking() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let state = fleet.agent("ship1").state_dir();
    let state = state.to_str().unwrap().to_owned();
    let cli = fleet.cli().env("EDGEWARD_HUB__STORE_BYTES", "1073741824");
    let said = cli.run(&["doctor", "--node", "ship1", "--state-dir", &state, "-o", "json"]).await;
    let all = findings(&said);
    assert_eq!(said.code, Some(0), "{all:?}");
    for check in ["config", "policy", "state", "journal", "broker", "streams", "clock", "node", "consumer", "rights"] {
        assert_eq!(verdict(&all, check).0, "ok", "{check}: {all:?}");
    }
    let text = cli.run(&["doctor", "--state-dir", &state]).await.ok();
    assert!(text.lines().any(|line| line.starts_with("ok    rights") && line.contains("ops may publish")), "{text}");
    for stream in ["FLEET_ERRORS", "FLEET_OUTPUT", "FLEET_ACKS", "FLEET_COMMANDS"] {
        let stored = fleet.client.read_all(stream, ">", From::Seq(StreamSeq(1)), 10).await.unwrap();
        assert!(stored.is_empty(), "{stream}: {stored:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_with_what_to_mend() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    let state = state.to_str().unwrap();
    let nobody = Cli::edgeward("nats://127.0.0.1:1");
    let said = nobody.run(&["doctor", "--state-dir", state, "-o", "json"]).await.exits(1);
    let all = findings(&said);
    assert_eq!(verdict(&all, "state").0, "bad", "{all:?}");
    assert_eq!(verdict(&all, "broker").0, "bad", "{all:?}");
    assert!(all.iter().filter(|one| one["verdict"] == "bad").all(|one| one["mend"].is_string()), "{all:?}");

    let config = folder.path().join("edgeward.toml");
    fs::write(&config, "[agent]\nintervall = \"1s\"\n").unwrap();
    let said = nobody.run(&["doctor", "--config", config.to_str().unwrap()]).await.exits(1);
    assert!(said.stdout.contains("BAD   config") && said.stdout.contains("intervall"), "{said:?}");

    // A broker without the streams.
    let broker = crate::harness::TestBroker::start().await;
    let said = Cli::edgeward(&broker.url()).run(&["doctor", "--state-dir", state, "-o", "json"]).await.exits(1);
    let all = findings(&said);
    let (is, found) = verdict(&all, "streams");
    assert!(is == "bad" && found.contains("FLEET_COMMANDS: missing"), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_tried_as_the_user_that_one_is() {
    let fleet = accounts::Fleet::start(&["ship1"]).await;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let state = folder.path().to_str().unwrap();
    let cli = Cli::edgeward(&fleet.broker.url());
    let doctor = async |key: &str, who: &[&str]| {
        let key = accounts::key(key);
        let said = cli.run(&[&["doctor", "--nkey", &key, "--state-dir", state, "-o", "json"], who].concat()).await;
        assert!(said.stderr.is_empty(), "what is found is found on stdout: {said:?}");
        (said.code, findings(&said))
    };
    let (code, all) = doctor("ship1", &["--node", "ship1"]).await;
    assert_eq!((code, verdict(&all, "rights").0, verdict(&all, "consumer").0), (Some(0), "ok", "ok"), "{all:?}");
    assert!(verdict(&all, "streams").1.contains("not looked at"), "{all:?}");
    let (code, all) = doctor("ops", &["--from", "ops"]).await;
    assert_eq!((code, verdict(&all, "rights").0), (Some(0), "ok"), "{all:?}");
    // A key under another's name.
    let (code, all) = doctor("ship1", &["--node", "ship2"]).await;
    assert_eq!(code, Some(1), "{all:?}");
}
