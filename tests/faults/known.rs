//! Runs that have found something once; each stays a test.

use super::options::Options;

/// The runs, oldest first; how they tell of themselves is as given.
pub fn runs(given: &Options) -> Vec<Options> {
    let run = |seed: u64, seconds: u64| {
        let usual = tell_as(given, Options::new(seed, seconds));
        // Nobody gave orders then, nobody was in a group, and no runner died.
        Options { known: true, runner_kills: 0, orders: 0, joins: 0, ..usual }
    };
    vec![
        // A message that was taken while the one before it ended was forgotten, and ran after later ones: no faults needed.
        Options { messages: 400, agent_kills: 0, hub_kills: 0, broker_kills: 0, link_faults: 0, ..run(1, 20) },
        // The own clock stepped ahead while the agent was down: what it had taken expired before the broker was heard.
        Options { messages: 2500, agent_kills: 50, clock_steps: true, ..run(4, 50) },
        // The broker's word of its time came late over a stalled link, and turned the agent's idea of it back.
        Options { messages: 2500, agent_kills: 40, link_faults: 40, clock_steps: true, disk_full: true, ..run(8, 50) },
        // A cluster had the record of a message for nobody under way; its copy got no word (`it` has it alone, and short).
        Options { cluster: true, hub_kills: 20, joins: 30, orders: 30, runner_kills: 15, ..run(2620, 300) },
    ]
}

fn tell_as(given: &Options, run: Options) -> Options {
    Options { quiet: given.quiet, log: given.log.clone(), keep: given.keep, ..run }
}
