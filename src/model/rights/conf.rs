//! The rights as a configuration of nats-server: the accounts block, and the sample `nats-server.conf` of this project.
//!
//! Owns the layout of that text and the public sample keys. Never holds a seed: those are in `deploy/sample-keys/`.

use super::{Account, Answer, Only, Permissions, Right, Role, inbox, nodes_imports, ops_imports};
use crate::model::name::{BadName, Sender};
use crate::model::subject::Names;
use std::fmt::Write;

/// A user of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name: its `<from>`, its inbox, for a node its node name.
    pub name: Sender,
    /// What it may do.
    pub role: Role,
    /// Its public nkey, `U…`.
    pub key: String,
}

const HUB: &str = "UBL3J65LCDI4ISUN5HD3HOHOZ6SOPMQ56P2XVGKRUVUQUAUC3J4WK3WD";
const ADMIN: &str = "UAPOR2AKO3RXQOB2G3IIESNPUYDZPRKOWGY7KHDA5JKAPG3TJV4TFBBF";
const OPS: &str = "UAARV5WPWD77JD77WSY7F6SVGWKH6UPRJ23TSDBKPC2LIGEDPYF3WRNJ";
const SHIP1: &str = "UD5NVQ24ESBMSKNDABTBIOCSCCSVXTUTJPSM3GFMNJTGRNXKDDNAYLJX";
const SHIP2: &str = "UDSJCWG2SUUAIULC5OQPQT4YLBWMNLHEAOU5CNPFYBDDBGNHFWO2IQQI";

/// True for the public keys whose seeds lie in `deploy/sample-keys/` for all to read.
pub fn is_sample_key(public: &str) -> bool {
    [HUB, ADMIN, OPS, SHIP1, SHIP2].contains(&public)
}

/// The users of the sample: `hub`, `admin`, the operator `ops` and the nodes `ship1` and `ship2`.
pub fn sample_users() -> Result<Vec<User>, BadName> {
    let user = |name: &str, role: Role, key: &str| Ok(User { name: name.parse()?, role, key: key.to_owned() });
    Ok(vec![
        user("hub", Role::Hub, HUB)?,
        user("admin", Role::Admin, ADMIN)?,
        user("ops", Role::Operator { targets: Only::All, methods: Only::All }, OPS)?,
        user("ship1", Role::Node { may_command: false }, SHIP1)?,
        user("ship2", Role::Node { may_command: false }, SHIP2)?,
    ])
}

/// The sample `nats-server.conf`: one server on loopback with these users and nothing but their rights.
pub fn render_conf(names: &Names, users: &[User]) -> String {
    let accounts = render_accounts(names, users);
    format!("{HEAD}\n{accounts}")
}

const HEAD: &str = r#"# One nats-server for edgeward, with the rights of each role.
#
#     nats-server -c nats-server.conf
#
# The keys are samples: their seeds lie in deploy/sample-keys/ for all to read, so agent, hub and command line refuse
# them off loopback. For a real fleet replace every `nkey`, set `listen`, and add `tls`.
#
# This file is made from src/model/rights.rs, and a test compares the two. After a change there:
#
#     EDGEWARD_BLESS=1 cargo test --test it rights

listen: "127.0.0.1:4222"
max_payload: 1MB

# A link that is gone is noticed within a minute, and what it asked for is dropped.
ping_interval: "20s"
ping_max: 2

jetstream {
  # Relative to the folder that nats-server is started in; on a real machine an absolute path.
  store_dir: "nats-data"
  # What was confirmed survives a power cut.
  sync_interval: always
  # The hub reserves 10 GiB for the streams (`store_bytes` in its config); keep this above it and below the free disk.
  max_memory_store: 256MB
  max_file_store: 12GB
  # One consumer per node and stream; the server would stop at 1,000.
  limits { default_max_consumers: -1 }
}
"#;

/// The block `accounts { … }`.
pub fn render_accounts(names: &Names, users: &[User]) -> String {
    let mut text = Text::default();
    text.line(0, "accounts {");
    text.comment(
        1,
        "The streams. In one account, anyone who may make the broker answer could have it store the answer as",
    );
    text.comment(
        1,
        "somebody else's command: so nodes and operators have accounts of their own and reach this one by these",
    );
    text.comment(1, "exports alone.");
    text.line(1, "FLEET {");
    text.line(2, "jetstream: enabled");
    text.users(names, users, Account::Fleet);
    text.exports(names);
    text.line(1, "}");
    for (account, rights, why) in [
        (Account::Ops, ops_imports(names), "Operators and observers: nats --js-api-prefix"),
        (Account::Nodes, nodes_imports(names), "Nodes. Their JetStream API is under"),
    ] {
        text.line(0, "");
        text.comment(1, &format!("{why} {}", names.imported_api()));
        text.line(1, &format!("{} {{", account.as_str()));
        text.imports(&rights);
        text.users(names, users, account);
        text.line(1, "}");
    }
    text.line(0, "}");
    text.0
}

/// Lines, indented by two spaces a level.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, level: usize, text: &str) {
        if !text.is_empty() {
            self.0.extend(std::iter::repeat_n("  ", level));
        }
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn comment(&mut self, level: usize, text: &str) {
        self.line(level, &format!("# {text}"));
    }

    fn users(&mut self, names: &Names, users: &[User], account: Account) {
        self.line(2, "users: [");
        for user in users.iter().filter(|user| user.role.account() == account) {
            self.comment(3, &describe(user));
            match user.role.permissions(names, &user.name) {
                None => self.line(3, &format!("{{ nkey: {} }}", user.key)),
                Some(permissions) => {
                    self.line(3, &format!("{{ nkey: {}, permissions {{", user.key));
                    self.permissions(&permissions);
                    self.line(3, "} }");
                }
            }
        }
        self.line(2, "]");
    }

    fn permissions(&mut self, permissions: &Permissions) {
        for (verb, subjects) in [("publish", &permissions.publish), ("subscribe", &permissions.subscribe)] {
            self.line(4, &format!("{verb}: ["));
            subjects.iter().for_each(|subject| self.line(5, &format!("\"{subject}\"")));
            self.line(4, "]");
        }
    }

    fn exports(&mut self, names: &Names) {
        self.line(2, "exports: [");
        let mut last = String::new();
        for (right, accounts) in exported(names) {
            let accounts = accounts.join(", ");
            let why = format!("{accounts}: {}", right.why);
            if why != last {
                self.comment(3, &why);
                last = why;
            }
            let subject = &right.subject;
            let what = match right.answer {
                Answer::One => format!("service: \"{subject}\""),
                Answer::Many => format!("service: \"{subject}\", response_type: stream"),
                Answer::Feed => format!("stream: \"{subject}\""),
            };
            self.line(3, &format!("{{ {what}, accounts: [{accounts}] }}"));
        }
        self.line(2, "]");
    }

    fn imports(&mut self, rights: &[Right]) {
        self.line(2, "imports: [");
        for right in rights {
            let kind = if right.answer == Answer::Feed { "stream" } else { "service" };
            let mut line = format!("{{ {kind}: {{ account: FLEET, subject: \"{}\" }}", right.subject);
            if right.local != right.subject {
                // Writing to a String cannot fail.
                let _ = write!(line, ", to: \"{}\"", right.local);
            }
            self.line(3, &format!("{line} }}"));
        }
        self.line(2, "]");
    }
}

/// Every subject that leaves `FLEET`, once, with the accounts it goes to: two exports of one subject would hide each
/// other.
fn exported(names: &Names) -> Vec<(Right, Vec<&'static str>)> {
    let mut exports: Vec<(Right, Vec<&'static str>)> = Vec::new();
    for (account, rights) in [(Account::Ops, ops_imports(names)), (Account::Nodes, nodes_imports(names))] {
        for right in rights {
            match exports.iter_mut().find(|(other, _)| other.subject == right.subject) {
                Some((_, accounts)) => accounts.push(account.as_str()),
                None => exports.push((right, vec![account.as_str()])),
            }
        }
    }
    exports
}

fn describe(user: &User) -> String {
    let User { name, role, .. } = user;
    let what = match role {
        Role::Hub => "the hub",
        Role::Admin => "an admin",
        Role::Operator { targets: Only::All, methods: Only::All } => "an operator for all targets and methods",
        Role::Operator { .. } => "an operator for some targets or methods",
        Role::Observer => "an observer",
        Role::Node { may_command: false } => "a node",
        Role::Node { may_command: true } => "a node that may send commands",
    };
    format!("{name}: {what}; inbox prefix {}", inbox(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_names_every_sample_key_and_no_other() {
        let users = sample_users().unwrap();
        assert!(users.iter().all(|user| is_sample_key(&user.key)));
        let conf = render_conf(&Names::default(), &users);
        assert_eq!(conf.matches("nkey: U").count(), users.len());
        assert!(!is_sample_key("UAAA"));
    }

    #[test]
    fn a_subject_for_two_accounts_is_exported_once() {
        let exports = exported(&Names::default());
        let events = exports.iter().filter(|(right, _)| right.subject == "fleet.msg.*.event.*.>").collect::<Vec<_>>();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].1, ["OPS", "NODES"]);
    }

    #[test]
    fn the_text_is_balanced() {
        let conf = render_accounts(&Names::new("lab").unwrap(), &sample_users().unwrap());
        for (open, close) in [('{', '}'), ('[', ']')] {
            assert_eq!(conf.matches(open).count(), conf.matches(close).count());
        }
    }
}
