//! `edgeward cancel`: ask that messages do not begin, or stop.
//!
//! It says what it asked of whom and comes back; `edgeward wait` shows the end.

use super::args::duration;
use super::dry_run::{self, Members};
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::sending::judge;
use super::session::Session;
use crate::model::id::{IdRef, MessageId, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::{NodeName, Sender};
use crate::model::state::State;
use crate::operator::{Meant, Plan, SendOptions, Which, cancel, cancels, plan_cancel};
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

/// How far back `--queued` looks: as long as streams keep messages, by default.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["id", "last", "mine", "queued"]))]
pub(super) struct Args {
    /// The message: its id, 42 or s42 (a command's stored sequence), e42 (an event's), or `last` (mine).
    #[arg(value_name = "ID")]
    id: Option<IdRef>,
    /// My newest message.
    #[arg(long)]
    last: bool,
    /// Every message of mine that is not over; say since when.
    #[arg(long, requires = "since")]
    mine: bool,
    /// Every message of mine to --node that has not begun.
    #[arg(long, requires = "node")]
    queued: bool,
    /// With --queued: the node.
    #[arg(long, value_name = "NODE", requires = "queued")]
    node: Option<NodeName>,
    /// How far back to look [default: 24h for an id, 30 days for --queued].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// Whose messages; mine by default. Those of others are for admins.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
    /// Ask nothing; print what would be cancelled and the equal `nats pub` lines.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct MeantJson<'a> {
    v: u32,
    id: &'a MessageId,
    from: &'a Sender,
    node: &'a str,
    stream: StreamKind,
    seq: StreamSeq,
    state: State,
    /// False where it is over, or the cancel could not be stored, or on a dry run.
    asked: bool,
    /// Where the cancel is stored.
    cancel_seq: Option<StreamSeq>,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    // Where nothing says who I am, I am whose messages they are, as far as the broker lets me.
    let loaded = session.load_for(args.from.as_ref())?;
    let me = loaded.sender()?;
    let whose = args.from.as_ref().or(loaded.from.as_ref());
    let broker = session.connect(&loaded).await?;
    let plan = plan_cancel(&broker, &which(args)?, whose).await?;
    tell_over(session, &plan)?;
    if args.dry_run {
        for meant in &plan.open {
            show(session, meant, "would be cancelled", None)?;
        }
        if session.format == Format::Table {
            // Whom they reach is told above: a row for each node that has the message.
            let members = Members::default();
            cancels(&plan.open, me)?.iter().try_for_each(|draft| dry_run::print_as(&loaded, me, draft, &members))?;
        }
        return Ok(ExitCode::Succeeded);
    }
    let deliveries = cancel(&broker, me, &plan.open, &SendOptions::default()).await?;
    for (meant, delivery) in plan.open.iter().zip(&deliveries) {
        if let Ok(sent) = &delivery.result {
            show(session, meant, "cancel asked", Some(sent.seq))?;
        }
    }
    Ok(judge(deliveries, None)?.failed.unwrap_or(ExitCode::Succeeded))
}

fn which(args: &Args) -> Result<Which, CliError> {
    let Args { id, last, mine, queued, node, since, .. } = args;
    Ok(match (id, node, since) {
        (Some(id), ..) => Which::One { id: id.clone(), since: *since },
        _ if *last => Which::One { id: IdRef::Last, since: *since },
        (_, _, Some(since)) if *mine => Which::Since(*since),
        (_, Some(node), _) if *queued => Which::Queued { node: node.clone(), since: since.unwrap_or(KEPT) },
        // The definition of the arguments leaves none of these over.
        _ => return Err(CliError::usage("say which: an ID, --last, --mine --since 10m, or --node ship1 --queued")),
    })
}

/// Says of what is over that a cancel has no effect on it, and where there is nothing else, that there is not.
fn tell_over(session: &Session, plan: &Plan) -> Result<(), CliError> {
    for meant in &plan.over {
        if session.format == Format::Json {
            show(session, meant, "", None)?;
        } else {
            super::say(&format!("{}: {} is {} already; nothing to cancel", meant.node, name(meant), meant.state));
        }
    }
    if plan.open.is_empty() && plan.over.is_empty() {
        super::say("nothing to cancel");
    }
    Ok(())
}

fn name(meant: &Meant) -> IdRef {
    output::id_ref(meant.at)
}

fn show(session: &Session, meant: &Meant, what: &str, cancel_seq: Option<StreamSeq>) -> Result<(), CliError> {
    let Meant { id, from, node, at, state, preview, .. } = meant;
    if session.format == Format::Json {
        let (stream, seq, asked) = (at.stream, at.seq, cancel_seq.is_some());
        return Ok(output::print_json(&MeantJson {
            v: 1,
            id,
            from,
            node,
            stream,
            seq,
            state: *state,
            asked,
            cancel_seq,
        })?);
    }
    let stored = cancel_seq.map(|seq| format!(", stored as {seq}")).unwrap_or_default();
    let line = format!("{node}  {}  {state}  {what}{stored}  {preview}", name(meant));
    Ok(writeln!(std::io::stdout().lock(), "{}", line.trim_end())?)
}
