//! `panic` (command): panics with its body as the text; where that begins with `check`, already as the body is judged.
//!
//! For tests of what becomes of a handler that is at fault itself, since no other one is. Only the feature `kill-points`
//! has it. Owns nothing.
#![expect(clippy::panic, reason = "what it is for")]

use super::{Context, Handler, Work};
use crate::model::admit::{BodyFacts, MethodFacts};
use crate::model::message::Kind;
use crate::model::record::{Outcome, RecordError};
use futures::future::BoxFuture;

/// The method.
pub(super) struct Panic;

impl Handler for Panic {
    fn name(&self) -> &'static str {
        "panic"
    }

    fn facts(&self) -> MethodFacts {
        MethodFacts { kind: Kind::Command, check }
    }

    fn run<'a>(&'a self, work: &'a Work, _cx: &'a Context) -> BoxFuture<'a, Outcome> {
        Box::pin(async { panic!("{}", String::from_utf8_lossy(&work.body)) })
    }
}

fn check(body: &[u8]) -> Result<BodyFacts, RecordError> {
    if body.starts_with(b"check") {
        panic!("{}", String::from_utf8_lossy(body));
    }
    Ok(BodyFacts::default())
}
