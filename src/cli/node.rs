//! `edgeward node`: the groups of one node, to see or to set.
//!
//! What is set is a wish in the node's `spec`; the hub carries it out, for a node that is away as well.

use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::session::Session;
use super::{say, sending};
use crate::model::name::{GroupName, NodeName, Sender};
use crate::model::node::{Membership, Spec, Starts};
use crate::operator::{node, want_groups};

/// Arguments of `node`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node.
    #[arg(value_name = "NODE")]
    node: NodeName,
    /// Have it be a member of these groups and no others, `web,db`; '' for none. Needs an admin's rights.
    #[arg(long, value_name = "GROUPS", value_parser = groups)]
    groups: Option<Groups>,
    /// Who asks, where the credentials do not tell.
    #[arg(long, value_name = "NAME")]
    from: Option<Sender>,
}

#[derive(Debug, Clone)]
struct Groups(Vec<GroupName>);

fn groups(text: &str) -> Result<Groups, String> {
    let mut all = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let name = name.strip_prefix('@').unwrap_or(name);
        let group: GroupName = name.parse().map_err(|bad: crate::model::name::BadName| bad.to_string())?;
        if group == GroupName::all() {
            return Err("every node is in `@all`".to_owned());
        }
        if !all.contains(&group) {
            all.push(group);
        }
    }
    all.sort();
    Ok(Groups(all))
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(args.from.as_ref())?;
    let broker = session.connect(&loaded).await?;
    sending::known(&broker, std::slice::from_ref(&args.node)).await?;
    let spec = match &args.groups {
        Some(Groups(wanted)) => want_groups(&broker, &args.node, wanted).await?,
        None => node(&broker, &args.node).await?.spec,
    };
    let spec = spec.ok_or_else(|| CliError::usage(format!("the hub has not taken `{}` in", args.node)))?;
    if session.format == Format::Json {
        output::print_json(&spec)?;
        return Ok(ExitCode::Succeeded);
    }
    if args.groups.is_some() {
        say(&format!("{} is to be in: {}; the hub sees to it", args.node, wanted(&spec)));
        return Ok(ExitCode::Succeeded);
    }
    let mut table = output::table(&["GROUP", "STATE", "COMMANDS", "EVENTS"]);
    for membership in &spec.groups {
        table.add_row(cells(membership));
    }
    output::print_table(&table)?;
    Ok(ExitCode::Succeeded)
}

fn wanted(spec: &Spec) -> String {
    let names = spec.want_groups.as_deref().unwrap_or_default();
    if names.is_empty() { "no group".to_owned() } else { names.join(", ") }
}

fn cells(membership: &Membership) -> [String; 4] {
    let Membership { name, join, leave, pending } = membership;
    let state = match (pending, join.events, leave.events) {
        (Some(_), None, _) => "joining",
        (Some(_), _, None) => "leaving",
        (None, _, None) => "member",
        (_, _, Some(_)) => "left",
    };
    let stretch = |of: fn(&Starts) -> Option<crate::model::id::StreamSeq>| {
        let text = |marks| of(marks).map(|seq| seq.to_string()).unwrap_or_default();
        format!("{}–{}", text(join), text(leave))
    };
    [format!("@{name}"), state.to_owned(), stretch(|s| s.commands), stretch(|s| s.events)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_names_with_or_without_their_sign() {
        let names =
            |text: &str| groups(text).map(|Groups(all)| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names("web, @db,web").unwrap(), ["db", "web"]);
        assert!(names("").unwrap().is_empty());
        assert!(names("all").is_err() && names("a.b").is_err());
    }
}
