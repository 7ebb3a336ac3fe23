//! An error as the command line tells it: exit code, message, and what to do about it.

use super::exit::ExitCode;
use crate::broker::BrokerError;
use crate::model::config::BadConfig;
use crate::model::name::BadName;
use crate::operator::OperatorError;
use std::error::Error;
use std::io;

/// The end of a verb that did not come to its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// How the process ends.
    pub exit: ExitCode,
    /// What went wrong; empty where nothing is to be said (the reader of our output has gone).
    pub message: String,
    /// What to do.
    pub hints: Vec<String>,
}

impl CliError {
    /// An error with this exit code.
    pub fn new(exit: ExitCode, message: impl Into<String>) -> CliError {
        CliError { exit, message: message.into(), hints: Vec::new() }
    }

    /// A mistake in what was typed.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError::new(ExitCode::Usage, message)
    }

    /// With one more thing to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hints.push(hint.into());
        self
    }

    /// The text for stderr, with a line break at the end of each line.
    pub fn text(&self) -> String {
        if self.message.is_empty() {
            return String::new();
        }
        let mut text = format!("error: {}\n", self.message);
        for hint in &self.hints {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<BrokerError> for CliError {
    fn from(error: BrokerError) -> CliError {
        let text = chain(&error);
        match error {
            BrokerError::Options(_) => CliError::usage(text),
            BrokerError::NotAccepted { given: true, .. } => CliError::new(ExitCode::Refused, text)
                .hint("give others with --creds, --nkey or --context, or have these let in on the broker"),
            BrokerError::NotAccepted { given: false, .. } => {
                CliError::new(ExitCode::Refused, text).hint("give them with --creds, --nkey or --context")
            }
            BrokerError::Unreachable { .. } => CliError::new(ExitCode::Broker, text)
                .hint("give the broker's address with --server or NATS_URL; `edgeward up` starts one here"),
            BrokerError::NoResponders { .. } | BrokerError::Refused { code: 10059, .. } => {
                CliError::new(ExitCode::Broker, text).hint(
                    "are the streams there? `edgeward hub` or `edgeward init` makes them; does this user reach them, and is \
                     the link of a leaf node up?",
                )
            }
            BrokerError::Denied { subject } if subject.starts_with("$JS.API.") => {
                CliError::new(ExitCode::Refused, text)
                    .hint("`init` and the hub need the hub's rights; an operator's API is imported as `<prefix>.api`")
            }
            BrokerError::Denied { subject } if subject.starts_with("$KV.") => {
                CliError::new(ExitCode::Refused, text).hint("this is for the hub and admins: --from NAME --nkey FILE of one")
            }
            BrokerError::Denied { .. } => CliError::new(ExitCode::Refused, text),
            BrokerError::DeniedInbox { inbox } if inbox == "_INBOX_hub" => CliError::new(ExitCode::Refused, text)
                .hint("the hub and `edgeward init` need the credentials of the hub, or of an admin"),
            BrokerError::DeniedInbox { .. } => CliError::new(ExitCode::Refused, text)
                .hint("say whose they are: --from NAME, EDGEWARD_FROM, or `from` in the config"),
            BrokerError::Refused { .. }
            | BrokerError::Timeout { .. }
            | BrokerError::LinkLost { .. }
            | BrokerError::Closed
            | BrokerError::BadAnswer { .. } => CliError::new(ExitCode::Broker, text),
        }
    }
}

impl From<OperatorError> for CliError {
    fn from(error: OperatorError) -> CliError {
        let text = chain(&error);
        match error {
            OperatorError::Broker(broker) => CliError { message: text, ..CliError::from(broker) },
            OperatorError::NotWritten { .. } => CliError::new(ExitCode::Broker, text),
            OperatorError::NotFound { back: Some(_), .. } => {
                CliError::usage(text).hint("--since 7d looks further back; a stored sequence (42, e42) needs no search")
            }
            OperatorError::NotFound { .. } | OperatorError::BadName(_) => CliError::usage(text),
            OperatorError::EmptyRange { of_others: 1.. } => {
                CliError::usage(text).hint("--whose NAME takes those of another sender, --everybody all of them")
            }
            OperatorError::Gone { .. }
            | OperatorError::OutOfRange { .. }
            | OperatorError::EmptyRange { .. }
            | OperatorError::TooMuch { .. }
            | OperatorError::NothingFailed { .. }
            | OperatorError::Unsendable(_) => CliError::usage(text),
            OperatorError::Ambiguous { .. } | OperatorError::NoSender => {
                CliError::usage(text).hint("say whose with --from")
            }
        }
    }
}

impl From<BadConfig> for CliError {
    fn from(bad: BadConfig) -> CliError {
        CliError::usage(bad.0)
    }
}

impl From<BadName> for CliError {
    fn from(bad: BadName) -> CliError {
        CliError::usage(bad.to_string())
    }
}

/// Writing to stdout failed. Where the reader has gone (`| head`), that is a quiet end.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> CliError {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::new(ExitCode::Succeeded, ""),
            _ => CliError::new(ExitCode::Failed, format!("writing the output failed: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_and_a_broken_pipe_is_not() {
        let error = CliError::from(OperatorError::from(BrokerError::Closed));
        assert_eq!(
            (error.exit, error.message.as_str()),
            (ExitCode::Broker, "reading from the broker failed: the connection is closed")
        );
        let quiet = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((quiet.exit, quiet.text().as_str()), (ExitCode::Succeeded, ""));
    }
}
