//! The fault suite: real brokers, hubs, agents and commands, links that fail, kills at random and at named points; then
//! a checker proves from the streams, the files and the journals that nothing was lost, doubled or reordered.
//!
//! A command of its own (`USAGE` in `options.rs`, `docs/faults`): what it does is rolled from a seed. When it happens to
//! the microsecond is the machine's choice, so a seed repeats the plan and not each interleaving.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod brokers;
mod chaos;
mod check;
mod dice;
mod gather;
mod groups;
#[path = "../it/harness/mod.rs"]
mod harness;
mod haunt;
mod history;
mod known;
mod load;
mod options;
mod orders;
mod place;
mod report;
mod world;

use options::{Options, USAGE};
use std::process::ExitCode;
use tokio::task::LocalSet;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::parse(&args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runs = if options.known { known::runs(&options) } else { vec![options] };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let good = runs.into_iter().all(|options| LocalSet::new().block_on(&runtime, one(options)));
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run and its report; true where nothing is wrong.
async fn one(options: Options) -> bool {
    if !cfg!(feature = "kill-points") {
        eprintln!("!!!! without --features kill-points: kills only at random");
    }
    let (seed, path) = (options.seed, options.report.clone());
    let outcome = world::run(options).await;
    let text = serde_json::to_string_pretty(&outcome.report).unwrap() + "\n";
    print!("{text}");
    if let Some(path) = path {
        std::fs::write(&path, &text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    for violation in &outcome.violations {
        eprintln!("VIOLATION {}: {} {}", violation.rule, violation.id, violation.text);
    }
    eprintln!("seed {seed}: {} violations", outcome.violations.len());
    outcome.violations.is_empty()
}
