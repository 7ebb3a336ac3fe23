//! `edgeward local`: how this machine's node is, from its journal alone; without a link, beside a running agent or not.

use super::agent::as_config;
use super::config::{Loaded, Scope};
use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::output::{self, Format, age};
use super::service;
use super::session::Session;
use crate::journal::{JournalError, LookError, OutboxDepth, Picture, Process, RunningTry, look};
use crate::model::id::{JournalId, MsgRef};
use crate::model::node::{LaneFacts, LinkNote};
use crate::model::time::Timestamp;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `local`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the journal is (default: /var/lib/edgeward, or below $XDG_STATE_HOME).
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How many lanes are shown at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 32)]
    lanes: usize,
}

#[derive(Serialize)]
struct LocalJson<'a> {
    v: u32,
    node: &'a str,
    journal: JournalId,
    state_dir: String,
    agent_pid: Option<u32>,
    condition: &'static str,
    bytes: u64,
    rows: u64,
    position: &'a [MsgRef],
    lanes: &'a [LaneFacts],
    lane_count: u64,
    running: &'a [RunningTry],
    outbox: &'a OutboxDepth,
    processes: Vec<ProcessJson<'a>>,
    link: Option<&'a LinkNote>,
    clock_offset_ms: i64,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    name: &'a str,
    stopped_by: Option<&'a str>,
    restarts: u64,
    failures: u64,
    last_error: Option<&'a str>,
    last_error_at: Option<Timestamp>,
}

impl<'a> From<&'a Process> for ProcessJson<'a> {
    fn from(process: &'a Process) -> ProcessJson<'a> {
        let last_error = process.last_error.as_ref();
        ProcessJson {
            name: &process.name,
            stopped_by: process.stopped_by.as_deref(),
            restarts: process.restarts,
            failures: process.failures,
            last_error: last_error.map(|(text, _)| text.as_str()),
            last_error_at: last_error.map(|(_, at)| *at),
        }
    }
}

/// Carries it out.
pub(super) fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = Loaded::load(&session.global, None, &session.env, Scope::Service).map_err(as_config)?;
    let folder = service::state_dir(args.state_dir.as_deref(), session, &loaded)?;
    let picture = look(&folder, args.lanes).map_err(|error| match &error {
        LookError::Missing(_) => {
            CliError::usage(error.to_string()).hint("give --state-dir DIR; an agent makes one at its first start")
        }
        LookError::Journal(journal) => {
            let unusable = CliError::new(ExitCode::Config, format!("{}: {}", folder.display(), chain(&error)));
            match journal {
                JournalError::Damaged(_) => {
                    unusable.hint("the next start of the agent moves a damaged journal aside and begins anew")
                }
                _ => unusable,
            }
        }
    })?;
    if session.format == Format::Json {
        output::print_json(&json(&picture, folder.display().to_string()))?;
        return Ok(ExitCode::Succeeded);
    }
    let now = Timestamp::from_nanos(Timestamp::local_now().nanos().saturating_add(picture.clock_offset));
    print_head(&picture, &folder.display().to_string())?;
    print_running(&picture, now)?;
    print_lanes(&picture, now)?;
    print_processes(&picture, now)?;
    Ok(ExitCode::Succeeded)
}

fn json(picture: &Picture, state_dir: String) -> LocalJson<'_> {
    LocalJson {
        v: 1,
        node: &picture.node,
        journal: picture.journal,
        state_dir,
        agent_pid: picture.agent,
        condition: "good",
        bytes: picture.bytes,
        rows: picture.rows,
        position: &picture.positions,
        lanes: &picture.lanes,
        lane_count: picture.lane_count,
        running: &picture.running,
        outbox: &picture.outbox,
        processes: picture.processes.iter().map(ProcessJson::from).collect(),
        link: picture.link.as_ref(),
        clock_offset_ms: picture.clock_offset / 1_000_000,
    }
}

fn print_head(picture: &Picture, folder: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let agent = picture.agent.map_or("no agent runs".to_owned(), |pid| format!("the agent runs (pid {pid})"));
    writeln!(out, "node {}: {agent}", picture.node)?;
    writeln!(out, "link: {}", link(picture))?;
    let (size, rows) = (picture.bytes >> 10, picture.rows);
    writeln!(out, "journal {} in {folder}: good, {size} KiB, {rows} messages", picture.journal)?;
    for at in &picture.positions {
        writeln!(out, "taken up to {}, stored at {}", output::id_ref(*at), at.stored_at)?;
    }
    let OutboxDepth { acks, errors, messages, results, parked, counted } = &picture.outbox;
    write!(out, "to be told: {acks} records, {errors} error events, {messages} messages, {results} results")?;
    for (number, what) in [(parked, "set aside"), (counted, "failures counted")] {
        if *number > 0 {
            write!(out, ", {number} {what}")?;
        }
    }
    writeln!(out)
}

fn link(picture: &Picture) -> String {
    let Some(link) = &picture.link else { return "never tried".to_owned() };
    let since = age(link.since, Timestamp::local_now());
    match (picture.agent.is_some(), link.up, &link.error) {
        (true, true, _) if !link.in_contact => format!(
            "up for {since}, but this is not the node yet: the hub has not taken it in, or another agent is this node; \
             the agent's log and `edgeward errors` say which"
        ),
        (true, true, _) => format!("up for {since}"),
        (false, true, _) => format!("came up {since} ago"),
        (_, false, Some(error)) => format!("down for {since}: {error}"),
        (_, false, None) => format!("down for {since}"),
    }
}

fn print_running(picture: &Picture, now: Timestamp) -> std::io::Result<()> {
    let mut table = output::table(&["RUNNING", "STORED AS", "FROM", "METHOD", "TRY", "FOR", "PID"]);
    for run in &picture.running {
        let since = run.started_at.map(|at| age(at, now)).unwrap_or_default();
        let pid = run.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let at = output::id_ref(run.at).to_string();
        table.add_row([run.id.clone(), at, run.from.clone(), run.method.clone(), run.attempt.to_string(), since, pid]);
    }
    output::print_table(&table)
}

fn print_lanes(picture: &Picture, now: Timestamp) -> std::io::Result<()> {
    let mut table = output::table(&["LANE", "DEPTH", "HEAD", "AGE", "HEAD IS"]);
    for lane in &picture.lanes {
        let head = lane.head.map(|seq| seq.to_string()).unwrap_or_default();
        let since = lane.head_stored_at.map(|at| age(at, now)).unwrap_or_default();
        let state = if lane.running { "running" } else { "waiting" };
        table.add_row([lane.lane.clone(), lane.depth.to_string(), head, since, state.to_owned()]);
    }
    output::print_table(&table)?;
    let more = picture.lane_count.saturating_sub(picture.lanes.len() as u64);
    if more > 0 {
        super::say(&format!("and {more} more lanes"));
    }
    Ok(())
}

fn print_processes(picture: &Picture, now: Timestamp) -> std::io::Result<()> {
    let mut table = output::table(&["PROCESS", "STATE", "FAILED 10 MIN", "RESTARTS", "LAST ERROR"]);
    for process in &picture.processes {
        let state = process.stopped_by.as_ref().map_or("running".to_owned(), |by| format!("stopped by {by}"));
        let error = process.last_error.as_ref().map(|(text, at)| format!("{} ago  {text}", age(*at, now)));
        let numbers = (process.failures.to_string(), process.restarts.to_string());
        table.add_row([process.name.clone(), state, numbers.0, numbers.1, error.unwrap_or_default()]);
    }
    output::print_table(&table)
}
