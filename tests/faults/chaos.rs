//! The faults: what dies, when, and for how long; links that fail; disks that run full; clocks that step.
//!
//! All of it is rolled beforehand. One task for each thing that can fail carries out its share, brings the thing back
//! when all is to heal, and watches that nothing ends which nobody killed.

use super::brokers::Wire;
use super::dice::Dice;
use super::harness::{Link, Process, SmallDisk, runner_of};
use super::history::runner_name;
use super::options::Options;
use super::place::Clock;
use edgeward::killpoint::{Point, VARIABLE};
use rustix::process::{Signal, kill_process};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Faults,
    /// Everything heals and stays up.
    Rest,
    /// Everything is given back.
    Over,
}

/// What has been done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// By kind: `agent_kill`, `hub_kill`, `link_cut`, …
    pub faults: BTreeMap<String, usize>,
    /// Kills at named points, by their names.
    pub points: BTreeMap<String, usize>,
    /// When each process was killed, in ns.
    pub kills: BTreeMap<String, Vec<i64>>,
    /// Ends that nobody caused.
    pub fallen: Vec<String>,
}

/// Shared by all tasks.
#[derive(Clone)]
pub struct Shared {
    pub tally: Arc<Mutex<Tally>>,
    pub stage: watch::Receiver<Stage>,
    pub start: Instant,
}

impl Shared {
    pub fn count(&self, kind: &str) {
        *self.tally.lock().unwrap().faults.entry(kind.to_owned()).or_default() += 1;
    }

    fn killed(&self, name: &str) {
        self.tally.lock().unwrap().kills.entry(name.to_owned()).or_default().push(now());
    }

    pub fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<> {
        let mut stages = self.stage.clone();
        // The sender outlives all tasks.
        async move { drop(stages.wait_for(|now| *now >= stage).await) }
    }

    /// Waits for a moment of the plan; `false` where everything is to heal before.
    pub fn wait(&self, when: Duration) -> impl Future<Output = bool> + Send + use<> {
        let (due, rest) = (sleep_until(self.start + when), self.reached(Stage::Rest));
        async move {
            tokio::select! {
                () = due => true,
                () = rest => false,
            }
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

/// A way to die.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub when: Duration,
    /// At this point, for the so-many-th time; else wherever it is.
    pub at: Option<(Point, usize)>,
    pub down: Duration,
}

/// A fault of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    pub when: Duration,
    pub link: Link,
    pub lasts: Duration,
}

/// Everything that is going to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub agents: Vec<Vec<Kill>>,
    /// When the runner of each agent is killed.
    pub runners: Vec<Vec<Duration>>,
    pub hubs: Vec<Vec<Kill>>,
    pub broker: Vec<Kill>,
    pub links: Vec<Vec<Bad>>,
}

impl Plan {
    /// Rolls it; `links` is how many there are.
    pub fn roll(options: &Options, hubs: usize, links: usize) -> Plan {
        let span = options.duration();
        let mut dice = Dice::new(options.seed, "kills");
        let with_points = cfg!(feature = "kill-points");
        let mut agents = vec![Vec::new(); options.nodes];
        let mut point = dice.below(Point::AGENT.len());
        for when in dice.moments(options.agent_kills, span) {
            let at = (with_points && dice.percent(60)).then(|| {
                point += 1;
                at_point(Point::AGENT[point % Point::AGENT.len()], &mut dice)
            });
            agents[dice.below(options.nodes)].push(Kill { when, at, down: down(&mut dice) });
        }
        let mut all_hubs = vec![Vec::new(); hubs];
        for when in dice.moments(options.hub_kills, span) {
            let at = (with_points && dice.percent(40)).then(|| (Point::HUB[0], 1 + dice.below(40)));
            all_hubs[dice.below(hubs)].push(Kill { when, at, down: down(&mut dice) });
        }
        let moments = dice.moments(options.broker_kills, span);
        let broker = moments.into_iter().map(|when| Kill { when, at: None, down: down(&mut dice) }).collect();
        let mut dice = Dice::new(options.seed, "links");
        let mut all_links = vec![Vec::new(); links];
        for when in dice.moments(options.link_faults, span) {
            let (link, lasts) = match dice.below(10) {
                0..4 => (Link::Cut, dice.millis(50, 3000)),
                4..6 => (Link::Stalled, dice.millis(500, 14_000)),
                6..8 => (Link::Deaf, dice.millis(500, 14_000)),
                _ => (Link::Slow(20_000), dice.millis(2000, 8000)),
            };
            all_links[dice.below(links)].push(Bad { when, link, lasts });
        }
        let mut dice = Dice::new(options.seed, "runners");
        let mut runners = vec![Vec::new(); options.nodes];
        for when in dice.moments(options.runner_kills, span) {
            runners[dice.below(options.nodes)].push(when);
        }
        Plan { agents, runners, hubs: all_hubs, broker, links: all_links }
    }
}

fn down(dice: &mut Dice) -> Duration {
    if dice.percent(15) { dice.millis(2000, 6000) } else { dice.millis(0, 700) }
}

/// A step that comes seldom is hit at once, one that comes often after some of them.
fn at_point(point: Point, dice: &mut Dice) -> (Point, usize) {
    let times = match point {
        Point::Recovered | Point::Claimed | Point::Accepted | Point::ResultWritten => 1,
        Point::Beat | Point::TryAgain => 1 + dice.below(3),
        _ => 1 + dice.below(5),
    };
    (point, times)
}

/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Carries out the kills of an agent or a hub, and gives it back, running, when all is over. `excuse` tells whether it
/// may end by itself just now.
pub async fn haunt(
    name: String,
    mut process: Process,
    kills: Vec<Kill>,
    shared: Shared,
    excuse: impl Fn() -> bool,
) -> Process {
    let kind = if name.starts_with("hub") { "hub_kill" } else { "agent_kill" };
    let mut armed: Option<Point> = None;
    for kill in kills {
        let due = shared.wait(kill.when);
        tokio::pin!(due);
        let go_on = loop {
            tokio::select! {
                go_on = &mut due => break go_on,
                () = sleep(LOOK) => watch_over(&name, &mut process, &mut armed, &shared, &excuse).await,
            }
        };
        if !go_on {
            break;
        }
        process.kill();
        shared.killed(&name);
        shared.count(kind);
        sleep(kill.down).await;
        armed = kill.at.map(|(point, _)| point);
        let arming = kill.at.map(|(point, times)| format!("{}:{times}", point.as_str()));
        process.set_env(VARIABLE, arming.as_deref().unwrap_or(""));
        process.start();
    }
    while *shared.stage.borrow() < Stage::Rest {
        watch_over(&name, &mut process, &mut armed, &shared, &excuse).await;
        sleep(LOOK).await;
    }
    if armed.take().is_some() {
        process.set_env(VARIABLE, "");
        process.kill();
        shared.killed(&name);
        process.start();
    }
    while *shared.stage.borrow() < Stage::Over {
        watch_over(&name, &mut process, &mut armed, &shared, &excuse).await;
        sleep(LOOK).await;
    }
    process
}

/// Kills the runner of a node now and then, where it has one just then. Who needs it starts another.
pub async fn orphan(node: String, state_dir: PathBuf, kills: Vec<Duration>, shared: Shared) {
    for when in kills {
        if !shared.wait(when).await {
            return;
        }
        if runner_of(&state_dir).is_some_and(|runner| kill_process(runner, Signal::KILL).is_ok()) {
            shared.killed(&runner_name(&node));
            shared.count("runner_kill");
        }
    }
}

/// Starts a process again that died at its point; notes one that ended otherwise.
async fn watch_over(
    name: &str,
    process: &mut Process,
    armed: &mut Option<Point>,
    shared: &Shared,
    excuse: &impl Fn() -> bool,
) {
    const ABORT: i32 = 6;
    if process.is_running() {
        return;
    }
    let status = process.exited(Duration::from_secs(1)).await;
    shared.killed(name);
    match armed.take() {
        Some(point) if status.signal() == Some(ABORT) => {
            *shared.tally.lock().unwrap().points.entry(point.as_str().to_owned()).or_default() += 1;
            shared.count(if name.starts_with("hub") { "hub_kill" } else { "agent_kill" });
        }
        _ if excuse() => {
            shared.count("ended_on_a_full_disk");
            sleep(Duration::from_millis(500)).await;
        }
        _ => {
            let words: Vec<String> = process.stderr().lines().rev().take(5).map(str::to_owned).collect();
            let text = format!("{name}: {status}; {}", words.into_iter().rev().collect::<Vec<_>>().join(" | "));
            eprintln!("{text}");
            shared.tally.lock().unwrap().fallen.push(text);
            sleep(Duration::from_millis(500)).await;
        }
    }
    process.set_env(VARIABLE, "");
    process.start();
}

/// Carries out the faults of one link, and heals it.
pub async fn spoil(wire: Arc<Wire>, faults: Vec<Bad>, shared: Shared) {
    for fault in faults {
        if !shared.wait(fault.when).await {
            break;
        }
        wire.set(fault.link);
        shared.count(match fault.link {
            Link::Cut => "link_cut",
            Link::Stalled => "link_stalled",
            Link::Deaf => "link_deaf",
            Link::Slow(_) => "link_slow",
            Link::Open => "link_open",
        });
        let end = shared.start + fault.when + fault.lasts;
        tokio::select! {
            () = sleep_until(end) => {}
            () = shared.reached(Stage::Rest) => {}
        }
        wire.set(Link::Open);
    }
    wire.set(Link::Open);
}

/// Fills a disk now and then.
pub async fn fill(disk: Arc<SmallDisk>, seed: u64, shared: Shared) {
    let mut dice = Dice::new(seed, "disk");
    let mut when = Duration::from_secs(5);
    while shared.wait(when).await {
        disk.fill();
        shared.count("disk_full");
        when += dice.millis(2000, 8000);
        shared.wait(when).await;
        disk.clear();
        when += dice.millis(3000, 10_000);
    }
    disk.clear();
}

/// Steps a clock now and then, by up to three years in either direction.
pub async fn step(clock: Arc<Clock>, seed: u64, shared: Shared) {
    let mut dice = Dice::new(seed, "clock");
    let mut when = Duration::from_secs(3);
    while shared.wait(when).await {
        let far = [3600, 86_400, 40 * 86_400, 3 * 365 * 86_400];
        let seconds = dice.pick(&far);
        clock.set(if dice.percent(50) { seconds } else { -seconds });
        shared.count("clock_step");
        when += dice.millis(2000, 10_000);
    }
}
