//! Admission: may this stored message run on this node at all?
//!
//! Owns every reason for which a node refuses a message. Pure: no clock (a passed start-by and a cancel are looked at
//! when the message starts), no I/O. What does not parse is refused, never defaulted.

use super::error_event::Code;
use super::header::{MsgHeaders, id_of};
use super::id::{MessageId, MsgRef};
use super::message::{Kind, StoredMessage};
use super::name::{GroupName, NodeName, Sender, Target};
use super::policy::Policy;
use super::record::{By, Record, RecordError};
use super::settings::{Defaults, Settings};
use super::state::State;
use super::subject::{MsgSubject, Names};

/// What a body asks for beyond its method.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BodyFacts {
    /// The user that it wants to run as.
    pub user: Option<String>,
    /// The sender whose message it steers, where the body names one.
    pub whose: Option<Sender>,
}

/// What admission has to know of a method.
#[derive(Debug, Clone, Copy)]
pub struct MethodFacts {
    /// Its kind.
    pub kind: Kind,
    /// Judges a body without running it.
    pub check: fn(&[u8]) -> Result<BodyFacts, RecordError>,
}

/// What admission judges by.
pub struct Rules<'a> {
    /// Names on the broker.
    pub names: &'a Names,
    /// This node.
    pub node: &'a NodeName,
    /// Whether it is a member of a group for the message stored there.
    pub is_member: &'a dyn Fn(&GroupName, MsgRef) -> bool,
    /// What it accepts.
    pub policy: &'a Policy,
    /// Defaults of settings.
    pub defaults: &'a Defaults,
    /// Its methods and verbs; `None` for one it does not have.
    pub method: &'a dyn Fn(Kind, &str) -> Option<MethodFacts>,
}

/// A message that may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Where it is stored.
    pub at: MsgRef,
    /// Its id.
    pub id: MessageId,
    /// Its subject.
    pub subject: MsgSubject,
    /// Its headers.
    pub headers: MsgHeaders,
    /// How to run it.
    pub settings: Settings,
}

/// A message that may not, with what could be read of it: enough for its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Where it is stored.
    pub at: MsgRef,
    /// Its id, derived where its own cannot be read.
    pub id: MessageId,
    /// The sender's token, or `_`.
    pub from: String,
    /// The method's token, or `_`.
    pub method: String,
    /// Its kind, where that can be read.
    pub kind: Option<Kind>,
    /// Its lane token, where the subject could be read.
    pub lane: Option<String>,
    /// Why not.
    pub error: RecordError,
}

/// Judges a stored message.
pub fn admit(message: &StoredMessage, rules: &Rules<'_>) -> Result<Admitted, Box<Rejected>> {
    let subject = rules.names.parse_message(&message.subject);
    let reject = |error: RecordError| {
        let loose = rules.names.read_loosely(&message.subject);
        Box::new(Rejected {
            at: message.at,
            id: id_of(&message.headers, message.at),
            from: loose.from,
            method: loose.method,
            kind: loose.kind,
            lane: subject.as_ref().ok().and_then(|s| s.lane.as_ref()).map(ToString::to_string),
            error,
        })
    };
    if let Some(header) = message.headers.from_broker() {
        let text = format!("carries `{header}`, which only the broker writes: somebody had it store an answer");
        return Err(reject(RecordError::new(Code::BrokerHeaders, text)));
    }
    let subject = subject.clone().map_err(|bad| reject(RecordError::new(Code::BadSubject, bad.to_string())))?;
    check_target(&subject, message.at, rules).map_err(reject)?;
    let headers = MsgHeaders::parse(&message.headers, subject.kind)
        .map_err(|bad| reject(RecordError::new(Code::BadHeader, bad.to_string())))?;
    check_allowed(&subject, &message.body, rules).map_err(reject)?;
    let settings = Settings::resolve(&headers, subject.kind, &subject.method, message.at.stored_at, rules.defaults);
    Ok(Admitted { at: message.at, id: id_of(&message.headers, message.at), subject, headers, settings })
}

fn check_target(subject: &MsgSubject, at: MsgRef, rules: &Rules<'_>) -> Result<(), RecordError> {
    let node = rules.node;
    match &subject.to {
        Target::Node(to) if to == node => Ok(()),
        Target::Node(to) => Err(RecordError::new(Code::BadSubject, format!("is for `{to}`, this node is `{node}`"))),
        Target::Group(group) if (rules.is_member)(group, at) => Ok(()),
        Target::Group(group) => {
            Err(RecordError::new(Code::UnknownGroup, format!("this node is no member of `@{group}`")))
        }
    }
}

fn check_allowed(subject: &MsgSubject, body: &[u8], rules: &Rules<'_>) -> Result<(), RecordError> {
    let MsgSubject { kind, from, method, .. } = subject;
    let facts = (rules.method)(*kind, method.as_str());
    let is_hubs = *kind == Kind::Control && is_hub_verb(method.as_str()) || is_mark(*kind, method.as_str());
    if facts.is_some() && is_hubs {
        if !from.is_hub() {
            return Err(RecordError::new(Code::Policy, format!("`{method}` is taken from the hub alone")));
        }
    } else if !rules.policy.allows(from, *kind, method) {
        let text = match rules.policy {
            Policy::HubOnly => {
                format!("this node has no policy file, which would have to allow `{from}` the {kind} `{method}`")
            }
            _ => format!("this node's policy does not allow `{from}` the {kind} `{method}`"),
        };
        return Err(RecordError::new(Code::Policy, text));
    }
    let Some(facts) = facts else {
        return Err(unknown_method(*kind, method.as_str(), rules));
    };
    let body_facts = judged(facts.check, body)?;
    if let Some(whose) = body_facts.whose.filter(|whose| whose != from && !rules.policy.allows_for_others(from)) {
        let text = format!("this node's policy does not allow `{from}` to steer the messages of `{whose}`");
        return Err(RecordError::new(Code::Policy, text));
    }
    match body_facts.user {
        Some(user) if !rules.policy.allows_user(from, *kind, method, &user) => Err(RecordError::new(
            Code::Policy,
            format!("this node's policy does not allow `{from}` to run as `{user}`"),
        )),
        _ => Ok(()),
    }
}

/// What a method says about a body. One whose check panics over it refuses it: no body ends an agent.
fn judged(check: fn(&[u8]) -> Result<BodyFacts, RecordError>, body: &[u8]) -> Result<BodyFacts, RecordError> {
    std::panic::catch_unwind(|| check(body))
        .unwrap_or_else(|_| Err(RecordError::new(Code::BadBody, "the method panicked over the body")))
}

fn unknown_method(kind: Kind, method: &str, rules: &Rules<'_>) -> RecordError {
    let other = [Kind::Command, Kind::Event].into_iter().find(|k| (rules.method)(*k, method).is_some());
    match other {
        Some(right) if kind != Kind::Control => {
            RecordError::new(Code::WrongKind, format!("`{method}` is a method of kind {right}, not {kind}"))
        }
        _ => RecordError::new(Code::UnknownMethod, format!("this node has no {kind} `{method}`")),
    }
}

/// The verbs that the hub alone may send, whatever the policy says.
pub fn is_hub_verb(verb: &str) -> bool {
    matches!(verb, "member" | "events" | "result")
}

/// True for the mark of a join or leave, which lies in both streams.
pub fn is_mark(kind: Kind, method: &str) -> bool {
    kind != Kind::Command && method == "member"
}

impl Admitted {
    /// A record of this message, with what is known before it runs.
    pub fn record(&self, names: &Names, node: &NodeName, state: State) -> Record {
        Record {
            from: self.subject.from.to_string(),
            kind: Some(self.subject.kind),
            method: self.subject.method.to_string(),
            lane: self.subject.lane.as_ref().map(ToString::to_string),
            ..Record::bare(self.id.clone(), self.at, names.stream(self.at.stream), node.as_str(), state, By::Node)
        }
    }
}

impl Rejected {
    /// The terminal record of this message.
    pub fn record(&self, names: &Names, node: &str, state: State, by: By) -> Record {
        Record {
            from: self.from.clone(),
            kind: self.kind,
            method: self.method.clone(),
            lane: self.lane.clone(),
            error: Some(self.error.clone()),
            ..Record::bare(self.id.clone(), self.at, names.stream(self.at.stream), node, state, by)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::header::RawHeaders;
    use crate::model::id::StreamSeq;
    use crate::model::message::StreamKind;
    use crate::model::time::Timestamp;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn methods(kind: Kind, method: &str) -> Option<MethodFacts> {
        let check: fn(&[u8]) -> Result<BodyFacts, RecordError> = |body| {
            if body.is_empty() { Err(RecordError::new(Code::BadBody, "is empty")) } else { Ok(BodyFacts::default()) }
        };
        match (kind, method) {
            (Kind::Command, "shell") | (Kind::Event, "log") | (Kind::Control, "result") => {
                Some(MethodFacts { kind, check })
            }
            _ => None,
        }
    }

    fn judge(subject: &str, headers: &[(&str, &str)], body: &[u8], policy: &Policy) -> Result<Admitted, Box<Rejected>> {
        let message = StoredMessage {
            at: MsgRef { stream: StreamKind::Commands, seq: StreamSeq(3), stored_at: Timestamp::from_nanos(0) },
            subject: subject.to_owned(),
            headers: RawHeaders(headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()),
            body: Bytes::copy_from_slice(body),
        };
        let (names, node, defaults) = (Names::default(), "n1".parse().unwrap(), Defaults::default());
        let is_member = |group: &GroupName, at: MsgRef| group.as_str() == "db" && at.seq >= StreamSeq(3);
        let rules =
            Rules { names: &names, node: &node, is_member: &is_member, policy, defaults: &defaults, method: &methods };
        admit(&message, &rules)
    }

    #[test]
    fn a_good_message_is_admitted() {
        let admitted = judge("fleet.msg.n1.command.ops.shell.a", &[("Fleet-Id", "x")], b"true", &Policy::Open).unwrap();
        assert_eq!(admitted.id.as_str(), "x");
    }

    #[test]
    fn each_fault_has_its_code() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], Code);
        let cases: [Case<'_>; 11] = [
            ("fleet.msg.n1.command.ops.shell.a.b", &[], b"x", Code::BadSubject),
            ("fleet.msg.n2.command.ops.shell", &[], b"x", Code::BadSubject),
            ("fleet.msg.@web.command.ops.shell", &[], b"x", Code::UnknownGroup),
            ("fleet.msg.n1.command.ops.shell", &[("Fleet-Colour", "red")], b"x", Code::BadHeader),
            ("fleet.msg.n1.command.ops.shell", &[("Nats-Sequence", "1")], b"x", Code::BrokerHeaders),
            ("fleet.msg.n1.command.ops.shell", &[], b"", Code::BadBody),
            ("fleet.msg.n1.command.ops.dance", &[], b"x", Code::UnknownMethod),
            ("fleet.msg.n1.event.ops.shell", &[], b"x", Code::WrongKind),
            ("fleet.msg.n1.command.ops.log", &[], b"x", Code::WrongKind),
            ("fleet.msg.n1.control.ops.result", &[], b"x", Code::Policy),
            ("fleet.msg.n1.control.ops.explode", &[], b"x", Code::UnknownMethod),
        ];
        for (subject, headers, body, code) in cases {
            let rejected = judge(subject, headers, body, &Policy::Open).unwrap_err();
            assert_eq!(rejected.error.code, code, "{subject}: {}", rejected.error.message);
        }
    }

    #[test]
    fn the_hubs_own_verbs_are_outside_the_policy() {
        assert!(judge("fleet.msg.@db.command.ops.shell", &[], b"x", &Policy::Open).is_ok());
        assert!(judge("fleet.msg.n1.control.hub.result", &[], b"{}", &Policy::HubOnly).is_ok());
        let rejected = judge("fleet.msg.n1.command.hub.shell", &[], b"x", &Policy::HubOnly).unwrap_err();
        assert_eq!(rejected.error.code, Code::Policy);
        assert!(rejected.error.message.contains("no policy file"), "{}", rejected.error.message);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_all_get_a_record(
            subject in "fleet\\.msg(\\.[a-z0-9@$*>é]{0,6}){0,8}",
            name in "(Fleet-[A-Za-z]{0,10}|Fleet-Timeout|Fleet-Start-By|Fleet-Retries)",
            value in ".{0,20}",
            body in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            if let Err(rejected) = judge(&subject, &[(&name, &value)], &body, &Policy::Open) {
                let record = rejected.record(&Names::default(), "n1", State::Refused, By::Node);
                prop_assert!(serde_json::from_slice::<Record>(&record.encode()).is_ok());
            }
        }
    }
}
