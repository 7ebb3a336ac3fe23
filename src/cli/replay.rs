//! `edgeward replay`: send messages of the past again, in their order.
//!
//! One after the other, each stored before the next is sent: only so does the order hold. Where one cannot be stored it
//! stops there and says what was not sent.

use super::args::TargetList;
use super::dry_run::{self, Members};
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::say;
use super::sending::{check_nodes, store};
use super::session::Session;
use crate::model::id::{IdRef, MessageId, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::Sender;
use crate::model::time::{Since, Timestamp};
use crate::operator::{Again, Repeat, Repeats, plan_replay, read_export};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["what", "failed", "file"]))]
pub(super) struct Args {
    /// A message by any of its names, or a range of stored sequences, both ends included: 42..60, e42..e60.
    #[arg(value_name = "ID|RANGE")]
    what: Option<What>,
    /// A message, only to those nodes where it failed, timed out, expired, was refused, interrupted or undeliverable.
    #[arg(long, value_name = "ID")]
    failed: Option<IdRef>,
    /// The messages of a file that `history --export` wrote; `-` reads stdin.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// To these nodes and groups instead of the old ones.
    #[arg(long, value_name = "TARGETS")]
    to: Option<TargetList>,
    /// Of a range and of `last`: whose messages; mine by default.
    #[arg(long, value_name = "NAME")]
    whose: Option<Sender>,
    /// Of a range: the messages of all senders.
    #[arg(long, conflicts_with = "whose")]
    everybody: bool,
    /// How far back to look for an id: 24h, or a time such as 2026-11-23T21:00:00Z [default: 24h].
    #[arg(long, value_name = "WHEN")]
    since: Option<Since>,
    /// Who sends.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
    /// The nodes may be such that were never seen.
    #[arg(long)]
    new: bool,
    /// Send nothing; print the targets and the equal `nats pub` lines.
    #[arg(long)]
    dry_run: bool,
}

/// A message or a range.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    One(IdRef),
    Range { stream: StreamKind, first: StreamSeq, last: StreamSeq },
}

impl FromStr for What {
    type Err = String;
    fn from_str(text: &str) -> Result<What, String> {
        let id = |text: &str| text.parse::<IdRef>().map_err(|error| error.to_string());
        let Some((first, last)) = text.split_once("..") else { return id(text).map(What::One) };
        let range = || format!("`{}` is no range of stored sequences such as 42..60 or e42..e60", text.escape_debug());
        match (id(first).map_err(|_| range())?, id(last).map_err(|_| range())?) {
            (IdRef::Stored(stream, first), IdRef::Stored(other, last)) if stream == other => {
                if first > last || first.0 == 0 {
                    return Err(format!(
                        "the range `{text}` is empty: it begins with 1 or more, and its end is not before its begin"
                    ));
                }
                Ok(What::Range { stream, first, last })
            }
            (IdRef::Stored(..), IdRef::Stored(..)) => {
                Err(format!("the range `{text}` begins in one stream and ends in another"))
            }
            _ => Err(range()),
        }
    }
}

#[derive(Serialize)]
struct SentJson<'a> {
    v: u32,
    replay_of: StreamSeq,
    id: &'a MessageId,
    to: String,
    stream: StreamKind,
    seq: StreamSeq,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.from.as_ref())?;
    let me = loaded.sender()?;
    let again = again(args)?;
    let broker = session.connect(&loaded).await?;
    let to = args.to.as_ref().map_or(&[][..], |list| &list.0);
    let Repeats { messages, of_others } = plan_replay(&broker, again, args.whose.as_ref().or(Some(me)), to).await?;
    if of_others > 0 {
        say(&format!("{of_others} messages of other senders are left out; --everybody takes them, too"));
    }
    for Repeat { of, .. } in messages.iter().filter(|repeat| repeat.deadline_dropped) {
        say(&format!("the start-by of {} has passed: it is sent without one", output::id_ref(*of)));
    }
    if args.dry_run {
        let drafts: Vec<_> = messages.iter().map(|repeat| &repeat.draft).collect();
        let members = Members::of(session, &loaded, Some(&broker), &drafts).await;
        drafts.iter().try_for_each(|draft| dry_run::print(session, &loaded, draft, &members))?;
        return Ok(ExitCode::Succeeded);
    }
    check_nodes(&broker, messages.iter().map(|repeat| &repeat.draft), args.new).await?;
    for (at, Repeat { of, draft, .. }) in messages.iter().enumerate() {
        let rest = |error: CliError| error.hint(not_sent(&messages[at..]));
        let sent = store(&broker, &loaded, draft).await.map_err(rest)?;
        for (to, sent) in &sent.stored {
            if session.format == Format::Json {
                let (stream, seq) = (sent.stream, sent.seq);
                output::print_json(&SentJson {
                    v: 1,
                    replay_of: of.seq,
                    id: &draft.id,
                    to: to.to_string(),
                    stream,
                    seq,
                })?;
            } else {
                let line = format!("{}  {}  {to}  again {}", draft.id, sent.id_ref(), output::id_ref(*of));
                writeln!(std::io::stdout().lock(), "{line}")?;
            }
        }
        if let Some(exit) = sent.failed {
            say(&not_sent(&messages[at..]));
            return Ok(exit);
        }
    }
    let ids: BTreeSet<&MessageId> = messages.iter().map(|repeat| &repeat.draft.id).collect();
    if let (Some(id), 1) = (ids.first(), ids.len()) {
        say(&format!("edgeward wait {id}"));
    }
    Ok(ExitCode::Succeeded)
}

fn again(args: &Args) -> Result<Again, CliError> {
    let since = args.since.map(|since| since.back(Timestamp::local_now()));
    Ok(match (&args.what, &args.failed, &args.file) {
        (Some(What::One(id)), ..) => Again::Call { id: id.clone(), since },
        (Some(What::Range { stream, first, last }), ..) => {
            Again::Range { stream: *stream, first: *first, last: *last, everybody: args.everybody }
        }
        (_, Some(id), _) => Again::Failed { id: id.clone(), since },
        (_, _, Some(file)) => Again::Messages(read_file(file)?),
        // The definition of the arguments leaves none of these over.
        _ => return Err(CliError::usage("say which: an ID, a range such as 42..60, --failed ID or --file FILE")),
    })
}

fn read_file(file: &Path) -> Result<Vec<crate::operator::Exported>, CliError> {
    let text = match file.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin().lock()),
        false => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
    read_export(&text).map_err(|error| CliError::usage(format!("{}: {error}", file.display())))
}

/// What was not sent, or not to all: the old messages by their names.
fn not_sent(rest: &[Repeat]) -> String {
    let name = |repeat: &Repeat| output::id_ref(repeat.of);
    match rest {
        [] => String::new(),
        [one] => format!("not sent again: {}", name(one)),
        [first, .., last] => format!("not sent again: {} messages, from {} to {}", rest.len(), name(first), name(last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_stored_sequences_of_one_stream() {
        let range = |stream, first, last| What::Range { stream, first: StreamSeq(first), last: StreamSeq(last) };
        assert_eq!("42..60".parse(), Ok(range(StreamKind::Commands, 42, 60)));
        assert_eq!("s42..60".parse(), Ok(range(StreamKind::Commands, 42, 60)));
        assert_eq!("e7..e7".parse(), Ok(range(StreamKind::Events, 7, 7)));
        assert!(matches!("restart-7".parse(), Ok(What::One(IdRef::Id(_)))));
        for (bad, word) in [
            ("60..42", "empty"),
            ("0..3", "empty"),
            ("42..", "no range"),
            ("..60", "no range"),
            ("42..e60", "another"),
            ("a..b", "no range"),
            ("42...60", "no range"),
            ("last..60", "no range"),
            ("42..99999999999999999999", "no range"),
        ] {
            let error = bad.parse::<What>().unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
