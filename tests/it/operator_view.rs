//! What an operator sees of messages and nodes: `status`, `why`, `run` on several nodes, `nodes`.

use super::harness::{Cli, Fleet, Process, SOON, TestBroker, wait_until};
use edgeward::broker::{Broker, Outgoing};
use edgeward::model::id::{MessageId, MsgRef};
use edgeward::model::message::Kind;
use edgeward::model::name::Target;
use edgeward::model::record::{By, Record};
use edgeward::model::state::State;
use edgeward::operator::{self, Draft, SendOptions, Totals, Watch};
use futures::StreamExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Instant;

/// The objects of `-o json`, one a line, each with its version.
#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(objects.iter().all(|object| object["v"] == 1), "{text}");
    objects
}

/// The words of the line that begins with this one.
#[track_caller]
fn line<'a>(text: &'a str, first: &str) -> &'a str {
    text.lines().map(str::trim).find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("no `{first}` in {text}"))
}

/// Waits until `status ID` shows this.
async fn status(cli: &Cli, id: &str, wanted: &str) -> String {
    wait_until(SOON, format!("{id} to be {wanted}"), async || {
        let said = cli.run(&["status", id]).await.stdout;
        if said.contains(wanted) { Ok(said) } else { Err(said) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_each_target_and_how_old_its_word_is() {
    let mut fleet = Fleet::start(&["ship1", "ship2", "ship3"]).await;
    let cli = fleet.cli();
    fleet.agent("ship3").stop().await;
    cli.run(&["send", "ship1,ship2,ship3", "test $EDGEWARD_MSG_NODE = ship1 || exit 4", "--id", "three"]).await.ok();
    let said = status(&cli, "three", "1 ok · 1 failed · 1 out of contact").await;
    assert!(said.starts_with("3 targets: "), "{said}");
    let ship2 = line(&said, "ship2");
    assert!(ship2.contains("failed") && ship2.contains("for good") && ship2.contains("exit code 4"), "{said}");
    let ship3 = line(&said, "ship3");
    assert!(ship3.contains("queued") && ship3.contains("stopped "), "{said}");
    let rows = objects(&cli.run(&["status", "three", "-o", "json"]).await.exits(3).stdout);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["since"].is_string()), "{rows:?}");

    // What the plain CLI sent is told in the same way; one target has no totals.
    let plain = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "sleep 60").await.seq.to_string();
    let said = status(&cli, &plain, "running").await;
    assert!(!said.contains("targets:"), "{said}");
    assert!(line(&said, "ship1").contains("in contact"), "{said}");
    cli.run(&["cancel", &plain]).await.ok();
    status(&cli, &plain, "cancelled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_targets_cost_a_hundred_requests_at_most() {
    const TARGETS: usize = 10_000;
    const SILENT: usize = 100;
    let broker = TestBroker::with(|options| options.sync_always = false).await;
    let cli = Cli::edgeward(&broker.url());
    cli.run(&["init"]).await.ok();
    let client = broker.client().await;
    let targets: Vec<Target> = (0..TARGETS).map(|n| format!("n{n}").parse().unwrap()).collect();
    let draft = Draft::new(targets, Kind::Command, "ping".parse().unwrap(), "");
    let from = "ops".parse().unwrap();
    let sent = operator::send(&client, &from, &draft, &SendOptions { deadline: SOON }).await;
    let call = operator::find(&client, &draft.id.as_str().parse().unwrap(), Some(&from), None).await.unwrap();
    assert_eq!((sent.len(), call.messages.len()), (TARGETS, TARGETS));
    let answered = call.messages.iter().take(TARGETS - SILENT);
    put_all(&client, answered.map(|message| ack(&draft.id, message.at, &message.to_text())).collect()).await;
    put_all(&client, (0..TARGETS).map(|n| status_of(&format!("n{n}"))).collect()).await;

    let (before, began) = (client.requests(), Instant::now());
    let call = operator::find(&client, &draft.id.as_str().parse().unwrap(), Some(&from), None).await.unwrap();
    let watch = Watch::of(&client, &call).await.unwrap();
    let (asked, took) = (client.requests() - before, began.elapsed());
    let totals = Totals::of(watch.view().rows());
    eprintln!("status of {TARGETS} targets: {asked} requests, {took:?}");
    assert_eq!((totals.states.get(&State::Succeeded), totals.rows()), (Some(&(TARGETS - SILENT)), TARGETS));
    assert_eq!(totals.states.get(&State::Queued), Some(&SILENT));
    assert!(asked <= 100, "{asked} requests");

    // None has an answer: every node's word is asked for.
    let open = Draft { id: MessageId::fresh(), ..draft };
    operator::send(&client, &from, &open, &SendOptions { deadline: SOON }).await;
    let before = client.requests();
    let call = operator::find(&client, &open.id.as_str().parse().unwrap(), Some(&from), None).await.unwrap();
    let watch = Watch::of(&client, &call).await.unwrap();
    let asked = client.requests() - before;
    assert_eq!(Totals::of(watch.view().rows()).states.get(&State::Queued), Some(&TARGETS));
    assert!(asked <= 100, "{asked} requests");

    let said = cli.run(&["status", draft_name(&open)]).await.exits(3).stdout;
    assert!(said.starts_with("10000 targets: 10000 queued\n"), "{}", &said[..200]);
    assert_eq!(said.lines().count(), TARGETS + 2);
}

fn draft_name(draft: &Draft) -> &str {
    draft.id.as_str()
}

fn ack(id: &MessageId, at: MsgRef, node: &str) -> Outgoing {
    let record = Record::bare(id.clone(), at, "FLEET_COMMANDS".to_owned(), node, State::Succeeded, By::Node);
    Outgoing::new(format!("fleet.ack.{node}.ops.ping.{id}"), record.encode())
}

fn status_of(node: &str) -> Outgoing {
    let status = json!({ "v": 1, "node": node, "interval_s": 3600 });
    Outgoing::new(format!("$KV.FLEET_NODES.status.{node}"), status.to_string())
}

async fn put_all(client: &Broker, messages: Vec<Outgoing>) {
    futures::stream::iter(messages)
        .for_each_concurrent(256, |message| async move {
            client.publish(&message, SOON).await.unwrap_or_else(|error| panic!("{}: {error}", message.subject));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_the_way_of_a_message_and_what_it_waits_for() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    cli.run(&["run", "ship1", "-m", "ping"]).await.ok();
    let said = cli.run(&["why", "last", "ship1"]).await.ok();
    let order = ["stored", "delivered", "admitted", "started", "finished", "ack stored", "consumer"];
    let places: Vec<usize> = order.iter().map(|step| said.find(&format!("\n  {step}")).expect(&said)).collect();
    assert!(places.is_sorted(), "{said}");
    assert!(line(&said, "stored").contains("FLEET_COMMANDS 1"), "{said}");
    assert!(line(&said, "ack stored").contains("FLEET_ACKS 1"), "{said}");
    assert!(!said.contains("waits for"), "{said}");

    // Behind another one in its lane.
    let first = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "sleep 60").await.seq.to_string();
    status(&cli, &first, "running").await;
    let second = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "true").await.seq.to_string();
    let behind = format!("message {first}, which runs for ");
    status(&cli, &second, "delivered").await;
    wait_until(SOON, "what it waits for", async || {
        let said = cli.run(&["why", &second, "ship1"]).await.ok();
        if said.contains(&behind) && said.contains("(2 in it)") { Ok(()) } else { Err(said) }
    })
    .await;
    assert!(cli.run(&["why", &first]).await.ok().contains("its own end: it runs"));
    let why = objects(&cli.run(&["why", &second, "ship1", "-o", "json"]).await.ok());
    assert_eq!((why[0]["waits"][0]["for"].as_str(), why[0]["waits"][0]["depth"].as_u64()), (Some("lane"), Some(2)));
    assert_eq!(why[0]["ack_floor"].as_u64(), Some(second.parse().unwrap()));
    cli.run(&["cancel", &first]).await.ok();
    cli.run(&["wait", &second, "--for", "20s"]).await.ok();

    // Its node is away.
    fleet.agent("ship2").stop().await;
    cli.run(&["send", "ship1,ship2", "exit 7", "--lane", "l", "--id", "away"]).await.ok();
    status(&cli, "away", "1 failed").await;
    let said = cli.run(&["why", "away"]).await.ok();
    assert!(line(&said, "waits for").contains("`ship2`, stopped "), "{said}");
    assert_eq!(line(&said, "because"), "because     exit code 7");
    let refused = fleet.publish("fleet.msg.ship1.command.ops.nonsense", &[], "x").await.seq.to_string();
    status(&cli, &refused, "refused").await;
    let said = cli.run(&["why", &refused]).await.ok();
    assert!(line(&said, "because").contains("unknown_method") && !said.contains("admitted"), "{said}");

    let said = cli.run(&["why", "away", "shp1"]).await.exits(2);
    assert!(said.stderr.contains("did not go to `shp1`") && said.stderr.contains("near `shp1`: ship1"), "{said:?}");
    cli.run(&["why", "99999"]).await.exits(2);
    let ghost = cli.run(&["send", "ghost", "true", "--new", "--id", "ghost-1"]).await.ok();
    assert!(ghost.contains("ghost"), "{ghost}");
    let said = cli.run(&["why", "ghost-1"]).await.ok();
    assert!(said.contains("`ghost`, which was never heard"), "{said}");
}

/// Between two beats no status tells of a lane; the records of the message that holds it do.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_waits_behind_is_told_before_the_next_status() {
    let broker = TestBroker::start().await;
    let agent = Process::agent("ship1", &broker.url()).env("EDGEWARD_AGENT__INTERVAL", "1h");
    let mut fleet = Fleet::at(broker, &[]).await;
    fleet.add("ship1", agent);
    let cli = fleet.cli();
    wait_until(SOON, "contact", async || cli.run(&["nodes"]).await.stdout.contains("in contact")).await;
    cli.run(&["node", "ship1", "--groups", "web"]).await.ok();
    wait_until(SOON, "the join", async || {
        let said = cli.run(&["node", "ship1"]).await.ok();
        if said.contains("member") { Ok(()) } else { Err(said) }
    })
    .await;
    // The join lies in the events' stream, too; it is nobody's message, and told only where it is asked for.
    assert!(!cli.run(&["history"]).await.ok().contains("member"));
    assert!(cli.run(&["history", "--from", "hub"]).await.ok().contains(r#"{"join":"web"}"#));

    let first = fleet.publish("fleet.msg.@web.command.ops.shell", &[], "sleep 60").await.seq.to_string();
    status(&cli, &first, "running").await;
    // One that is over without having begun says nothing of the lane.
    fleet.publish("fleet.msg.ship1.command.ops.shell", &[("Fleet-Nonsense", "1")], "true").await;
    let second = fleet.publish("fleet.msg.ship1.command.ops.shell", &[], "true").await.seq.to_string();
    let elsewhere = fleet.publish("fleet.msg.ship1.command.ops.shell.other", &[], "sleep 60").await.seq.to_string();
    status(&cli, &elsewhere, "running").await;
    let said = cli.run(&["status", &second]).await.exits(3).stdout;
    assert!(said.contains(&format!("behind {first}, which runs")), "{said}");
    let said = cli.run(&["why", &second]).await.ok();
    assert!(line(&said, "waits for").contains(&format!("message {first}, which runs for ")), "{said}");
    let said = cli.run(&["run", "ship1", "true", "--wait", "1s"]).await.exits(3).stderr;
    assert!(said.contains(&format!("behind {first}, running ")), "{said}");
    cli.run(&["cancel", &first]).await.ok();
    cli.run(&["wait", &second, "--for", "20s"]).await.ok();
    cli.run(&["cancel", &elsewhere]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn run_on_several_nodes_adds_up_and_says_how_to_go_on() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let said = cli.run(&["run", "ship1,ship2", "test $EDGEWARD_MSG_NODE = ship1", "--id", "pair"]).await.exits(1);
    assert!(said.stderr.contains("ship2: failed: exit code 1\n"), "{said:?}");
    assert!(said.stderr.ends_with("1 ok · 1 failed; edgeward status pair\n"), "{said:?}");
    assert!(!said.stderr.contains('\x1b'), "no terminal, no counters: {said:?}");

    fleet.agent("ship2").stop().await;
    let said = cli.run(&["run", "ship1,ship2", "true", "--id", "half"]).await.exits(3);
    assert!(said.stderr.contains("1 ok · 1 out of contact\n"), "{said:?}");
    assert!(said.stderr.contains("will run on return; edgeward wait half\n"), "{said:?}");

    // On a terminal, counters are drawn and taken away.
    let Some(terminal) = terminal_of(&cli, "edgeward run ship1,ship2 'sleep 1; exit 3' --wait 4s").await else {
        return;
    };
    assert!(terminal.contains(" · 1 out of contact\x1b"), "{terminal:?}");
    assert!(!terminal.contains("2 out of contact"), "nothing is said of a node before it is known: {terminal:?}");
    assert!(terminal.contains("\r\x1b[K"), "{terminal:?}");
    let end = terminal.rsplit("\x1b[K").next().unwrap();
    assert!(end.contains("1 failed · 1 out of contact"), "{terminal:?}");
}

/// What a line writes to a terminal. `None`, loudly, where this machine has no `script` to make one.
async fn terminal_of(cli: &Cli, line: &str) -> Option<String> {
    if !std::path::Path::new("/usr/bin/script").exists() {
        eprintln!("\n!!!! SKIPPED: what is drawn on a terminal is not tested here: there is no `script`\n");
        return None;
    }
    let said = cli.run_in_terminal(line).await;
    Some(said.stdout)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_chosen_by_name_contact_and_label_and_watched() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let status = json!({ "v": 1, "node": "van9", "interval_s": 0.1, "insecure": true, "clock_offset_ms": 90_000,
        "labels": { "site": "north", "role": "web" } });
    fleet.publish("$KV.FLEET_NODES.status.van9", &[], status.to_string()).await;
    let names = async |args: &[&str]| {
        let said = cli.run(&[&["nodes", "-o", "json"], args].concat()).await.ok();
        objects(&said).iter().map(|node| node["node"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_until(SOON, "van9 to be silent", async || names(&["--silent"]).await == ["van9"]).await;
    assert_eq!(names(&[]).await, ["ship1", "ship2", "van9"]);
    assert_eq!(names(&["ship?", "v*"]).await, ["ship1", "ship2", "van9"]);
    assert_eq!(names(&["*9"]).await, ["van9"]);
    assert_eq!(names(&["--label", "site=north", "--label", "role=web"]).await, ["van9"]);
    assert!(names(&["--label", "site=south"]).await.is_empty());
    assert_eq!(names(&["--sort", "heard"]).await[0], "van9");
    let table = cli.run(&["nodes"]).await.ok();
    let van = line(&table, "van9");
    for words in ["unknown since", "-90 s", "insecure; clock off by 90 s"] {
        assert!(van.contains(words), "no `{words}`: {table}");
    }
    let said = cli.run(&["nodes", "vn9"]).await.exits(2);
    assert!(said.stderr.contains("`vn9` was never seen") && said.stderr.contains("near `vn9`: van9"), "{said:?}");
    assert!(cli.run(&["nodes", "--stopped"]).await.exits(0).stderr.contains("none of 3 nodes"));

    let mut watch = Process::new("verb", &["nodes", "--watch", "-o", "json"])
        .env("EDGEWARD_SERVER", &fleet.broker.url())
        .env("EDGEWARD_FROM", "ops");
    watch.start();
    wait_until(SOON, "all nodes", async || watch.stdout().lines().count() == 3).await;
    fleet.agent("ship2").stop().await;
    let last = wait_until(SOON, "the change", async || watch.stdout().lines().nth(3).map(str::to_owned)).await;
    let node = &objects(&last)[0];
    assert_eq!((node["node"].as_str(), node["contact"].as_str()), (Some("ship2"), Some("stopped")));
    assert_eq!(names(&["--stopped"]).await, ["ship2"], "stopped is not silent");
    assert_eq!(names(&["--silent"]).await, ["van9"]);
    watch.signal(Signal::INT);
    assert_eq!(watch.exited(SOON).await.code(), Some(0));
}
