//! The faults: what dies, when, and for how long; links that fail; disks that run full; clocks that step.
//!
//! All of it is rolled beforehand. One task for each thing that can fail carries out its share and brings the thing back
//! when all is to heal; those of processes are in `haunt`.

use super::brokers::Wire;
use super::dice::Dice;
use super::harness::{Link, SmallDisk};
use super::options::Options;
use super::place::Clock;
use edgeward::killpoint::Point;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How the ends by a directive are told among the faults.
pub const LEFT: &str = "left_by_a_directive";

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

    /// Something was killed just now.
    pub fn killed(&self, name: &str) {
        self.killed_at(name, SystemTime::now());
    }

    pub fn killed_at(&self, name: &str, when: SystemTime) {
        let since = when.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let nanos = i64::try_from(since.as_nanos()).unwrap();
        self.tally.lock().unwrap().kills.entry(name.to_owned()).or_default().push(nanos);
    }

    /// A process died at this point.
    pub fn died_at(&self, point: Point) {
        *self.tally.lock().unwrap().points.entry(point.as_str().to_owned()).or_default() += 1;
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
            let at = (with_points && dice.percent(50)).then(|| {
                point += 1;
                let steps = if options.joins > 0 { &Point::HUB[..] } else { &Point::HUB[..1] };
                at_point(steps[point % steps.len()], &mut dice)
            });
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
        let mut point = dice.below(Point::RUNNER.len());
        for when in dice.moments(options.runner_kills, span) {
            let node = dice.below(options.nodes);
            if with_points && dice.percent(50) {
                // An armed runner is the child of an armed agent.
                point += 1;
                let at = Some((Point::RUNNER[point % Point::RUNNER.len()], 1 + dice.below(8)));
                agents[node].push(Kill { when, at, down: down(&mut dice) });
            } else {
                runners[node].push(when);
            }
        }
        agents.iter_mut().for_each(|kills| kills.sort_by_key(|kill| kill.when));
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
        Point::Directed | Point::Obeyed | Point::Left => 1,
        Point::Planned | Point::Looked | Point::Filtered | Point::Marked | Point::MarksKnown | Point::Drained => 1,
        Point::Beat | Point::TryAgain => 1 + dice.below(3),
        Point::Settled => 1 + dice.below(40),
        _ => 1 + dice.below(5),
    };
    (point, times)
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
