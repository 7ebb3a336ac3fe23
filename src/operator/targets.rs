//! Targets on the operator's side: nodes by their labels, whom a group's message was for, and which groups a node is to be
//! in.
//!
//! The members of a message are those at its sequence, by the intervals that `spec` keeps, whoever is a member
//! now. Owns `spec.<node>.want_groups`, written by compare-and-set; the hub does the rest.

use super::error::OperatorError;
use super::nodes::{nodes, stream_facts};
use super::view::View;
use crate::broker::{Broker, BrokerError, Outgoing, PublishError};
use crate::model::groups::{Belongs, is_decided, members};
use crate::model::id::{MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::name::{GroupName, NodeName, Target, near};
use crate::model::node::{Contact, Spec};
use crate::model::selector::Selector;
use crate::model::subject::{NodeKey, RecordStream};
use crate::model::time::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often a lost compare-and-set is tried again.
const ROUNDS: usize = 20;

/// How long the broker's word is waited for.
const WITHIN: Duration = Duration::from_secs(5);

/// The nodes whose labels the selector wants now, by name. A node tells its labels in its status: one that never told any
/// is not among them, whatever is wanted.
pub async fn select(broker: &Broker, selector: &Selector) -> Result<Vec<NodeName>, OperatorError> {
    let mut selected = Vec::new();
    for (name, facts) in nodes(broker).await? {
        let status = facts.status.filter(|_| facts.spec.is_some()).map(|(status, _)| status);
        if status.is_some_and(|status| selector.matches(&status.labels.unwrap_or_default())) {
            selected.push(NodeName::try_from(name)?);
        }
    }
    Ok(selected)
}

/// Tells the view whom its messages to groups were for.
pub(super) async fn resolve(broker: &Broker, view: &mut View) -> Result<(), OperatorError> {
    let to_groups: Vec<(MsgRef, GroupName)> = view
        .messages()
        .iter()
        .filter_map(|message| match &message.to {
            Some(Target::Group(group)) => Some((message.at, group.clone())),
            _ => None,
        })
        .collect();
    if to_groups.is_empty() {
        return Ok(());
    }
    let specs: Vec<Spec> = nodes(broker).await?.into_values().filter_map(|facts| facts.spec).collect();
    for (at, group) in to_groups {
        let all = is_decided(&specs, &group, at.stream, at.seq);
        view.set_members(at, members(&specs, &group, at.stream, at.seq), all);
    }
    Ok(())
}

/// The nodes that a message to the group was for and that a cancel stored at `cancel` does not reach by the group: they have
/// left it in between. Read after the cancel was stored, so that no leave before it is missed.
pub(super) async fn left_since(
    broker: &Broker,
    group: &GroupName,
    at: MsgRef,
    cancel: StreamSeq,
) -> Result<Vec<NodeName>, OperatorError> {
    let specs: Vec<Spec> = nodes(broker).await?.into_values().filter_map(|facts| facts.spec).collect();
    let gone = |spec: &&Spec| spec.belongs(group, StreamKind::Commands, cancel) != Belongs::Member;
    Ok(members(specs.iter().filter(gone), group, at.stream, at.seq))
}

/// A node that a message to a group would reach now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The node.
    pub node: NodeName,
    /// Whether it can be counted on to answer.
    pub contact: Contact,
    /// When it was last heard.
    pub heard_at: Option<Timestamp>,
}

/// Whom a message to the group would reach that were stored now, by name; and the broker's time. Joins and leaves that are
/// under way count when they are over.
pub async fn reach(broker: &Broker, group: &GroupName) -> Result<(Vec<Reached>, Timestamp), OperatorError> {
    let now = stream_facts(broker, &broker.names().record_stream(RecordStream::Nodes)).await?.now;
    let facts = nodes(broker).await?;
    // A member is one in both streams, and what is for everybody opens the events of those that had none.
    let specs = facts.values().filter_map(|facts| facts.spec.as_ref());
    let reached = members(specs, group, StreamKind::Commands, StreamSeq(u64::MAX));
    let with_contact = |node: NodeName| {
        let facts = facts.get(node.as_str());
        let contact = facts.map_or(Contact::Never, |facts| facts.contact(now));
        Reached { contact, heard_at: facts.and_then(|facts| facts.heard_at()), node }
    };
    Ok((reached.into_iter().map(with_contact).collect(), now))
}

/// A group that no node is in, is to be in or ever was in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownGroup {
    /// Its name.
    pub group: GroupName,
    /// Known groups that are near in spelling, nearest first.
    pub near: Vec<String>,
}

/// Those of `wanted` that are unknown.
pub async fn unknown_groups(broker: &Broker, wanted: &[GroupName]) -> Result<Vec<UnknownGroup>, OperatorError> {
    let wanted: Vec<&GroupName> = wanted.iter().filter(|group| **group != GroupName::all()).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let specs: Vec<Spec> = nodes(broker).await?.into_values().filter_map(|facts| facts.spec).collect();
    let known: BTreeSet<&str> = specs
        .iter()
        .flat_map(|spec| {
            let wished = spec.want_groups.iter().flatten();
            spec.groups.iter().map(|member| &member.name).chain(wished).map(String::as_str)
        })
        .collect();
    let unknown = wanted.into_iter().filter(|group| !known.contains(group.as_str()));
    Ok(unknown
        .map(|group| {
            let near = near(group.as_str(), known.iter().copied());
            UnknownGroup { group: group.clone(), near: near.into_iter().map(|name| format!("@{name}")).collect() }
        })
        .collect())
}

/// Writes which groups a node is to be a member of; `None` where there is no such node. What is written is what an admin
/// wants, once more over whatever was wanted before.
pub async fn want_groups(
    broker: &Broker,
    node: &NodeName,
    groups: &[GroupName],
) -> Result<Option<Spec>, OperatorError> {
    let key = broker.names().node_key(NodeKey::Spec, node.as_str());
    let bucket = broker.names().record_stream(RecordStream::Nodes);
    for _ in 0..ROUNDS {
        let Some(found) = broker.get_last_at_leader(&bucket, &key).await?.filter(|found| !found.body.is_empty()) else {
            return Ok(None);
        };
        let bad = |e: serde_json::Error| BrokerError::BadAnswer { what: key.clone(), reason: e.to_string() };
        let mut spec: Spec = serde_json::from_slice(&found.body).map_err(bad)?;
        let wanted = Some(groups.iter().map(ToString::to_string).collect());
        if spec.want_groups == wanted {
            return Ok(Some(spec));
        }
        spec.want_groups = wanted;
        let body = serde_json::to_vec(&spec).map_err(bad)?;
        match broker.publish(&Outgoing::new(key.clone(), body).expecting_last(found.seq.0), WITHIN).await {
            Ok(_) => return Ok(Some(spec)),
            // Somebody else wrote; or, without a word, perhaps we did: what is there tells.
            Err(PublishError::WrongLast | PublishError::Unknown) => {}
            Err(PublishError::Denied { subject }) => return Err(BrokerError::Denied { subject }.into()),
            Err(error) => return Err(OperatorError::NotWritten { key, error: error.to_string() }),
        }
    }
    Err(OperatorError::NotWritten { key, error: "others keep writing it".to_owned() })
}
