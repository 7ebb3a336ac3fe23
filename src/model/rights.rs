//! Who may do what on the broker: each right of each role, written once.
//!
//! Owns the subjects that a role may use and how the accounts `NODES` and `OPS` reach account `FLEET`; `conf` makes
//! `nats-server.conf` of it. Never connects, and never reads or makes a secret key.
//!
//! A right is written for a name. Made for `*` it is what a whole account imports; made for one name it is what that
//! user may publish. So an import can never be narrower than what its users need, and a user is always confined to its
//! own name.

pub mod conf;

pub use conf::is_sample_key;

use super::message::StreamKind;
use super::name::{MethodName, NodeName, Sender, Target};
use super::subject::{Names, NodeKey, RecordClass, RecordStream};

/// The NATS accounts. Only `FLEET` has streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// The streams; hub and admins.
    Fleet,
    /// Operators and observers.
    Ops,
    /// Nodes.
    Nodes,
}

impl Account {
    /// The account's name on the broker; the same under every prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Account::Fleet => "FLEET",
            Account::Ops => "OPS",
            Account::Nodes => "NODES",
        }
    }
}

/// How an imported subject is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// By one reply.
    One,
    /// By any number of replies: the broker closes the way back after the first one otherwise.
    Many,
    /// Not at all: the broker sends of its own accord.
    Feed,
}

/// One way from an account into `FLEET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// What it is for, in one line.
    pub why: &'static str,
    /// The subject in account `FLEET`.
    pub subject: String,
    /// The subject that the other accounts use for it.
    pub local: String,
    /// How it is answered.
    pub answer: Answer,
}

/// What a user may publish and subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects that it may publish to.
    pub publish: Vec<String>,
    /// Subjects that it may subscribe to.
    pub subscribe: Vec<String>,
}

/// All there is, or these alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Only<T> {
    /// No limit.
    All,
    /// These and no others.
    These(Vec<T>),
}

/// What a user of the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The control plane: everything in `FLEET`.
    Hub,
    /// A person with all rights: everything in `FLEET`.
    Admin,
    /// Sends to these targets with these methods, and reads everything.
    Operator {
        /// Whom it may send to.
        targets: Only<Target>,
        /// With what.
        methods: Only<MethodName>,
    },
    /// Reads everything.
    Observer,
    /// A node.
    Node {
        /// The grant to send commands to other nodes.
        may_command: bool,
    },
}

impl Role {
    /// The account that users of this role belong to.
    pub fn account(&self) -> Account {
        match self {
            Role::Hub | Role::Admin => Account::Fleet,
            Role::Operator { .. } | Role::Observer => Account::Ops,
            Role::Node { .. } => Account::Nodes,
        }
    }

    /// What a user of this name and role may do; `None` is everything in its account.
    pub fn permissions(&self, names: &Names, name: &Sender) -> Option<Permissions> {
        match self {
            Role::Hub | Role::Admin => None,
            Role::Operator { targets, methods } => Some(operator(names, name, targets, methods)),
            Role::Observer => Some(observer(names, name)),
            Role::Node { may_command } => Some(of_node(names, name.as_str(), *may_command)),
        }
    }
}

/// The inbox of a user: `_INBOX_<name>`, without the dot.
pub fn inbox(name: &str) -> String {
    format!("_INBOX_{name}")
}

/// What a node may do: its own consumers, records, state and events; with a grant commands to others.
pub fn node(names: &Names, node: &NodeName, may_command: bool) -> Permissions {
    of_node(names, node.as_str(), may_command)
}

/// What an operator may do: send to `targets` with `methods`, cancel its own messages, read everything.
pub fn operator(names: &Names, name: &Sender, targets: &Only<Target>, methods: &Only<MethodName>) -> Permissions {
    let targets = match targets {
        Only::All => vec!["*".to_owned()],
        Only::These(targets) => targets.iter().map(ToString::to_string).collect(),
    };
    let mut permissions = observer(names, name);
    permissions.publish.extend(locals(sending(names, name.as_str(), &targets, methods)));
    permissions
}

/// What an observer may do: read everything.
pub fn observer(names: &Names, name: &Sender) -> Permissions {
    let subscribe = vec![format!("{}.>", inbox(name.as_str())), stored(names).local];
    Permissions { publish: locals(reading(names)), subscribe }
}

/// What account `NODES` imports.
pub fn nodes_imports(names: &Names) -> Vec<Right> {
    node_rights(names, "*", true)
}

/// What account `OPS` imports.
pub fn ops_imports(names: &Names) -> Vec<Right> {
    let mut rights = reading(names);
    rights.push(stored(names));
    rights.extend(sending(names, "*", &["*".to_owned()], &Only::All));
    rights
}

fn of_node(names: &Names, name: &str, may_command: bool) -> Permissions {
    Permissions {
        publish: locals(node_rights(names, name, may_command)),
        subscribe: vec![format!("{}.>", inbox(name))],
    }
}

fn locals(rights: Vec<Right>) -> Vec<String> {
    rights.into_iter().map(|right| right.local).collect()
}

/// A request of the JetStream API. Under a subject of its own: an account's own API would answer otherwise.
fn api(names: &Names, why: &'static str, request: &str, answer: Answer) -> Right {
    let local = format!("{}.{request}", names.imported_api());
    Right { why, subject: format!("$JS.API.{request}"), local, answer }
}

/// A publish, which the broker confirms.
fn publish(why: &'static str, subject: String) -> Right {
    Right { why, local: subject.clone(), subject, answer: Answer::One }
}

/// Answered only where the API is imported: so a client finds out under which prefix it is.
fn find_api(names: &Names) -> Right {
    api(names, "find out that the API is here, and see that it answers", "INFO", Answer::One)
}

/// `node` is a node's name, or `*`.
fn node_rights(names: &Names, node: &str, may_command: bool) -> Vec<Right> {
    let here = "say that its messages are on the node; the broker uses either form";
    let mut rights = vec![find_api(names)];
    for stream in StreamKind::ALL.map(|stream| names.stream(stream)) {
        rights.extend([
            api(names, "take its messages", &format!("CONSUMER.MSG.NEXT.{stream}.{node}"), Answer::Many),
            api(names, "go to its position", &format!("CONSUMER.RESET.{stream}.{node}"), Answer::One),
            api(names, "look at its consumer", &format!("CONSUMER.INFO.{stream}.{node}"), Answer::One),
            publish(here, format!("$JS.ACK.{stream}.{node}.>")),
            publish(here, format!("$JS.ACK.*.*.{stream}.{node}.>")),
        ]);
    }
    for class in [RecordClass::Ack, RecordClass::Progress, RecordClass::Late] {
        let subject = format!("{}.{}.{node}.>", names.prefix(), class.as_str());
        rights.push(publish("say what became of its messages", subject));
    }
    rights.push(publish("the output of what it ran", format!("{}.output.{node}.>", names.prefix())));
    rights.push(publish("its failures", format!("{}.error.{node}.>", names.prefix())));
    for key in [NodeKey::Status, NodeKey::Hello] {
        rights.push(publish("its state", names.node_key(key, node)));
    }
    // By subject: the form that a right can confine; the other one has the subject in its body.
    let nodes = names.record_stream(RecordStream::Nodes);
    for key in [NodeKey::Spec, NodeKey::Status] {
        let request = format!("DIRECT.GET.{nodes}.{}", names.node_key(key, node));
        rights.push(api(names, "read what is said of it", &request, Answer::One));
    }
    let acks = names.record_stream(RecordStream::Acks);
    let request = format!("DIRECT.GET.{acks}.{}.{}.{node}.>", names.prefix(), RecordClass::Ack.as_str());
    rights.push(api(names, "read its own records", &request, Answer::One));
    rights.push(publish("send events", format!("{}.msg.*.event.{node}.>", names.prefix())));
    if may_command {
        rights.push(publish("send commands, where granted", format!("{}.msg.*.command.{node}.>", names.prefix())));
    }
    rights
}

/// Both forms of the direct get, and what the `nats` CLI asks for. No consumers: a name in a request's body cannot be
/// confined.
fn reading(names: &Names) -> Vec<Right> {
    let look = "look at streams and consumers";
    let mut rights = vec![find_api(names)];
    let requests =
        ["STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.*", "CONSUMER.NAMES.*", "CONSUMER.LIST.*", "CONSUMER.INFO.*.*"];
    rights.extend(requests.map(|request| api(names, look, request, Answer::One)));
    rights.push(api(names, "read one message", "STREAM.MSG.GET.*", Answer::One));
    rights.push(api(names, "read many messages with one request", "DIRECT.GET.*", Answer::Many));
    rights.push(api(names, "read the last message of a subject", "DIRECT.GET.*.>", Answer::Many));
    rights
}

fn stored(names: &Names) -> Right {
    let subject = format!("{}.stored.>", names.prefix());
    Right { why: "follow records as they are stored", local: subject.clone(), subject, answer: Answer::Feed }
}

/// `from` is an operator's name, or `*`.
fn sending(names: &Names, from: &str, targets: &[String], methods: &Only<MethodName>) -> Vec<Right> {
    let mut rights = Vec::new();
    for target in targets {
        for kind in ["command", "event"] {
            let base = format!("{}.msg.{target}.{kind}.{from}", names.prefix());
            let mut send = |subject: String| rights.push(publish("send commands and events", subject));
            match methods {
                Only::All => send(format!("{base}.>")),
                Only::These(methods) => methods.iter().for_each(|method| {
                    send(format!("{base}.{method}"));
                    send(format!("{base}.{method}.*"));
                }),
            }
        }
    }
    rights.push(publish("cancel its own messages", format!("{}.msg.*.control.{from}.cancel", names.prefix())));
    rights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// True where every subject of `pattern` is one of `wider`.
    fn covers(wider: &str, pattern: &str) -> bool {
        let (mut wider, mut pattern) = (wider.split('.'), pattern.split('.'));
        loop {
            match (wider.next(), pattern.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) => return true,
                (Some("*"), Some(token)) if token != ">" => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    fn restricted(names: &Names) -> Vec<(Vec<Right>, Permissions)> {
        let (ship, ops) = ("ship1".parse().unwrap(), "ops".parse().unwrap());
        let targets = Only::These(vec!["ship1".parse().unwrap(), "@web".parse().unwrap()]);
        let methods = Only::These(vec!["shell".parse().unwrap()]);
        vec![
            (nodes_imports(names), node(names, &ship, true)),
            (ops_imports(names), operator(names, &ops, &Only::All, &Only::All)),
            (ops_imports(names), operator(names, &ops, &targets, &methods)),
            (ops_imports(names), observer(names, &ops)),
        ]
    }

    #[test]
    fn what_a_user_may_publish_its_account_imports() {
        for (imports, permissions) in restricted(&Names::default()) {
            for subject in permissions.publish {
                assert!(imports.iter().any(|import| covers(&import.local, &subject)), "{subject}");
            }
        }
    }

    #[test]
    fn a_node_is_confined_to_its_own_name() {
        let rights = node(&Names::default(), &"ship1".parse().unwrap(), true);
        for subject in rights.publish.iter().chain(&rights.subscribe) {
            assert!(subject.contains("ship1") || subject == "fleet.api.INFO", "{subject}");
        }
        let ungranted = node(&Names::default(), &"ship1".parse().unwrap(), false);
        assert!(!ungranted.publish.iter().any(|s| s.contains(".command.")));
    }

    #[test]
    fn a_restricted_operator_has_its_targets_and_methods_alone() {
        let (_, permissions) = restricted(&Names::default()).swap_remove(2);
        let sends: Vec<_> = permissions.publish.iter().filter(|s| s.starts_with("fleet.msg.")).collect();
        assert_eq!(sends.len(), 9, "{sends:?}");
        let may = |subject: &str| permissions.publish.iter().any(|s| covers(s, subject));
        assert!(may("fleet.msg.@web.command.ops.shell") && may("fleet.msg.ship1.event.ops.shell.lane"));
        assert!(may("fleet.msg.ship2.control.ops.cancel"));
        for refused in [
            "fleet.msg.ship2.command.ops.shell",
            "fleet.msg.ship1.command.ops.exec",
            "fleet.msg.ship1.command.bob.shell",
            "fleet.msg.ship1.control.ops.stop",
        ] {
            assert!(!may(refused), "{refused}");
        }
    }

    #[test]
    fn nobody_restricted_makes_consumers_or_writes_the_hubs_word() {
        for (imports, permissions) in restricted(&Names::default()) {
            let imported = imports.iter().filter(|i| i.answer != Answer::Feed).map(|i| &i.local);
            for subject in imported.chain(&permissions.publish) {
                for refused in ["fleet.api.CONSUMER.CREATE.x", "$KV.FLEET_NODES.spec.ship1", "fleet.stored.ack.x"] {
                    assert!(!covers(subject, refused), "{subject}");
                }
                assert!(!subject.starts_with("$JS.API"), "{subject}");
            }
        }
    }

    #[test]
    fn rights_follow_the_prefix() {
        for (imports, permissions) in restricted(&Names::new("lab").unwrap()) {
            let all = imports.iter().flat_map(|i| [&i.subject, &i.local]).chain(&permissions.publish);
            assert!(all.into_iter().all(|subject| !subject.to_lowercase().contains("fleet")));
        }
    }
}
