//! Telling a failure in one line, and as an outcome.
//!
//! Owns how errors of handlers read. Never decides whether a try is repeated.

use crate::model::error_event::Code;
use crate::model::record::Outcome;
use crate::model::state::State;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// A file or folder that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path:?}")]
pub(super) struct Fault {
    /// What was being done: a verb.
    pub doing: &'static str,
    /// To which file or folder.
    pub path: PathBuf,
    /// What the kernel says.
    pub source: io::Error,
}

impl From<Fault> for Outcome {
    fn from(fault: Fault) -> Outcome {
        Outcome::ended(State::Failed, Code::Io, with_causes(&fault))
    }
}

/// The error and what caused it: `cannot write "/x": No space left on device (os error 28)`.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The outcome of a try that was stopped from outside. The caller knows whether that was a cancel.
pub(super) fn stopped(message: &str) -> Outcome {
    Outcome::ended(State::Interrupted, Code::Interrupted, message)
}
