//! `note` (event): delivered and acked, nothing more. The record is the point: that it arrived, where, and when.

use super::{Context, Handler, NodeFacts, Work};
use crate::model::admit::{Admitted, BodyFacts, MethodFacts};
use crate::model::message::Kind;
use crate::model::name::NodeName;
use crate::model::record::Outcome;
use futures::future::{BoxFuture, FutureExt};

/// The method.
pub(super) struct Note;

impl Handler for Note {
    fn name(&self) -> &'static str {
        "note"
    }

    fn facts(&self) -> MethodFacts {
        MethodFacts { kind: Kind::Event, check: |_| Ok(BodyFacts::default()) }
    }

    fn at_once(&self, _message: &Admitted, _node: &NodeName, _facts: &dyn NodeFacts) -> Option<Outcome> {
        Some(Outcome::succeeded())
    }

    fn run<'a>(&'a self, _work: &'a Work, _cx: &'a Context) -> BoxFuture<'a, Outcome> {
        std::future::ready(Outcome::succeeded()).boxed()
    }
}
