//! `edgeward run`: send, wait, show.

use super::args::duration;
use super::dry_run::{self, Members};
use super::error::CliError;
use super::exit::ExitCode;
use super::live::{Live, show_end};
use super::message::{ContentArgs, MessageArgs, draft, find_targets};
use super::output::{self, Format, RowJson};
use super::say;
use super::sending::{check_nodes, store, stored_but};
use super::session::Session;
use super::watching::{End, Patience, exit_code, tell_end, wait_for};
use crate::model::name::Target;
use crate::operator::{Draft, Outputs, Sent, Watch};
use std::io::IsTerminal;
use std::time::Duration;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    content: ContentArgs,
    #[command(flatten)]
    message: MessageArgs,
    /// How long to wait; without it until every node in contact is done.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
    /// With one target: exit with the command's own exit code.
    #[arg(long)]
    exit_status: bool,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.message.from.as_ref())?;
    let mut draft = draft("run", &args.content, &args.message)?;
    let mut broker = None;
    if args.content.selector.is_some() {
        find_targets(broker.insert(session.connect(&loaded).await?), &args.content, &mut draft).await?;
    }
    if args.exit_status && !is_single(&draft) {
        return Err(CliError::usage("--exit-status is for one node"));
    }
    if args.message.dry_run {
        let members = Members::of(session, &loaded, broker.as_ref(), &[&draft]).await;
        dry_run::print(session, &loaded, &draft, &members)?;
        return Ok(ExitCode::Succeeded);
    }
    let from = loaded.sender()?;
    let broker = match broker {
        Some(broker) => broker,
        None => session.connect(&loaded).await?,
    };
    check_nodes(&broker, [&draft], args.message.new).await?;
    let single = is_single(&draft);
    let format = session.format;
    let mut watch = Watch::open(&broker, from.as_str(), &draft.id).await?;
    let outputs = Outputs::open(&broker, from.as_str(), &draft.id).await?;
    let mut live = Live::new(outputs, format, !single);
    let sent = store(&broker, &loaded, &draft).await?;
    if std::io::stderr().is_terminal() {
        tell_stored(&sent.stored);
    }
    let stored: Vec<Sent> = sent.stored.iter().map(|(_, sent)| *sent).collect();
    watch.add_sent(&stored).await.map_err(|error| stored_but(error.into(), &draft))?;
    let patience = Patience { wait: args.wait, leave_silent: true };
    let end = wait_for(&mut watch, patience, Some(&mut live), |row, watch| show_end(row, watch, format, !single)).await;
    live.flush()?;
    let end = end.map_err(|error| stored_but(error, &draft))?;
    if format == Format::Json {
        for row in watch.view().rows().filter(|row| !row.is_settled()) {
            output::print_json(&RowJson::new(&row))?;
        }
    }
    tell_end(end, &watch);
    live.tell_end(end, &watch);
    Ok(sent.failed.unwrap_or_else(|| exit(&watch, end, args.exit_status)))
}

fn tell_stored(stored: &[(Target, Sent)]) {
    /// Targets told one by one; of more, the sequences.
    const FEW: usize = 8;
    match stored {
        [(_, first), .., (_, last)] if stored.len() > FEW => {
            say(&format!("{} messages stored, from {} to {}", stored.len(), first.id_ref(), last.id_ref()));
        }
        few => few.iter().for_each(|(to, sent)| say(&format!("{to}: stored as {}", sent.id_ref()))),
    }
}

fn is_single(draft: &Draft) -> bool {
    matches!(draft.targets()[..], [Target::Node(_)])
}

fn exit(watch: &Watch, end: End, exit_status: bool) -> ExitCode {
    let remote = || {
        let row = watch.view().rows().next()?;
        let record = row.record.filter(|record| end == End::Settled && record.state.is_terminal())?;
        let code = record.exit_code.or(record.signal.map(|signal| 128 + (signal & 0x7f)))?;
        u8::try_from(code & 0xff).ok().map(ExitCode::Remote)
    };
    exit_status.then(remote).flatten().unwrap_or_else(|| exit_code(watch))
}
