//! Everything that runs: a broker, two hubs and the agents, each behind a link of its own; and a whole run of it.

use super::brokers::{self, Brokers, Wire};
use super::chaos::{self, Plan, Shared, Stage, Tally};
use super::check::{Violation, check};
use super::gather::{self, Reader};
use super::groups;
use super::harness::{Process, SOON, SmallDisk, wait_until};
use super::haunt::{self, Haunted};
use super::history::History;
use super::load::{self, Ledger, OPERATORS, Planned};
use super::options::Options;
use super::orders;
use super::place::Clock;
use super::report::{Took, report};
use edgeward::broker::{Access, Broker, ConnectOptions};
use edgeward::model::node::Status;
use edgeward::model::subject::{Names, NodeKey, RecordStream};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};

const HUBS: usize = 2;

/// What a run has found.
pub struct Outcome {
    pub report: Value,
    pub violations: Vec<Violation>,
}

/// A node's place: its state, and the file that its commands write.
struct Place {
    name: String,
    state: PathBuf,
    file: PathBuf,
    disk: Option<Arc<SmallDisk>>,
    clock: Option<Arc<Clock>>,
}

/// What is up before faults begin.
struct World {
    options: Options,
    places: Vec<Place>,
    agents: Vec<Process>,
    hubs: Vec<Process>,
    links: Vec<Arc<Wire>>,
    brokers: Brokers,
    /// A connection that no fault but the broker's own concerns.
    direct: Broker,
    folder: TempDir,
}

/// A whole run.
pub async fn run(options: Options) -> Outcome {
    let began = Instant::now();
    let world = World::start(options.clone()).await;
    world.contact().await;
    world.run(began).await
}

impl World {
    async fn start(options: Options) -> World {
        let brokers = Brokers::start(options.cluster).await;
        let folder = tempfile::tempdir().unwrap();
        let mut links = Vec::new();
        for _ in 0..options.nodes + HUBS + 1 {
            links.push(Arc::new(brokers.wire().await));
        }
        let log = |process: Process| match &options.log {
            Some(filter) => process.env("EDGEWARD_LOG", filter),
            None => process,
        };
        let rules = folder.path().join("edgeward.toml");
        std::fs::write(&rules, orders::RULES).unwrap();
        let mut places = Vec::new();
        let mut agents = Vec::new();
        for (at, name) in options.node_names().into_iter().enumerate() {
            let mut agent = log(Process::agent(&name, &links[at].url()));
            let mut place = place(&options, &name, at, agent.state_dir(), &folder);
            if place.disk.is_some() {
                agent.set_env("EDGEWARD_STATE_DIR", &place.state.display().to_string());
            }
            for (variable, value) in place.clock.iter().flat_map(|clock| clock.environment()) {
                agent.set_env(variable, &value);
            }
            agent.set_env("EDGEWARD_CONFIG", &rules.display().to_string());
            place.file = folder.path().join(&name);
            agent.start();
            agents.push(agent);
            places.push(place);
        }
        let mut hubs = Vec::new();
        for at in 0..HUBS {
            let copies = brokers.copies().to_string();
            let mut hub = log(Process::hub(&links[options.nodes + at].url())).env("EDGEWARD_HUB__REPLICAS", &copies);
            hub.start();
            hubs.push(hub);
        }
        let direct = connect(&brokers.url()).await;
        World { options, places, agents, hubs, links, brokers, direct, folder }
    }

    /// Waits until each node has said how it is, and the brokers are as they should be.
    async fn contact(&self) {
        for place in &self.places {
            wait_until(SOON, format!("contact with {}", place.name), async || status(&self.direct, &place.name).await)
                .await;
        }
        self.brokers.whole().await;
    }

    async fn run(self, began: Instant) -> Outcome {
        let start = Instant::now();
        let (stage, stages) = watch::channel(Stage::Faults);
        let shared = Shared { tally: Arc::new(Mutex::new(Tally::default())), stage: stages, start };
        let ledger: Ledger = Arc::default();
        let give_up = start + self.options.duration() + Duration::from_secs(self.options.quiet);
        let senders = self.senders(start, give_up, &ledger).await;
        let World { options, places, agents, hubs, links, brokers, direct, folder } = self;
        let plan = Plan::roll(&options, HUBS, links.len());
        let giving =
            orders::give(options.clone(), plan.clone(), direct.clone(), shared.clone(), give_up, Arc::clone(&ledger));
        let joining = groups::change(options.clone(), direct.clone(), shared.clone(), give_up);
        let mut faults: Vec<JoinHandle<()>> = vec![tokio::spawn(giving), tokio::spawn(joining)];
        for (link, bad) in links.iter().zip(plan.links) {
            faults.push(tokio::spawn(chaos::spoil(Arc::clone(link), bad, shared.clone())));
        }
        for place in &places {
            if let Some(disk) = place.disk.clone() {
                faults.push(tokio::spawn(chaos::fill(disk, options.seed, shared.clone())));
            }
            if let Some(clock) = place.clock.clone() {
                faults.push(tokio::spawn(chaos::step(clock, options.seed, shared.clone())));
            }
        }
        let brokers = spawn_local(brokers::haunt(brokers, plan.broker, options.seed, shared.clone()));
        let mut haunted = Vec::new();
        for (place, kills) in places.iter().zip(plan.runners) {
            let (name, state) = (place.name.clone(), place.state.clone());
            faults.push(tokio::spawn(haunt::orphan(name, state, kills, shared.clone())));
        }
        for ((place, agent), kills) in places.iter().zip(agents).zip(plan.agents) {
            let disk = place.disk.clone();
            let excuse = move || disk.as_ref().is_some_and(|disk| disk.was_full(Duration::from_secs(5)));
            let state = Some(place.state.clone());
            let haunted_one = Haunted::new(place.name.clone(), agent, state, shared.clone(), excuse);
            haunted.push(spawn_local(haunted_one.haunt(kills)));
        }
        let hubs: Vec<_> = hubs
            .into_iter()
            .zip(plan.hubs)
            .enumerate()
            .map(|(at, (hub, kills))| {
                let hub = Haunted::new(format!("hub{at}"), hub, None, shared.clone(), || false);
                spawn_local(hub.haunt(kills))
            })
            .collect();
        sleep(options.duration()).await;
        stage.send_replace(Stage::Rest);
        let healed = Instant::now();
        for task in faults.into_iter().chain(senders) {
            task.await.unwrap();
        }
        let mut history = History { nodes: options.node_names().into_iter().collect(), ..History::default() };
        let mut reader = Reader::new(direct.clone());
        rest(&mut reader, &mut history, &places, &direct, healed + Duration::from_secs(options.quiet)).await;
        let took = Took { faults: healed - start, rest: healed.elapsed(), all: began.elapsed() };
        stage.send_replace(Stage::Over);
        let mut agents = all(haunted).await;
        for (place, agent) in places.iter().zip(&mut agents) {
            let status = agent.stop().await;
            if !status.success() {
                history.fallen.push(format!("{} was told to stop and ended with {status}", place.name));
            }
        }
        // What the last words of the agents brought, in every copy.
        let brokers = brokers.await.unwrap();
        brokers.whole().await;
        reader.read(&mut history).await.unwrap();
        read_places(&mut history, &places);
        let hubs = all(hubs).await;
        drop((hubs, brokers));
        let tally = shared.tally.lock().unwrap();
        history.left = tally.faults.get(chaos::LEFT).copied().unwrap_or(0);
        history.sent = ledger.lock().unwrap().clone();
        history.kills.clone_from(&tally.kills);
        history.fallen.extend(tally.fallen.iter().cloned());
        let violations = check(&history);
        let report = report(&options, &history, &tally, &reader.errors, took, &violations);
        if options.keep && !violations.is_empty() {
            keep(folder, agents);
        }
        Outcome { report, violations }
    }

    /// Starts all who send: operators, the first two behind a link that fails, and nodes.
    async fn senders(&self, start: Instant, give_up: Instant, ledger: &Ledger) -> Vec<JoinHandle<()>> {
        let file = |node: &str| self.folder.path().join(node).display().to_string();
        let planned = load::plan(&self.options, &file);
        let of = |sender: &str| -> Vec<Planned> { planned.iter().filter(|p| p.sent.from == sender).cloned().collect() };
        let mut senders = Vec::new();
        for (at, name) in OPERATORS.into_iter().enumerate() {
            let through = self.links.last().filter(|_| at < 2).map_or(self.brokers.url(), |link| link.url());
            let broker = connect(&through).await;
            senders.push(tokio::spawn(load::operate(broker, of(name), start, give_up, Arc::clone(ledger))));
        }
        for place in &self.places {
            let (state, mine, ledger) = (place.state.clone(), of(&place.name), Arc::clone(ledger));
            let write = async move { load::write_files(&state, mine, start, give_up, ledger).await };
            senders.push(tokio::spawn(write));
        }
        senders
    }
}

fn place(options: &Options, name: &str, at: usize, state: PathBuf, folder: &TempDir) -> Place {
    let mut place = Place { name: name.to_owned(), state, file: PathBuf::new(), disk: None, clock: None };
    if options.disk_full && at + 1 == options.nodes {
        match SmallDisk::mount("48m") {
            Ok(disk) => {
                place.state = disk.path().join("state");
                place.disk = Some(Arc::new(disk));
            }
            Err(error) => eprintln!("\n!!!! SKIPPED: no disk runs full here: {error}\n"),
        }
    }
    if options.clock_steps {
        match Clock::build(folder.path(), name) {
            Ok(clock) => place.clock = Some(Arc::new(clock)),
            Err(error) => eprintln!("\n!!!! SKIPPED: no clock steps here: {error}\n"),
        }
    }
    place
}

/// Waits until every message has its fate and nothing waits to be told.
async fn rest(reader: &mut Reader, history: &mut History, places: &[Place], direct: &Broker, until: Instant) {
    const LOOK: Duration = Duration::from_millis(500);
    let mut last = String::new();
    loop {
        let now = match reader.read(history).await {
            Err(error) => error,
            Ok(()) => {
                for place in places {
                    history.results.insert(place.name.clone(), gather::results(&place.state));
                }
                let open = history.open();
                match (open.first(), unsettled(places, direct).await) {
                    (None, None) => return,
                    (None, Some(node)) => node,
                    (Some(first), _) => format!("{} to go, such as {first}", open.len()),
                }
            }
        };
        if Instant::now() > until {
            eprintln!("no rest: {now}");
            return;
        }
        if now != last {
            eprintln!("{now}");
            last = now;
        }
        sleep(LOOK).await;
    }
}

/// A node that has something left to do or to tell.
async fn unsettled(places: &[Place], direct: &Broker) -> Option<String> {
    for place in places {
        let name = &place.name;
        match status(direct, name).await {
            Err(error) => return Some(format!("{name}: {error}")),
            Ok(status) if status.stopped == Some(true) => return Some(format!("{name} has left")),
            Ok(status) if status.outbox != Some(0) => return Some(format!("{name} has {:?} to tell", status.outbox)),
            Ok(_) if !load::is_free(&place.state) => return Some(format!("{name} has not read its inmsg.txt")),
            Ok(_) => {}
        }
    }
    None
}

async fn status(broker: &Broker, node: &str) -> Result<Status, String> {
    let names = broker.names();
    let found =
        broker.get_last(&names.record_stream(RecordStream::Nodes), &names.node_key(NodeKey::Status, node)).await;
    let message = found.map_err(|e| e.to_string())?.ok_or("no status")?;
    serde_json::from_slice(&message.body).map_err(|e| e.to_string())
}

fn read_places(history: &mut History, places: &[Place]) {
    for place in places {
        let name = &place.name;
        history.results.insert(name.clone(), gather::results(&place.state));
        history.marks.insert(name.clone(), gather::marks(&place.file));
        history.logs.insert(name.clone(), gather::logs(&place.state));
        let (rows, left) = gather::journal(&place.state).unwrap_or_else(|e| panic!("the journal of {name}: {e}"));
        history.journals.insert(name.clone(), rows);
        history.outboxes.insert(name.clone(), left);
    }
}

async fn connect(url: &str) -> Broker {
    let options = ConnectOptions {
        servers: url.split(',').map(str::to_owned).collect(),
        access: Access::Open,
        tls_ca: None,
        insecure: false,
        name: "faults".to_owned(),
        identity: None,
        names: Names::new("fleet").unwrap(),
        api_prefix: None,
        keep_trying: true,
    };
    Broker::connect(&options).await.unwrap()
}

async fn all<T>(tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

/// Leaves the folders of a run where they are.
fn keep(folder: TempDir, agents: Vec<Process>) {
    eprintln!("kept: {}", folder.keep().display());
    for agent in agents {
        eprintln!("kept: {}", agent.state_dir().display());
        // All of them have ended; only their folders would go.
        std::mem::forget(agent);
    }
}
