//! Lines in real files.

use super::super::fixture::{Node, error, until, work};
use super::*;
use proptest::prelude::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// How each line of the fixture's message begins.
const START: &str = "2023-11-14T22:13:20.000000001Z ops x1 ";

async fn log(node: &Node, method: &str, body: impl Into<Vec<u8>>) -> Outcome {
    Log.run(&work(method, body), &node.cx).await
}

async fn log_again(node: &Node, body: &str) -> Outcome {
    Log.run(&Work { attempt: 2, ..work("log", body) }, &node.cx).await
}

async fn succeeds(outcome: impl Future<Output = Outcome>) {
    assert_eq!(outcome.await, Outcome::succeeded());
}

fn file(node: &Node, name: &str) -> PathBuf {
    node.cx.log_dir.join("ops").join(name)
}

fn read(node: &Node) -> String {
    std::fs::read_to_string(file(node, "default.log")).unwrap()
}

/// A node with a file that holds this.
fn node_with(content: &str) -> Node {
    let node = Node::new();
    std::fs::create_dir_all(node.cx.log_dir.join("ops")).unwrap();
    std::fs::write(file(&node, "default.log"), content).unwrap();
    node
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn lines_are_appended_with_time_sender_and_id() {
    let node = Node::new();
    succeeds(log(&node, "log", "one")).await;
    succeeds(log(&node, "log", "one")).await;
    succeeds(log(&node, "log", "two, é")).await;
    assert_eq!(read(&node), format!("{START}one\n{START}one\n{START}two, é\n"));
}

#[tokio::test]
async fn folders_and_files_are_private() {
    let node = Node::new();
    succeeds(log(&node, "log", "one")).await;
    assert_eq!((mode(&node.cx.log_dir), mode(&node.cx.log_dir.join("ops"))), (0o700, 0o700));
    assert_eq!(mode(&file(&node, "default.log")), 0o600);
}

#[tokio::test]
async fn each_lane_has_its_file_and_default_is_the_one_without() {
    let node = Node::new();
    succeeds(log(&node, "log.audit", "a")).await;
    succeeds(log(&node, "log", "b")).await;
    succeeds(log(&node, "log.default", "c")).await;
    assert_eq!(std::fs::read_to_string(file(&node, "audit.log")).unwrap(), format!("{START}a\n"));
    assert_eq!(read(&node), format!("{START}b\n{START}c\n"));
}

#[tokio::test]
async fn lanes_that_share_a_file_keep_their_lines_whole() {
    let node = Node::new();
    let body = |at: usize| format!("{at}:{}", "x".repeat(10_000));
    let lines = (0..40).map(|at| log(&node, if at % 2 == 0 { "log" } else { "log.default" }, body(at)));
    for outcome in futures::future::join_all(lines).await {
        assert_eq!(outcome, Outcome::succeeded());
    }
    let text = read(&node);
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let mut wanted: Vec<_> = (0..40).map(|at| format!("{START}{}", body(at))).collect();
    wanted.sort_unstable();
    assert!(lines == wanted, "{} lines", lines.len());
}

#[test]
fn an_empty_line_is_refused() {
    for body in [&b""[..], b"\n", b"\r\n"] {
        assert_eq!(check(body).unwrap_err().code, Code::BadBody);
    }
    assert!(check(b" ").is_ok() && check(b"\n\n").is_ok() && check(b"\xff").is_ok());
}

#[test]
fn what_acts_on_a_terminal_or_breaks_a_line_is_escaped() {
    let cases: [(&[u8], &str); 6] = [
        (b"a\nb\r\tc\\n", r"a\nb\r\tc\\n"),
        (b"\x1b[31mred\x07\0\x7f", r"\x1b[31mred\x07\x00\x7f"),
        ("\u{85}\u{9b}\u{2028}\u{2029}".as_bytes(), r"\u{85}\u{9b}\u{2028}\u{2029}"),
        ("\u{202e}\u{2066}".as_bytes(), r"\u{202e}\u{2066}"),
        (b"\xff\xc3", r"\xff\xc3"),
        ("plain é 😀 'text'".as_bytes(), "plain é 😀 'text'"),
    ];
    for (bytes, line) in cases {
        assert_eq!(escape(bytes), line);
    }
}

/// The bytes that were escaped.
fn unescape(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            bytes.extend(c.to_string().bytes());
            continue;
        }
        let (kind, after) = rest.split_at(1);
        rest = after;
        match kind {
            "n" => bytes.push(b'\n'),
            "r" => bytes.push(b'\r'),
            "t" => bytes.push(b'\t'),
            "x" => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                rest = &rest[2..];
            }
            "u" => {
                let (hex, after) = rest[1..].split_once('}').unwrap();
                bytes.extend(char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap().to_string().bytes());
                rest = after;
            }
            other => bytes.extend(other.bytes()),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn any_bytes_become_one_line_and_come_back(
        pieces in proptest::collection::vec(
            prop_oneof![
                any::<Vec<u8>>(),
                any::<String>().prop_map(String::into_bytes),
                "[\\\\nxu{}0-9\u{80}-\u{9f}\u{2028}-\u{202f}\u{2066}]{0,9}".prop_map(String::into_bytes),
            ],
            0..6,
        )
    ) {
        let bytes = pieces.concat();
        let line = escape(&bytes);
        prop_assert!(!line.chars().any(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)), "{line:?}");
        prop_assert_eq!(unescape(&line), bytes);
    }
}

#[tokio::test]
async fn a_linked_folder_is_not_followed() {
    let node = Node::new();
    let elsewhere = node.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::create_dir_all(&node.cx.log_dir).unwrap();
    symlink(&elsewhere, node.cx.log_dir.join("ops")).unwrap();
    let outcome = log(&node, "log", "one").await;
    let (code, message) = error(&outcome);
    assert_eq!((outcome.state, code), (State::Failed, Code::Io));
    assert!(message.contains("log/ops\": "), "{message}");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[tokio::test]
async fn a_linked_file_is_not_followed() {
    let node = node_with("");
    let target = node.folder.path().join("target");
    std::fs::write(&target, "untouched").unwrap();
    for (name, to) in [("audit", target.clone()), ("gone", node.folder.path().join("new"))] {
        symlink(&to, file(&node, &format!("{name}.log"))).unwrap();
        let outcome = log(&node, &format!("log.{name}"), "one").await;
        assert!(error(&outcome).1.contains(&format!("ops/{name}.log\": ")), "{outcome:?}");
    }
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
    assert!(!node.folder.path().join("new").exists());
}

#[tokio::test]
async fn what_is_no_file_fails_with_its_path() {
    let node = node_with("");
    std::fs::create_dir(file(&node, "folder.log")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(file(&node, "pipe.log")).status().unwrap().success());
    for name in ["folder", "pipe"] {
        let outcome = log(&node, &format!("log.{name}"), "one").await;
        assert_eq!((outcome.state, error(&outcome).0), (State::Failed, Code::Io));
        assert!(error(&outcome).1.contains(&format!("ops/{name}.log\": ")), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_log_folder_that_cannot_be_made_fails_with_its_path() {
    let node = Node::new();
    std::fs::write(node.folder.path().join("state"), "a file").unwrap();
    let outcome = log(&node, "log", "one").await;
    assert_eq!(error(&outcome).0, Code::Io);
    assert!(error(&outcome).1.contains("state/log\": "), "{outcome:?}");
}

#[tokio::test]
async fn a_line_follows_a_half_one_on_a_line_of_its_own() {
    let node = node_with("whole\nhal");
    succeeds(log(&node, "log", "one")).await;
    assert_eq!(read(&node), format!("whole\nhal\n{START}one\n"));
}

#[tokio::test]
async fn a_later_try_does_not_write_a_line_that_is_there() {
    let node = Node::new();
    succeeds(log_again(&node, "one")).await;
    succeeds(log_again(&node, "one")).await;
    succeeds(log_again(&node, "on")).await;
    succeeds(log_again(&node, "one")).await;
    assert_eq!(read(&node), format!("{START}one\n{START}on\n"));
}

#[tokio::test]
async fn a_later_try_finds_a_large_line_behind_others() {
    let node = Node::new();
    let large = "\u{1}".repeat(1 << 19); // four times as long when escaped
    succeeds(log(&node, "log", large.as_str())).await;
    let behind = "x".repeat(1 << 19);
    succeeds(log(&node, "log", behind.as_str())).await;
    let before = read(&node);
    succeeds(log_again(&node, &large)).await;
    assert!(read(&node) == before);
}

#[tokio::test]
async fn a_later_try_writes_what_a_crash_cut_off() {
    let half = node_with(&format!("{START}lin"));
    succeeds(log_again(&half, "line")).await;
    succeeds(log_again(&half, "line")).await;
    assert_eq!(read(&half), format!("{START}lin\n{START}line\n"));

    let all_but_newline = node_with(&format!("{START}line"));
    succeeds(log_again(&all_but_newline, "line")).await;
    assert_eq!(read(&all_but_newline), format!("{START}line\n{START}line\n"));
}

/// How often this process has the file open.
fn times_open(path: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path)).count()
}

#[test]
fn a_try_that_was_given_up_writes_nothing_more() {
    let node = node_with("");
    let path = file(&node, "default.log");
    let held = File::open(&path).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let given_up = work("log", "given up");
        let mut waiting = Log.run(&given_up, &node.cx);
        assert!(futures::poll!(&mut waiting).is_pending());
        until("it waits for the lock", || (times_open(&path) == 2).then_some(())).await;
        drop(waiting);
    });
    drop(held);
    drop(runtime); // waits for its threads
    assert_eq!(read(&node), "");
}

#[tokio::test]
async fn a_stop_ends_a_try_that_waits() {
    let node = node_with("");
    let held = File::open(file(&node, "default.log")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let stop = async { node.cx.stop.cancel() };
    let (outcome, ()) = tokio::join!(log(&node, "log", "one"), stop);
    assert_eq!((outcome.state, error(&outcome).0), (State::Interrupted, Code::Interrupted));
}

/// Set for the process of the test below that may not write files beyond 4 KiB.
const SMALL_FILES: &str = "EDGEWARD_TEST_SMALL_FILES";

#[tokio::test]
async fn a_write_that_fails_half_way_leaves_the_file_as_it_was() {
    if std::env::var_os(SMALL_FILES).is_some() {
        let node = node_with("whole\n");
        let outcome = log(&node, "log", "x".repeat(8192)).await;
        assert_eq!((outcome.state, error(&outcome).0), (State::Failed, Code::Io));
        assert!(error(&outcome).1.contains("default.log\": File too large"), "{outcome:?}");
        assert_eq!(read(&node), "whole\n");
        return;
    }
    // `ulimit -f` counts in 512 bytes here; with the signal ignored the write fails instead, after its first part.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", script, std::env::current_exe().unwrap().to_str().unwrap()])
        .args(["--exact", "methods::log::tests::a_write_that_fails_half_way_leaves_the_file_as_it_was"])
        .env(SMALL_FILES, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
