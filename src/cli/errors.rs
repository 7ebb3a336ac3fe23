//! `edgeward errors`: failures, and on as they happen.

use super::error::CliError;
use super::exit::ExitCode;
use super::history::local;
use super::onlooker::Onlooker;
use super::output::{self, Format};
use super::say;
use super::session::Session;
use crate::model::error_event::{ErrorEvent, Severity};
use crate::model::id::StreamSeq;
use crate::model::name::{NodeName, Sender};
use crate::model::time::{Since, Timestamp};
use crate::operator::{ErrorFilter, ErrorLog, StoredError};
use serde::Serialize;

/// Arguments of `errors`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only failures of this node.
    #[arg(value_name = "NODE")]
    node: Option<NodeName>,
    /// Go on with what happens from now on.
    #[arg(short, long)]
    follow: bool,
    /// From when on: 24h, or a time such as 2026-11-23T21:00:00Z.
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    since: Since,
    /// Only what matters at least so much: warning, error, critical.
    #[arg(long, value_name = "SEVERITY")]
    severity: Option<AtLeast>,
    /// Who asks, where the credentials do not tell.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AtLeast {
    Warning,
    Error,
    Critical,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    v: u32,
    seq: StreamSeq,
    stored_at: Timestamp,
    node: &'a str,
    event: &'a ErrorEvent,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let severity = args.severity.map(|severity| match severity {
        AtLeast::Warning => Severity::Warning,
        AtLeast::Error => Severity::Error,
        AtLeast::Critical => Severity::Critical,
    });
    let filter = ErrorFilter { node: args.node.clone(), severity };
    let mut log = ErrorLog::open(&broker, filter, args.since, args.follow).await?;
    let mut onlooker = Onlooker::new()?;
    let mut none = true;
    loop {
        let next = tokio::select! {
            next = log.next() => next?,
            enough = onlooker.has_seen_enough() => enough.map(|()| None)?,
        };
        let Some(error) = next else {
            if none && !args.follow {
                say(&format!("no such failure in {}", args.since));
            }
            return Ok(ExitCode::Succeeded);
        };
        none = false;
        match session.format {
            Format::Json => {
                let StoredError { seq, stored_at, node, event } = &error;
                output::print_json(&ErrorJson { v: 1, seq: *seq, stored_at: *stored_at, node, event })?;
            }
            Format::Table => output::print_line(&line(&error))?,
        }
    }
}

fn line(error: &StoredError) -> String {
    let StoredError { stored_at, node, event, .. } = error;
    let process = event.process.as_ref().map(|process| format!("{process}: ")).unwrap_or_default();
    let message = event.msg_id.as_ref().map(|id| format!(" (message {id})")).unwrap_or_default();
    let (severity, code) = (event.severity.as_str(), event.code);
    let count = event.count.map(|count| format!(" ({count} times)")).unwrap_or_default();
    format!("{}  {severity:<8}  {node}  {code}{count}  {process}{}{message}", local(*stored_at), event.message)
}
