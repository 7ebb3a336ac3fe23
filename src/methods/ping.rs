//! `ping` (command): versions and times, as one line of JSON on stdout.
//!
//! Owns the answer's shape. Takes no body, runs nothing, waits for nothing.

use super::{Context, Handler, NodeFacts, Work};
use crate::model::admit::{Admitted, BodyFacts, MethodFacts};
use crate::model::error_event::Code;
use crate::model::message::Kind;
use crate::model::name::NodeName;
use crate::model::record::{Outcome, Output, RecordError};
use crate::model::state::State;
use crate::model::time::Timestamp;
use futures::future::{BoxFuture, FutureExt};
use serde::Serialize;

/// The method.
pub(super) struct Ping;

/// The answer. Times are RFC 3339 UTC with nine decimals.
#[derive(Serialize)]
struct Pong<'a> {
    /// The version of edgeward on the node.
    version: &'static str,
    node: &'a NodeName,
    /// Null while there is no connection.
    broker_version: Option<String>,
    /// When the agent started, by the node's own clock.
    started_at: Timestamp,
    /// The node's own clock.
    now: Timestamp,
    /// The broker's clock, as the node keeps it.
    broker_now: Timestamp,
    /// When the broker stored the message.
    stored_at: Timestamp,
}

impl Handler for Ping {
    fn name(&self) -> &'static str {
        "ping"
    }

    fn facts(&self) -> MethodFacts {
        MethodFacts { kind: Kind::Command, check }
    }

    fn at_once(&self, message: &Admitted, node: &NodeName, facts: &dyn NodeFacts) -> Option<Outcome> {
        Some(answer(message, node, facts))
    }

    fn run<'a>(&'a self, work: &'a Work, cx: &'a Context) -> BoxFuture<'a, Outcome> {
        std::future::ready(answer(&work.message, &cx.node, cx.facts.as_ref())).boxed()
    }
}

fn check(body: &[u8]) -> Result<BodyFacts, RecordError> {
    if body.is_empty() {
        return Ok(BodyFacts::default());
    }
    Err(RecordError::new(Code::BadBody, format!("`ping` takes no body, this one has {} bytes", body.len())))
}

fn answer(message: &Admitted, node: &NodeName, facts: &dyn NodeFacts) -> Outcome {
    let pong = Pong {
        version: env!("CARGO_PKG_VERSION"),
        node,
        broker_version: facts.broker_version(),
        started_at: facts.started_at(),
        now: Timestamp::local_now(),
        broker_now: facts.broker_now(),
        stored_at: message.at.stored_at,
    };
    match serde_json::to_string(&pong) {
        Ok(line) => Outcome { stdout: Output::whole(line + "\n"), ..Outcome::succeeded() },
        Err(error) => Outcome::ended(State::Failed, Code::Failed, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Node, text, work};
    use super::*;

    #[tokio::test]
    async fn the_answer_is_one_line_of_versions_and_times() {
        let outcome = Ping.run(&work("ping", ""), &Node::new().cx).await;
        assert_eq!(outcome.state, State::Succeeded);
        let line = text(&outcome.stdout);
        assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line}");
        let mut pong: serde_json::Value = serde_json::from_str(&line).unwrap();
        let now: Timestamp = pong["now"].take().as_str().unwrap().parse().unwrap();
        assert!(Timestamp::local_now().since(now) < std::time::Duration::from_secs(20));
        let wanted = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": "n1",
            "broker_version": "2.15.1",
            "started_at": "1970-01-01T00:00:00.000000001Z",
            "now": null,
            "broker_now": "1970-01-01T00:00:00.000000002Z",
            "stored_at": "2023-11-14T22:13:20.000000001Z",
        });
        assert_eq!(pong, wanted);
    }

    #[test]
    fn a_body_is_refused() {
        assert!(check(b"").is_ok());
        assert_eq!(check(b" ").unwrap_err().code, Code::BadBody);
    }
}
