//! Orders about processes, and directives: given now and then, and to each agent that is to die over one.
//!
//! Owns the order task. A stop is followed by a start, so that what waits for it is worked off in the end.

use super::chaos::{Plan, Shared};
use super::dice::Dice;
use super::history::{At, Expect, Sent, Stream};
use super::load::{self, Ledger};
use super::options::Options;
use edgeward::broker::{Broker, Outgoing};
use edgeward::killpoint::Point;
use edgeward::model::header::RawHeaders;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Who gives them.
pub const CHIEF: &str = "chief";

/// What the agents do about failures by themselves: what takes nothing away, often.
pub const RULES: &str = "\
[[agent.errors]]
code = \"failed\"
process = \"shell\"
count = 2
window = \"1m\"
directive = \"restart\"

[agent.escalation]
restarts = 1000
stops = 1000
";

/// What is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// `stop`, and `start` a moment later.
    Pause,
    Restart,
    /// A directive that changes nothing.
    GoOn,
    /// The directive by which an agent ends.
    Leave,
}

/// An order for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Due {
    when: Duration,
    node: String,
    order: Order,
}

fn roll(options: &Options, plan: &Plan) -> Vec<Due> {
    let mut dice = Dice::new(options.seed, "orders");
    let nodes = options.node_names();
    let mut all: Vec<Due> = dice
        .moments(options.orders, options.duration())
        .into_iter()
        .map(|when| {
            let order =
                dice.pick(&[Order::Pause, Order::Pause, Order::Restart, Order::Restart, Order::GoOn, Order::Leave]);
            Due { when, node: dice.pick(&nodes), order }
        })
        .collect();
    if options.orders > 0 {
        // Those who are to die over one get one once they are up.
        for (node, kills) in nodes.iter().zip(&plan.agents) {
            for kill in kills {
                let order = match kill.at {
                    Some((Point::Obeyed, _)) => Order::Pause,
                    Some((Point::Left, _)) => Order::Leave,
                    _ => continue,
                };
                all.push(Due { when: kill.when + kill.down + dice.millis(300, 900), node: node.clone(), order });
            }
        }
    }
    all.sort_by_key(|due| due.when);
    all
}

/// Gives the orders, each at its time or as soon after it as the broker lets it.
pub async fn give(options: Options, plan: Plan, broker: Broker, shared: Shared, give_up: Instant, ledger: Ledger) {
    let mut number = 0;
    for Due { when, node, order } in roll(&options, &plan) {
        if !shared.wait(when).await {
            return;
        }
        let process = json!({ "process": "shell" });
        let words = match order {
            Order::Pause => vec![("stop", process.clone()), ("start", process)],
            Order::Restart => vec![("restart", process)],
            Order::GoOn | Order::Leave => match last_error(&broker, &node).await {
                Some(id) => {
                    let directive = if order == Order::Leave { "shutdown" } else { "continue" };
                    vec![("directive", json!({ "error": id, "directive": directive }))]
                }
                None => continue,
            },
        };
        for (at, (verb, body)) in words.into_iter().enumerate() {
            if at > 0 {
                sleep(Duration::from_millis(400)).await;
            }
            number += 1;
            let mut sent = load::sent(format!("o{number:06}"), CHIEF, &node);
            if verb == "directive" {
                sent.expect = Expect::Order;
            }
            sent.confirmed = store(&broker, &sent, verb, &body, give_up).await.into_iter().collect();
            ledger.lock().unwrap().push(sent);
        }
    }
}

async fn store(broker: &Broker, sent: &Sent, verb: &str, body: &Value, give_up: Instant) -> Option<At> {
    let Sent { id, from, to, .. } = sent;
    let headers = RawHeaders::default().with("Fleet-Id", id.as_str()).with("Nats-Msg-Id", format!("{from}.{id}.{to}"));
    let subject = format!("fleet.msg.{to}.control.{from}.{verb}");
    let message = Outgoing { subject, headers, body: body.to_string().into() };
    let at = load::publish(broker, &message, give_up).await;
    at.filter(|at| at.stream == Stream::Commands)
}

/// The last error event of a node that it has told itself, of a kind that comes often.
async fn last_error(broker: &Broker, node: &str) -> Option<String> {
    let found = broker.get_last("FLEET_ERRORS", &format!("fleet.error.{node}.warning.failed")).await.ok()??;
    let event: Value = serde_json::from_slice(&found.body).ok()?;
    event["id"].as_str().map(str::to_owned)
}
