//! `edgeward result`: what a command wrote, all of it, as `run` would have shown it; with `--follow` also what it goes on to
//! write.

use super::args::IdArgs;
use super::error::CliError;
use super::exit::ExitCode;
use super::live::{Live, show_end};
use super::session::{Session, Watched};
use super::watching::{End, Patience, tell_end, wait_for};
use crate::model::name::NodeName;
use crate::model::state::State;
use crate::operator::{Outputs, Watch};

/// Arguments of `result`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    id: IdArgs,
    /// Only of this node; its output is written as it is.
    #[arg(value_name = "NODE")]
    node: Option<NodeName>,
    /// Go on with what is written, until the command is over.
    #[arg(long)]
    follow: bool,
}

/// Carries it out.
pub(super) async fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let Watched { broker, call, mut watch } = session.watch(&args.id.id, &args.id.search).await?;
    let wanted = |node: &str| args.node.as_ref().is_none_or(|only| only.as_str() == node);
    let count = watch.view().rows().filter(|row| wanted(&row.node)).count();
    if count == 0 {
        let node = args.node.as_ref().map(ToString::to_string).unwrap_or_default();
        return Err(CliError::usage(format!("the message `{}` did not go to `{node}`", args.id.id)));
    }
    let many = count > 1;
    let short = if args.follow {
        let outputs = Outputs::open(&broker, &call.from, &call.id).await?;
        follow(&mut watch, Live::new(outputs, session.format, many).with_past(args.node.clone()), many).await?
    } else {
        let outputs = Outputs::of(&broker, &call.from, &call.id);
        let mut live = Live::new(outputs, session.format, many);
        for row in watch.view().rows().filter(|row| wanted(&row.node)) {
            live.show_stored(&row).await?;
            show_end(&row, &watch, session.format, many)?;
        }
        live.shortfall()
    };
    let states = watch.view().rows().filter(|row| wanted(&row.node)).map(|row| row.state);
    Ok(ExitCode::of_several(states.chain(short)))
}

/// Shows what is there and what comes until all is over; gives what is to count besides the states.
async fn follow(watch: &mut Watch, mut live: Live, many: bool) -> Result<Option<State>, CliError> {
    let format = live.format();
    let patience = Patience { wait: None, leave_silent: false };
    let end = wait_for(watch, patience, Some(&mut live), |row, watch| show_end(row, watch, format, many)).await?;
    live.flush()?;
    if end == End::Detached {
        tell_end(end, watch);
        live.tell_end(end, watch);
    }
    Ok(live.shortfall())
}
