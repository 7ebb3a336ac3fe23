//! What a run is to be: its seed, its size, its faults.

use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

pub const USAGE: &str = "\
cargo test --release --features kill-points --test faults -- [options]

  --seed N            everything that is chosen is chosen by it (1)
  --seconds N         how long faults and load last (60)
  --messages N        how many messages are sent (25 a second)
  --nodes N           agents (4)
  --agent-kills N     kills of agents, half of them at named points (one in 2 s)
  --runner-kills N    kills of what runs the agents' commands, half of them at named points (one in 15 s)
  --orders N          orders about processes and directives, beside those over which an agent is to die (one in 3 s)
  --joins N           changes of a node's groups, and messages to these (one in 3 s)
  --hub-kills N       kills of hubs, half of them at named points (one in 8 s)
  --broker-kills N    kills of the broker (one in 10 s)
  --cluster           the broker is three servers; a kill is of one of them, which comes back with its disk or without
  --link-faults N     links cut, stalled, deaf or slow (one in 3 s)
  --disk-full         the last node's state is on a small disk that runs full; needs the right to mount
  --clock-steps       the agents' own clock steps by up to years; needs a C compiler
  --quiet N           seconds that all may take to come to rest afterwards (300)
  --report FILE       where the report goes as well (JSON)
  --log FILTER        EDGEWARD_LOG of agents and hubs
  --keep              keep the folders of a failed run
  --known             the seeds that have found something, one after the other";

/// The options of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    pub seed: u64,
    pub seconds: u64,
    pub messages: usize,
    pub nodes: usize,
    pub agent_kills: usize,
    pub runner_kills: usize,
    pub orders: usize,
    pub joins: usize,
    pub hub_kills: usize,
    pub broker_kills: usize,
    pub link_faults: usize,
    pub cluster: bool,
    pub disk_full: bool,
    pub clock_steps: bool,
    pub quiet: u64,
    #[serde(skip)]
    pub report: Option<PathBuf>,
    #[serde(skip)]
    pub log: Option<String>,
    #[serde(skip)]
    pub keep: bool,
    #[serde(skip)]
    pub known: bool,
}

impl Options {
    /// Usual sizes for a run of this length.
    pub fn new(seed: u64, seconds: u64) -> Options {
        let one_in = |every: u64| usize::try_from(seconds / every).unwrap_or(usize::MAX).max(1);
        Options {
            seed,
            seconds,
            messages: one_in(1) * 25,
            nodes: 4,
            agent_kills: one_in(2),
            runner_kills: one_in(15),
            orders: one_in(3),
            joins: one_in(3),
            hub_kills: one_in(8),
            broker_kills: one_in(10),
            link_faults: one_in(3),
            cluster: false,
            disk_full: false,
            clock_steps: false,
            quiet: 300,
            report: None,
            log: None,
            keep: false,
            known: false,
        }
    }

    /// Reads the command line; an error is a text.
    pub fn parse(args: &[String]) -> Result<Options, String> {
        let value = |name: &str| -> Result<Option<&str>, String> {
            let Some(at) = args.iter().position(|arg| arg == name) else { return Ok(None) };
            args.get(at + 1).map(|value| Some(value.as_str())).ok_or_else(|| format!("{name} needs a value"))
        };
        let number = |name: &str, default: u64| -> Result<u64, String> {
            let Some(text) = value(name)? else { return Ok(default) };
            text.parse().map_err(|_| format!("{name}: `{text}` is no number"))
        };
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let mut known: Vec<&str> = USAGE.split_whitespace().filter(|word| word.starts_with("--")).collect();
        known.push("--nocapture");
        if let Some(other) = args.iter().find(|arg| arg.starts_with("--") && !known.contains(&arg.as_str())) {
            return Err(format!("there is no {other}"));
        }
        let usual = Options::new(number("--seed", 1)?, number("--seconds", 60)?);
        let size =
            |name: &str, default: usize| number(name, default as u64).map(|n| usize::try_from(n).unwrap_or(default));
        Ok(Options {
            messages: size("--messages", usual.messages)?,
            nodes: size("--nodes", usual.nodes)?.max(2),
            agent_kills: size("--agent-kills", usual.agent_kills)?,
            runner_kills: size("--runner-kills", usual.runner_kills)?,
            orders: size("--orders", usual.orders)?,
            joins: size("--joins", usual.joins)?,
            hub_kills: size("--hub-kills", usual.hub_kills)?,
            broker_kills: size("--broker-kills", usual.broker_kills)?,
            link_faults: size("--link-faults", usual.link_faults)?,
            cluster: has("--cluster"),
            disk_full: has("--disk-full"),
            clock_steps: has("--clock-steps"),
            quiet: number("--quiet", usual.quiet)?,
            report: value("--report")?.map(PathBuf::from),
            log: value("--log")?.map(str::to_owned),
            keep: has("--keep"),
            known: has("--known"),
            ..usual
        })
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// `n1`, `n2`, …
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(|n| format!("n{n}")).collect()
    }
}
