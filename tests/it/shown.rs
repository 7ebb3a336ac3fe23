//! Output as the operator sees it: live, whole, byte for byte, once; come back to in the middle; with nothing but the shipped
//! rights.

use crate::accounts;
use crate::harness::{Cli, Fleet, Process, SOON, Ship, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files that commands wait for.
struct Gates(TempDir);

impl Gates {
    fn new() -> Gates {
        Gates(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The line of a script that waits for it.
    fn wait(&self, name: &str) -> String {
        format!("until test -e {}; do sleep 0.05; done", self.path(name).display())
    }

    fn open(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }
}

/// `edgeward` as the operator `ops`, running.
fn operator(url: &str, args: &[&str]) -> Process {
    let mut process = Process::new("the operator", args).env("NATS_URL", url).env("EDGEWARD_FROM", "ops");
    process.start();
    process
}

async fn shows(process: &Process, text: &str) {
    wait_until(SOON, format!("{text:?} on stdout"), async || {
        let stdout = process.stdout();
        if stdout.contains(text) { Ok(()) } else { Err(stdout + &process.stderr()) }
    })
    .await;
}

async fn exit_code(process: &mut Process) -> Option<i32> {
    process.exited(SOON).await.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_shown_while_the_command_runs_and_once() {
    let fleet = Fleet::start(&["ship1"]).await;
    let gates = Gates::new();
    let script = format!("echo first; printf half; echo oh >&2; {}; echo ' of it'; exit 3", gates.wait("go"));
    let mut run = operator(&fleet.broker.url(), &["run", "ship1", &script]);
    shows(&run, "first\nhalf").await;
    assert!(run.is_running());
    gates.open("go");
    assert_eq!(exit_code(&mut run).await, Some(1));
    assert_eq!(run.stdout(), "first\nhalf of it\n");
    assert_eq!(run.stderr(), "oh\nship1: failed: exit code 3\n");
    // A command that is over within a second is in its ack alone.
    assert_eq!(fleet.cli().run(&["run", "ship1", "echo short"]).await.ok(), "short\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_several_nodes_are_whole_and_behind_their_names() {
    let fleet = Fleet::start(&["ship1", "ship2", "ship3"]).await;
    let gates = Gates::new();
    let script = format!("echo begins; printf 'held '; {}; echo ends; printf rest", gates.wait("go"));
    let mut run = operator(&fleet.broker.url(), &["run", "ship1,ship2,ship3", &script]);
    for node in ["ship1", "ship2", "ship3"] {
        shows(&run, &format!("{node}: begins\n")).await;
    }
    assert!(run.is_running() && !run.stdout().contains("held"), "{}", run.stdout());
    gates.open("go");
    assert_eq!(exit_code(&mut run).await, Some(0), "{}", run.stderr());
    let stdout = run.stdout();
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    let wanted = |node: &str| ["begins", "held ends", "rest"].map(|line| format!("{node}: {line}"));
    assert_eq!(lines, ["ship1", "ship2", "ship3"].map(wanted).concat());
    // Afterwards the same, node by node.
    let result = fleet.cli().run(&["result", "last"]).await.ok();
    assert_eq!(result, ["ship1", "ship2", "ship3"].map(wanted).concat().join("\n") + "\n");
}

fn hash(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_binary_output_is_whole_byte_for_byte() {
    let fleet = Fleet::start(&["ship1"]).await;
    let gates = Gates::new();
    let bytes: Vec<u8> = (0..5u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(gates.path("five"), &bytes).unwrap();
    let script = format!("cat {}; printf 'e\\377\\000' >&2", gates.path("five").display());
    let edgeward = Path::new(env!("CARGO_BIN_EXE_edgeward")).parent().unwrap();
    let path = format!("{}:{}", edgeward.display(), std::env::var("PATH").unwrap());
    let sh = Cli::shell(&path).env("NATS_URL", &fleet.broker.url()).env("EDGEWARD_FROM", "ops");
    let (out, err) = (gates.path("out"), gates.path("err"));
    for verb in
        [format!("run ship1 --id five \"{script}\""), "result five".to_owned(), "result five --follow".to_owned()]
    {
        let line = format!("edgeward {verb} >{} 2>{}", out.display(), err.display());
        sh.run(&["-c", &line]).await.ok();
        assert_eq!(hash(fs::read(&out).unwrap()), hash(&bytes), "{verb}");
        assert_eq!(fs::read(&err).unwrap(), b"e\xff\0", "{verb}");
    }
    // For programs: an object for each chunk, and the row.
    let said = fleet.cli().run(&["result", "five", "-o", "json"]).await.ok();
    let objects: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(objects.iter().all(|object| object["v"] == 1 && object["node"] == "ship1"));
    let (row, chunks) = objects.split_last().unwrap();
    assert_eq!(
        (row["state"].as_str(), row["record"]["chunks"].as_u64()),
        (Some("succeeded"), Some(chunks.len() as u64))
    );
    assert!(chunks[0]["data_base64"].is_string() && chunks[0]["stream"] == "stdout", "{:?}", chunks[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_misses_nothing() {
    // Far more than is kept for him.
    const SIZE: usize = 30_000_000;
    let fleet = Fleet::start(&["ship1"]).await;
    let gates = Gates::new();
    let command = format!("echo first; {}; yes edgeward | head -c {SIZE}", gates.wait("go"));
    let reader = format!("head -n 1; touch {}; {}; cat", gates.path("began").display(), gates.wait("read"));
    let line = format!("{} run ship1 --id slow \"$1\" | {{ {reader}; }}", env!("CARGO_BIN_EXE_edgeward"));
    let args = ["-c", &line, "sh", &command];
    let mut run = Process::running("the pipe", "/bin/sh", &args).env("NATS_URL", &fleet.broker.url());
    run.set_env("EDGEWARD_FROM", "ops");
    run.start();
    shows(&run, "first\n").await;
    gates.open("go");
    let record = fleet.record("ship1", "ops", "shell", "slow").await;
    wait_until(SOON, "all chunks", async || {
        let last = format!("fleet.output.ship1.ops.slow.{}", record.chunks);
        fleet.client.get_last("FLEET_OUTPUT", &last).await.ok().flatten()
    })
    .await;
    gates.open("read");
    assert_eq!(exit_code(&mut run).await, Some(0), "{}", run.stderr());
    let wanted: String = "edgeward\n".repeat(SIZE / 9 + 1)[..SIZE].to_owned();
    assert!(run.stdout() == format!("first\n{wanted}"), "{} bytes", run.stdout().len());
    assert_eq!(run.stderr(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_comes_in_the_middle_sees_all_and_may_leave() {
    let mut fleet = Fleet::start(&["ship1"]).await;
    let (gates, url) = (Gates::new(), fleet.broker.url());
    let script = format!("echo one; {}; echo two; {}; echo three", gates.wait("two"), gates.wait("three"));
    let mut run = operator(&url, &["run", "ship1", &script, "--id", "long"]);
    shows(&run, "one\n").await;
    run.signal(Signal::INT);
    assert_eq!(exit_code(&mut run).await, Some(3));
    assert!(run.stderr().contains("edgeward result 1 --follow"), "{}", run.stderr());
    // What there is so far, without waiting.
    let so_far = fleet.cli().run(&["result", "1"]).await.exits(3);
    assert_eq!((so_far.stdout.as_str(), so_far.stderr.as_str()), ("one\n", "ship1: running\n"));
    let mut follow = operator(&url, &["result", "long", "ship1", "--follow"]);
    shows(&follow, "one\n").await;
    gates.open("two");
    shows(&follow, "one\ntwo\n").await;
    // Nobody notices that the agent dies; the command goes on.
    fleet.agent("ship1").kill();
    gates.open("three");
    fleet.start_agent("ship1").await;
    assert_eq!(exit_code(&mut follow).await, Some(0), "{}", follow.stderr());
    assert_eq!(follow.stdout(), "one\ntwo\nthree\n");
    assert_eq!(fleet.cli().run(&["result", "long", "--follow"]).await.ok(), "one\ntwo\nthree\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_try_is_told_and_the_last_one_is_the_result() {
    let fleet = Fleet::start(&["ship1"]).await;
    let script = "head -c 50000 /dev/zero | tr '\\0' $EDGEWARD_MSG_ATTEMPT; test $EDGEWARD_MSG_ATTEMPT = 2";
    let args = ["run", "ship1", script, "--retries", "1", "--retry-wait", "10ms"];
    let said = fleet.cli().run(&args).await.exits(0);
    assert_eq!(said.stdout, "1".repeat(50_000) + &"2".repeat(50_000));
    assert_eq!(said.stderr, "ship1: try 2\n");
    assert_eq!(fleet.cli().run(&["result", "last"]).await.ok(), "2".repeat(50_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_not_kept_is_told() {
    let ship = Ship::start().await;
    let cli = ship.fleet.cli();
    cli.run(&["run", "ship1", "head -c 1000000 /dev/zero", "--id", "gone"]).await.ok();
    ship.api("STREAM.PURGE.FLEET_OUTPUT", json!({ "seq": 11 })).await;
    let said = cli.run(&["result", "gone"]).await.exits(6);
    assert_eq!(said.stderr, "ship1: chunks 1 to 10 of the output are not in the stream any more\n");
    ship.api("STREAM.PURGE.FLEET_OUTPUT", json!({})).await;
    let said = cli.run(&["result", "gone"]).await.exits(3);
    assert!(said.stderr.starts_with("ship1: the output is not whole: 0 of 31 chunks are stored"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_rights_are_enough() {
    let fleet = accounts::Fleet::start(&["ship1"]).await;
    let (gates, url, key) = (Gates::new(), fleet.broker.url(), accounts::key("ops"));
    let script = format!("echo live; {}; head -c 100000 /dev/zero | tr '\\0' x", gates.wait("go"));
    let keyed = |args: &[&str]| operator(&url, &[args, &["--nkey", &key]].concat());
    let mut run = keyed(&["run", "ship1", &script, "--id", "keyed"]);
    shows(&run, "live\n").await;
    let mut follow = keyed(&["result", "keyed", "--follow"]);
    shows(&follow, "live\n").await;
    gates.open("go");
    let wanted = format!("live\n{}", "x".repeat(100_000));
    for process in [&mut run, &mut follow] {
        assert_eq!(exit_code(process).await, Some(0), "{}", process.stderr());
        assert!(process.stdout() == wanted, "{} bytes", process.stdout().len());
    }
    let mut result = keyed(&["result", "keyed"]);
    assert_eq!(exit_code(&mut result).await, Some(0), "{}", result.stderr());
    assert!(result.stdout() == wanted);
}
