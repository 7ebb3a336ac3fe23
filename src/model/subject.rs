//! Subjects, streams and buckets: every name on the broker, made and read in this one place.
//!
//! Owns the layout under the prefix. Never says who may use a subject (see `rights`).

mod message;

pub use message::{BadSubject, LaneKey, LooseSubject, MsgSubject};

use super::id::MessageId;
use super::message::{Kind, StreamKind};
use super::name::{BadName, NodeName, Target, check_token, is_token_char};

/// All names on the broker, under one prefix (default `fleet`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    upper: String,
}

impl Default for Names {
    fn default() -> Names {
        Names { prefix: "fleet".to_owned(), upper: "FLEET".to_owned() }
    }
}

/// Which stream of records; all of them are republished under `<prefix>.stored`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordStream {
    /// Acks, progress and late records.
    Acks,
    /// Output chunks.
    Output,
    /// Error events.
    Errors,
    /// Node state: `spec`, `status`, `hello`.
    Nodes,
}

/// What a record on `FLEET_ACKS` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordClass {
    /// The terminal record, one per subject.
    Ack,
    /// On the way: running, retrying, cancel requested, duplicate.
    Progress,
    /// A truth that came after a terminal record.
    Late,
}

impl RecordClass {
    /// The subject token.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordClass::Ack => "ack",
            RecordClass::Progress => "progress",
            RecordClass::Late => "late",
        }
    }
}

/// The key under which the hub or a node keeps a record of node state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKey {
    /// What the hub decided about a node.
    Spec,
    /// What the node says of itself.
    Status,
    /// A journal asking to be this node's.
    Hello,
}

impl NodeKey {
    /// The first token of the key.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeKey::Spec => "spec",
            NodeKey::Status => "status",
            NodeKey::Hello => "hello",
        }
    }
}

/// A control message that the hub sends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubVerb {
    /// The node's events begin: `{"start":n}`.
    Events,
    /// What became of a command that the node sent: an ack's JSON.
    Result,
    /// The node joins or leaves a group: `{"join"|"leave":"web"}`.
    Member,
}

impl HubVerb {
    /// The subject token.
    pub fn as_str(self) -> &'static str {
        match self {
            HubVerb::Events => "events",
            HubVerb::Result => "result",
            HubVerb::Member => "member",
        }
    }
}

/// The tokens of a record's subject. Any of them is `_` where the message's own could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordSubject {
    /// The node, or `_`.
    pub node: String,
    /// The sender, or `_`.
    pub from: String,
    /// The method, or `_`.
    pub method: String,
    /// The message's id.
    pub id: MessageId,
}

impl Names {
    /// Names under another prefix: one token; streams carry it in upper case.
    pub fn new(prefix: &str) -> Result<Names, BadName> {
        check_token("prefix", prefix, 32)?;
        Ok(Names { prefix: prefix.to_owned(), upper: prefix.to_ascii_uppercase() })
    }

    /// The prefix itself.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `FLEET_COMMANDS` or `FLEET_EVENTS`.
    pub fn stream(&self, stream: StreamKind) -> String {
        match stream {
            StreamKind::Commands => format!("{}_COMMANDS", self.upper),
            StreamKind::Events => format!("{}_EVENTS", self.upper),
        }
    }

    /// The stream of this name, where it is one of the two message streams.
    pub fn stream_kind(&self, name: &str) -> Option<StreamKind> {
        StreamKind::ALL.into_iter().find(|kind| self.stream(*kind) == name)
    }

    /// `FLEET_ACKS`, `FLEET_OUTPUT`, `FLEET_ERRORS` or `KV_FLEET_NODES`.
    pub fn record_stream(&self, stream: RecordStream) -> String {
        match stream {
            RecordStream::Acks => format!("{}_ACKS", self.upper),
            RecordStream::Output => format!("{}_OUTPUT", self.upper),
            RecordStream::Errors => format!("{}_ERRORS", self.upper),
            RecordStream::Nodes => format!("KV_{}", self.bucket()),
        }
    }

    /// The KV bucket of node state: `FLEET_NODES`.
    pub fn bucket(&self) -> String {
        format!("{}_NODES", self.upper)
    }

    /// The subjects stored in a message stream: exactly the shapes that can be read.
    pub fn stream_subjects(&self, stream: StreamKind) -> Vec<String> {
        let p = &self.prefix;
        match stream {
            StreamKind::Commands => vec![format!("{p}.msg.*.command.*.>"), format!("{p}.msg.*.control.*.>")],
            StreamKind::Events => vec![format!("{p}.msg.*.event.*.>")],
        }
    }

    /// The subject of a message.
    pub fn message(&self, subject: &MsgSubject) -> String {
        let MsgSubject { to, kind, from, method, lane } = subject;
        let base = format!("{}.msg.{to}.{kind}.{from}.{method}", self.prefix);
        match lane {
            Some(lane) => format!("{base}.{lane}"),
            None => base,
        }
    }

    /// The subject of the hub's own control message to a node.
    pub fn hub_control(&self, node: &NodeName, verb: HubVerb) -> String {
        format!("{}.msg.{node}.{}.hub.{}", self.prefix, Kind::Control, verb.as_str())
    }

    /// The subject of a join or leave in the events' stream; its twin is a control message.
    pub fn hub_mark(&self, node: &NodeName) -> String {
        format!("{}.msg.{node}.{}.hub.{}", self.prefix, Kind::Event, HubVerb::Member.as_str())
    }

    /// The filter of everything sent to a node or group.
    pub fn target_filter(&self, target: &Target) -> String {
        format!("{}.msg.{target}.>", self.prefix)
    }

    /// The filter of everything sent to a node itself.
    pub fn node_filter(&self, node: &NodeName) -> String {
        format!("{}.msg.{node}.>", self.prefix)
    }

    /// The subject of a record.
    pub fn record(&self, class: RecordClass, subject: &RecordSubject) -> String {
        let RecordSubject { node, from, method, id } = subject;
        format!("{}.{}.{node}.{from}.{method}.{id}", self.prefix, class.as_str())
    }

    /// The pattern of all records of one class and message, whatever node and method: `fleet.ack.*.alice.*.<id>`.
    pub fn record_pattern(&self, class: RecordClass, from: &str, id: &str) -> String {
        format!("{}.{}.*.{from}.*.{id}", self.prefix, class.as_str())
    }

    /// The subject of a message's output chunks, but for their numbers: `fleet.output.<node>.<from>.<id>`.
    pub fn output(&self, node: &str, from: &str, id: &str) -> String {
        format!("{}.output.{node}.{from}.{id}", self.prefix)
    }

    /// Where the broker repeats what it stored under `subject` (which begins with the prefix).
    pub fn stored(&self, subject: &str) -> String {
        match subject.strip_prefix(&format!("{}.", self.prefix)) {
            Some(rest) => format!("{}.stored.{rest}", self.prefix),
            None => subject.to_owned(),
        }
    }

    /// The subject of an error event.
    pub fn error(&self, node: &str, severity: &str, code: &str) -> String {
        format!("{}.error.{node}.{severity}.{code}", self.prefix)
    }

    /// The KV subject of a node's record.
    pub fn node_key(&self, key: NodeKey, node: &str) -> String {
        format!("$KV.{}.{}.{node}", self.bucket(), key.as_str())
    }

    /// The API prefix that nodes and operators use when their account reaches the streams by imports.
    pub fn imported_api(&self) -> String {
        format!("{}.api", self.prefix)
    }

    /// Reads a record's subject (`fleet.ack.…`, `.progress.…`, `.late.…`).
    pub fn parse_record(&self, subject: &str) -> Option<(RecordClass, RecordSubject)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix('.')?;
        let tokens: Vec<&str> = rest.split('.').collect();
        let [class, node, from, method, id] = tokens[..] else { return None };
        let class =
            [RecordClass::Ack, RecordClass::Progress, RecordClass::Late].into_iter().find(|c| c.as_str() == class)?;
        let id = MessageId::try_from(id.to_owned()).ok()?;
        let subject = RecordSubject { node: node.to_owned(), from: from.to_owned(), method: method.to_owned(), id };
        Some((class, subject))
    }

    /// Reads a message's subject.
    pub fn parse_message(&self, subject: &str) -> Result<MsgSubject, BadSubject> {
        let tokens = self.tokens(subject).ok_or_else(|| BadSubject::new("is no message's subject"))?;
        let (to, kind, from, method, rest) = match tokens[..] {
            [to, kind, from, method] => (to, kind, from, method, None),
            [to, kind, from, method, lane] => (to, kind, from, method, Some(lane)),
            _ if tokens.len() > 5 => return Err(BadSubject::new("has more than one lane token")),
            _ => return Err(BadSubject::new("has too few tokens")),
        };
        let kind: Kind = kind.parse().map_err(BadSubject::from)?;
        if kind == Kind::Control && rest.is_some() {
            return Err(BadSubject::new("has a lane token, which control messages have not"));
        }
        Ok(MsgSubject {
            to: to.parse()?,
            kind,
            from: from.parse()?,
            method: method.parse()?,
            lane: rest.map(str::parse).transpose()?,
        })
    }

    /// Reads what can be read of a message's subject, so that every stored message can have a record: what cannot is `_`.
    pub fn read_loosely(&self, subject: &str) -> LooseSubject {
        let tokens = self.tokens(subject).unwrap_or_default();
        let token = |at: usize| {
            let readable = |t: &&&str| t.len() <= 64 && !t.is_empty() && t.chars().all(is_token_char);
            tokens.get(at).filter(readable).map_or_else(|| "_".to_owned(), |t| (*t).to_owned())
        };
        LooseSubject {
            to: tokens.first().and_then(|t| t.parse().ok()),
            kind: tokens.get(1).and_then(|t| t.parse().ok()),
            from: token(2),
            method: token(3),
        }
    }

    fn tokens<'a>(&self, subject: &'a str) -> Option<Vec<&'a str>> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".msg.")?;
        Some(rest.split('.').collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_subject_reads_back() {
        let names = Names::default();
        for text in [
            "fleet.msg.ship1.command.ops.shell",
            "fleet.msg.@web.event.van2.log.audit",
            "fleet.msg.a.control.hub.result",
        ] {
            assert_eq!(names.message(&names.parse_message(text).unwrap()), text);
        }
    }

    #[test]
    fn other_shapes_are_no_messages() {
        let names = Names::default();
        for (text, reason) in [
            ("fleet.msg.n1.command.ops.shell.a.b", "more than one lane token"),
            ("fleet.msg.n1.control.ops.cancel.x", "lane token"),
            ("fleet.msg.n1.command.ops", "too few"),
            ("fleet.msg.n1.order.ops.shell", "kind"),
            ("fleet.msg.n1.command.o$s.shell", "sender"),
            ("fleet.ack.n1.command.ops.shell", "no message's"),
        ] {
            let error = names.parse_message(text).unwrap_err();
            assert!(error.reason.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn unreadable_tokens_become_underscores() {
        let loose = Names::default().read_loosely("fleet.msg.n1.command.o$s.shell.a.b");
        assert_eq!((loose.from.as_str(), loose.method.as_str()), ("_", "shell"));
        assert_eq!(loose.kind, Some(Kind::Command));
    }

    #[test]
    fn all_names_follow_the_prefix() {
        let names = Names::new("lab").unwrap();
        assert_eq!(names.stream(StreamKind::Commands), "LAB_COMMANDS");
        assert_eq!(names.record_stream(RecordStream::Nodes), "KV_LAB_NODES");
        assert_eq!(names.stored("lab.ack.a.b.c.d"), "lab.stored.ack.a.b.c.d");
        assert_eq!(names.node_key(NodeKey::Spec, "n1"), "$KV.LAB_NODES.spec.n1");
        assert!(Names::new("a.b").is_err());
    }

    #[test]
    fn the_hubs_own_messages_read_back() {
        let names = Names::default();
        let subject = names.parse_message(&names.hub_control(&"n1".parse().unwrap(), HubVerb::Result)).unwrap();
        assert!(subject.from.is_hub() && super::super::admit::is_hub_verb(subject.method.as_str()));
    }

    #[test]
    fn a_record_subject_reads_back() {
        let names = Names::default();
        let text = "fleet.ack.ship1.ops.shell.s2";
        let (class, subject) = names.parse_record(text).unwrap();
        assert_eq!(names.record(class, &subject), text);
        assert!(names.parse_record("fleet.ack.ship1.ops.shell").is_none());
    }

    proptest! {
        #[test]
        fn no_subject_panics(text in "fleet\\.msg(\\.[a-z@$*>é]{0,3}){0,8}") {
            let names = Names::default();
            let loose = names.read_loosely(&text);
            prop_assert!(!loose.from.is_empty());
            if let Ok(parsed) = names.parse_message(&text) {
                prop_assert_eq!(names.message(&parsed), text);
            }
        }
    }
}
