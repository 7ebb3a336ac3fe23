//! How a run ends: by its timeout, by a signal, with something left behind.

use super::*;

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
