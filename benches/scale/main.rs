//! `cargo bench --bench scale`: what the number of nodes costs, for 100, 1,000 and 10,000 light nodes at one broker.
//!
//! Prints one table, a row per number of nodes. The nodes are light ones (`tests/it/harness/light.rs`), all in this process;
//! broker, hub and command line are the real programs, each measured from outside. Needs two descriptors for each node
//! (`ulimit -n`).
//!
//! `cargo bench --bench scale -- 100 500` takes other numbers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench that cannot measure ends")]

#[path = "../../tests/it/harness/mod.rs"]
mod harness;

use harness::{Cli, Fleet, LightNodes, Process, TestBroker, wait_until};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Generous: a bench that does not get there is broken, not slow.
const PATIENCE: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() {
    let mut numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if numbers.is_empty() {
        numbers = vec![100, 1000, 10_000];
    }
    let head = ["nodes", "joined", "run: last ack", "CLI RSS", "status", "broker RSS", "hub RSS", "back after restart"];
    let mut rows: Vec<[String; 8]> = Vec::new();
    for nodes in numbers {
        rows.push(measure(nodes).await);
    }
    println!();
    for row in [head.map(str::to_owned)].iter().chain(&rows) {
        println!("{}", row.iter().map(|cell| format!("{cell:>20}")).collect::<String>());
    }
}

async fn measure(count: usize) -> [String; 8] {
    let broker = TestBroker::with(|options| options.sync_always = false).await;
    let mut fleet = Fleet::at(broker, &[]).await;
    // Its lines about each node are no part of what is measured.
    fleet.hub.set_env("EDGEWARD_LOG", "warn");
    fleet.hub.restart();
    let url = fleet.broker.url();
    let began = Instant::now();
    let nodes = LightNodes::start(&url, count).await;
    let joined = began.elapsed();

    // One message to each, as an operator sends it and waits.
    let began = Instant::now();
    let mut run = Process::new("run", &["run", &nodes.targets(), "-m", "ping", "--id", "first"])
        .env("EDGEWARD_SERVER", &url)
        .env("EDGEWARD_FROM", "ops");
    run.start();
    let mut cli_kib = 0;
    let pid = run.pid().as_raw_nonzero().get();
    wait_until(PATIENCE, "the last ack", async || {
        cli_kib = cli_kib.max(memory_kib(pid, "VmHWM").unwrap_or(0));
        !run.is_running()
    })
    .await;
    let last_ack = began.elapsed();
    assert!(run.stderr().contains(&format!("{count} ok")), "{}", run.stderr());

    let cli = Cli::edgeward(&url).within(PATIENCE);
    let began = Instant::now();
    cli.run(&["status", "first"]).await.ok();
    let status = began.elapsed();
    let resident = |pid: Option<u32>| pid.and_then(|pid| memory_kib(i32::try_from(pid).ok()?, "VmRSS")).unwrap_or(0);
    let broker_kib = resident(fleet.broker.server.pid());
    let hub_kib = memory_kib(fleet.hub.pid().as_raw_nonzero().get(), "VmRSS").unwrap_or(0);

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
        seconds(last_ack),
        mib(cli_kib),
        seconds(status),
        mib(broker_kib),
        mib(hub_kib),
        if failures == 0 { seconds(back) } else { format!("{}, {failures} failed", seconds(back)) },
    ]
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
