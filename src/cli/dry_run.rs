//! `--dry-run`: the targets, whom those reach that are groups, and the line of the plain `nats` CLI that sends the same.

use super::config::Loaded;
use super::error::CliError;
use super::output::Format;
use super::session::Session;
use super::{output, quote, say};
use crate::broker::{Broker, Outgoing};
use crate::model::config::Config;
use crate::model::id::MessageId;
use crate::model::name::{GroupName, NodeName, Sender, Target};
use crate::model::node::Contact;
use crate::model::subject::Names;
use crate::model::time::Timestamp;
use crate::operator::{Draft, Reached, outgoing, reach};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// A longer body does not fit on a command line of Linux with everything around it.
const ARGUMENT: usize = 100 * 1024;

/// Who is in the groups that messages are for, as far as the broker tells.
#[derive(Default)]
pub(super) struct Members(BTreeMap<GroupName, (Vec<Reached>, Timestamp)>);

impl Members {
    /// Asks the broker, at `broker` or at a connection of its own, where there are groups at all. One that does not tell
    /// keeps nothing else from being shown.
    pub(super) async fn of(session: &Session, loaded: &Loaded, broker: Option<&Broker>, drafts: &[&Draft]) -> Members {
        let targets = drafts.iter().flat_map(|draft| &draft.to);
        let groups: BTreeSet<&GroupName> = targets.filter_map(Target::group).collect();
        let told = async {
            let mut own = None;
            let mut members = BTreeMap::new();
            for group in groups {
                let broker = match (broker, &mut own) {
                    (Some(broker), _) => broker,
                    (None, Some(own)) => own,
                    (None, none) => none.insert(session.connect(loaded).await?),
                };
                members.insert(group.clone(), reach(broker, group).await?);
            }
            Ok::<_, CliError>(members)
        };
        match told.await {
            Ok(members) => Members(members),
            Err(error) => {
                say(&format!("whom the groups reach is not known: {}", error.message));
                Members::default()
            }
        }
    }

    /// Lines about a target.
    fn lines(&self, to: &Target) -> Vec<String> {
        let Some((reached, now)) = to.group().and_then(|group| self.0.get(group)) else { return Vec::new() };
        let all: Vec<String> = reached.iter().map(|one| one.node.to_string()).collect();
        let away = reached.iter().filter(|one| one.contact != Contact::InContact);
        let away: Vec<String> = away
            .map(|one| format!("{} ({})", one.node, output::out_of_contact(one.contact, one.heard_at, *now)))
            .collect();
        let told = |what: &str, names: &[String]| format!("# {what} {}: {}", names.len(), names.join(", "));
        match (all.is_empty(), away.is_empty()) {
            (true, _) => vec!["# reaches nobody: no node is in it now".to_owned()],
            (_, true) => vec![told("reaches", &all)],
            (_, false) => vec![told("reaches", &all), told("out of contact", &away)],
        }
    }
}

/// A message that would be sent.
#[derive(Serialize)]
struct DryJson<'a> {
    v: u32,
    id: &'a MessageId,
    to: String,
    subject: &'a str,
    /// Whom a group reaches; `null` for a node, and where the broker did not tell.
    reaches: Option<Vec<ReachedJson<'a>>>,
    line: String,
}

#[derive(Serialize)]
struct ReachedJson<'a> {
    node: &'a NodeName,
    contact: Contact,
    heard_at: Option<Timestamp>,
}

impl<'a> ReachedJson<'a> {
    fn new(reached: &'a Reached) -> ReachedJson<'a> {
        let Reached { node, contact, heard_at } = reached;
        ReachedJson { node, contact: *contact, heard_at: *heard_at }
    }
}

/// Prints what would be sent. Talks to nobody.
pub(super) fn print(session: &Session, loaded: &Loaded, draft: &Draft, members: &Members) -> Result<(), CliError> {
    let from = loaded.sender()?;
    match session.format {
        Format::Table => print_as(loaded, from, draft, members),
        Format::Json => print_json(loaded, from, draft, members),
    }
}

fn print_json(loaded: &Loaded, from: &Sender, draft: &Draft, members: &Members) -> Result<(), CliError> {
    let names = Names::new(&loaded.config.prefix)?;
    for to in draft.targets() {
        let message = outgoing(&names, from, draft, to);
        let reached = to.group().and_then(|group| members.0.get(group)).map(|(reached, _)| reached);
        let reaches = reached.map(|all| all.iter().map(ReachedJson::new).collect());
        let line = line(&message, &connection(loaded)?);
        let (id, subject) = (&draft.id, message.subject.as_str());
        output::print_json(&DryJson { v: 1, id, to: to.to_string(), subject, reaches, line })?;
    }
    Ok(())
}

/// In words, for any sender.
pub(super) fn print_as(loaded: &Loaded, from: &Sender, draft: &Draft, members: &Members) -> Result<(), CliError> {
    let names = Names::new(&loaded.config.prefix)?;
    let mut out = std::io::stdout().lock();
    for to in draft.targets() {
        writeln!(out, "# {to}")?;
        members.lines(to).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        writeln!(out, "{}", line(&outgoing(&names, from, draft, to), &connection(loaded)?))?;
    }
    Ok(())
}

/// The flags of `nats` that reach the same broker as the same user.
fn connection(loaded: &Loaded) -> Result<String, CliError> {
    let config = &loaded.config;
    let mut flags = String::new();
    let mut flag = |name: &str, value: String| flags.push_str(&format!(" --{name} {}", quote::word(&value)));
    if config.server != Config::default().server {
        flag("server", config.server.join(","));
    }
    if let Some(creds) = &config.creds {
        flag("creds", creds.display().to_string());
    }
    if let Some(nkey) = &config.nkey {
        flag("nkey", nkey.display().to_string());
    }
    if let Some(ca) = &config.tls_ca {
        flag("tlsca", ca.display().to_string());
    }
    // Rights confine the inbox: without it the broker's word would not be heard.
    if let Some(name) = loaded.identity()? {
        flag("inbox-prefix", format!("_INBOX_{name}"));
    }
    Ok(flags)
}

fn line(message: &Outgoing, connection: &str) -> String {
    let mut flags = format!("-J --no-templates{connection}");
    for (name, value) in &message.headers.0 {
        flags.push_str(&format!(" -H {}", quote::word(&format!("{name}:{value}"))));
    }
    let subject = quote::word(&message.subject);
    let text = std::str::from_utf8(&message.body).ok().filter(|text| text.len() <= ARGUMENT && !text.contains('\0'));
    match text {
        // An empty argument makes `nats` read stdin.
        Some("") => format!("nats pub {flags} {subject} '' </dev/null"),
        // After `--` neither `-x` nor `@file` means anything to it.
        Some(text) => format!("nats pub {flags} -- {subject} {}", quote::word(text)),
        None => format!("{} | nats pub {flags} --force-stdin {subject}", quote::printf(&message.body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::MessageId;
    use crate::model::message::Kind;
    use std::process::Command;

    /// The arguments and the stdin that `nats` gets when a shell runs the line.
    fn seen_by_nats(line: &str) -> (Vec<String>, Vec<u8>) {
        let script = format!("nats() {{ printf '%s\\0' \"$@\"; printf '\\001'; cat; }}\n{line}");
        let output = Command::new("/bin/sh").args(["-c", &script]).stdin(std::process::Stdio::null()).output().unwrap();
        let end = output.stdout.iter().position(|b| *b == 1).unwrap();
        let args =
            output.stdout[..end - 1].split(|b| *b == 0).map(|a| String::from_utf8(a.to_vec()).unwrap()).collect();
        (args, output.stdout[end + 1..].to_vec())
    }

    fn message(body: &[u8]) -> Outgoing {
        let mut draft =
            Draft::new(vec!["@web".parse().unwrap()], Kind::Command, "shell".parse().unwrap(), body.to_vec());
        draft.id = MessageId::given("restart-7").unwrap();
        outgoing(&Names::default(), &"ops".parse().unwrap(), &draft, &draft.to[0])
    }

    #[test]
    fn the_line_says_the_same_as_the_message() {
        for body in ["uname -a", "echo \"it's\" {{Count}} $HOME `x`", "-x", "@/etc/passwd", "a\nb", "ünï"] {
            let (args, stdin) = seen_by_nats(&line(&message(body.as_bytes()), " --server nats://h:1"));
            assert_eq!(args[..4], ["pub", "-J", "--no-templates", "--server"]);
            assert!(args.contains(&"Nats-Msg-Id:ops.restart-7.@web".to_owned()), "{args:?}");
            assert_eq!(args[args.len() - 2..], ["fleet.msg.@web.command.ops.shell", body]);
            assert!(stdin.is_empty());
        }
    }

    #[test]
    fn what_is_no_argument_comes_by_stdin() {
        for body in [&b"\xff\x00'%\\\n"[..], &[b'x'; ARGUMENT + 1]] {
            let (args, stdin) = seen_by_nats(&line(&message(body), ""));
            assert_eq!(stdin, body);
            assert_eq!(args[args.len() - 2..], ["--force-stdin", "fleet.msg.@web.command.ops.shell"]);
        }
        let (args, _) = seen_by_nats(&line(&message(b""), ""));
        assert_eq!(args.last().unwrap(), "");
    }
}
