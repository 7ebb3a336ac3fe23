//! The command line: one file and one variant per verb.
//!
//! Owns what is printed, and exit codes. Never speaks to the broker itself; the operator's library does.

mod agent;
mod args;
mod cancel;
mod completions;
pub mod config;
mod config_verb;
mod context;
pub mod demo;
mod doctor;
mod dry_run;
pub mod error;
mod errors;
pub mod exit;
mod history;
mod hub;
mod init;
mod live;
mod local;
pub mod log;
mod message;
mod node;
mod nodes;
mod onlooker;
mod output;
mod progress;
mod ps;
mod quote;
mod replay;
mod result;
mod run;
mod runner;
mod send;
mod sending;
mod service;
mod session;
mod status;
pub mod up;
mod wait;
mod watching;
mod why;

use clap::error::ContextKind;
use clap::{CommandFactory, Parser, Subcommand};
use config::GlobalArgs;
use error::CliError;
use exit::ExitCode;
use std::ffi::OsString;
use std::io::Write;

/// Commands and events for machines that are not always reachable, on NATS JetStream.
#[derive(Debug, Parser)]
#[command(name = "edgeward", version, max_term_width = 120, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    /// How results are written.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    output: output::Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the main job on a broker of its own.
    Demo(demo::Args),
    /// Bring up nats-server, hub and an agent on this machine.
    Up(up::Args),
    /// Run messages on this node, as a service.
    Agent(agent::Args),
    /// Make streams and nodes, and answer for what no node can, as a service.
    Hub(hub::Args),
    /// Make or upgrade the streams.
    Init(init::Args),
    /// Send a message, wait, and show what became of it.
    Run(run::Args),
    /// Send a message and come back as soon as it is stored.
    Send(send::Args),
    /// Show what became of a message.
    Status(status::Args),
    /// Wait until a message is done.
    Wait(wait::Args),
    /// Show a message's way and what it waits for.
    Why(why::Args),
    /// Ask that messages do not begin, or stop.
    Cancel(cancel::Args),
    /// Show what a command wrote.
    Result(result::Args),
    /// List the nodes.
    Nodes(nodes::Args),
    /// Show a node in detail, or set its groups.
    Node(node::Args),
    /// List a node's processes, or stop, start and restart them.
    Ps(ps::Args),
    /// List messages of the past and what became of them.
    History(history::Args),
    /// Send messages of the past again.
    Replay(replay::Args),
    /// List failures, or follow them.
    Errors(errors::Args),
    /// Show how this machine's node is, without a link.
    Local(local::Args),
    /// Check this machine, its configuration, its broker and its rights; say what to mend.
    Doctor(doctor::Args),
    /// Check or show the configuration.
    Config(config_verb::Args),
    /// Run an agent's commands; started by the agent.
    #[command(hide = true)]
    Runner(runner::Args),
    /// Write a shell's completion script.
    Completions(completions::Args),
}

/// Reads the command line; the error is the exit code, everything being said already.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, u8> {
    let args: Vec<OsString> = args.into_iter().collect();
    Cli::try_parse_from(&args).map_err(|mut error| {
        let hint = message::quote_hint(&error, &args);
        if hint.is_some() {
            // Its own tip, `-- -a`, leads to another mistake.
            error.remove(ContextKind::Suggested);
        }
        // Where even this cannot be written, the exit code still tells.
        let _ = error.print();
        if let Some(hint) = hint {
            say(&format!("hint: {hint}"));
        }
        u8::try_from(error.exit_code()).unwrap_or(2)
    })
}

impl Cli {
    /// What is logged where `EDGEWARD_LOG` says nothing. The client library's own lines say each thing once more; a verb
    /// tells by its end what was wrong with the connection.
    pub fn default_log(&self) -> &'static str {
        match self.verb {
            Verb::Agent(_) | Verb::Hub(_) | Verb::Runner(_) => "info,async_nats=off",
            _ => "warn,async_nats=off,edgeward::broker::connect=off",
        }
    }

    /// Carries out the verb; everything is said when it returns.
    pub async fn run(self) -> ExitCode {
        match self.dispatch().await {
            Ok(exit) => exit,
            Err(error) => {
                let _ = std::io::stderr().lock().write_all(error.text().as_bytes());
                error.exit
            }
        }
    }

    async fn dispatch(self) -> Result<ExitCode, CliError> {
        let session = session::Session::new(self.global, self.output);
        match self.verb {
            Verb::Demo(args) => demo::verb(&session, &args).await,
            Verb::Up(args) => up::verb(&session, &args).await,
            Verb::Agent(args) => agent::run(&session, &args).await,
            Verb::Hub(args) => hub::run(&session, &args).await,
            Verb::Init(args) => init::run(&session, &args).await,
            Verb::Run(args) => run::run(&session, &args).await,
            Verb::Send(args) => send::run(&session, &args).await,
            Verb::Status(args) => status::run(&session, &args).await,
            Verb::Wait(args) => wait::run(&session, &args).await,
            Verb::Why(args) => why::run(&session, &args).await,
            Verb::Cancel(args) => cancel::run(&session, &args).await,
            Verb::Result(args) => result::run(&session, &args).await,
            Verb::Nodes(args) => nodes::run(&session, &args).await,
            Verb::Node(args) => node::run(&session, &args).await,
            Verb::Ps(args) => ps::run(&session, &args).await,
            Verb::History(args) => history::run(&session, &args).await,
            Verb::Replay(args) => replay::run(&session, &args).await,
            Verb::Errors(args) => errors::run(&session, &args).await,
            Verb::Doctor(args) => doctor::run(&session, &args).await,
            Verb::Local(args) => local::run(&session, &args),
            Verb::Runner(args) => runner::run(&args).await,
            Verb::Config(args) => config_verb::run(&session, &args),
            Verb::Completions(args) => completions::run(&args, Cli::command()),
        }
    }
}

/// One line of talk, on stderr. Talk that nobody reads is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", output::plain(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds() {
        Cli::command().debug_assert();
    }

    fn exit_of(line: &[&str]) -> u8 {
        parse(line.iter().map(OsString::from)).map_or_else(|code| code, |_| 0)
    }

    #[test]
    fn verbs_read_as_documented() {
        for line in [
            &["edgeward", "run", "ship1,@web", "uname -a"][..],
            &["edgeward", "run", "ship1", "--", "ls", "-l", "/srv"],
            &["edgeward", "send", "ship1", "-m", "log", "--lane", "audit", "text"],
            &["edgeward", "send", "ship1", "-"],
            &["edgeward", "send", "-l", "role=web,env!=prod", "uname -a"],
            &["edgeward", "result", "42", "ship1", "--follow"],
            &["edgeward", "send", "--file", "messages.json"],
            &["edgeward", "wait", "42", "--for", "5m"],
            &["edgeward", "cancel", "42", "--dry-run"],
            &["edgeward", "cancel", "--last"],
            &["edgeward", "cancel", "--mine", "--since", "10m"],
            &["edgeward", "cancel", "--node", "ship1", "--queued", "--from", "bob"],
            &["edgeward", "status", "-o", "json", "last", "--server", "nats://127.0.0.1:4222"],
            &["edgeward", "errors", "--follow", "--since", "1h"],
            &["edgeward", "why", "42", "ship1"],
            &["edgeward", "nodes", "ship*", "--silent", "--label", "site=north", "--watch"],
            &["edgeward", "history", "--state", "failed,open", "--since", "2026-11-23", "--until", "1h", "--grep", "x"],
            &["edgeward", "replay", "42..60", "--to", "ship2", "--dry-run"],
            &["edgeward", "replay", "--failed", "last"],
            &["edgeward", "ps", "ship1"],
            &["edgeward", "ps", "restart", "ship1", "shell", "--wait", "10s"],
            &["edgeward", "ps", "stop", "ship1", "*"],
        ] {
            assert_eq!(exit_of(line), 0, "{line:?}");
        }
        for line in [
            &["edgeward", "run", "-l", "role", "x"][..],
            &["edgeward", "run", "ship1", "uname", "-a"],
            &["edgeward", "wait", "4 2"],
            &["edgeward", "run", "ship1", "x", "--timeout", "5"],
            &["edgeward", "cancel"],
            &["edgeward", "cancel", "--mine"],
            &["edgeward", "cancel", "--queued"],
            &["edgeward", "cancel", "--node", "ship1"],
            &["edgeward", "cancel", "42", "--last"],
            &["edgeward", "send", "ship1", "x", "--file", "f"],
            &["edgeward", "run", "ship1", "x", "--id", "s42"],
            &["edgeward", "nodes", "a.b"],
            &["edgeward", "nodes", "--label", "site"],
            &["edgeward", "history", "--since", "yesterday"],
            &["edgeward", "history", "--state", "lost"],
            &["edgeward", "history", "--export", "a", "--export", "b"],
            &["edgeward", "replay"],
            &["edgeward", "replay", "60..42"],
            &["edgeward", "replay", "42", "--failed", "43"],
            &["edgeward", "replay", "--file", "a", "--file", "b"],
            &["edgeward", "errors", "--since", "5"],
            &["edgeward", "ps"],
            &["edgeward", "ps", "stop", "ship1"],
            &["edgeward", "ps", "stop", "ship1", "she.ll"],
        ] {
            assert_eq!(exit_of(line), 2, "{line:?}");
        }
    }
}
