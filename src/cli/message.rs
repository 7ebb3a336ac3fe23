//! From arguments to a message: targets, method, body and options of `send` and `run`.

use super::args::{TargetList, duration};
use super::error::CliError;
use super::quote;
use crate::broker::Broker;
use crate::methods::Registry;
use crate::model::header::{MsgHeaders, OnCrash, Retries};
use crate::model::id::MessageId;
use crate::model::infile;
use crate::model::message::Kind;
use crate::model::name::{LaneToken, MethodName, Sender, Target};
use crate::model::selector::Selector;
use crate::model::time::StartBy;
use crate::operator::{Draft, select, usual_kind};
use bytes::Bytes;
use serde_json::json;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// The largest body read from stdin: no broker takes more in one message.
const LARGEST_BODY: u64 = 64 << 20;

/// Whom a message is for and what it says.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ContentArgs {
    /// Nodes and groups, separated by commas: ship1,@web.
    #[arg(value_name = "TARGETS")]
    pub(super) targets: Option<String>,
    /// Instead of targets: every node with these labels now, such as role=web,env!=prod.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(super) selector: Option<Selector>,
    /// The body: one argument, so quote it; `-` reads it from stdin.
    #[arg(value_name = "BODY")]
    pub(super) body: Vec<String>,
    /// A program and its arguments, run without a shell (method exec).
    #[arg(last = true, value_name = "ARGV")]
    pub(super) argv: Vec<String>,
}

/// The options of a message.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Message")]
pub(super) struct MessageArgs {
    /// What to do [default: shell; exec after --].
    #[arg(short, long, value_name = "METHOD")]
    pub(super) method: Option<MethodName>,
    /// command or event, where the method's own is not meant.
    #[arg(long, value_name = "KIND", value_parser = sendable_kind)]
    pub(super) kind: Option<Kind>,
    /// A lane of its own: in order inside, concurrent with others.
    #[arg(long, value_name = "TOKEN")]
    pub(super) lane: Option<LaneToken>,
    /// How long one run may take.
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(super) timeout: Option<Duration>,
    /// Do not begin later: a duration after storing, or an RFC 3339 time.
    #[arg(long, value_name = "WHEN")]
    pub(super) start_by: Option<StartBy>,
    /// Further tries after a failed one: a number, or unlimited.
    #[arg(long, value_name = "N")]
    pub(super) retries: Option<Retries>,
    /// The first wait between tries; doubles.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) retry_wait: Option<Duration>,
    /// What to do with a run that a host crash broke off: report or rerun.
    #[arg(long, value_name = "WHAT")]
    pub(super) on_crash: Option<OnCrash>,
    /// The id: the same message with the same id is stored once.
    #[arg(long, value_name = "ID", value_parser = MessageId::given)]
    pub(super) id: Option<MessageId>,
    /// Who sends.
    #[arg(long, value_name = "NAME")]
    pub(super) from: Option<Sender>,
    /// The node may be one that was never seen.
    #[arg(long)]
    pub(super) new: bool,
    /// Send nothing; print the targets and the equal `nats pub` line.
    #[arg(long)]
    pub(super) dry_run: bool,
}

fn sendable_kind(text: &str) -> Result<Kind, String> {
    match text.parse::<Kind>() {
        Ok(Kind::Control) => Err("control messages have verbs of their own".to_owned()),
        Ok(kind) => Ok(kind),
        Err(error) => Err(error.to_string()),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(timeout) if timeout.is_zero() => Err("a timeout of zero lets nothing run".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

impl ContentArgs {
    /// The targets as they are written on the command line, and the words of the body: with a selector all words.
    fn split(&self) -> (Option<String>, Vec<&String>) {
        match &self.selector {
            Some(selector) => {
                let to = format!("-l {}", quote::word(&selector.to_string()));
                (Some(to), self.targets.iter().chain(&self.body).collect())
            }
            None => (self.targets.clone(), self.body.iter().collect()),
        }
    }
}

/// The message that the arguments describe; with a selector its targets are still to be found. `verb` is for the words of
/// errors.
pub(super) fn draft(verb: &str, content: &ContentArgs, args: &MessageArgs) -> Result<Draft, CliError> {
    let (Some(to), words) = content.split() else {
        return Err(CliError::usage("no target is given").hint(format!("edgeward {verb} ship1 'uname -a'")));
    };
    let targets = match &content.selector {
        Some(_) => Vec::new(),
        None => to.parse::<TargetList>().map_err(|error| CliError::usage(format!("targets `{to}`: {error}")))?.0,
    };
    let (method, body) = method_and_body(verb, &to, &words, &content.argv, args)?;
    let kind = args.kind.unwrap_or_else(|| usual_kind(&method));
    let mut draft = Draft::new(targets, kind, method, body);
    draft.lane = args.lane.clone();
    draft.headers = MsgHeaders {
        id: None,
        timeout: args.timeout,
        start_by: args.start_by,
        retries: args.retries,
        retry_wait: args.retry_wait,
        on_crash: args.on_crash,
        replay_of: None,
    };
    if let Some(id) = &args.id {
        draft.id = id.clone();
        draft.id_given = true;
    }
    Ok(draft)
}

/// The nodes that a selector means, as the message's targets; it is an error where there are none.
pub(super) async fn find_targets(broker: &Broker, content: &ContentArgs, draft: &mut Draft) -> Result<(), CliError> {
    let Some(selector) = &content.selector else { return Ok(()) };
    draft.to = select(broker, selector).await?.into_iter().map(Target::Node).collect();
    if draft.to.is_empty() {
        return Err(CliError::usage(format!("no node has the labels `{selector}`; nothing was sent"))
            .hint("`edgeward nodes -o json` shows the labels of each"));
    }
    Ok(())
}

fn method_and_body(
    verb: &str,
    to: &str,
    body: &[&String],
    argv: &[String],
    args: &MessageArgs,
) -> Result<(MethodName, Bytes), CliError> {
    if !argv.is_empty() {
        if !body.is_empty() {
            let words = body.iter().copied().chain(argv).map(String::as_str).collect::<Vec<_>>().join(" ");
            return Err(CliError::usage("a body and an argv after `--` exclude each other")
                .hint(format!("for a shell: edgeward {verb} {to} {}", quote::word(&words))));
        }
        if let Some(method) = args.method.as_ref().filter(|method| method.as_str() != "exec") {
            return Err(CliError::usage(format!("an argv after `--` is for the method exec, not for {method}")));
        }
        return Ok(("exec".parse()?, Bytes::from(json!({ "argv": argv }).to_string())));
    }
    let method = match &args.method {
        Some(method) => method.clone(),
        None => "shell".parse()?,
    };
    match body {
        [] if matches!(method.as_str(), "shell" | "exec" | "log") => {
            Err(CliError::usage(format!("the method {method} needs a body"))
                .hint(format!("edgeward {verb} {to} 'uname -a'; `-` reads it from stdin")))
        }
        [] => Ok((method, Bytes::new())),
        [dash] if *dash == "-" => Ok((method, read_stdin()?)),
        [one] => Ok((method, Bytes::from((*one).clone()))),
        several => {
            Err(CliError::usage(format!("the body is one argument; {} were given", several.len())).hint(format!(
                "quote it: edgeward {verb} {to} {}",
                quote::word(&several.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" "))
            )))
        }
    }
}

/// The messages written in a file.
pub(super) fn drafts_in_file(path: &Path) -> Result<Vec<Draft>, CliError> {
    let bytes = if path.as_os_str() == "-" {
        read_stdin()?
    } else {
        let bytes = std::fs::read(path);
        bytes.map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?.into()
    };
    let methods = Registry::default();
    let read = infile::parse(&bytes, &|method| methods.kind_of(method));
    let read = read.map_err(|error| CliError::usage(format!("{}: {error}", path.display())))?;
    Ok(read.into_iter().map(from_file).collect())
}

fn from_file(written: infile::Draft) -> Draft {
    let infile::Draft { to, kind, method, lane, body, headers } = written;
    let mut draft = Draft::new(to, kind, method, body);
    draft.lane = lane;
    if let Some(id) = &headers.id {
        draft.id = id.clone();
        draft.id_given = true;
    }
    draft.headers = headers;
    draft
}

fn read_stdin() -> Result<Bytes, CliError> {
    let mut body = Vec::new();
    let read = std::io::stdin().lock().take(LARGEST_BODY + 1).read_to_end(&mut body);
    read.map_err(|error| CliError::usage(format!("reading stdin failed: {error}")))?;
    if body.len() as u64 > LARGEST_BODY {
        return Err(CliError::usage("stdin has more than 64 MiB, which no broker takes in one message"));
    }
    Ok(Bytes::from(body))
}

/// `edgeward run ship1 uname -a`: the shell took the quotes away, or there were none, and `-a` reads as our option.
pub(super) fn quote_hint(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let verb = words.iter().position(|word| matches!(*word, "run" | "send"))?;
    let [to, body @ ..] = &words[verb + 1..] else { return None };
    let unknown = error.kind() == clap::error::ErrorKind::UnknownArgument;
    let plain = body.len() > 1 && !to.starts_with('-') && !body[0].starts_with('-');
    (unknown && plain).then(|| {
        format!("the body is one argument, quote it: edgeward {} {to} {}", words[verb], quote::word(&body.join(" ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        content: ContentArgs,
        #[command(flatten)]
        message: MessageArgs,
    }

    fn read(line: &[&str]) -> Result<Draft, CliError> {
        let line = Line::try_parse_from([&["run"], line].concat()).unwrap();
        draft("run", &line.content, &line.message)
    }

    #[test]
    fn one_argument_is_a_script_and_an_argv_is_exec() {
        let script = read(&["ship1,@web", "uname -a", "--timeout", "20s"]).unwrap();
        assert_eq!((script.method.as_str(), &script.body[..]), ("shell", &b"uname -a"[..]));
        assert_eq!(script.headers.timeout, Some(Duration::from_secs(20)));
        let exec = read(&["ship1", "--", "ls", "-l", "it's"]).unwrap();
        assert_eq!((exec.method.as_str(), &exec.body[..]), ("exec", &br#"{"argv":["ls","-l","it's"]}"#[..]));
        let log = read(&["ship1", "-m", "log", "text"]).unwrap();
        assert_eq!(log.kind, Kind::Event);
        assert!(read(&["ship1", "-m", "ping"]).unwrap().body.is_empty());
    }

    #[test]
    fn more_than_one_argument_is_a_mistake_that_shows_the_quotes() {
        let error = read(&["ship1", "uname", "it's"]).unwrap_err();
        assert_eq!(error.exit.code(), 2);
        assert!(error.hints[0].contains(r"edgeward run ship1 'uname it'\''s'"), "{error:?}");
        assert!(read(&["ship1", "uname", "--", "-a"]).unwrap_err().hints[0].contains("'uname -a'"));
        assert!(read(&["ship1"]).unwrap_err().message.contains("needs a body"));
        assert!(read(&["ship1", "-m", "log", "--", "x"]).unwrap_err().message.contains("not for log"));
    }

    #[test]
    fn with_a_selector_every_word_is_the_body() {
        let selected = read(&["-l", "role=web", "uname -a"]).unwrap();
        assert_eq!((&selected.to[..], &selected.body[..]), (&[][..], &b"uname -a"[..]));
        let error = read(&["-l", "role=web", "ship1", "true"]).unwrap_err();
        assert!(error.hints[0].contains("edgeward run -l role=web 'ship1 true'"), "{error:?}");
        let bad = Line::try_parse_from(["run", "-l", "role=web,env", "true"]).unwrap_err();
        assert!(bad.to_string().contains("`=` or `!=` is missing at column 13"), "{bad}");
        let bad = read(&["a.b", "true"]).unwrap_err();
        assert!(bad.exit.code() == 2 && bad.message.contains("a.b"), "{bad:?}");
    }

    #[test]
    fn an_unquoted_option_is_told_with_quotes() {
        let line = ["edgeward", "run", "ship1", "uname", "-a"].map(OsString::from);
        let error = super::super::Cli::try_parse_from(&line).unwrap_err();
        assert!(quote_hint(&error, &line).unwrap().ends_with("edgeward run ship1 'uname -a'"));
    }
}
