//! The nodes' consumers: there, and with the filters that `spec` says.
//!
//! Owns the order of a change of filters: what a node may have passed over is written down before anybody could overlook it
//! (the drawing is in `groups`). Every step may be repeated, and two hubs may work at once. Decides no membership.

use super::HubError;
use super::nodes::{Nodes, ROUNDS};
use crate::broker::Ensured;
use crate::killpoint::{Point, here};
use crate::model::id::StreamSeq;
use crate::model::message::StreamKind;
use crate::model::name::{GroupName, NodeName, Target};
use crate::model::node::{Spec, Starts};
use uuid::Uuid;

impl Nodes {
    /// Sees to it that the consumers that a node should have are there and serve; true where all were found so.
    pub(super) async fn ensure_consumers(&self, spec: &Spec) -> Result<bool, HubError> {
        let mut found_so = true;
        for stream in StreamKind::ALL {
            let Some(start) = *spec.start.get(stream) else { continue };
            let ensured = self.ensure(spec, stream, start).await?;
            if ensured == Ensured::Made {
                tracing::info!(node = %spec.node, ?stream, %start, "node has its consumer again");
            }
            found_so &= ensured == Ensured::Found;
        }
        Ok(found_so)
    }

    /// Sees to one consumer. Where its filters have to be changed, it is written down beforehand what the node has to read
    /// again: whoever comes after the change sees nothing amiss.
    pub(super) async fn ensure(&self, spec: &Spec, stream: StreamKind, start: StreamSeq) -> Result<Ensured, HubError> {
        let (node, targets) = (&spec.node, spec.targets());
        let relied_on: Vec<Target> = spec.groups_relied_on().map(Target::Group).collect();
        let ensured = self.broker().ensure_consumer(stream, node, start, &targets, &relied_on).await?;
        let Ensured::Differs { lacking, ack_floor } = ensured else { return Ok(ensured) };
        let (lacking, found): (Vec<GroupName>, Vec<GroupName>) =
            spec.groups_relied_on().partition(|group| lacking.contains(&Target::Group(group.clone())));
        if !lacking.is_empty() {
            tracing::warn!(%node, ?stream, groups = ?lacking, "its consumer was without groups that it is in");
        }
        let from = |seq| {
            let mut from = Starts::default();
            *from.get_mut(stream) = Some(seq);
            from
        };
        let read_again = |spec: &mut Spec| {
            let since_join = spec.read_again(&lacking, from(StreamSeq(0)), Uuid::new_v4);
            spec.read_again(&found, from(ack_floor), Uuid::new_v4) || since_join
        };
        self.change(node, read_again).await?;
        here(Point::Looked);
        Ok(self.broker().ensure_consumer(stream, node, start, &targets, &[]).await?)
    }

    /// Writes down that the node has to read again from where it joined this group.
    pub(super) async fn read_again_from_join(&self, node: &NodeName, group: GroupName) -> Result<(), HubError> {
        let from = Starts { commands: Some(StreamSeq(0)), events: Some(StreamSeq(0)) };
        self.change(node, |spec| spec.read_again(std::slice::from_ref(&group), from, Uuid::new_v4)).await.map(drop)
    }

    /// Sets the filters of a node's consumers by its `spec`, until a look at them finds them so and `spec` has not moved
    /// meanwhile: another hub may have set them by a newer one, or by an older one and died. True where the first look
    /// found them so.
    pub(super) async fn set_filters(&self, node: &NodeName) -> Result<bool, HubError> {
        let mut spec = self.read_again(node).await?;
        let mut looks = 0;
        while looks < ROUNDS {
            let Some(set) = spec else { return Ok(true) };
            let found_so = self.ensure_consumers(&set).await?;
            looks += 1;
            spec = self.read_again(node).await?;
            if found_so && spec.as_ref() == Some(&set) {
                return Ok(looks == 1);
            }
        }
        Err(HubError::Contended { what: self.key(node) })
    }
}
