//! The rows of the table: what is measured, how, and the bound that it is held against.

use super::harness::{Fleet, Link, Process, Proxy, TestBroker, wait_until};
use super::raw::{self, Answers, Raw, Work};
use super::stats::{Times, ms};
use edgeward::broker::{Follower, Outgoing};
use edgeward::exec::runner::{Place, RunName, Runner};
use edgeward::exec::{Limits, Spec};
use edgeward::model::subject::RecordStream;
use std::fmt;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Whoever sends here.
const NODE: &str = "bench1";

/// Generous: a bench that does not get there is broken, not slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// One row of the table.
pub struct Row {
    what: String,
    ours: String,
    theirs: String,
    ratio: f64,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// It is told, and explains another row.
    None,
}

impl Row {
    /// True where the bound was met.
    pub fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.ratio <= most,
            Bound::AtLeast(least) => self.ratio >= least,
            Bound::None => true,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = match self.bound {
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::None => "-".to_owned(),
        };
        let met = match self.bound {
            Bound::None => "-",
            _ if self.is_met() => "yes",
            _ => "NO",
        };
        let Row { what, ours, theirs, ratio, .. } = self;
        write!(f, "{what:<58} {ours:>14} {theirs:>14} {ratio:>8.2}  {bound:<10} {met}")
    }
}

/// A broker, a hub, and one agent behind a link that can be cut.
pub struct Bed {
    fleet: Fleet,
    proxy: Proxy,
    url: String,
}

impl Bed {
    /// All of it; `sync_always`: the broker writes through before it answers.
    pub async fn start(sync_always: bool) -> Bed {
        let broker = TestBroker::with(|options| options.sync_always = sync_always).await;
        let url = broker.url();
        let proxy = Proxy::start(broker.server.port()).await;
        let mut fleet = Fleet::at(broker, &[]).await;
        let agent = Process::agent(NODE, &url).env("EDGEWARD_AGENT__INTERVAL", "30s").env("EDGEWARD_LOG", "warn");
        fleet.add(NODE, agent);
        wait_until(PATIENCE, "contact", async || fleet.status(NODE).await).await;
        Bed { fleet, proxy, url }
    }

    async fn answers(&self) -> Follower {
        self.fleet.client.follow(&format!("fleet.ack.{NODE}.bench.>")).await.expect("a subscription")
    }

    /// One command and its result, as an operator sees it who waits.
    async fn round_trip(&self, answers: &mut Follower, subject: &str, body: &str) -> Duration {
        let message = Outgoing::new(subject, body.as_bytes().to_vec());
        let begin = Instant::now();
        let (stored, answer) = tokio::join!(self.fleet.client.publish(&message, PATIENCE), answers.next());
        stored.expect("stored");
        answer.expect("an answer");
        begin.elapsed()
    }

    async fn acks_stored(&self) -> u64 {
        let stream = self.fleet.client.names().record_stream(RecordStream::Acks);
        let facts = edgeward::operator::stream_facts(&self.fleet.client, &stream).await.expect("the stream");
        facts.last_seq.0
    }
}

fn broker_word(sync_always: bool) -> &'static str {
    if sync_always { "both durable" } else { "broker's default sync" }
}

fn ratio(ours: Duration, theirs: Duration) -> f64 {
    ours.as_secs_f64() / theirs.as_secs_f64()
}

/// `ping`, publish → result seen: p50 and p99.
pub async fn ping(bed: &Bed, rounds: usize, sync_always: bool) -> Vec<Row> {
    let mut answers = bed.answers().await;
    let subject = format!("fleet.msg.{NODE}.command.bench.ping");
    bed.round_trip(&mut answers, &subject, "").await;
    let like = Answers::like(&bed.url, NODE, "ping").await;
    let mut raw = Raw::start(&bed.url, "rawping", Work::Nothing, &like).await;
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    for round in 0..rounds + 20 {
        let (one, other) = (bed.round_trip(&mut answers, &subject, "").await, raw.round_trip("rawping").await);
        // The first ones warm up connections and caches.
        if round >= 20 {
            ours.push(one);
            theirs.push(other);
        }
    }
    raw.client().flush().await.expect("flushed");
    let row = |percent: usize, bound: f64| {
        let (ours, theirs) = (ours.percentile(percent), theirs.percentile(percent));
        Row {
            what: format!("ping, publish to result, p{percent}, {}", broker_word(sync_always)),
            ours: ms(ours),
            theirs: ms(theirs),
            ratio: ratio(ours, theirs),
            bound: Bound::AtMost(bound),
        }
    };
    vec![row(50, if sync_always { 2.0 } else { 3.0 }), row(99, 3.0)]
}

/// `shell` `echo hi`, against the raw loop with a bare spawn and wait in it; and against the same loop where start and end
/// are durable on the node, too, as the design asks of a command: what is left of the ratio then is edgeward's own.
pub async fn shell(bed: &Bed, rounds: usize, sync_always: bool) -> Vec<Row> {
    let mut answers = bed.answers().await;
    let subject = format!("fleet.msg.{NODE}.command.bench.shell");
    bed.round_trip(&mut answers, &subject, "echo hi").await;
    let like = Answers::like(&bed.url, NODE, "shell").await;
    let mut raw = Raw::start(&bed.url, "rawshell", Work::Shell, &like).await;
    let mut kept = Raw::start(&bed.url, "rawkept", Work::KeptShell, &like).await;
    let (mut ours, mut bare, mut durable) = (Times::default(), Times::default(), Times::default());
    for _ in 0..rounds {
        ours.push(bed.round_trip(&mut answers, &subject, "echo hi").await);
        bare.push(raw.round_trip("rawshell").await);
        durable.push(kept.round_trip("rawkept").await);
    }
    let ours = ours.percentile(50);
    let row = |what: String, theirs: Duration, bound: Bound| Row {
        what,
        ours: ms(ours),
        theirs: ms(theirs),
        ratio: ratio(ours, theirs),
        bound,
    };
    let what = format!("shell `echo hi`, publish to result, p50, {}", broker_word(sync_always));
    vec![
        row(what, bare.percentile(50), Bound::AtMost(1.25)),
        row("  the same, where the raw loop syncs start and end".to_owned(), durable.percentile(50), Bound::None),
    ]
}

/// One command by way of the runner, against a bare spawn and wait: what it costs that commands outlive the agent.
pub async fn runner(rounds: usize) -> Row {
    const MOST: f64 = 0.0003;
    let folder = tempfile::tempdir().expect("a folder");
    let place = Place::make(&folder.path().join("run")).expect("a folder");
    let runner = Runner::new(place, env!("CARGO_BIN_EXE_edgeward").into());
    let spec = Spec { program: "/bin/sh".into(), args: vec!["-c".into(), "echo hi".into()], ..Spec::default() };
    let limits = Limits {
        timeout: PATIENCE,
        grace: PATIENCE,
        keep: 16 << 10,
        drain: Duration::from_millis(200),
        file: 64 << 20,
        kill_left: false,
    };
    let stop = CancellationToken::new();
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    for round in 0..rounds + 20 {
        let run = RunName::numbered("bench", round as i64, 1);
        let begin = Instant::now();
        let exit = runner.run(&run, &spec, &limits, &stop, &|_| {}).await.expect("an end");
        runner.forget(&run);
        let one = begin.elapsed();
        assert_eq!(exit.stdout.head(), b"hi\n");
        let begin = Instant::now();
        raw::spawn_shell().await;
        let other = begin.elapsed();
        if round >= 20 {
            ours.push(one);
            theirs.push(other);
        }
    }
    let (ours, theirs) = (ours.percentile(50), theirs.percentile(50));
    Row {
        what: "runner over bare spawn-and-wait, p50, in 0.3 ms".to_owned(),
        ours: ms(ours),
        theirs: ms(theirs),
        ratio: (ours.as_secs_f64() - theirs.as_secs_f64()) / MOST,
        bound: Bound::AtMost(1.0),
    }
}

/// `shell` across lanes, both cores, against bare spawn and wait on both cores.
pub async fn shells_across_lanes(bed: &Bed, count: usize) -> Row {
    const LANES: usize = 16;
    let begin = Instant::now();
    let bare = (0..2).map(|_| {
        tokio::spawn(async move {
            for _ in 0..count / 2 {
                raw::spawn_shell().await;
            }
        })
    });
    futures::future::join_all(bare).await.into_iter().for_each(|done| done.expect("spawned"));
    let theirs = count as f64 / begin.elapsed().as_secs_f64();
    let before = bed.acks_stored().await;
    let begin = Instant::now();
    let sends = (0..count).map(|at| {
        let subject = format!("fleet.msg.{NODE}.command.bench.shell.l{}", at % LANES);
        let message = Outgoing::new(subject, "echo hi");
        async move { bed.fleet.client.publish(&message, PATIENCE).await.expect("stored") }
    });
    futures::future::join_all(sends).await;
    wait_until(PATIENCE, "all results", async || bed.acks_stored().await >= before + count as u64).await;
    let ours = count as f64 / begin.elapsed().as_secs_f64();
    Row {
        what: format!("shell across {LANES} lanes, {count} commands"),
        ours: format!("{ours:.0}/s"),
        theirs: format!("{theirs:.0}/s"),
        ratio: ours / theirs,
        bound: Bound::AtLeast(0.7),
    }
}

/// A backlog of no-op events through one node, against raw pull, store ack, ack: in turns, so that both see the same
/// machine. Ours is timed from the first record on: how long a start takes is another row's question.
pub async fn events(bed: &mut Bed, count: usize) -> Row {
    const TURNS: usize = 3;
    let subject = format!("fleet.msg.{NODE}.event.bench.note");
    bed.fleet.publish(&subject, &[], "x").await;
    let opened = async || bed.fleet.status(NODE).await.is_some_and(|s| s.position.events.is_some());
    wait_until(PATIENCE, "the first event", opened).await;
    wait_until(PATIENCE, "the first record", async || bed.acks_stored().await > 0).await;
    let like = Answers::like(&bed.url, NODE, "note").await;
    let client = async_nats::connect(&bed.url).await.expect("a connection");
    let each = count / TURNS;
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    for turn in 0..TURNS {
        theirs.push(raw::backlog(&bed.url, &format!("rawevents{turn}"), each, &like).await);
        bed.fleet.agent(NODE).stop().await;
        raw::publish_many(&client, &subject, each).await;
        let before = bed.acks_stored().await;
        bed.fleet.agent(NODE).start();
        wait_until(PATIENCE, "the first ack", async || bed.acks_stored().await > before).await;
        // Those that were stored by then are no part of what is timed.
        let (begin, seen) = (Instant::now(), bed.acks_stored().await - before);
        wait_until(PATIENCE, "all acks", async || bed.acks_stored().await >= before + each as u64).await;
        ours.push(begin.elapsed().mul_f64(each as f64 / (each as u64 - seen).max(1) as f64));
    }
    let (ours, theirs) = (ours.percentile(50), theirs.percentile(50));
    let rate = |time: Duration| format!("{:.0}/s", each as f64 / time.as_secs_f64());
    Row {
        what: format!("no-op events through one node, {TURNS} backlogs of {each}"),
        ours: rate(ours),
        theirs: rate(theirs),
        ratio: ratio(theirs, ours),
        bound: Bound::AtLeast(0.5),
    }
}

/// A lane with `count` commands behind a stuck one: what a command in another lane waits, and what the agent holds.
pub async fn isolation(bed: &mut Bed, count: usize) -> Vec<Row> {
    let subject = format!("fleet.msg.{NODE}.command.bench.shell.stuck");
    bed.fleet.publish(&subject, &[], "sleep 600").await;
    let client = async_nats::connect(&bed.url).await.expect("a connection");
    raw::publish_many(&client, &subject, count).await;
    let mut answers = bed.answers().await;
    let ping = format!("fleet.msg.{NODE}.command.bench.ping.free");
    // A stream is taken in order: the answer to this one says that the whole lane waits on the node by now. How long that
    // takes is a matter of the stream, not of what one lane does to another.
    bed.round_trip(&mut answers, &ping, "").await;
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        worst = worst.max(bed.round_trip(&mut answers, &ping, "").await);
    }
    let rss = resident_kb(bed.fleet.agent(NODE).pid().as_raw_nonzero()) as f64 / 1024.0;
    vec![
        Row {
            what: format!("ping beside a lane of {count}, worst of 20"),
            ours: ms(worst),
            theirs: "100 ms".to_owned(),
            ratio: worst.as_secs_f64() / 0.1,
            bound: Bound::AtMost(1.0),
        },
        Row {
            what: format!("agent with {count} messages waiting, memory (RSS)"),
            ours: format!("{rss:.1} MiB"),
            theirs: "30 MB".to_owned(),
            ratio: rss * 1.048_576 / 30.0,
            bound: Bound::AtMost(1.0),
        },
    ]
}

/// The link comes back with 1,000 messages waiting: when the first one has been done.
pub async fn reconnect(bed: &mut Bed, rounds: usize) -> Row {
    const WAITING: usize = 1000;
    bed.fleet.agent(NODE).stop().await;
    let url = bed.proxy.url();
    bed.fleet.agent(NODE).set_env("EDGEWARD_SERVER", &url);
    bed.fleet.start_agent(NODE).await;
    let mut worst = Duration::ZERO;
    for _ in 0..rounds {
        bed.proxy.set(Link::Cut);
        let client = async_nats::connect(&bed.url).await.expect("a connection");
        raw::publish_many(&client, &format!("fleet.msg.{NODE}.event.bench.note"), WAITING).await;
        let before = bed.acks_stored().await;
        let mut answers = bed.answers().await;
        bed.proxy.set(Link::Open);
        let begin = Instant::now();
        answers.next().await.expect("an answer");
        worst = worst.max(begin.elapsed());
        wait_until(PATIENCE, "all of it", async || bed.acks_stored().await >= before + WAITING as u64).await;
    }
    Row {
        what: format!("link back to first result, {WAITING} waiting, worst of {rounds}"),
        ours: ms(worst),
        theirs: "1 s".to_owned(),
        ratio: worst.as_secs_f64(),
        bound: Bound::AtMost(1.0),
    }
}

/// The agent at rest after all that came before: memory and processor time; and the size of the binary.
pub async fn at_rest(bed: &mut Bed) -> Vec<Row> {
    const WATCHED: Duration = Duration::from_secs(30);
    let pid = bed.fleet.agent(NODE).pid().as_raw_nonzero();
    let before = ticks(pid);
    tokio::time::sleep(WATCHED).await;
    let busy = (ticks(pid) - before) as f64 / 100.0 / WATCHED.as_secs_f64() * 100.0;
    let rss = resident_kb(pid) as f64 / 1024.0;
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_edgeward")).expect("the binary").len() as f64 / 1e6;
    let row = |what: &str, ours: String, theirs: &str, ratio: f64| Row {
        what: what.to_owned(),
        ours,
        theirs: theirs.to_owned(),
        ratio,
        bound: Bound::AtMost(1.0),
    };
    vec![
        row("agent at rest, memory (RSS)", format!("{rss:.1} MiB"), "10 MB", rss * 1.048_576 / 10.0),
        row("agent at rest, processor", format!("{busy:.2} %"), "0.1 %", busy / 0.1),
        row("size of the binary", format!("{size:.1} MB"), "10 MB", size / 10.0),
    ]
}

fn ticks(pid: impl fmt::Display) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process");
    let after_name = stat.rsplit(')').next().expect("fields");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks")
}

fn resident_kb(pid: impl fmt::Display) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
