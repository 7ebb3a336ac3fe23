//! The broker: is it there and new enough, does it have what edgeward needs, and may this user do what is his.

use super::super::config::Loaded;
use super::super::error::CliError;
use super::super::output::counted;
use super::{Finding, Who};
use crate::broker::{Broker, BrokerError, ConnectOptions, Outgoing, PublishError, topology, without_password};
use crate::model::message::StreamKind;
use crate::model::rights::{inbox, node as node_rights};
use crate::model::subject::{NodeKey, RecordStream};
use crate::model::time::{Timestamp, rough};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// How long the broker may take.
const WITHIN: Duration = Duration::from_secs(5);

/// A clock that is off by more is worth a word.
const CLOCK_OFF: Duration = Duration::from_secs(5);

/// No stream has come so far: what is published on this condition is never stored.
const NEVER: u64 = i64::MAX as u64;

/// What many answers of the API tell.
#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    ts: Option<Timestamp>,
}

/// Looks at the broker as `who`.
pub(super) async fn look(loaded: &Loaded, who: &Who) -> Vec<Finding> {
    let broker = match connect(loaded, who).await {
        Ok(broker) => broker,
        Err(error) => {
            let mend = error.hints.first().cloned();
            let bad = Finding::bad(
                "broker",
                error.message,
                "is it running, and are `server` and the credentials (`creds`, `nkey`) right?",
            );
            return vec![Finding { mend: mend.or(bad.mend.clone()), ..bad }];
        }
    };
    let version = broker.server_version().unwrap_or_default();
    let servers: Vec<String> = loaded.config.server.iter().map(|server| without_password(server)).collect();
    let mut findings = vec![Finding::ok("broker", format!("nats-server {version} at {}", servers.join(", ")))];
    findings.push(streams(&broker, loaded, who).await);
    findings.extend(clock(&broker, who).await);
    findings.extend(match who {
        Who::Node(_) => node(&broker, who).await,
        Who::Operator(_) => operator(&broker, who).await,
    });
    findings
}

async fn connect(loaded: &Loaded, who: &Who) -> Result<Broker, CliError> {
    let options = loaded.connect_options("edgeward doctor")?;
    let identity = loaded.config.has_credentials().then(|| who.name().to_owned());
    let identity = match who {
        Who::Node(_) => identity,
        Who::Operator(_) => options.identity.clone(),
    };
    Ok(Broker::connect(&ConnectOptions { identity, ..options }).await?)
}

/// Whether the streams are as they have to be, as far as this user may look.
async fn streams(broker: &Broker, loaded: &Loaded, who: &Who) -> Finding {
    match topology::plan(broker, &loaded.config.hub).await {
        Ok(plan) if plan.needs_work() => Finding::bad(
            "streams",
            plan.to_string().lines().filter(|line| !line.ends_with(": as wanted")).collect::<Vec<_>>().join("; "),
            "`edgeward hub` makes them so at its start, or `edgeward init`; `init --diff` shows each difference",
        ),
        Ok(_) => Finding::ok("streams", "all as wanted"),
        Err(BrokerError::Denied { .. }) => {
            Finding::ok("streams", format!("not looked at: that is not for {}", who.name()))
        }
        Err(error) => Finding::bad("streams", error.to_string(), "does the account have JetStream, or import its API?"),
    }
}

/// This machine's clock against the broker's.
async fn clock(broker: &Broker, who: &Who) -> Option<Finding> {
    let names = broker.names();
    let path = match who {
        Who::Node(node) => format!("CONSUMER.INFO.{}.{node}", names.stream(StreamKind::Commands)),
        Who::Operator(_) => format!("STREAM.INFO.{}", names.record_stream(RecordStream::Nodes)),
    };
    let now = broker.api::<Told>(&path, &Value::Null).await.ok()?.ts?;
    let own = Timestamp::local_now();
    let off = own.since(now).max(now.since(own));
    Some(if off > CLOCK_OFF {
        let found = format!("{} off the broker's", rough(off));
        Finding::note("clock", found, "deadlines go by the broker's clock; mend this one for logs and certificates")
    } else {
        Finding::ok("clock", format!("{} ms off the broker's", off.as_millis()))
    })
}

/// What a node needs: its consumers, its own state, and to say what it has to say.
async fn node(broker: &Broker, who: &Who) -> Vec<Finding> {
    let names = broker.names();
    let name = who.name();
    let mut findings = Vec::new();
    let spec = names.node_key(NodeKey::Spec, name);
    match broker.get_last(&names.record_stream(RecordStream::Nodes), &spec).await {
        Ok(Some(_)) => findings.push(Finding::ok("node", format!("{name} is known to the hub"))),
        Ok(None) => findings.push(Finding::note(
            "node",
            format!("{name} is not known to the hub"),
            "it is taken in when its agent first comes; is a hub running?",
        )),
        Err(error) => findings.push(denied("node", &error.to_string(), name)),
    }
    let commands = names.stream(StreamKind::Commands);
    match broker.api::<Value>(&format!("CONSUMER.INFO.{commands}.{name}"), &Value::Null).await {
        Ok(_) => findings.push(Finding::ok("consumer", format!("{name} on {commands}"))),
        // The hub makes it when it takes the node in.
        Err(BrokerError::Refused { .. }) => {
            findings.push(Finding::note("consumer", format!("none for {name}"), "the hub makes it with the node"));
        }
        Err(error) => findings.push(denied("consumer", &error.to_string(), name)),
    }
    // Each subject that a node writes to, with a last token that is nobody's.
    let Ok(node) = name.parse() else { return findings };
    let written = node_rights(names, &node, false).publish;
    let is_written = |subject: &&String| !subject.contains(".api.") && !subject.starts_with("$JS.");
    let subjects: Vec<String> = written
        .iter()
        .filter(is_written)
        .map(|subject| subject.replace(".msg.*.", &format!(".msg.{name}.")).replace('>', "doctor.doctor.doctor"))
        .collect();
    findings.push(may_publish(broker, &subjects, name).await);
    findings
}

/// What an operator needs: to read the nodes, and to send.
async fn operator(broker: &Broker, who: &Who) -> Vec<Finding> {
    let name = who.name();
    let read = match crate::operator::nodes(broker).await {
        Ok(nodes) => Finding::ok("rights", format!("{name} may read; {} known", counted(nodes.len(), "node"))),
        Err(error) => denied("rights", &super::super::error::chain(&error), name),
    };
    let subject = format!("{}.msg.doctor.control.{name}.cancel", broker.names().prefix());
    vec![read, may_publish(broker, &[subject], name).await]
}

/// Tries to publish on a condition that is never met: who may, hears that; nothing is stored.
async fn may_publish(broker: &Broker, subjects: &[String], name: &str) -> Finding {
    for subject in subjects {
        let message = Outgoing::new(subject.as_str(), "").expecting_last(NEVER);
        match broker.publish(&message, WITHIN).await {
            Err(PublishError::WrongLast) => {}
            Err(PublishError::Denied { subject }) => {
                return denied("rights", &format!("no right to publish to `{subject}`"), name);
            }
            Err(error) => {
                let found = format!("{subject}: {error}");
                return Finding::bad("rights", found, "are the streams there, and does the account import them?");
            }
            Ok(stored) => {
                let found = format!("{subject}: stored as {} against its condition", stored.seq);
                return Finding::bad("rights", found, "another service answers in place of the stream");
            }
        }
    }
    Finding::ok("rights", format!("{name} may publish what is its own ({} tried)", counted(subjects.len(), "subject")))
}

fn denied(check: &'static str, found: &str, name: &str) -> Finding {
    let mend =
        format!("the rights of `{name}` in the broker's configuration, or whose key this is (inbox {})", inbox(name));
    Finding::bad(check, found, &mend)
}
