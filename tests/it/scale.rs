//! Many nodes: a thousand light ones at one broker. (Ten thousand are measured by `cargo bench --bench scale`.)

use super::harness::{Cli, Fleet, LightNodes, TestBroker};
use std::sync::atomic::Ordering;
use std::time::Duration;

const NODES: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_nodes_answer_and_come_back_all_at_once() {
    let mut fleet = Fleet::at(TestBroker::with(|options| options.sync_always = false).await, &[]).await;
    let nodes = LightNodes::start(&fleet.broker.url(), NODES).await;
    let cli = Cli::edgeward(&fleet.broker.url()).within(Duration::from_secs(120));

    let said = cli.run(&["run", &nodes.targets(), "-m", "ping", "--id", "first"]).await.exits(0);
    assert!(said.stderr.ends_with("1000 ok\n"), "{}", said.stderr);
    assert_eq!(nodes.counts.answered.load(Ordering::Relaxed), NODES as u64);
    let status = cli.run(&["status", "first"]).await.exits(0).stdout;
    assert!(status.starts_with("1000 targets: 1000 ok\n"), "{}", &status[..200]);

    // The broker goes and comes: all reconnect in one moment, and what was sent meanwhile reaches each.
    fleet.broker.server.restart().await.expect("a restart");
    cli.run(&["send", &nodes.targets(), "-m", "ping", "--id", "second"]).await.ok();
    nodes.wait("every node to be back", |counts| &counts.sessions, 2 * NODES).await;
    nodes.wait("every node to answer again", |counts| &counts.answered, 2 * NODES).await;
    let said = cli.run(&["wait", "second", "--for", "60s", "-o", "json"]).await.exits(0);
    assert_eq!(said.stdout.lines().count(), NODES);
    let failures = nodes.counts.failures.lock().unwrap();
    assert!(failures.is_empty(), "no fetch fails: {failures:?}");
    assert_eq!(nodes.counts.answered.load(Ordering::Relaxed), 2 * NODES as u64, "each once");
}
