//! The node's own policy: which senders may use which kinds and methods. Nothing sent can loosen it.
//!
//! Owns parsing `policy.toml` and judging. Never reads files.

use super::message::Kind;
use super::name::{MethodName, Sender};
use serde::Deserialize;

/// What a node accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// No policy file and no credentials: everything.
    Open,
    /// No policy file, but credentials: nothing but the hub's own verbs.
    HubOnly,
    /// What the file allows, nothing else.
    Rules(Vec<Allow>),
}

/// One `[[allow]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// Senders, `"*"` for any.
    pub senders: Vec<String>,
    /// Kinds, `"*"` for any.
    pub kinds: Vec<String>,
    /// Methods and verbs, `"*"` for any.
    pub methods: Vec<String>,
    /// Users that `exec` may name; none without it.
    #[serde(default)]
    pub users: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow: Vec<Allow>,
}

impl Policy {
    /// Reads `policy.toml`. The error tells line and column, and every name that is none.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        for allow in &file.allow {
            let wildcard = |name: &&String| name.as_str() != "*";
            allow
                .senders
                .iter()
                .filter(wildcard)
                .try_for_each(|n| n.parse::<Sender>().map(drop))
                .map_err(|e| e.to_string())?;
            allow
                .kinds
                .iter()
                .filter(wildcard)
                .try_for_each(|n| n.parse::<Kind>().map(drop))
                .map_err(|e| e.to_string())?;
            allow
                .methods
                .iter()
                .filter(wildcard)
                .try_for_each(|n| n.parse::<MethodName>().map(drop))
                .map_err(|e| e.to_string())?;
        }
        Ok(Policy::Rules(file.allow))
    }

    /// True where this sender may use this method.
    pub fn allows(&self, from: &Sender, kind: Kind, method: &MethodName) -> bool {
        match self {
            Policy::Open => true,
            Policy::HubOnly => false,
            Policy::Rules(rules) => rules.iter().any(|rule| rule.covers(from, kind, method)),
        }
    }

    /// True where this sender may say whose message it steers (the `from` of a cancel). That is for admins, and a node
    /// knows two: the hub, since the broker lets only hub and admins speak as `hub`, and whom a rule gives every control
    /// verb by `"*"`, since he may stop all of it anyway.
    pub fn allows_for_others(&self, from: &Sender) -> bool {
        match self {
            Policy::Open => true,
            Policy::HubOnly => false,
            Policy::Rules(rules) => {
                from.is_hub()
                    || rules.iter().any(|rule| {
                        named(&rule.senders, from.as_str())
                            && named(&rule.kinds, Kind::Control.as_str())
                            && rule.methods.iter().any(|method| method == "*")
                    })
            }
        }
    }

    /// True where this sender may have `method` run as `user`.
    pub fn allows_user(&self, from: &Sender, kind: Kind, method: &MethodName, user: &str) -> bool {
        match self {
            Policy::Open => true,
            Policy::HubOnly => false,
            Policy::Rules(rules) => {
                rules.iter().any(|rule| rule.covers(from, kind, method) && named(&rule.users, user))
            }
        }
    }
}

impl Allow {
    fn covers(&self, from: &Sender, kind: Kind, method: &MethodName) -> bool {
        named(&self.senders, from.as_str())
            && named(&self.kinds, kind.as_str())
            && named(&self.methods, method.as_str())
    }
}

fn named(list: &[String], name: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(policy: &Policy, from: &str, kind: Kind, method: &str) -> bool {
        policy.allows(&from.parse().unwrap(), kind, &method.parse().unwrap())
    }

    #[test]
    fn only_what_a_rule_names_is_allowed() {
        let policy = Policy::parse(
            r#"
            [[allow]]
            senders = ["ops"]
            kinds = ["command"]
            methods = ["shell", "exec"]
            users = ["www-data"]
            [[allow]]
            senders = ["*"]
            kinds = ["event"]
            methods = ["log"]
            "#,
        )
        .unwrap();
        assert!(ask(&policy, "ops", Kind::Command, "shell"));
        assert!(!ask(&policy, "bob", Kind::Command, "shell"));
        assert!(!ask(&policy, "ops", Kind::Event, "shell"));
        assert!(ask(&policy, "van7", Kind::Event, "log"));
        let (ops, exec) = ("ops".parse().unwrap(), "exec".parse().unwrap());
        assert!(policy.allows_user(&ops, Kind::Command, &exec, "www-data"));
        assert!(!policy.allows_user(&ops, Kind::Command, &exec, "root"));
    }

    #[test]
    fn the_messages_of_others_are_for_admins() {
        let policy = Policy::parse(
            r#"
            [[allow]]
            senders = ["*"]
            kinds = ["control"]
            methods = ["cancel"]
            [[allow]]
            senders = ["chief"]
            kinds = ["control"]
            methods = ["*"]
            [[allow]]
            senders = ["ops"]
            kinds = ["command"]
            methods = ["*"]
            "#,
        )
        .unwrap();
        let may = |policy: &Policy, from: &str| policy.allows_for_others(&from.parse().unwrap());
        assert!(may(&policy, "chief") && may(&policy, "hub") && !may(&policy, "ops"));
        assert!(may(&Policy::Open, "ops") && !may(&Policy::HubOnly, "hub"));
    }

    #[test]
    fn without_a_file_credentials_decide() {
        assert!(ask(&Policy::Open, "ops", Kind::Command, "shell"));
        assert!(!ask(&Policy::HubOnly, "ops", Kind::Command, "shell"));
        assert!(!ask(&Policy::parse("").unwrap(), "ops", Kind::Command, "shell"));
    }

    #[test]
    fn a_typo_is_an_error_with_its_line() {
        let error = Policy::parse("[[allow]]\nsenders = [\"ops\"]\nkind = [\"command\"]\nmethods = []\n").unwrap_err();
        assert!(error.contains("line 3") && error.contains("kind"), "{error}");
        assert!(Policy::parse("[[allow]]\nsenders=[\"a.b\"]\nkinds=[]\nmethods=[]").is_err());
    }
}
