//! `edgeward nodes`: every node, with the age of what is known.

use super::error::CliError;
use super::exit::ExitCode;
use super::onlooker::Onlooker;
use super::output::{self, Format};
use super::say;
use super::session::Session;
use crate::model::name::{Sender, near};
use crate::model::node::{Contact, Spec, Status};
use crate::model::pattern::Pattern;
use crate::model::time::{Timestamp, rough};
use crate::operator::{NodeFacts, NodeFilter, NodeList};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// A node's clock that is off by more is worth a word.
const CLOCK_OFF: Duration = Duration::from_secs(5);

/// Takes away what a terminal shows, and goes to its upper left.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

/// Arguments of `nodes`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only nodes of these names; `*` and `?` as in a shell, so quote them.
    #[arg(value_name = "NAME")]
    names: Vec<Pattern>,
    /// Only nodes that were lost sight of, or never heard; not those that stopped cleanly.
    #[arg(long)]
    silent: bool,
    /// Only nodes that stopped cleanly; with --silent both.
    #[arg(long)]
    stopped: bool,
    /// Only nodes with this label; given several times, with all of them.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// The order.
    #[arg(long, value_name = "BY", default_value = "name")]
    sort: Order,
    /// Go on showing it as it changes, until Ctrl-C.
    #[arg(short, long)]
    watch: bool,
    /// Who asks, where the credentials do not tell.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Order {
    /// By name.
    Name,
    /// Who was heard longest ago first.
    Heard,
    /// Who has most waiting first.
    Waiting,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    v: u32,
    node: &'a str,
    contact: Contact,
    heard_at: Option<Timestamp>,
    hello_at: Option<Timestamp>,
    status: Option<&'a Status>,
    spec: Option<&'a Spec>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is not of the form KEY=VALUE".to_owned()),
    }
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    let mut list = NodeList::open(&broker, args.watch).await?;
    check_names(args, &list)?;
    let filter = filter(args);
    if !args.watch {
        let wanted = wanted(&list, &filter, args.sort);
        match session.format {
            Format::Json => wanted.iter().try_for_each(|(node, facts)| print_one(node, facts, list.now()))?,
            Format::Table => output::print_table(&table(&wanted, list.now()))?,
        }
        if wanted.is_empty() && !list.nodes().is_empty() {
            say(&format!("none of {} nodes is of this kind", list.nodes().len()));
        }
        return Ok(ExitCode::Succeeded);
    }
    let mut onlooker = Onlooker::new()?;
    let mut shown = Shown::default();
    loop {
        let wanted = wanted(&list, &filter, args.sort);
        match session.format {
            Format::Table if std::io::stdout().is_terminal() => {
                write!(std::io::stdout().lock(), "{CLEAR_SCREEN}")?;
                output::print_table(&table(&wanted, list.now()))?;
            }
            format => shown.print_changed(&wanted, list.now(), format)?,
        }
        tokio::select! {
            changed = list.changed() => changed?,
            enough = onlooker.has_seen_enough() => return enough.map(|()| ExitCode::Succeeded),
        }
    }
}

/// A name without a wildcard that is no node is a mistake, not an empty list.
fn check_names(args: &Args, list: &NodeList) -> Result<(), CliError> {
    let is_known = |pattern: &&Pattern| pattern.is_wild() || list.nodes().contains_key(pattern.as_str());
    let Some(unknown) = args.names.iter().find(|pattern| !is_known(pattern)) else { return Ok(()) };
    let error = CliError::usage(format!("`{}` was never seen", unknown.as_str()));
    let near = near(unknown.as_str(), list.nodes().keys().map(String::as_str));
    Err(if near.is_empty() { error } else { error.hint(format!("near `{}`: {}", unknown.as_str(), near.join(", "))) })
}

fn filter(args: &Args) -> NodeFilter {
    let mut contacts = Vec::new();
    if args.silent {
        contacts.extend([Contact::Silent, Contact::Never]);
    }
    if args.stopped {
        contacts.push(Contact::Stopped);
    }
    NodeFilter { names: args.names.clone(), contacts, labels: args.label.clone() }
}

type Wanted<'a> = Vec<(&'a str, &'a NodeFacts)>;

fn wanted<'a>(list: &'a NodeList, filter: &NodeFilter, order: Order) -> Wanted<'a> {
    let all = list.nodes().iter().map(|(node, facts)| (node.as_str(), facts));
    let mut wanted: Wanted<'_> = all.filter(|(node, facts)| filter.wants(node, facts, list.now())).collect();
    match order {
        Order::Name => {}
        Order::Heard => wanted.sort_by_key(|(_, facts)| facts.heard_at()),
        Order::Waiting => wanted.sort_by_key(|(_, facts)| std::cmp::Reverse(waiting(facts))),
    }
    wanted
}

/// What was said of each node already, for a reader that is no terminal.
#[derive(Default)]
struct Shown(HashMap<String, (Contact, String)>);

impl Shown {
    /// Prints the nodes that are new, whose contact changed, or of which something else is to be noted.
    fn print_changed(&mut self, wanted: &Wanted<'_>, now: Timestamp, format: Format) -> Result<(), CliError> {
        let mut changed = Wanted::new();
        for (node, facts) in wanted {
            let said = (facts.contact(now), notes(facts));
            if self.0.get(*node) != Some(&said) {
                self.0.insert((*node).to_owned(), said);
                changed.push((node, facts));
            }
        }
        // Who is not of the kind any more is new when it is again.
        let names: HashSet<&str> = wanted.iter().map(|(node, _)| *node).collect();
        self.0.retain(|node, _| names.contains(node.as_str()));
        for (node, facts) in changed {
            match format {
                Format::Json => print_one(node, facts, now)?,
                Format::Table => output::print_line(&cells(node, facts, now).join("  "))?,
            }
        }
        Ok(())
    }
}

fn print_one(node: &str, facts: &NodeFacts, now: Timestamp) -> Result<(), CliError> {
    let (contact, heard_at, hello_at) = (facts.contact(now), facts.heard_at(), facts.hello_at);
    let (status, spec) = (facts.status.as_ref().map(|(status, _)| status), facts.spec.as_ref());
    Ok(output::print_json(&NodeJson { v: 1, node, contact, heard_at, hello_at, status, spec })?)
}

fn table(wanted: &Wanted<'_>, now: Timestamp) -> comfy_table::Table {
    let mut table = output::table(&["NODE", "CONTACT", "HEARD", "WAITING", "OUTBOX", "CLOCK", "VERSION", "NOTES"]);
    for (node, facts) in wanted {
        table.add_row(cells(node, facts, now));
    }
    table
}

/// Messages in the lanes of a node, running ones too.
pub(super) fn waiting(facts: &NodeFacts) -> Option<u64> {
    let (status, _) = facts.status.as_ref()?;
    status.depth.or_else(|| status.depth_told())
}

fn cells(node: &str, facts: &NodeFacts, now: Timestamp) -> [String; 8] {
    let status = facts.status.as_ref().map(|(status, _)| status);
    let heard = facts.heard_at().map(|at| format!("{} ago", output::age(at, now))).unwrap_or_default();
    let contact = match facts.contact(now) {
        Contact::InContact => "in contact",
        Contact::Stopped => "stopped",
        Contact::Silent => "unknown since",
        Contact::Never => "never heard",
    };
    let number = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
    let version = status.and_then(|s| s.version.clone()).unwrap_or_default();
    let outbox = number(status.and_then(|s| s.outbox));
    let clock = status.and_then(|s| s.clock_offset_ms).map(offset).unwrap_or_default();
    let waiting = number(waiting(facts));
    [node.to_owned(), contact.to_owned(), heard, waiting, outbox, clock, version, notes(facts)]
}

/// How far a node's clock is from the broker's: `+12 ms` where it is ahead of it.
pub(super) fn offset(broker_minus_node_ms: i64) -> String {
    let sign = if broker_minus_node_ms > 0 { '-' } else { '+' };
    match broker_minus_node_ms.unsigned_abs() {
        0 => "0 ms".to_owned(),
        ms if ms < 10_000 => format!("{sign}{ms} ms"),
        ms => format!("{sign}{}", rough(Duration::from_millis(ms))),
    }
}

pub(super) fn notes(facts: &NodeFacts) -> String {
    let status = facts.status.as_ref().map(|(status, _)| status);
    let mut notes = Vec::new();
    if status.and_then(|s| s.insecure) == Some(true) {
        notes.push("insecure".to_owned());
    }
    if let Some(error) = status.and_then(|s| s.journal_error.as_ref()) {
        notes.push(error.clone());
    }
    if let Some(off) = status.and_then(|s| s.clock_offset_ms).map(|ms| Duration::from_millis(ms.unsigned_abs()))
        && off > CLOCK_OFF
    {
        notes.push(format!("clock off by {}", rough(off)));
    }
    if facts.spec.is_none() {
        notes.push("the hub has not taken it in".to_owned());
    }
    notes.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_told_with_their_direction() {
        let told = [0, -12, 250, 90_000, -3 * 86_400_000].map(offset);
        assert_eq!(told, ["0 ms", "+12 ms", "-250 ms", "-90 s", "+3 d"]);
    }

    #[test]
    fn a_label_is_a_key_and_a_value() {
        assert_eq!(label("site=north=1"), Ok(("site".to_owned(), "north=1".to_owned())));
        assert!(label("site").is_err() && label("=x").is_err());
    }
}
