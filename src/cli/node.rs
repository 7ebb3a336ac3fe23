//! `edgeward node`: one node in detail, or its groups to set.
//!
//! What is set is a wish in the node's `spec`; the hub carries it out, for a node that is away as well.

mod detail;

use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::session::Session;
use super::{say, sending};
use crate::model::name::{GroupName, NodeName, Sender};
use crate::model::node::Spec;
use crate::operator::want_groups;

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
    let Some(Groups(groups)) = &args.groups else { return detail::show(&broker, &args.node, session.format).await };
    let spec = want_groups(&broker, &args.node, groups).await?;
    let spec = spec.ok_or_else(|| CliError::usage(format!("the hub has not taken `{}` in", args.node)))?;
    match session.format {
        Format::Json => output::print_json(&spec)?,
        Format::Table => say(&format!("{} is to be in: {}; the hub sees to it", args.node, wanted(&spec))),
    }
    Ok(ExitCode::Succeeded)
}

fn wanted(spec: &Spec) -> String {
    let names = spec.want_groups.as_deref().unwrap_or_default();
    if names.is_empty() { "no group".to_owned() } else { names.join(", ") }
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
