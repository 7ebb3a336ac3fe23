//! `edgeward init`: makes or upgrades the streams. The hub does it at its start, too.

use super::config::{Loaded, Scope};
use super::error::CliError;
use super::exit::ExitCode;
use super::hub::connect_options;
use super::output::{self, Format};
use super::say;
use super::session::Session;
use crate::broker::Broker;
use crate::broker::topology::{self, Handling, Plan, Resized, Standing};
use serde::Serialize;
use serde_json::Value;
use std::io::{self, Write};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only show what would be done; exit code 1 where that is anything.
    #[arg(long)]
    diff: bool,
    /// Share the disk out anew among the streams; sizes stay as they were set otherwise.
    #[arg(long, conflicts_with = "diff")]
    resize: bool,
}

/// A stream as it stood.
#[derive(Serialize)]
struct StreamJson<'a> {
    v: u32,
    stream: &'a str,
    standing: &'static str,
    max_bytes: Option<u64>,
    differences: Vec<DifferenceJson<'a>>,
}

#[derive(Serialize)]
struct DifferenceJson<'a> {
    field: &'a str,
    found: &'a Value,
    wanted: &'a Value,
    handling: &'static str,
    reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ResizedJson<'a> {
    v: u32,
    stream: &'a str,
    resized: [u64; 2],
}

pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = Loaded::load(&session.global, None, &session.env, Scope::Operator)?;
    let broker = Broker::connect(&connect_options(&loaded, "edgeward init")?).await?;
    let hub = &loaded.config.hub;
    let plan = topology::plan(&broker, hub).await?;
    if args.diff {
        print(session.format, &plan)?;
        return Ok(if plan.needs_work() { ExitCode::Failed } else { ExitCode::Succeeded });
    }
    let now = topology::ensure(&broker, hub).await?;
    for stream in plan.streams.iter().filter(|stream| stream.needs_work()) {
        let done = if matches!(stream.standing, Standing::Missing { .. }) { "made" } else { "changed" };
        say(&format!("{}: {done}", stream.name()));
    }
    print(session.format, &now)?;
    if args.resize {
        for resized in topology::resize(&broker, hub).await? {
            print_resized(session.format, &resized)?;
        }
    }
    Ok(ExitCode::Succeeded)
}

fn print(format: Format, plan: &Plan) -> io::Result<()> {
    if format == Format::Table {
        return write!(io::stdout().lock(), "{plan}");
    }
    for stream in &plan.streams {
        let (standing, max_bytes, all) = match &stream.standing {
            Standing::Missing { bytes } => ("missing", Some(*bytes), &[][..]),
            Standing::Same => ("as_wanted", None, &[][..]),
            Standing::Differs(all) => ("differs", None, &all[..]),
        };
        let differences = all
            .iter()
            .map(|one| {
                let (handling, reason) = match one.handling {
                    Handling::Change => ("change", None),
                    Handling::Keep(reason) => ("keep", Some(reason)),
                    Handling::Refuse(reason) => ("refuse", Some(reason)),
                };
                DifferenceJson { field: &one.field, found: &one.found, wanted: &one.wanted, handling, reason }
            })
            .collect();
        output::print_json(&StreamJson { v: 1, stream: stream.name(), standing, max_bytes, differences })?;
    }
    Ok(())
}

fn print_resized(format: Format, resized: &Resized) -> io::Result<()> {
    match format {
        Format::Table => writeln!(io::stdout().lock(), "{resized}"),
        Format::Json => {
            let Resized { stream, from, to } = resized;
            output::print_json(&ResizedJson { v: 1, stream, resized: [*from, *to] })
        }
    }
}
