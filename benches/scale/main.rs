//! `cargo bench --bench scale`: what the number of nodes costs, for 100, 1,000 and 10,000 light nodes at one broker.
//!
//! Prints one table, a row per number of nodes: how long until all had joined; until the last ack of a message to each and of
//! one to `@all`; the most memory of the command line in these two; `status` of the latter; the resident memory of broker and
//! hub, the hub's before and after ten more messages to all; how long until every node read again after the broker was
//! killed and started anew; and, at another broker, how long the same stream operations as those of the two messages take by
//! async-nats alone (`raw`). The nodes are light ones (`tests/it/harness/light.rs`), all in this process;
//! broker, hub and command line are the real programs, each measured from outside. Needs a descriptor for each node
//! (`ulimit -n`).
//!
//! `cargo bench --bench scale -- 100 500` takes other numbers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench that cannot measure ends")]

#[path = "../../tests/it/harness/mod.rs"]
mod harness;
mod raw;

use harness::{Cli, Fleet, LightNodes, Process, TestBroker, wait_until};
use raw::RawNodes;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Generous: a bench that does not get there is broken, not slow.
const PATIENCE: Duration = Duration::from_secs(900);

/// Messages to all between two looks at the hub's memory, which must not grow with their number.
const MORE: usize = 10;

#[tokio::main]
async fn main() {
    let mut numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if numbers.is_empty() {
        numbers = vec![100, 1000, 10_000];
    }
    let head = [
        "nodes",
        "joined",
        "each: last ack",
        "all: last ack",
        "CLI",
        "status",
        "broker",
        "hub",
        "back after restart",
        "raw: each",
        "raw: all",
    ];
    let mut rows: Vec<[String; 11]> = Vec::new();
    for nodes in numbers {
        let raw = measure_raw(nodes).await;
        let [nodes, joined, each, all, cli, status, broker, hub, back] = measure(nodes).await;
        let [raw_each, raw_all] = raw.map(seconds);
        rows.push([nodes, joined, each, all, cli, status, broker, hub, back, raw_each, raw_all]);
    }
    println!();
    for row in [head.map(str::to_owned)].iter().chain(&rows) {
        println!("{}", row.iter().map(|cell| format!("{cell:>20}")).collect::<String>());
    }
}

async fn quiet_fleet() -> Fleet {
    let broker = TestBroker::with(|options| options.sync_always = false).await;
    let mut fleet = Fleet::at(broker, &[]).await;
    // Its lines about each node are no part of what is measured.
    fleet.hub.set_env("EDGEWARD_LOG", "warn");
    fleet.hub.restart();
    fleet
}

/// The messages to each and to all without edgeward, on streams and consumers that are as its own.
async fn measure_raw(count: usize) -> [Duration; 2] {
    let mut fleet = quiet_fleet().await;
    let url = fleet.broker.url();
    let nodes = LightNodes::start(&url, count).await;
    let names = nodes.names.clone();
    drop(nodes);
    fleet.hub.kill();
    let nodes = RawNodes::start(&url, names).await;
    [nodes.each("each").await, nodes.all("all").await]
}

async fn measure(count: usize) -> [String; 9] {
    let mut fleet = quiet_fleet().await;
    let url = fleet.broker.url();
    let began = Instant::now();
    let nodes = LightNodes::start(&url, count).await;
    let joined = began.elapsed();

    // One message to each, and one to all, as an operator sends it and waits.
    let (each, each_kib) = run_and_wait(&url, &nodes.targets(), "each", count).await;
    let (all, all_kib) = run_and_wait(&url, "@all", "all", count).await;
    let hub_pid = fleet.hub.pid().as_raw_nonzero().get();
    let hub_kib = memory_kib(hub_pid, "VmRSS").unwrap_or(0);
    for round in 1..=MORE {
        run_and_wait(&url, "@all", &format!("more{round}"), count).await;
    }
    let hub_later_kib = memory_kib(hub_pid, "VmRSS").unwrap_or(0);

    let cli = Cli::edgeward(&url).within(PATIENCE);
    let began = Instant::now();
    cli.run(&["status", "all"]).await.ok();
    let status = began.elapsed();
    let resident = |pid: Option<u32>| pid.and_then(|pid| memory_kib(i32::try_from(pid).ok()?, "VmRSS")).unwrap_or(0);
    let broker_kib = resident(fleet.broker.server.pid());

    // All reconnect at once.
    fleet.broker.server.kill().await.expect("its end");
    fleet.broker.server.restart().await.expect("a start");
    let began = Instant::now();
    nodes.wait("every node to be back", |counts| &counts.sessions, 2 * count).await;
    let back = began.elapsed();
    let failed = nodes.counts.failures.lock().unwrap().clone();
    let (sessions, failures) = (nodes.counts.sessions.load(Ordering::Relaxed), failed.len());
    eprintln!("{count} nodes: {sessions} sessions, {failures} of them failed; the first: {:?}", failed.first());
    [
        count.to_string(),
        seconds(joined),
        seconds(each),
        seconds(all),
        format!("{} {}", each_kib >> 10, mib(all_kib)),
        seconds(status),
        mib(broker_kib),
        format!("{} {}", hub_kib >> 10, mib(hub_later_kib)),
        if failures == 0 { seconds(back) } else { format!("{}, {failures} failed", seconds(back)) },
    ]
}

/// `edgeward run` of a ping: how long it took to the last ack, and the most memory that it had, in KiB.
async fn run_and_wait(url: &str, targets: &str, id: &str, count: usize) -> (Duration, u64) {
    let began = Instant::now();
    let mut run = Process::new("run", &["run", targets, "-m", "ping", "--id", id])
        .env("EDGEWARD_SERVER", url)
        .env("EDGEWARD_FROM", "ops");
    run.start();
    let mut kib = 0;
    let pid = run.pid().as_raw_nonzero().get();
    wait_until(PATIENCE, "the last ack", async || {
        kib = kib.max(memory_kib(pid, "VmHWM").unwrap_or(0));
        !run.is_running()
    })
    .await;
    let took = began.elapsed();
    assert!(run.stderr().contains(&format!("{count} ok")), "{id}: {}", run.stderr());
    (took, kib)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(kib: u64) -> String {
    format!("{} MiB", kib >> 10)
}

/// A figure of `/proc/<pid>/status` in KiB; `None` where the process is gone.
fn memory_kib(pid: i32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(1)?.parse().ok()
}
