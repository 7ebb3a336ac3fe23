//! `edgeward doctor`: is everything here as it has to be, and what is to be mended.
//!
//! Owns the list of findings and the exit code: 1 where anything is wrong. It changes nothing, here or at the broker: rights
//! to publish are tried with a condition that the broker cannot meet.

mod broker;
mod host;

use super::config::{Loaded, Scope};
use super::config_verb::check_files;
use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::service;
use super::session::Session;
use crate::model::name::{NodeName, Sender};
use crate::model::policy::Policy;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Look as this node (default: as the operator who asks, where that is known; else the configured node, or the first
    /// label of the host's name).
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Where the node's journal is (default: /var/lib/edgeward, or below $XDG_STATE_HOME).
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The policy that the agent is started with (default: policy.toml beside the config file).
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Look as this operator.
    #[arg(long, value_name = "NAME", conflicts_with = "node")]
    from: Option<Sender>,
}

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it has to be.
    Ok,
    /// It works, and somebody should know.
    Note,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    v: u32,
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    mend: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { v: 1, check, verdict: Verdict::Ok, found: found.into(), mend: None }
    }

    fn note(check: &'static str, found: impl Into<String>, mend: &str) -> Finding {
        Finding { verdict: Verdict::Note, mend: Some(mend.to_owned()), ..Finding::ok(check, found) }
    }

    fn bad(check: &'static str, found: impl Into<String>, mend: &str) -> Finding {
        Finding { verdict: Verdict::Bad, mend: Some(mend.to_owned()), ..Finding::ok(check, found) }
    }
}

/// As whom it is looked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Node(NodeName),
    Operator(Sender),
}

impl Who {
    fn name(&self) -> &str {
        match self {
            Who::Node(node) => node.as_str(),
            Who::Operator(sender) => sender.as_str(),
        }
    }
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let mut findings = Vec::new();
    match Loaded::load(&session.global, args.from.as_ref(), &session.env, Scope::Operator) {
        Ok(loaded) => {
            findings.extend(config(&loaded, args.policy.as_deref()));
            let folder = service::state_dir(args.state_dir.as_deref(), session, &loaded)?;
            let who = who(&loaded, args)?;
            findings.extend(host::look_at(&folder, loaded.config.agent.journal_bytes));
            findings.extend(broker::look(&loaded, &who).await);
        }
        Err(error) => findings.push(Finding::bad("config", error.message, "`edgeward config check` shows the place")),
    }
    for finding in &findings {
        match session.format {
            Format::Json => output::print_json(finding)?,
            Format::Table => print(finding)?,
        }
    }
    let is_bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if is_bad { ExitCode::Failed } else { ExitCode::Succeeded })
}

fn print(finding: &Finding) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Bad => "BAD",
    };
    writeln!(out, "{verdict:<4}  {:<8}  {}", finding.check, finding.found)?;
    match &finding.mend {
        Some(mend) => writeln!(out, "                {mend}"),
        None => Ok(()),
    }
}

fn who(loaded: &Loaded, args: &Args) -> Result<Who, CliError> {
    let configured = loaded.config.node.clone().filter(|_| loaded.config.from.is_none());
    match (args.node.clone().or(configured), &loaded.from) {
        (Some(node), _) => Ok(Who::Node(node)),
        (None, Some(from)) => Ok(Who::Operator(from.clone())),
        (None, None) => Ok(Who::Node(service::host_label()?)),
    }
}

/// The configuration, the files that it names, and the policy.
fn config(loaded: &Loaded, policy: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![match check_files(&loaded.config, loaded.file.as_deref()) {
        Ok(_) => {
            let file = loaded.file.as_ref().map(|file| file.display().to_string());
            Finding::ok("config", file.unwrap_or_else(|| "no file; defaults and environment".to_owned()))
        }
        Err(error) => Finding::bad("config", error.message, "mend the file, or what names it"),
    }];
    if loaded.config.insecure && !loaded.config.has_credentials() {
        findings.push(Finding::note(
            "config",
            "insecure: whoever reaches the broker commands its nodes",
            "give nodes, hub and operators credentials, and take `insecure` away",
        ));
    }
    let policy = policy.or(loaded.config.agent.policy.as_deref());
    findings.push(match service::read_policy(policy, loaded) {
        Ok(Policy::Rules(rules)) => Finding::ok("policy", output::counted(rules.len(), "rule")),
        Ok(Policy::Open) => Finding::ok("policy", "no file and no credentials: a node here accepts everything"),
        Ok(Policy::HubOnly) => Finding::note(
            "policy",
            "no file, but credentials: a node here accepts nothing but the hub's own verbs",
            "write policy.toml beside edgeward.toml; deploy/policy.toml is a sample",
        ),
        Err(error) => Finding::bad("policy", error.message, "an agent does not start with it"),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_cannot_be_read_is_bad_and_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut loaded = Loaded::default();
        loaded.file = Some(dir.path().join("edgeward.toml"));
        assert!(config(&loaded, None).iter().all(|finding| finding.verdict == Verdict::Ok));
        loaded.config.creds = Some(dir.path().join("ship1.creds"));
        let found = config(&loaded, None);
        assert_eq!((found[0].verdict, found[1].verdict), (Verdict::Bad, Verdict::Note), "{found:?}");
        std::fs::write(dir.path().join("policy.toml"), "[[allow]]\nsenders = 7\n").unwrap();
        let found = config(&loaded, None);
        assert!(found[1].verdict == Verdict::Bad && found[1].found.contains("line 2"), "{found:?}");
        let given = dir.path().join("given.toml");
        std::fs::write(&given, "[[allow]]\nsenders = [\"*\"]\nkinds = [\"*\"]\nmethods = [\"*\"]\n").unwrap();
        assert_eq!(config(&loaded, Some(&given))[1].verdict, Verdict::Ok, "the one that the agent is started with");
        loaded.config.insecure = true;
        loaded.config.creds = None;
        assert!(config(&loaded, None).iter().any(|finding| finding.found.contains("insecure")));
    }
}
