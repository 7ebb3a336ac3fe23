//! The runner's decision, its frames and its file.

use super::super::{Captured, Cut, Exit, How, Limits, Spec, Stdin};
use super::client::{RunError, Runner};
use super::file::{self, Chunks, OutputKind, RunFile};
use super::serve::{Role, serve};
use super::wire::{Ask, ExitFrame, LimitsFrame, SpecFrame, Tell};
use super::*;
use crate::model::process::Started;
use proptest::prelude::*;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};

fn name(text: &str) -> RunName {
    RunName::try_from(text.to_owned()).unwrap()
}

const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(60),
    grace: Duration::from_secs(5),
    keep: 1024,
    drain: Duration::from_millis(200),
    file: 1 << 20,
    kill_left: false,
};

#[test]
fn names_are_good_for_files() {
    for good in ["a", "019d.7.1", "A_b-c", &"x".repeat(120)] {
        assert_eq!(name(good).as_str(), good);
    }
    for bad in ["", ".", "..", ".a", "a/b", "a b", "é", &"x".repeat(121)] {
        assert!(RunName::try_from(bad.to_owned()).is_err(), "{bad}");
    }
    assert_eq!(RunName::numbered("j", 7, 2), name("j.7.2"));
}

/// What may happen to a run, as its file and its runner are concerned.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// An agent asks, with a spec.
    Start,
    /// An agent asks without one.
    Look,
    /// The process ends, and the runner notes it.
    End,
    /// The runner dies.
    Crash,
}

proptest! {
    #[test]
    fn nothing_begins_twice(events in proptest::collection::vec(0..4usize, 0..40)) {
        let mut known = Known::Nothing;
        let (mut begun, mut ended) = (0, false);
        for event in events.into_iter().map(|at| [Event::Start, Event::Look, Event::End, Event::Crash][at]) {
            match (event, known) {
                (Event::Start | Event::Look, _) => {
                    let answer = judge(known, matches!(event, Event::Start));
                    if answer == Answer::Begin {
                        (begun, known) = (begun + 1, Known::Here);
                    }
                    prop_assert_eq!(answer == Answer::TellEnd, ended);
                    prop_assert_eq!(answer == Answer::Absent, begun == 0);
                }
                (Event::End, Known::Here) => (known, ended) = (Known::Ended, true),
                (Event::Crash, Known::Here) => known = Known::Begun,
                _ => {}
            }
            prop_assert!(begun <= 1);
        }
    }

    #[test]
    fn a_spec_arrives_as_it_was(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[a-z/é\u{1}]{0,20}") {
        let spec = Spec {
            program: text.clone().into(),
            args: vec![String::from_utf8_lossy(&bytes).into_owned().into(), text.clone().into()],
            cwd: Some(text.clone().into()),
            env: vec![(text.clone().into(), text.clone().into())],
            stdin: Stdin::Bytes(bytes.clone().into()),
            user: Some(text),
            base: None,
        };
        let json = serde_json::to_vec(&SpecFrame::from(&spec)).unwrap();
        let back = serde_json::from_slice::<SpecFrame>(&json).unwrap().into_spec(Arc::default());
        prop_assert_eq!((back.program, back.args, back.cwd), (spec.program, spec.args, spec.cwd));
        prop_assert_eq!((back.env, back.user), (spec.env, spec.user));
        prop_assert!(matches!(back.stdin, Stdin::Bytes(stdin) if stdin == bytes));
    }

    /// Whatever is in the file, reading it ends, and what was whole is read.
    #[test]
    fn a_file_that_is_cut_anywhere_is_read_up_to_there(cut in 0..400usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.run");
        write(&path, &[b"one", b"two"], 100);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..cut.min(whole.len())]).unwrap();
        let told = file::read(&path).unwrap().unwrap();
        prop_assert_eq!(told.exit.is_some(), cut >= whole.len());
        let read = chunks(&path);
        prop_assert!([b"one".to_vec(), b"two".to_vec()].starts_with(&read), "{:?}", read);
    }
}

fn exit(stdout: Captured) -> Exit {
    let stderr = Captured::from_parts(Vec::new(), Vec::new(), 0, [7; 32]);
    let took = Duration::from_millis(1500);
    Exit { how: How::Exited(3), ended_by: Some(Cut::TimedOut), stdout, stderr, left_running: true, took }
}

/// A file of a run whose standard output gave these pieces, each flushed, of which `most` bytes are kept.
fn write(path: &std::path::Path, pieces: &[&[u8]], most: u64) {
    let file = RunFile::create(path).unwrap();
    file.started(Started { pid: 77, start_time: 5 }).unwrap();
    let mut log = file.stream(OutputKind::Stdout, most);
    for piece in pieces {
        log.push(piece);
        log.flush();
    }
    let all = pieces.concat();
    let tail = all[all.len().saturating_sub(4)..].to_vec();
    let captured = Captured::from_parts(all[..all.len() - tail.len()].to_vec(), tail, all.len() as u64, [1; 32]);
    log.finish(&captured);
    file.ended(&exit(captured)).unwrap();
}

fn chunks(path: &std::path::Path) -> Vec<Vec<u8>> {
    let mut read = Chunks::open(path).unwrap();
    std::iter::from_fn(|| read.next_chunk().unwrap()).map(|chunk| chunk.bytes).collect()
}

#[test]
fn a_file_tells_process_output_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.run");
    write(&path, &[b"first ", b"", b"second"], 1000);
    assert_eq!(chunks(&path), [b"first ".to_vec(), b"second".to_vec()]);
    let told = file::read(&path).unwrap().unwrap();
    assert_eq!(told.started, Some(Started { pid: 77, start_time: 5 }));
    let exit = told.exit.unwrap();
    assert_eq!((exit.how, exit.ended_by, exit.left_running), (How::Exited(3), Some(Cut::TimedOut), true));
    assert_eq!((exit.stdout.total, exit.stdout.sha256, exit.took), (12, [1; 32], Duration::from_millis(1500)));
    assert!(RunFile::create(&path).is_err(), "a run begins once");
}

#[test]
fn beyond_its_bound_a_file_has_the_tail_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    for (most, wanted) in [
        (12, vec![(0, "0123456789"), (10, "ab")]),
        (5, vec![(0, "01234"), (8, "89ab")]),
        (10, vec![(0, "0123456789"), (10, "ab")]),
        (0, vec![(8, "89ab")]),
    ] {
        let path = folder.path().join(format!("{most}.run"));
        write(&path, &[b"0123456789", b"ab"], most);
        let mut read = Chunks::open(&path).unwrap();
        let found: Vec<_> = std::iter::from_fn(|| read.next_chunk().unwrap())
            .map(|chunk| (chunk.offset, String::from_utf8(chunk.bytes).unwrap()))
            .collect();
        let found: Vec<_> = found.iter().map(|(offset, text)| (*offset, text.as_str())).collect();
        assert_eq!(found, wanted, "{most}");
        assert!(read.is_ended());
    }
}

#[test]
fn frames_of_another_build_are_read_or_passed_over() {
    let newer = r#"{"ask":"start","run":"a.1.1","spec":null,"mood":"good","limits":
        {"timeout":1,"grace":2,"drain":3,"keep":4,"file":5,"kill_left":true,"cgroup":"x"}}"#;
    assert!(matches!(serde_json::from_str(newer).unwrap(), Ask::Start { spec: None, .. }));
    assert!(matches!(serde_json::from_str(r#"{"ask":"dance","run":7}"#).unwrap(), Ask::Unknown));
    assert!(matches!(serde_json::from_str(r#"{"tell":"sing"}"#).unwrap(), Tell::Unknown));
    let mut older = serde_json::to_value(ExitFrame::from(&exit(Captured::from_parts(vec![0xff], vec![], 1, [0; 32]))));
    older.as_mut().unwrap().as_object_mut().unwrap().remove("seconds");
    let read: ExitFrame = serde_json::from_value(older.unwrap()).unwrap();
    assert_eq!(Exit::from(read).stdout.head(), [0xff]);
}

/// A runner inside this process, and an agent's handle on it.
struct Served {
    runner: Runner,
    folder: tempfile::TempDir,
    _end: DropGuard,
}

impl Served {
    fn new() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::make(&folder.path().join("run")).unwrap();
        let end = CancellationToken::new();
        tokio::spawn(serve(place.clone(), Role::Part, end.clone()));
        Served { runner: Runner::new(place, PathBuf::from("/no/such/program")), folder, _end: end.drop_guard() }
    }

    async fn run(&self, run: &RunName, script: &str) -> Result<Exit, RunError> {
        let spec = Spec { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], ..Spec::default() };
        self.runner.run(run, &spec, &LIMITS, &CancellationToken::new(), &|_| {}).await
    }
}

#[tokio::test]
async fn an_agent_of_a_later_build_is_served() {
    let served = Served::new();
    served.run(&name("first"), "true").await.unwrap();
    let socket = served.runner.place().socket().unwrap();
    let mut stream = UnixStream::connect(&socket.path).await.unwrap();
    let hello = serde_json::json!({"ask": "hello", "v": 99, "env": [["PATH", "/bin"]], "colour": "red"});
    wire::send(&mut stream, &hello).await.unwrap();
    assert!(matches!(wire::next(&mut stream).await.unwrap(), Some(Tell::Hello { v: 1, .. })));
    wire::send(&mut stream, &serde_json::json!({"ask": "dance"})).await.unwrap();
    let spec = serde_json::json!({"program": "/bin/sh", "args": ["-c", "echo hi; exit 5"], "cwd": null, "env": [],
        "stdin": null, "user": null, "nice": 10});
    let limits = serde_json::to_value(LimitsFrame::from(&LIMITS)).unwrap();
    let start = serde_json::json!({"ask": "start", "run": "later.1.1", "spec": spec, "limits": limits});
    wire::send(&mut stream, &start).await.unwrap();
    let exit = loop {
        match wire::next(&mut stream).await.unwrap().unwrap() {
            Tell::Started { .. } => {}
            Tell::Ended { exit } => break Exit::from(exit),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((exit.how, exit.stdout.head()), (How::Exited(5), &b"hi\n"[..]));
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_alone() {
    use tokio::io::AsyncWriteExt;
    let served = Served::new();
    served.run(&name("first"), "true").await.unwrap();
    let socket = served.runner.place().socket().unwrap();
    for nonsense in [&b"\0\0\0\x02{}"[..], b"\xff\xff\xff\xff", b"\0\0\0\x04true", b"\0\0\0\x09half"] {
        let mut stream = UnixStream::connect(&socket.path).await.unwrap();
        stream.write_all(nonsense).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(wire::next::<Tell>(&mut stream).await.is_ok_and(|told| told.is_none()), "{nonsense:?}");
    }
    assert_eq!(served.run(&name("second"), "exit 4").await.unwrap().how, How::Exited(4));
}

#[tokio::test]
async fn a_file_without_an_end_is_lost_and_its_processes_end() {
    let served = Served::new();
    let place = served.runner.place().clone();
    let lost = name("lost.1.1");
    drop(RunFile::create(&place.run(&lost)).unwrap());
    let mut rest = std::process::Command::new("sleep");
    let mut rest = rest.arg("1000").env(RUN_VARIABLE, lost.as_str()).process_group(0).spawn().unwrap();
    assert!(matches!(served.run(&lost, "echo never").await, Err(RunError::Lost)));
    assert!(!rest.wait().unwrap().success());
    served.runner.forget(&lost);
    assert_eq!(place.names().unwrap(), []);
}

#[tokio::test]
async fn the_file_of_a_run_that_is_over_becomes_that_of_another() {
    let served = Served::new();
    let place = served.runner.place().clone();
    let inode = |run: &RunName| std::fs::metadata(place.run(run)).unwrap().ino();
    let [first, second, third] = ["first", "second", "third"].map(name);
    served.run(&first, "seq 1000").await.unwrap();
    let file = inode(&first);
    served.runner.forget(&first);
    assert_eq!(place.names().unwrap(), []);

    assert_eq!(served.run(&second, "echo two; exit 3").await.unwrap().how, How::Exited(3));
    assert_eq!(inode(&second), file);
    assert_eq!(chunks(&place.run(&second)), [b"two\n"]);
    served.run(&third, "true").await.unwrap();
    assert_ne!(inode(&third), file, "nobody has let go of it");
    served.runner.forget(&third);
    // It has a file, so it has begun, spare files or not.
    assert_eq!(served.run(&second, "echo again").await.unwrap().how, How::Exited(3));

    // Of this one nobody has told that it is over: whoever writes to its file must not meet another run there.
    let hangs = name("hangs");
    let file = RunFile::create(&place.run(&hangs)).unwrap();
    served.runner.forget(&hangs);
    served.runner.forget(&second);
    for round in 0..3 {
        let run = name(&format!("after{round}"));
        served.run(&run, "exit 4").await.unwrap();
        file.ended(&exit(Captured::from_parts(vec![], vec![], 0, [0; 32]))).unwrap();
        assert_eq!(file::read(&place.run(&run)).unwrap().unwrap().exit.unwrap().how, How::Exited(4));
    }
}

#[tokio::test]
async fn a_runner_stays_as_long_as_anybody_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::make(&folder.path().join("run")).unwrap();
    let serving = tokio::spawn(serve(place.clone(), Role::Part, CancellationToken::new()));
    let runner = Runner::new(place, PathBuf::from("/no/such/program"));
    let spec = Spec { program: "sleep".into(), args: vec!["4".into()], ..Spec::default() };
    let stop = CancellationToken::new();
    // Longer than it waits for an agent to come.
    let exit = runner.run(&name("a"), &spec, &LIMITS, &stop, &|_| {}).await.unwrap();
    assert_eq!(exit.how, How::Exited(0));
    assert!(!serving.is_finished(), "the agent is there");
    runner.leave().await;
    tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_nobody_wants_is_ended_with_its_files() {
    let served = Served::new();
    let unwanted = name("unwanted.1.1");
    let wait = served.run(&unwanted, "sleep 1000");
    assert!(tokio::time::timeout(Duration::from_millis(300), wait).await.is_err());
    assert!(served.runner.known().await.unwrap().contains(&unwanted));
    served.runner.discard(&unwanted).await.unwrap();
    let gone = async {
        while served.runner.known().await.unwrap().contains(&unwanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_run_whose_end_cannot_be_kept_is_told_all_the_same() {
    let served = Served::new();
    let full = name("full.1.1");
    // Its folder is not there any more when it begins: it cannot be begun, which is said.
    served.run(&name("first"), "true").await.unwrap();
    let place = served.runner.place().clone();
    let away = served.folder.path().join("away");
    std::fs::rename(place.run(&name("first")), &away).unwrap();
    std::fs::create_dir(place.run(&full)).unwrap();
    match served.run(&full, "true").await {
        Err(RunError::Failed(text)) => assert!(text.contains("full.1.1"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_folder_with_a_long_path_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(150));
    std::fs::create_dir(&deep).unwrap();
    let place = Place::make(&deep.join("run")).unwrap();
    let end = CancellationToken::new();
    let serving = tokio::spawn(serve(place.clone(), Role::Part, end.clone()));
    let runner = Runner::new(place, PathBuf::from("/no/such/program"));
    let spec = Spec { program: "true".into(), ..Spec::default() };
    let exit = runner.run(&name("a"), &spec, &LIMITS, &CancellationToken::new(), &|_| {}).await.unwrap();
    assert_eq!(exit.how, How::Exited(0));
    end.cancel();
    serving.await.unwrap().unwrap();
}
