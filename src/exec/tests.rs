//! Runs of real processes.

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

#[tokio::test]
async fn endless_output_does_not_hold_up_the_timeout() {
    let limits = Limits { timeout: Duration::from_millis(200), ..LIMITS };
    let exit = within(20, run_with(&shell("exec yes"), limits)).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), Some(Cut::TimedOut)));
    assert!(exit.stdout.total > 0);
}

#[tokio::test]
async fn a_timeout_ends_the_whole_group() {
    let background = Background::new("sleep 1000", "sleep 1000");
    let limits = Limits { timeout: Duration::from_secs(1), ..LIMITS };
    let since = Instant::now();
    let exit = run_with(&background.spec, limits).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), Some(Cut::TimedOut)));
    assert!(!exit.left_running);
    assert!(since.elapsed() >= limits.timeout);
    assert!(since.elapsed() < LIMITS.grace, "waited for the grace though all were gone");
    background.dies().await;
}

#[tokio::test]
async fn who_ignores_term_is_killed() {
    let limits = Limits { timeout: Duration::from_secs(1), grace: Duration::from_millis(300), ..LIMITS };
    let exit = within(20, run_with(&shell("trap '' TERM; while :; do sleep 1; done"), limits)).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(9), Some(Cut::TimedOut)));
}

#[tokio::test]
async fn a_grandchild_that_ignores_term_is_killed_too() {
    let stubborn = "(trap '' TERM; while :; do sleep 1; done) >/dev/null 2>&1";
    let background = Background::new(stubborn, "sleep 1000");
    let limits = Limits { timeout: Duration::from_secs(1), grace: Duration::from_millis(300), ..LIMITS };
    let exit = within(20, run_with(&background.spec, limits)).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), Some(Cut::TimedOut)));
    assert!(!exit.left_running);
    background.dies().await;
}

#[tokio::test]
async fn a_timeout_also_ends_what_is_stopped() {
    let limits = Limits { timeout: Duration::from_secs(1), ..LIMITS };
    let exit = within(4, run_with(&shell("kill -STOP $$"), limits)).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), Some(Cut::TimedOut)));
}

#[tokio::test]
async fn the_result_of_a_child_that_heeds_term_is_kept() {
    let stop = CancellationToken::new();
    let script = "trap 'echo bye; exit 7' TERM; echo ready >ready; while :; do sleep 0.01; done";
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec { cwd: Some(folder.path().to_owned()), ..shell(script) };
    let wait = tokio::spawn(spawn(&spec, &LIMITS).await.unwrap().wait(stop.clone()));
    until("start", || folder.path().join("ready").exists().then_some(())).await;
    stop.cancel();
    let exit = within(20, wait).await.unwrap();
    assert_eq!((exit.how, exit.ended_by), (How::Exited(7), Some(Cut::Stopped)));
    assert_eq!(text(&exit.stdout), "bye\n");
}

#[tokio::test]
async fn a_timeout_without_end_is_fine() {
    let limits = Limits { timeout: Duration::MAX, grace: Duration::MAX, drain: Duration::MAX, ..LIMITS };
    assert_eq!(within(20, run_with(&shell("exit 1"), limits)).await.how, How::Exited(1));
}

#[tokio::test]
async fn a_background_child_that_holds_the_pipe_is_told_not_waited_for() {
    let background = Background::new("sleep 1000", "echo done");
    let limits = Limits { drain: Duration::from_millis(200), ..LIMITS };
    let exit = within(20, run_with(&background.spec, limits)).await;
    assert_eq!((exit.how, exit.ended_by), (How::Exited(0), None));
    assert_eq!(text(&exit.stdout), "done\n");
    assert!(exit.left_running);
    assert!(is_alive(background.pid().await));
    background.kill().await;
}

#[tokio::test]
async fn a_background_child_without_the_pipe_is_told_too() {
    let background = Background::new("sleep 1000 >/dev/null 2>&1", "echo done");
    let since = Instant::now();
    let exit = run_with(&background.spec, LIMITS).await;
    assert!(since.elapsed() < LIMITS.drain);
    assert!(exit.left_running);
    background.kill().await;
}

#[tokio::test]
async fn what_was_written_before_the_end_is_read_though_stopped_at_once() {
    let background = Background::new("sleep 1000", "head -c 60000 /dev/zero");
    let running = spawn(&background.spec, &LIMITS).await.unwrap();
    // Blocks the only thread, so that the runtime hears of the output no sooner than of the end.
    let since = Instant::now();
    while is_alive(running.started().pid) {
        assert!(since.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    let stop = CancellationToken::new();
    stop.cancel();
    let exit = running.wait(stop).await;
    assert_eq!((exit.how, exit.ended_by), (How::Exited(0), None));
    assert_eq!((exit.stdout.total, exit.left_running), (60_000, true));
    background.kill().await;
}

#[tokio::test]
async fn stdin_is_written_while_output_is_read() {
    let bytes = Bytes::from(vec![b'x'; 4 << 20]);
    let spec = Spec { program: "cat".into(), stdin: Stdin::Bytes(bytes.clone()), ..Spec::default() };
    let exit = within(30, run_with(&spec, LIMITS)).await;
    assert_eq!(exit.how, How::Exited(0));
    assert_eq!(exit.stdout.total, 4 << 20);
    assert_eq!(exit.stdout.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
}

#[tokio::test]
async fn stdin_may_be_empty_or_left_unread() {
    let with = |bytes: Vec<u8>, script| Spec { stdin: Stdin::Bytes(bytes.into()), ..shell(script) };
    assert_eq!(run_with(&with(vec![], "cat"), LIMITS).await.stdout.total, 0);
    let unread = run_with(&with(vec![0; 1 << 20], "exec <&-; sleep 0.1; exit 4"), LIMITS).await;
    assert_eq!(unread.how, How::Exited(4));
    assert_eq!(run("cat; readlink /proc/self/fd/0").await.stdout.whole().unwrap().as_ref(), b"/dev/null\n");
}

#[tokio::test]
async fn the_environment_is_ours_and_no_more() {
    let mut spec = shell("env");
    spec.env = vec![("A".into(), "1".into()), ("A".into(), "2".into()), ("EDGEWARD_RUN".into(), "r".into())];
    let env = text(&run_with(&spec, LIMITS).await.stdout);
    let lines: Vec<_> = env.lines().collect();
    assert!(lines.contains(&"A=2") && lines.contains(&"EDGEWARD_RUN=r"), "{env}");
    assert!(lines.iter().any(|line| line.starts_with("PATH=")), "{env}");
    assert!(!lines.contains(&"A=1"), "{env}");
}

#[tokio::test]
async fn a_program_is_searched_for_in_the_childs_path() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/echo", folder.path().join("say")).unwrap();
    let spec = Spec {
        program: "say".into(),
        args: vec!["hi".into()],
        env: vec![("PATH".into(), folder.path().into())],
        ..Spec::default()
    };
    assert_eq!(text(&run_with(&spec, LIMITS).await.stdout), "hi\n");
    let error = refusal(&Spec { env: vec![], ..spec }).await;
    assert_eq!(error.to_string(), "program \"say\" not found");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    for program in ["no-such-program", "/no/such/program", "", "/etc/passwd/x"] {
        let error = refusal(&Spec { program: program.into(), ..Spec::default() }).await;
        assert!(matches!(error, SpawnError::NotFound { .. }), "{program}: {error:?}");
    }
}

#[tokio::test]
async fn what_may_not_be_executed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    std::fs::write(&file, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let spec = Spec { program: file.clone().into(), ..Spec::default() };
    let error = refusal(&spec).await;
    assert_eq!(error.to_string(), format!("no permission to execute {file:?}"));
    let searched =
        Spec { program: "script".into(), env: vec![("PATH".into(), folder.path().into())], ..Spec::default() };
    assert!(matches!(refusal(&searched).await, SpawnError::NotPermitted { .. }));
    let directory = Spec { program: folder.path().into(), ..Spec::default() };
    assert!(matches!(refusal(&directory).await, SpawnError::NotPermitted { .. }));

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(refusal(&spec).await, SpawnError::NoInterpreter { .. }));
}

#[tokio::test]
async fn a_bad_working_directory_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let path = folder.path().join("deleted");
    for cwd in [path.clone(), file] {
        let error = refusal(&Spec { cwd: Some(cwd), ..shell("true") }).await;
        assert!(matches!(error, SpawnError::Cwd { .. }), "{error:?}");
    }
    let error = refusal(&Spec { cwd: Some(path.clone()), ..shell("true") }).await;
    assert_eq!(error.to_string(), format!("cannot enter working directory {path:?}"));
}

#[tokio::test]
async fn what_the_kernel_cannot_be_given_is_told() {
    let error = refusal(&shell("a\0b")).await;
    assert_eq!(error.to_string(), "NUL byte in argument 2");
    let error = refusal(&Spec { program: "a\0".into(), ..Spec::default() }).await;
    assert!(matches!(error, SpawnError::Nul { .. }), "{error:?}");
    let error = refusal(&Spec { env: vec![("A".into(), "\0".into())], ..shell("") }).await;
    assert_eq!(error.to_string(), "NUL byte in environment variable \"A\"");
    for name in ["", "A=B"] {
        let error = refusal(&Spec { env: vec![(name.into(), "".into())], ..shell("") }).await;
        assert!(matches!(error, SpawnError::EnvName { .. }), "{error:?}");
    }
    let error = refusal(&shell(&"x".repeat(1 << 20))).await;
    assert!(matches!(error, SpawnError::TooLong { .. }), "{error:?}");
}

#[tokio::test]
async fn a_dropped_wait_kills_and_reaps() {
    let background = Background::new("sleep 1000", "sleep 1000");
    let running = spawn(&background.spec, &LIMITS).await.unwrap();
    let pid = running.started().pid;
    let wait = tokio::spawn(running.wait(CancellationToken::new()));
    background.pid().await;
    wait.abort();
    assert!(wait.await.unwrap_err().is_cancelled());
    background.dies().await;
    until("no zombie", || proc::start_time(pid).is_none().then_some(())).await;
}

#[tokio::test]
async fn a_run_that_is_never_waited_for_is_killed() {
    let running = spawn(&shell("sleep 1000"), &LIMITS).await.unwrap();
    let pid = running.started().pid;
    drop(running);
    until("no zombie", || proc::start_time(pid).is_none().then_some(())).await;
}

#[tokio::test]
async fn marked_processes_are_found() {
    let value = unique();
    let spec = marked(shell("sleep 1000 & wait"), &value);
    let running = spawn(&spec, &LIMITS).await.unwrap();
    let found = until("both", || {
        let found = find_marked(&marker(&value));
        (found.len() == 2).then_some(found)
    });
    assert!(found.await.contains(&running.started()));
    assert!(find_marked(&marker(&value[1..])).is_empty());
    drop(running);
    until("none", || find_marked(&marker(&value)).is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_leftover_is_ended_by_its_name() {
    let value = unique();
    let running = spawn(&shell("trap '' TERM; echo; while :; do sleep 0.1; done"), &LIMITS).await.unwrap();
    let leader = running.started();
    let wait = tokio::spawn(running.wait(CancellationToken::new()));
    let grace = Duration::from_millis(200);
    let met = within(20, kill_leftover(Some(leader), &marker(&value), grace)).await;
    assert!(met.found.contains(&leader), "{met:?}");
    assert_eq!(met.alive, []);
    let exit = wait.await.unwrap();
    assert_eq!(exit.ended_by, None);
    assert!(matches!(exit.how, How::Signalled(_)));
}

#[tokio::test]
async fn a_stranger_with_the_same_pid_is_left_alone() {
    let value = unique();
    let running = spawn(&shell("sleep 1000"), &LIMITS).await.unwrap();
    let mut leader = running.started();
    leader.start_time -= 1;
    let met = kill_leftover(Some(leader), &marker(&value), Duration::ZERO).await;
    assert_eq!(met, Leftover::default());
    assert!(is_alive(leader.pid));
    for pid in [0, 1, u32::MAX] {
        let leader = Started { pid, start_time: 0 };
        let met = kill_leftover(Some(leader), &marker(&value), Duration::ZERO).await;
        assert_eq!(met, Leftover::default());
    }
}

#[tokio::test]
async fn what_a_dead_leader_left_is_ended_by_the_marker_alone() {
    for leader_known in [true, false] {
        let value = unique();
        let background = Background::new("sleep 1000 >/dev/null 2>&1", "true");
        let running = spawn(&marked(background.spec.clone(), &value), &LIMITS).await.unwrap();
        let leader = running.started();
        assert!(running.wait(CancellationToken::new()).await.left_running);
        let pid = background.pid().await;

        let other = unique();
        let met = kill_leftover(Some(leader), &marker(&other), Duration::ZERO).await;
        assert_eq!(met, Leftover::default());
        assert!(is_alive(pid));

        let leader = leader_known.then_some(leader);
        let met = within(20, kill_leftover(leader, &marker(&value), LIMITS.grace)).await;
        assert_eq!(met.found.len(), 1);
        assert_eq!((met.found[0].pid, met.alive.len()), (pid, 0));
        assert!(!is_alive(pid));
    }
}

#[tokio::test]
async fn an_unknown_user_is_told() {
    let error = refusal(&Spec { user: Some("no-such-user-here".into()), ..shell("true") }).await;
    assert_eq!(error.to_string(), "no such user \"no-such-user-here\"");
}

#[tokio::test]
async fn a_run_as_another_user() {
    let user = Some("nobody".to_owned());
    if !rustix::process::geteuid().is_root() {
        let error = refusal(&Spec { user, ..shell("true") }).await;
        assert!(matches!(error, SpawnError::User { .. }), "{error:?}");
        return;
    }
    let spec = Spec {
        user,
        cwd: Some("/".into()),
        env: vec![("X".into(), "a b".into()), ("EDGEWARD_RUN".into(), "r".into())],
        ..shell("id -un; id -gn; echo $HOME,$USER,$X,$EDGEWARD_RUN")
    };
    let exit = run_with(&spec, LIMITS).await;
    assert_eq!(exit.how, How::Exited(0), "{}", text(&exit.stderr));
    assert_eq!(text(&exit.stdout), "nobody\nnogroup\n/nonexistent,nobody,a b,r\n");

    let missing = Spec { program: "/no/such/program".into(), ..spec.clone() };
    assert!(matches!(refusal(&missing).await, SpawnError::NotFound { .. }));
    // What the sender sets must not act on the tool that still is root.
    let preload = Spec { env: vec![("LD_PRELOAD".into(), "/no/such.so".into())], ..spec.clone() };
    let said = text(&run_with(&preload, LIMITS).await.stderr);
    assert!(!said.contains("setpriv"), "{said}");
    let limits = Limits { timeout: Duration::from_millis(300), ..LIMITS };
    let exit = run_with(&Spec { args: vec!["-c".into(), "sleep 1000".into()], ..spec }, limits).await;
    assert_eq!((exit.how, exit.ended_by), (How::Signalled(15), Some(Cut::TimedOut)));
}
