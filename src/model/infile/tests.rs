//! The rules of message files, one by one.

use super::*;
use crate::model::header::{OnCrash, Retries};
use crate::model::time::StartBy;
use proptest::prelude::*;
use std::time::Duration;

fn kind_of(method: &str) -> Option<Kind> {
    match method {
        "shell" | "exec" | "ping" => Some(Kind::Command),
        "log" => Some(Kind::Event),
        _ => None,
    }
}

fn read(text: &str) -> Result<Vec<Draft>, FileError> {
    parse(text.as_bytes(), &kind_of)
}

fn one(text: &str) -> Draft {
    let mut drafts = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(drafts.len(), 1);
    drafts.remove(0)
}

#[test]
fn a_long_list_of_targets_is_no_long_work() {
    let names: Vec<String> = (0..100_000).map(|n| format!("\"n{n}\"")).collect();
    let text = format!(r#"{{"to":[{},"n7"],"method":"shell","body":"true"}}"#, names.join(","));
    let drafts = parse(text.as_bytes(), &|_| Some(Kind::Command)).unwrap();
    assert_eq!(drafts[0].to.len(), 100_000);
}

#[test]
fn a_message_with_every_field() {
    let draft = one(r#"{"to": ["ship1", "@web", "ship1"], "kind": "command", "method": "shell", "lane": "a",
        "body": "uname -a", "id": "x-1", "timeout": "5m", "start_by": "2h", "retries": 3, "retry_wait": "2s",
        "on_crash": "rerun"}"#);
    assert_eq!(draft.to, vec!["ship1".parse().unwrap(), "@web".parse().unwrap()], "each target once");
    assert_eq!((draft.kind, draft.method.as_str(), &draft.body[..]), (Kind::Command, "shell", &b"uname -a"[..]));
    assert_eq!(draft.lane.unwrap().as_str(), "a");
    let headers = draft.headers;
    assert_eq!(headers.id.unwrap().as_str(), "x-1");
    assert_eq!((headers.timeout, headers.retry_wait), (Some(Duration::from_secs(300)), Some(Duration::from_secs(2))));
    assert_eq!(headers.start_by, Some(StartBy::After(Duration::from_secs(7200))));
    assert_eq!((headers.retries, headers.on_crash), (Some(Retries::Times(3)), Some(OnCrash::Rerun)));
}

#[test]
fn only_target_and_method_are_needed() {
    let draft = one(r#"{"to":"ship1","method":"log"}"#);
    assert_eq!((draft.kind, draft.lane, draft.body), (Kind::Event, None, Bytes::new()));
    assert_eq!(draft.headers, MsgHeaders::default());
    assert_eq!(one(r#"{"to":"ship1","method":"own","kind":"event"}"#).kind, Kind::Event);
}

#[test]
fn a_list_is_several_messages() {
    let drafts = read(r#"[{"to":"a","method":"log"},{"to":"b","method":"ping"}]"#).unwrap();
    assert_eq!(drafts.iter().map(|d| d.to[0].to_string()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn other_names_mean_the_same() {
    let old = one(r#"{"toNode":"a","commandOrEvent":"command","method":"shellCommand","data":["ls","-l /"]}"#);
    assert_eq!(old, one(r#"{"to":"a","kind":"command","method":"exec","body":{"argv":["ls","-l /"]}}"#));
    assert_eq!(one(r#"{"to":"a","method":"textLogging"}"#).method.as_str(), "log");
}

#[test]
fn args_are_an_argv_or_lines() {
    assert_eq!(one(r#"{"to":"a","method":"exec","args":["echo","a b"]}"#).body, r#"{"argv":["echo","a b"]}"#);
    assert_eq!(one(r#"{"to":"a","method":"log","args":["one","two"]}"#).body, "one\ntwo");
}

#[test]
fn a_body_is_text_or_any_json() {
    for (body, sent) in [
        (r#""a\n\"b\"""#, "a\n\"b\""),
        (r#"{ "z" : 1, "a" : [ 1.50, "x y" ] }"#, r#"{"z":1,"a":[1.50,"x y"]}"#),
        ("12345678901234567890123", "12345678901234567890123"),
        ("null", "null"),
        ("[ ]", "[]"),
    ] {
        assert_eq!(one(&format!(r#"{{"to":"a","method":"own","kind":"event","body":{body}}}"#)).body, sent);
    }
}

#[test]
fn what_is_wrong_is_told_with_place_and_field() {
    let cases = [
        (r#"{"method":"log"}"#, "line 1, column 1: `to` is missing"),
        (r#"[{"to":"a"}]"#, "line 1, column 2: `method` is missing"),
        (
            r#"{"to":"a","method":"dance"}"#,
            "line 1, column 20: `method` names `dance`, which is not known here: give its `kind`",
        ),
        ("{\"to\":\"a\",\n \"colour\":1}", "line 2, column 2: `colour` is not a field of a message"),
        (r#"{"to":"a","to":"b"}"#, "line 1, column 11: `to` is given twice"),
        (r#"{"to":"a","toNode":"b"}"#, "line 1, column 11: `toNode` is another name of `to`, which is given too"),
        (r#"{"to":5,"method":"log"}"#, "line 1, column 7: `to` is a number, not text"),
        (r#"{"to":["a",null],"method":"log"}"#, "line 1, column 12: `to` is null, not text"),
        (r#"{"to":[],"method":"log"}"#, "line 1, column 7: `to` is an empty list"),
        (r#"{"toNode":"a.b","method":"log"}"#, "column 11: `toNode` is no good: node name `a.b` contains `.`"),
        (r#"{"to":"a","method":"l g"}"#, "column 20: `method` is no good"),
        (r#"{"to":"a","method":"log","kind":"order"}"#, "column 33: `kind` is no good: kind `order`"),
        (r#"{"to":"a","method":"log","lane":7}"#, "column 33: `lane` is a number, not text"),
        (r#"{"to":"a","method":"cancel","kind":"control","lane":"x"}"#, "column 53: `lane` is given, but control"),
        (r#"{"to":"a","method":"log","timeout":30}"#, "column 36: `timeout` is a number, not text"),
        (r#"{"to":"a","method":"log","timeout":"soon"}"#, "column 36: `timeout` `soon` is not a duration"),
        (r#"{"to":"a","method":"log","timeout":"0s"}"#, "`timeout` is zero"),
        (r#"{"to":"a","method":"log","retries":-1}"#, "`retries` is not a number or `unlimited`"),
        (r#"{"to":"a","method":"log","retries":true}"#, "`retries` is true or false, not text"),
        (r#"{"to":"a","method":"log","on_crash":"maybe"}"#, "`on_crash` is not `report` or `rerun`"),
        (r#"{"to":"a","method":"log","id":"s42"}"#, "column 31: `id` reads as a stored sequence"),
        (r#"{"to":"a","method":"exec","args":["ls",1]}"#, "column 40: `args` is a number, not text"),
        (r#"{"to":"a","method":"exec","args":"ls"}"#, "`args` is text, not a list of texts"),
        (r#"{"to":"a","method":"exec","body":"","data":[]}"#, "column 37: `data` is given beside `body`"),
        ("[]", "line 1, column 1: an empty list has nothing to send"),
        ("[[]]", "line 1, column 2: a message is an object, not a list"),
        ("\"text\"", "line 1, column 1: a message is an object, not text"),
        ("{\n  \"to\" \"a\"}", "line 2, column 8: is not JSON: expected `:`"),
        (r#"{"to":"a","method":"log"} x"#, "line 1, column 27: is not JSON: trailing characters"),
        ("hello", "line 1, column 1: is not JSON: expected value"),
    ];
    for (text, wanted) in cases {
        let error = read(text).unwrap_err();
        assert!(matches!(error, FileError::Bad { .. }), "{text}: {error}");
        assert!(error.to_string().contains(wanted), "{text}\n  says {error}\nwanted {wanted}");
    }
}

#[test]
fn every_beginning_of_a_file_is_incomplete() {
    let text = "[{\"to\":\"ship1\",\"method\":\"log\",\"retries\":-1.5e3,\"body\":{\"é\":[true,null,\"\\u00e9\"]}}]";
    for end in 0..text.len() {
        let error = parse(&text.as_bytes()[..end], &kind_of).unwrap_err();
        assert!(matches!(error, FileError::Incomplete { .. }), "{end}: {error}");
    }
    assert!(matches!(read(" \n "), Err(FileError::Incomplete { .. })));
}

#[test]
fn bytes_that_are_not_utf8_are_told() {
    let error = parse(b"{\"to\":\"\xff\"}", &kind_of).unwrap_err();
    assert_eq!(error.to_string(), "line 1, column 8: is not UTF-8");
}

#[test]
fn a_large_list_is_read_in_one_go() {
    let text = format!("[{}]", vec![r#"{"to":"a","method":"log","body":"x"}"#; 100_000].join(",\n"));
    let started = std::time::Instant::now();
    assert_eq!(read(&text).unwrap().len(), 100_000);
    assert!(started.elapsed() < Duration::from_secs(20), "reading is not linear: {:?}", started.elapsed());
}

#[test]
fn depth_and_size_have_limits() {
    let deep = |n: usize| format!(r#"{{"to":"a","method":"log","body":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    assert!(read(&deep(100)).is_ok());
    assert!(read(&deep(100_000)).unwrap_err().to_string().contains("recursion limit"));
    let error = parse(&vec![b' '; MAX_FILE + 1], &kind_of).unwrap_err();
    assert!(error.to_string().contains("is the limit"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, &kind_of);
    }

    #[test]
    fn no_text_panics(text in r#"[\[{]{1,2}("(to|method|body|args|retries)"[:,] ?("[a-zé\\]{0,3}"|[0-9-]{0,3}|\[\]|[{}\[\],: ]){0,3}[,\n]?){0,6}[\]}]{0,2}"#) {
        let _ = read(&text);
    }

    #[test]
    fn any_body_text_arrives(body in any::<String>(), lane in "[a-z]{1,9}") {
        let text = serde_json::json!({"to": "a", "method": "shell", "body": body, "lane": lane});
        for text in [text.to_string(), serde_json::to_string_pretty(&text).unwrap()] {
            prop_assert_eq!(&one(&text).body[..], body.as_bytes());
        }
    }
}
