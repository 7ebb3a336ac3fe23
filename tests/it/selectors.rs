//! Nodes chosen by their labels when a message is sent.

use crate::harness::{Fleet, Process, SOON, wait_until};
use std::fs;
use tempfile::TempDir;

/// A node with these labels.
async fn add(fleet: &mut Fleet, folder: &TempDir, node: &str, labels: &str) {
    let file = folder.path().join(format!("{node}.toml"));
    fs::write(&file, format!("[agent.labels]\n{labels}")).unwrap();
    let url = fleet.broker.url();
    fleet.add(node, Process::agent(node, &url).args(&["--config", file.to_str().unwrap()]));
    wait_until(SOON, format!("a status of {node}"), async || fleet.status(node).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_choose_whom_a_message_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::start(&[]).await;
    add(&mut fleet, &folder, "web1", "role = 'web'\nenv = 'prod'").await;
    add(&mut fleet, &folder, "web2", "role = 'web'").await;
    add(&mut fleet, &folder, "db1", "role = 'db'").await;
    let cli = fleet.cli();
    let said = cli.run(&["run", "-l", "role=web", "echo $EDGEWARD_MSG_NODE"]).await.exits(0);
    let mut lines: Vec<&str> = said.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["web1: web1", "web2: web2"]);
    let said = cli.run(&["run", "-l", "role=web,env!=prod", "--", "echo", "one"]).await.exits(0);
    assert_eq!(said.stdout, "one\n", "one node is shown as one");
    let said = cli.run(&["send", "-l", "role!=web", "-m", "ping", "--dry-run"]).await.ok();
    assert!(said.starts_with("# db1\nnats pub ") && said.lines().count() == 2, "{said}");
    assert!(cli.run(&["send", "-l", "role=db", "true"]).await.ok().ends_with("  db1\n"));
    let nobody = cli.run(&["run", "-l", "role=mail", "true"]).await.exits(2);
    assert!(nobody.stderr.contains("no node has the labels `role=mail`; nothing was sent"), "{nobody:?}");
    let mistake = cli.run(&["run", "-l", "role=web,,x=y", "true"]).await.exits(2);
    assert!(mistake.stderr.contains("a term is missing at column 10"), "{mistake:?}");
}
