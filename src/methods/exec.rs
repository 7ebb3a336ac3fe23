//! `exec` (command): the body is JSON, a program with its arguments, run without a shell.
//!
//! Owns the body's shape: `{"argv":[…],"cwd":…,"env":{…},"stdin":…,"user":…}`, all but `argv` optional, unknown fields
//! refused. `cwd` is absolute, by default `/`; `stdin` is text, by default `/dev/null`. Never decides who may name a
//! `user`: that is the node's policy.

use super::process::{self, CWD};
use super::{Context, Handler, Work};
use crate::exec::{Spec, Stdin};
use crate::model::admit::{BodyFacts, MethodFacts};
use crate::model::error_event::Code;
use crate::model::message::Kind;
use crate::model::record::{Outcome, RecordError};
use crate::model::state::State;
use futures::future::{BoxFuture, FutureExt};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;

/// The method.
pub(super) struct Exec;

impl Handler for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn facts(&self) -> MethodFacts {
        MethodFacts { kind: Kind::Command, check }
    }

    fn run<'a>(&'a self, work: &'a Work, cx: &'a Context) -> BoxFuture<'a, Outcome> {
        run(work, cx).boxed()
    }

    fn outlives_agent(&self) -> bool {
        true
    }
}

/// The body.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    argv: Vec<String>,
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    stdin: Option<String>,
    user: Option<String>,
}

fn check(body: &[u8]) -> Result<BodyFacts, RecordError> {
    Ok(BodyFacts { user: Call::parse(body)?.user, ..BodyFacts::default() })
}

async fn run(work: &Work, cx: &Context) -> Outcome {
    match Call::parse(&work.body) {
        Ok(call) => process::run(call.into_spec(), work, cx).await,
        Err(error) => Outcome { state: State::Refused, error: Some(error), ..Outcome::succeeded() },
    }
}

impl Call {
    /// Reads a body. How deep it nests is bounded by the parser (128).
    fn parse(body: &[u8]) -> Result<Call, RecordError> {
        let bad = |reason: String| RecordError::new(Code::BadBody, reason);
        // The derived parser would take a list of the fields' values as well.
        match body.trim_ascii_start().first() {
            Some(b'{') => {}
            Some(_) => return Err(bad("the body is not a JSON object such as {\"argv\":[\"ls\"]}".to_owned())),
            None => return Err(bad("the body is empty".to_owned())),
        }
        let call: Call = serde_json::from_slice(body).map_err(|error| bad(format!("the body: {error}")))?;
        call.fault().map_or(Ok(call), |fault| Err(bad(fault)))
    }

    /// What no program can be started with.
    fn fault(&self) -> Option<String> {
        match self.argv.first().map(String::as_str) {
            None => return Some("`argv` is empty".to_owned()),
            Some("") => return Some("`argv[0]`, the program, is empty".to_owned()),
            Some(_) => {}
        }
        if let Some(cwd) = self.cwd.as_deref().filter(|cwd| !cwd.starts_with('/')) {
            return Some(format!("`cwd` is `{cwd}`, not an absolute path"));
        }
        if self.user.as_deref() == Some("") {
            return Some("`user` is empty".to_owned());
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Some(format!("`env` has the name `{name}`; a name is not empty and has no `=`"));
        }
        self.nul_place().map(|place| format!("`{place}` has a NUL character"))
    }

    fn nul_place(&self) -> Option<String> {
        let has_nul = |text: &str| text.contains('\0');
        if let Some(at) = self.argv.iter().position(|arg| has_nul(arg)) {
            return Some(format!("argv[{at}]"));
        }
        let optional = [("cwd", &self.cwd), ("user", &self.user)];
        if let Some((name, _)) = optional.iter().find(|(_, value)| value.as_deref().is_some_and(has_nul)) {
            return Some((*name).to_owned());
        }
        let (name, _) = self.env.iter().find(|(name, value)| has_nul(name) || has_nul(value))?;
        Some(format!("env.{name}"))
    }

    fn into_spec(self) -> Spec {
        let mut argv = self.argv.into_iter().map(OsString::from);
        Spec {
            program: argv.next().unwrap_or_default(),
            args: argv.collect(),
            cwd: Some(self.cwd.unwrap_or_else(|| CWD.to_owned()).into()),
            env: self.env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            stdin: self.stdin.map_or(Stdin::Null, |text| Stdin::Bytes(text.into())),
            user: self.user,
            ..Spec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Node, error, text, work};
    use super::*;
    use proptest::prelude::*;

    async fn run_in(node: &Node, body: &serde_json::Value) -> Outcome {
        check(body.to_string().as_bytes()).unwrap();
        Exec.run(&work("exec", body.to_string()), &node.cx).await
    }

    #[test]
    fn each_fault_is_refused_with_its_reason() {
        let cases: [(&str, &str); 17] = [
            ("", "the body is empty"),
            (" \n", "the body is empty"),
            (r#"[["ls"]]"#, "not a JSON object"),
            ("ls -l", "not a JSON object"),
            ("{}", "missing field `argv` at line 1 column 2"),
            (
                "{\"argv\":[\"ls\"],\n \"cdw\":\"/\"}",
                "unknown field `cdw`, expected one of `argv`, `cwd`, `env`, `stdin`, `user` at line 2 column 6",
            ),
            (r#"{"argv":["ls"]"#, "EOF while parsing an object at line 1 column 14"),
            (r#"{"argv":["ls"]} x"#, "trailing characters at line 1 column 17"),
            (r#"{"argv":["ls"],"argv":["rm"]}"#, "duplicate field `argv`"),
            (r#"{"argv":["ls",1]}"#, "expected a string at line 1 column 15"),
            (r#"{"argv":[]}"#, "`argv` is empty"),
            (r#"{"argv":[""]}"#, "`argv[0]`, the program, is empty"),
            (r#"{"argv":["ls","a\u0000b"]}"#, "`argv[1]` has a NUL"),
            (r#"{"argv":["ls"],"env":{"A":"\u0000"}}"#, "`env.A` has a NUL"),
            (r#"{"argv":["ls"],"env":{"A=B":""}}"#, "`A=B`"),
            (r#"{"argv":["ls"],"cwd":"tmp"}"#, "not an absolute path"),
            (r#"{"argv":["ls"],"user":""}"#, "`user` is empty"),
        ];
        for (body, reason) in cases {
            let error = check(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, Code::BadBody);
            assert!(error.message.contains(reason), "{body}: {}", error.message);
        }
        assert!(check(b"{\"argv\":[\"\xff\"]}").unwrap_err().message.contains("line 1 column"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = "[".repeat(1_000_000);
        for body in [format!("{{\"argv\":{deep}"), format!("{{\"deep\":{deep}"), format!("{{\"env\":{{\"a\":{deep}")] {
            assert_eq!(check(body.as_bytes()).unwrap_err().code, Code::BadBody);
        }
    }

    #[test]
    fn admission_learns_of_the_user() {
        assert_eq!(check(br#"{"argv":["id"],"user":"www-data"}"#).unwrap().user.as_deref(), Some("www-data"));
        assert_eq!(check(br#"{"argv":["id"],"user":null}"#).unwrap(), BodyFacts::default());
    }

    #[tokio::test]
    async fn arguments_arrive_without_a_shell() {
        let body = serde_json::json!({"argv": ["printf", "%s|", "$HOME", "a b", "", "*", "é"]});
        let outcome = run_in(&Node::new(), &body).await;
        assert_eq!((outcome.state, text(&outcome.stdout)), (State::Succeeded, "$HOME|a b||*|é|".into()));
    }

    #[tokio::test]
    async fn folder_environment_and_input_are_as_given() {
        let node = Node::new();
        let folder = node.folder.path().to_str().unwrap().to_owned();
        let script = "pwd; echo $COLOUR; cat";
        let body = serde_json::json!({
            "argv": ["sh", "-c", script], "cwd": folder.as_str(), "env": {"COLOUR": "deep red"}, "stdin": "line\u{0}\n",
        });
        assert_eq!(text(&run_in(&node, &body).await.stdout), format!("{folder}\ndeep red\nline\u{0}\n"));

        let node = node.again();
        let bare = serde_json::json!({"argv": ["sh", "-c", script]});
        assert_eq!(text(&run_in(&node, &bare).await.stdout), "/\n\n");
    }

    #[tokio::test]
    async fn a_program_or_user_that_is_not_there_fails() {
        let node = Node::new();
        let outcome = run_in(&node, &serde_json::json!({"argv": ["no-such-program"]})).await;
        assert_eq!(
            (outcome.state, error(&outcome)),
            (State::Failed, (Code::Spawn, "program \"no-such-program\" not found"))
        );
        let node = node.again();
        let outcome = run_in(&node, &serde_json::json!({"argv": ["id"], "user": "no-such-user"})).await;
        assert_eq!(error(&outcome), (Code::Spawn, "no such user \"no-such-user\""));
    }

    #[tokio::test]
    async fn a_body_that_was_never_checked_is_refused() {
        let outcome = Exec.run(&work("exec", "{"), &Node::new().cx).await;
        assert_eq!((outcome.state, error(&outcome).0), (State::Refused, Code::BadBody));
    }

    proptest! {
        #[test]
        fn no_body_panics(body in "(\\{\"argv\":)?[\\[\\]{}\":,a0\\\\u-]{0,40}") {
            let _ = check(body.as_bytes());
        }
    }
}
