//! `edgeward send`: store a message and tell its id and sequence.

use super::dry_run::{self, Members};
use super::error::CliError;
use super::exit::ExitCode;
use super::message::{ContentArgs, MessageArgs, draft, drafts_in_file, find_targets};
use super::output::{self, Format};
use super::sending::{check_nodes, store, stored_but};
use super::session::Session;
use crate::model::id::{MessageId, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::Target;
use crate::operator::Sent;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `send`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    content: ContentArgs,
    #[command(flatten)]
    message: MessageArgs,
    /// A JSON object or list of them, each a message; `-` reads it from stdin.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["targets", "selector", "body", "argv", "method", "kind", "lane", "timeout",
        "start_by", "retries", "retry_wait", "on_crash", "id"])]
    file: Option<PathBuf>,
}

#[derive(Serialize)]
struct SentJson<'a> {
    v: u32,
    id: &'a MessageId,
    to: String,
    stream: StreamKind,
    seq: StreamSeq,
    again: bool,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.message.from.as_ref())?;
    let mut drafts = match &args.file {
        Some(file) => drafts_in_file(file)?,
        None => vec![draft("send", &args.content, &args.message)?],
    };
    let mut broker = None;
    if args.content.selector.is_some() {
        let reader = broker.insert(session.connect(&loaded).await?);
        for draft in &mut drafts {
            find_targets(reader, &args.content, draft).await?;
        }
    }
    if args.message.dry_run {
        let all: Vec<_> = drafts.iter().collect();
        let members = Members::of(session, &loaded, broker.as_ref(), &all).await;
        drafts.iter().try_for_each(|draft| dry_run::print(session, &loaded, draft, &members))?;
        return Ok(ExitCode::Succeeded);
    }
    loaded.sender()?;
    let broker = match broker {
        Some(broker) => broker,
        None => session.connect(&loaded).await?,
    };
    check_nodes(&broker, &drafts, args.message.new).await?;
    let mut exit = ExitCode::Succeeded;
    for draft in &drafts {
        let sent = store(&broker, &loaded, draft).await?;
        for (to, sent) in &sent.stored {
            tell(session.format, &draft.id, to, sent).map_err(|error| stored_but(error.into(), draft))?;
        }
        exit = sent.failed.unwrap_or(exit);
    }
    Ok(exit)
}

fn tell(format: Format, id: &MessageId, to: &Target, sent: &Sent) -> std::io::Result<()> {
    match format {
        Format::Json => {
            let (stream, seq, again) = (sent.stream, sent.seq, sent.again);
            output::print_json(&SentJson { v: 1, id, to: to.to_string(), stream, seq, again })
        }
        Format::Table => writeln!(std::io::stdout().lock(), "{id}  {}  {to}", sent.id_ref()),
    }
}
