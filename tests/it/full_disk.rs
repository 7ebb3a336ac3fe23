//! Full disks. The broker's own: streams that were written then store nothing until nats-server is started again, which the
//! hub says and `up` does. A node's: commands begin when there is room again.

use crate::harness::{Cli, Process, SOON, SmallDisk, TestBroker, wait_until};
use crate::local::{broker_pid, up_with};
use edgeward::broker::{Broker, From, Outgoing, PublishError};
use edgeward::exec::runner::{Place, RunError, RunName, Runner};
use edgeward::exec::{Limits, Spec};
use edgeward::model::id::StreamSeq;
use std::pin::pin;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A disk, where this machine lets us mount one.
fn disk(size: &str) -> Option<SmallDisk> {
    match SmallDisk::mount(size) {
        Ok(disk) => Some(disk),
        Err(error) => {
            eprintln!("\n!!!! SKIPPED: no broker's disk runs full here: {error}\n");
            None
        }
    }
}

/// More than what is left of the last page that a file has.
fn script() -> String {
    format!("true {}", "x".repeat(10_000))
}

async fn publish(client: &Broker) -> Result<StreamSeq, PublishError> {
    let message = Outgoing::new("fleet.msg.ship1.command.ops.shell", script());
    client.publish(&message, Duration::from_secs(2)).await.map(|stored| stored.seq)
}

/// Has the stream of commands run into the end of the disk, and makes room again.
async fn break_commands(disk: &SmallDisk, client: &Broker) {
    disk.fill();
    assert!(matches!(publish(client).await, Err(PublishError::Unknown)));
    disk.clear();
    let again = publish(client).await;
    assert!(matches!(again, Err(PublishError::Unknown)), "room alone does not heal it: {again:?}");
    client.stream_state("FLEET_COMMANDS").await.expect("the server answers all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_begins_when_there_is_room() {
    let Some(disk) = disk("1m") else { return };
    let place = Place::make(&disk.path().join("run")).unwrap();
    let runner = Runner::new(place, env!("CARGO_BIN_EXE_edgeward").into());
    let spec = Spec { program: "/bin/sh".into(), args: vec!["-c".into(), "echo hi".into()], ..Spec::default() };
    let limits = Limits {
        timeout: SOON,
        grace: SOON,
        keep: 1 << 10,
        drain: Duration::from_millis(200),
        file: 1 << 20,
        kill_left: false,
    };
    let (stop, given_up, told) = (CancellationToken::new(), CancellationToken::new(), |_| {});
    let names = ["before", "while", "unwanted"].map(|name| RunName::numbered(name, 1, 1));
    runner.run(&names[0], &spec, &limits, &stop, &told).await.expect("there is room");
    disk.fill();
    let mut waiting = pin!(runner.run(&names[1], &spec, &limits, &stop, &told));
    let early = timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    let mut unwanted = pin!(runner.run(&names[2], &spec, &limits, &given_up, &told));
    let early = timeout(Duration::from_millis(100), &mut unwanted).await;
    assert!(early.is_err(), "{early:?}");
    given_up.cancel();
    let stopped = timeout(SOON, unwanted).await.unwrap();
    assert!(matches!(stopped, Err(RunError::Stopped)), "{stopped:?}");
    disk.clear();
    let exit = timeout(SOON, waiting).await.unwrap().expect("there is room again");
    assert_eq!(exit.stdout.head(), b"hi\n");
    runner.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_says_that_a_stream_stores_nothing_and_what_to_do() {
    let Some(disk) = disk("64m") else { return };
    let mut broker = TestBroker::with(|options| {
        options.store_dir = disk.path().join("nats");
        options.log = disk.path().join("nats/nats-server.log");
        // It takes the size of the disk for what it may promise otherwise.
        let store = options.store_dir.join("jetstream");
        let jetstream = format!("store_dir: \"{}\", max_file_store: 2GB, sync_interval: always", store.display());
        options.extra_config = format!("jetstream {{ {jetstream} }}");
    })
    .await;
    let mut hub = Process::hub(&broker.url()).env("EDGEWARD_HUB__PROBE", "1s");
    hub.start();
    let client = broker.client().await;
    wait_until(SOON, "the streams", async || publish(&client).await).await;
    break_commands(&disk, &client).await;

    let said =
        "FLEET_COMMANDS stores nothing, although nats-server answers: its disk was full. Make room, then restart";
    wait_until(SOON, "the hub's word", async || {
        let log = hub.stderr();
        if log.contains(said) { Ok(()) } else { Err(log) }
    })
    .await;
    let event = wait_until(SOON, "the error event", async || {
        let filter = "fleet.error.hub.error.stream_write_dead";
        let all =
            client.read_all("FLEET_ERRORS", filter, From::Seq(StreamSeq(1)), 10).await.map_err(|e| e.to_string())?;
        let texts: Vec<String> = all.iter().map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect();
        texts.iter().find(|text| text.contains(said)).cloned().ok_or(format!("{texts:?}"))
    })
    .await;
    assert!(event.contains("\"severity\":\"error\""), "{event}");

    broker.server.kill().await.unwrap();
    broker.server.restart().await.unwrap();
    wait_until(SOON, "the stream to store again", async || publish(&client).await).await;
    wait_until(SOON, "the hub to see it", async || {
        let log = hub.stderr();
        if log.contains("stores messages again") { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_taken_out_again_and_are_nobodys_message() {
    let broker = TestBroker::start().await;
    let mut hub = Process::hub(&broker.url()).env("EDGEWARD_HUB__PROBE", "100ms");
    hub.start();
    let client = broker.client().await;
    let first = wait_until(SOON, "the streams", async || publish(&client).await).await;
    // Several probes have come and gone.
    wait_until(SOON, "probes", async || {
        let state = client.stream_state("FLEET_COMMANDS").await.map_err(|e| e.to_string())?;
        if state.last.0 >= first.0 + 5 && state.messages == 1 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    let acks = client.read_all("FLEET_ACKS", ">", From::Seq(StreamSeq(1)), 100).await.unwrap();
    assert_eq!(acks.len(), 0, "no fate for what is nobody's");
    // From the bucket nothing can be taken out.
    wait_until(SOON, "the bucket's probe", async || {
        client.get_last("KV_FLEET_NODES", "$KV.FLEET_NODES.hello._").await.ok().flatten()
    })
    .await;
    let nodes = Cli::edgeward(&broker.url()).run(&["nodes", "-o", "json"]).await.ok();
    assert!(!nodes.contains(r#""node":"_""#), "{nodes}");
    assert!(hub.is_running() && !hub.stderr().contains("stores nothing"), "{}", hub.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn up_starts_its_broker_anew_once_there_is_room() {
    // The broker promises three quarters of it to its streams.
    let Some(disk) = disk("1g") else { return };
    let state = disk.path().join("state").display().to_string();
    let variables =
        [("EDGEWARD_STATE_DIR", &*state), ("EDGEWARD_HUB__PROBE", "1s"), ("EDGEWARD_HUB__STORE_BYTES", "536870912")];
    let (mut up, url) = up_with(&variables).await;
    let cli = Cli::edgeward(&url);
    assert_eq!(cli.run(&["run", "ship1", "echo hi"]).await.ok(), "hi\n");
    let first = broker_pid(&disk.path().join("state")).unwrap();
    disk.fill();
    cli.run(&["send", "ship1", &script()]).await.exits(6);
    disk.clear();
    wait_until(SOON, "the node to answer again", async || {
        let said = cli.run(&["run", "ship1", "--wait", "2s", "echo again"]).await;
        if said.stdout == "again\n" { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    assert_ne!(broker_pid(&disk.path().join("state")), Some(first));
    assert!(up.stderr().contains("there is room again; starting nats-server anew"), "{}", up.stderr());
    assert!(up.stop().await.success());
}
