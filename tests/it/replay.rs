//! Messages of the past: found by what they are and what became of them, exported, and sent again.

use super::harness::{Fleet, SOON, wait_until};
use edgeward::model::id::StreamSeq;
use serde_json::Value;
use std::fs;
use std::path::Path;

#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A script that adds a word to a file.
fn note(file: &Path, word: &str) -> String {
    format!("echo {word} >> {}", file.display())
}

fn words(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_searched_by_state_text_and_time() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    cli.run(&["run", "ship1,ship2", "test $EDGEWARD_MSG_NODE = ship1 # Restart"]).await.exits(1);
    for n in 0..10 {
        // More ids than are read one by one.
        cli.run(&["send", "ship1", "-m", "ping", "--id", &format!("ping-{n}")]).await.ok();
    }
    cli.run(&["wait", "last", "--for", "20s"]).await.ok();
    cli.run(&["send", "ghost", "true", "--new"]).await.ok();
    for (args, count) in [
        (&["--state", "failed"][..], 1),
        (&["--state", "failed,open"], 2),
        (&["--state", "succeeded", "--limit", "3"], 3),
        (&["--state", "succeeded", "-m", "shell"], 1),
        (&["--grep", "RESTART"], 2),
        (&["--grep", "nowhere"], 0),
        (&["--since", "2020-01-01"], 13),
        (&["--until", "1h"], 0),
        (&["--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02"], 0),
    ] {
        let said = cli.run(&[&["history", "-o", "json"], args].concat()).await.ok();
        assert_eq!(said.lines().count(), count, "{args:?}: {said}");
    }
    let failed = objects(&cli.run(&["history", "-o", "json", "--state", "failed"]).await.ok());
    assert_eq!(failed[0]["node"], "ship2", "the row, not its whole call");
    for (args, says) in [
        (["--since", "yesterday"], "a duration (30s, 5m, 2h), a day (2026-11-23) or a time"),
        (["--state", "lost"], "is none of open, queued"),
    ] {
        let said = cli.run(&["history", args[0], args[1]]).await.exits(2);
        assert!(said.stderr.contains(says), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_sent_again_in_their_order() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("words");
    // Of another sender, in between.
    for (from, word) in [("ops", "a"), ("bob", "x"), ("ops", "b"), ("ops", "c")] {
        let subject = format!("fleet.msg.ship1.command.{from}.shell");
        fleet.publish(&subject, &[("Fleet-Timeout", "20s")], note(&file, word)).await;
    }
    wait_until(SOON, "the first time", async || words(&file).len() == 4).await;
    fs::remove_file(&file).unwrap();

    let dry = cli.run(&["replay", "1..4", "--dry-run"]).await.exits(0);
    assert_eq!(dry.stdout.matches("Fleet-Replay-Of:").count(), 3, "{dry:?}");
    assert!(dry.stderr.contains("1 messages of other senders are left out"), "{dry:?}");
    let sent = objects(&cli.run(&["replay", "1..4", "-o", "json"]).await.ok());
    let of: Vec<u64> = sent.iter().map(|one| one["replay_of"].as_u64().unwrap()).collect();
    assert_eq!(of, [1, 3, 4]);
    wait_until(SOON, "the second time", async || words(&file) == ["a", "b", "c"]).await;
    let stored =
        fleet.client.get("FLEET_COMMANDS", StreamSeq(sent[1]["seq"].as_u64().unwrap())).await.unwrap().unwrap();
    assert_eq!((stored.headers.get("Fleet-Replay-Of"), stored.headers.get("Fleet-Timeout")), (Some("3"), Some("20s")));

    fs::remove_file(&file).unwrap();
    cli.run(&["replay", "2..4", "--everybody", "--to", "ship2"]).await.ok();
    wait_until(SOON, "another node", async || words(&file).len() == 3).await;
    cli.run(&["replay", "1", "--to", "ship2"]).await.ok();
    wait_until(SOON, "one more", async || words(&file).len() == 4).await;
    // A call to two goes to the third once.
    cli.run(&["run", "ship1,ship2", &note(&file, "both"), "--id", "both"]).await.ok();
    let dry = cli.run(&["replay", "both", "--to", "ship1", "--dry-run"]).await.exits(0);
    assert_eq!(dry.stdout.matches("Fleet-Replay-Of:").count(), 1, "{dry:?}");
    let sent = objects(&cli.run(&["replay", "both", "--to", "ship1", "-o", "json"]).await.ok());
    assert_eq!(sent.len(), 1, "{sent:?}");
    cli.run(&["wait", sent[0]["id"].as_str().unwrap(), "--for", "20s"]).await.ok();
    assert_eq!(words(&file).iter().filter(|word| *word == "both").count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_sent_again_where_it_failed() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let folder = tempfile::tempdir().unwrap();
    let (file, mended) = (folder.path().join("words"), folder.path().join("mended"));
    let script = format!(
        "{}; test $EDGEWARD_MSG_NODE = ship1 || test -e {}",
        note(&file, "$EDGEWARD_MSG_NODE"),
        mended.display()
    );
    cli.run(&["run", "ship1,ship2", &script, "--id", "deploy"]).await.exits(1);
    fs::write(&mended, "").unwrap();
    let said = cli.run(&["replay", "--failed", "deploy", "-o", "json"]).await.exits(0);
    let sent = objects(&said.stdout);
    assert_eq!((sent.len(), sent[0]["to"].as_str()), (1, Some("ship2")));
    let id = sent[0]["id"].as_str().unwrap();
    assert!(said.stderr.contains(&format!("edgeward wait {id}")), "{said:?}");
    cli.run(&["wait", id, "--for", "20s"]).await.ok();
    let mut ran = words(&file);
    ran.sort();
    assert_eq!(ran, ["ship1", "ship2", "ship2"]);
    let said = cli.run(&["replay", "--failed", id]).await.exits(2);
    assert!(said.stderr.contains("failed nowhere"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_all_that_is_needed() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("words"), folder.path().join("export.jsonl"));
    let out = out.to_str().unwrap();
    fleet.publish("fleet.msg.ship1.command.ops.shell", &[], note(&file, "one")).await;
    // Not UTF-8; the shell does not mind.
    let binary = [note(&file, "two").as_bytes(), b" # \xff"].concat();
    fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Retries", "1")], binary).await;
    fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Colour", "red")], note(&file, "three")).await;
    wait_until(SOON, "both", async || words(&file) == ["one", "two"]).await;

    let said = cli.run(&["history", "--export", out]).await.exits(0);
    assert!(said.stderr.contains("left out: s3 cannot be sent again: header `Fleet-Colour`"), "{said:?}");
    assert!(said.stderr.contains("2 messages in "), "{said:?}");
    let again = cli.run(&["history", "--export", out]).await.exits(2);
    assert!(again.stderr.contains("is there already"), "{again:?}");
    let text = cli.run(&["history", "--export", "-"]).await.ok();
    assert_eq!(text, fs::read_to_string(out).unwrap());

    // The broker it came from is not needed.
    let other = Fleet::start(&["van1"]).await;
    let said = other.cli().run(&["replay", "--file", out]).await.exits(2);
    assert!(said.stderr.contains("`ship1` was never seen"), "{said:?}");
    other.cli().run(&["replay", "--file", out, "--to", "van1"]).await.ok();
    wait_until(SOON, "both again", async || words(&file) == ["one", "two", "one", "two"]).await;
    let stored = other.client.get("FLEET_COMMANDS", StreamSeq(2)).await.unwrap().unwrap();
    assert!(stored.body.ends_with(b" # \xff"), "to the byte");
    assert_eq!(stored.headers.get("Fleet-Retries"), Some("1"));

    let twice = cli.run_with(&["replay", "--file", "-"], format!("{text}{text}").as_bytes()).await.exits(2);
    assert!(twice.stderr.contains("line 4: a second export begins here"), "{twice:?}");
    for (bad, says) in [
        ("", "no export of `edgeward history --export`"),
        (r#"{"to":"ship1","method":"shell","body":"x"}"#, "no export of `edgeward history --export`"),
        (text.lines().next().unwrap(), "there is no message in it"),
    ] {
        let said = cli.run_with(&["replay", "--file", "-"], bad.as_bytes()).await.exits(2);
        assert!(said.stderr.contains(says), "{bad}: {said:?}");
    }
    cli.run(&["replay", "--file", "/no/such/file"]).await.exits(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_not_sent_again_and_nothing_else_either() {
    let fleet = Fleet::start(&["ship1"]).await;
    let cli = fleet.cli();
    for _ in 0..4 {
        fleet.run("ship1", "ping", "").await;
    }
    fleet.client.purge_below("FLEET_COMMANDS", StreamSeq(3)).await.unwrap();
    for (what, says) in [
        (&["1"][..], "no message `1`"),
        (&["1..4"], "the stream holds messages from 3 to 4"),
        (&["3..9"], "the stream holds messages from 3 to 4"),
        (&["3..4", "--whose", "bob"], "its 2 messages are of other senders"),
        (&["60..42"], "the range `60..42` is empty"),
        (&["42..e60"], "begins in one stream and ends in another"),
        (&["a..b"], "is no range of stored sequences"),
        (&["no-such-id"], "no message `no-such-id`"),
        (&["3", "--to", "shp1"], "near `shp1`: ship1"),
        (&[], "required"),
    ] {
        let said = cli.run(&[&["replay"], what].concat()).await.exits(2);
        assert!(said.stderr.contains(says), "{what:?}: {said:?}");
    }
    let state = fleet.client.stream_state("FLEET_COMMANDS").await.unwrap();
    assert_eq!(state.last, StreamSeq(4), "nothing was sent");
    // The plain CLI may fill a message to its brim; a replay has a header more.
    let brim = vec![b'#'; (1 << 20) - 2000];
    let brim = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], brim).await.seq.to_string();
    let said = cli.run(&["replay", &brim]).await.exits(2);
    assert!(said.stderr.contains("are kept for headers") && said.stderr.contains("not sent again: 5"), "{said:?}");
    let control = fleet.publish("fleet.msg.ship1.control.ops.cancel", &[], r#"{"id":"x"}"#).await.seq.to_string();
    let said = cli.run(&["replay", &control]).await.exits(2);
    assert!(said.stderr.contains("control messages have verbs of their own"), "{said:?}");
}
