//! Runs of real processes.

mod ends;
mod leftover;
mod starts;

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;

const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(60),
    grace: Duration::from_secs(5),
    keep: 64 * 1024,
    drain: Duration::from_secs(5),
    file: 0,
    kill_left: false,
};

fn shell(script: &str) -> Spec {
    Spec { program: "sh".into(), args: vec!["-c".into(), script.into()], ..Spec::default() }
}

async fn run_with(spec: &Spec, limits: Limits) -> Exit {
    let running = spawn(spec, &limits).await.unwrap();
    running.wait(CancellationToken::new()).await
}

async fn run(script: &str) -> Exit {
    run_with(&shell(script), LIMITS).await
}

async fn refusal(spec: &Spec) -> SpawnError {
    match spawn(spec, &LIMITS).await {
        Ok(_) => panic!("started"),
        Err(error) => error,
    }
}

fn text(captured: &Captured) -> String {
    String::from_utf8(captured.whole().unwrap().into_owned()).unwrap()
}

/// Waits for a state, at most 20 s.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn pid_in(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    proc::living().unwrap().iter().any(|process| process.started.pid == pid)
}

/// A script that starts `background` and writes its pid to a file.
struct Background {
    folder: tempfile::TempDir,
    spec: Spec,
}

impl Background {
    fn new(background: &str, then: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = shell(&format!("{background} & echo $! >pid; {then}"));
        spec.cwd = Some(folder.path().to_owned());
        Self { folder, spec }
    }

    async fn pid(&self) -> u32 {
        until("pid of the background process", || pid_in(&self.folder.path().join("pid"))).await
    }

    async fn dies(&self) {
        let pid = self.pid().await;
        until("end of the background process", || (!is_alive(pid)).then_some(())).await;
    }

    async fn kill(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid().await.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

/// A marker no other run of the tests has.
fn unique() -> String {
    uuid::Uuid::now_v7().to_string()
}

fn marked(mut spec: Spec, value: &str) -> Spec {
    spec.env.push(("EDGEWARD_RUN".into(), value.into()));
    spec
}

fn marker(value: &str) -> Marker {
    Marker { key: "EDGEWARD_RUN", value: value.to_owned() }
}

async fn within<F: Future>(seconds: u64, future: F) -> F::Output {
    timeout(Duration::from_secs(seconds), future).await.expect("too slow")
}

#[tokio::test]
async fn exit_codes_and_output() {
    let exit = run("echo out; echo err >&2; exit 3").await;
    assert_eq!(exit.how, How::Exited(3));
    assert_eq!(exit.ended_by, None);
    assert_eq!((text(&exit.stdout), text(&exit.stderr)), ("out\n".into(), "err\n".into()));
    assert!(!exit.left_running);
    assert_eq!(run("").await.how, How::Exited(0));
    assert_eq!(run("exit 255").await.how, How::Exited(255));
}

#[tokio::test]
async fn a_signal_is_told() {
    let exit = run("kill -9 $$").await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(9), None));
    let exit = run("kill -TERM $$").await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), None));
}

#[tokio::test]
async fn no_output_is_no_output() {
    let exit = run("true").await;
    for stream in [&exit.stdout, &exit.stderr] {
        assert_eq!((stream.total, text(stream).as_str()), (0, ""));
        assert_eq!(stream.sha256, <[u8; 32]>::from(Sha256::digest(b"")));
    }
}

#[tokio::test]
async fn output_may_be_any_bytes() {
    let exit = run(r"printf '\000\377\n\200'").await;
    assert_eq!(exit.stdout.whole().unwrap().as_ref(), b"\0\xff\n\x80");
}

#[tokio::test]
async fn the_child_leads_a_group_and_is_named() {
    let running = spawn(&shell("read x; exit 0"), &LIMITS).await.unwrap();
    let started = running.started();
    let pid = rustix::process::Pid::from_raw(started.pid.cast_signed()).unwrap();
    assert_eq!(rustix::process::getpgid(Some(pid)).unwrap(), pid);
    assert_eq!(proc::start_time(started.pid), Some(started.start_time));
    assert_eq!(running.wait(CancellationToken::new()).await.how, How::Exited(0));
}

fn resident_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn much_output_is_counted_in_bounded_memory() {
    const SIZE: u64 = 100 << 20;
    let script = format!("echo first; head -c {SIZE} /dev/zero; printf last");
    let before = resident_memory();
    let spec = shell(&script);
    let mut most = 0;
    let exit = {
        let mut wait = std::pin::pin!(run_with(&spec, LIMITS));
        loop {
            match timeout(Duration::from_millis(20), &mut wait).await {
                Ok(exit) => break exit,
                Err(_) => most = most.max(resident_memory()),
            }
        }
    };
    assert_eq!(exit.how, How::Exited(0));
    assert_eq!(exit.stdout.total, SIZE + 10);
    assert!(exit.stdout.is_truncated());
    assert_eq!(exit.stdout.head().len() + exit.stdout.tail().len(), LIMITS.keep);
    assert!(exit.stdout.head().starts_with(b"first\n\0"));
    assert!(exit.stdout.tail().ends_with(b"\0last"));
    assert!(most < before + (SIZE / 2), "grew from {before} to {most}");
}
