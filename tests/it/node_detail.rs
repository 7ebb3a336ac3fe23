//! `edgeward node` in detail, and whom a dry run to a group names.

use crate::harness::{Cli, Fleet, Process, SOON, wait_until};
use serde_json::Value;

/// What `edgeward node` says, once it has these words.
async fn says(cli: &Cli, node: &str, words: &[&str]) -> String {
    wait_until(SOON, format!("{node} with {words:?}"), async || {
        let said = cli.run(&["node", node]).await.ok();
        if words.iter().all(|word| said.contains(word)) { Ok(said) } else { Err(said) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_shown_in_detail_and_old_news_is_said_to_be_old() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("labels.toml");
    std::fs::write(&file, "[agent.labels]\nrole = 'web'\nsite = 'north'").unwrap();
    let mut fleet = Fleet::start(&[]).await;
    let agent = Process::agent("ship1", &fleet.broker.url()).args(&["--config", file.to_str().unwrap()]);
    fleet.add("ship1", agent);
    let cli = fleet.cli();
    wait_until(SOON, "a status", async || fleet.status("ship1").await).await;
    cli.run(&["node", "ship1", "--groups", "web"]).await.ok();
    cli.run(&["run", "ship1", "exit 3", "--id", "bad"]).await.exits(1);
    let head = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "sleep 600").await.seq;
    fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "true").await;
    let lane = format!("command.ops.shell  2      {head}");
    let version = format!("version {}", env!("CARGO_PKG_VERSION"));
    let words = ["ship1: in contact", &version, "role=web, site=north", "1 queued, 1 running", &lane, "@web", "member"];
    let said = says(&cli, "ship1", &words).await;
    assert!(said.contains("warning") && said.contains("failed"), "its last error: {said}");

    let said = cli.run(&["node", "ship1", "-o", "json"]).await.ok();
    assert_eq!(said.lines().count(), 1, "{said}");
    let node: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&node["v"], &node["node"], &node["contact"]), (&1.into(), &"ship1".into(), &"in_contact".into()));
    let status = fleet.status("ship1").await.unwrap();
    assert_eq!(node["spec"]["journal"], status.journal.unwrap().to_string());
    assert_eq!(node["status"]["labels"]["role"], "web");
    assert_eq!(node["waiting"]["commands"], 0);
    assert_eq!(node["last_errors"][0]["code"], "failed");
    assert!(node["status"]["position"]["commands"].as_u64() > Some(head.0), "{node}");

    // Lost from sight, with something that it has not heard of; then stopped in order.
    fleet.agent("ship1").kill_with_commands();
    fleet.publish("fleet.msg.ship1.command.ops.ping", &[], "").await;
    let said = says(&cli, "ship1", &["ship1: unknown since ", "commands 1, events 0 at the broker"]).await;
    assert!(said.contains("this is how it was then"), "{said}");
    fleet.start_agent("ship1").await;
    says(&cli, "ship1", &["ship1: in contact", "commands 0, events 0 at the broker"]).await;
    fleet.agent("ship1").stop().await;
    says(&cli, "ship1", &["ship1: stopped cleanly "]).await;

    let said = cli.run(&["node", "shp1"]).await.exits(2);
    assert!(said.stderr.contains("`shp1` was never seen") && said.stderr.contains("near `shp1`: ship1"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_to_a_group_names_whom_it_would_reach() {
    let mut fleet = Fleet::start(&["ship1", "ship2", "ship3"]).await;
    let cli = fleet.cli();
    for node in ["ship1", "ship2"] {
        cli.run(&["node", node, "--groups", "web"]).await.ok();
        says(&cli, node, &["@web", "member"]).await;
    }
    fleet.agent("ship2").stop().await;
    let said = cli.run(&["run", "@web,ship3", "uptime", "--dry-run"]).await.ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["# @web", "# reaches 2: ship1, ship2"], "{said}");
    assert!(lines[2].starts_with("# out of contact 1: ship2 (stopped "), "{said}");
    assert!(lines[3].starts_with("nats pub ") && lines[4] == "# ship3" && lines.len() == 6, "{said}");
    let said = cli.run(&["send", "@all", "-m", "log", "line", "--dry-run"]).await.ok();
    assert!(said.starts_with("# @all\n# reaches 3: ship1, ship2, ship3\n"), "{said}");
    let said = cli.run(&["send", "@wep", "true", "--dry-run"]).await.ok();
    assert!(said.contains("# reaches nobody: no node is in it now\nnats pub "), "{said}");

    // Without a broker the line is told all the same.
    fleet.broker.server.kill().await.unwrap();
    let said = cli.run(&["send", "@web", "true", "--dry-run"]).await.exits(0);
    assert!(said.stdout.starts_with("# @web\nnats pub "), "{said:?}");
    assert!(said.stderr.contains("whom the groups reach is not known: "), "{said:?}");
}
