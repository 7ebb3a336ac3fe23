//! What is left of a run that nobody waits for, and how it is found.

use super::*;

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
