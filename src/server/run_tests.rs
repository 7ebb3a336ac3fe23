//! Tests of `run` with real servers, each in a folder of its own.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use rustix::process::{kill_process_group, test_kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::signal::unix::SignalKind;

use super::*;
use crate::server::fetch::{default_cache, nats_server};
use crate::server::ready::greeting;

/// Names the folder of the server in a process that [`parent`] started.
const PARENT: &str = "EDGEWARD_TEST_PARENT";
/// How such a process ends by an interrupt.
const INTERRUPTED: i32 = 130;
const LONG: Duration = Duration::from_secs(20);

async fn options(folder: &Path) -> Options {
    let fetch = || nats_server(&default_cache(), &mut |line| eprintln!("{line}"));
    let found = tokio::task::spawn_blocking(fetch).await.unwrap().unwrap();
    Options::new(found.path, folder)
}

async fn started() -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path()).await).await.unwrap();
    (folder, server)
}

fn pid_of(server: &Server) -> Pid {
    Pid::from_raw(server.pid().unwrap().try_into().unwrap()).unwrap()
}

/// Waits until `holds`, at most [`LONG`].
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come true");
        sleep(POLL).await;
    }
}

/// Whether the process is gone, or only waits for its parent to look.
fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    test_kill_process(pid).is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}

#[tokio::test]
async fn runs_and_stops_in_order() {
    let (folder, server) = started().await;
    let (pid, port) = (pid_of(&server), server.port());
    assert_eq!(server.url(), format!("nats://127.0.0.1:{port}"));
    greeting(port).await.unwrap();
    assert!(server.log_tail(1).contains("Server is ready"), "{}", server.log_tail(5));
    server.stop().await.unwrap();
    assert!(is_gone(pid));
    assert!(greeting(port).await.is_err());
    let log = fs::read_to_string(folder.path().join("nats-server.log")).unwrap();
    assert!(log.contains("Initiating Shutdown"), "{log}");
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port() {
    let (_folder, mut server) = started().await;
    let (pid, port) = (pid_of(&server), server.port());
    server.kill().await.unwrap();
    assert_eq!((is_gone(pid), server.pid()), (true, None));
    assert_eq!(server.exited().await.unwrap().signal(), Some(9));
    for _ in 0..2 {
        server.restart().await.unwrap();
        assert_eq!(server.port(), port);
        greeting(port).await.unwrap();
    }
    assert_ne!(pid_of(&server), pid);
}

#[tokio::test]
async fn a_crash_is_noticed() {
    let (_folder, mut server) = started().await;
    assert!(timeout(POLL, server.exited()).await.is_err(), "it runs");
    kill_process(pid_of(&server), Signal::KILL).unwrap();
    let status = timeout(LONG, server.exited()).await.unwrap().unwrap();
    assert_eq!(status.signal(), Some(9));
    assert_eq!(server.pid(), None);
}

#[tokio::test]
async fn a_second_server_on_the_folder_is_refused_with_the_first_ones_pid() {
    let (folder, server) = started().await;
    let error = Server::start(options(folder.path()).await).await.unwrap_err();
    let RunError::InUse { pid, .. } = error else { panic!("{error}") };
    assert_eq!(pid, Some(pid_of(&server).as_raw_nonzero().get()));
    greeting(server.port()).await.unwrap();
    drop(server);
    Server::start(options(folder.path()).await).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_tells_the_end_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path()).await;
    options.extra_config = "no_such_setting: 1".to_owned();
    let error = Server::start(options.clone()).await.unwrap_err().to_string();
    assert!(error.contains("no_such_setting"), "{error}");
    options.binary = "/nonexistent/nats-server".into();
    let error = Server::start(options).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/nats-server") && !error.contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn what_never_gets_ready_is_killed_when_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::new(folder.path().join("not-a-broker"), folder.path());
    fs::write(&options.binary, "#!/bin/sh\necho here I am: $$\nexec sleep 60\n").unwrap();
    fs::set_permissions(&options.binary, fs::Permissions::from_mode(0o755)).unwrap();
    options.ready_within = Duration::from_secs(1);
    let error = Server::start(options).await.unwrap_err();
    let RunError::NotReady { log, .. } = error else { panic!("{error}") };
    let pid = log.strip_prefix("here I am: ").unwrap_or_else(|| panic!("{log}"));
    assert!(is_gone(Pid::from_raw(pid.parse().unwrap()).unwrap()));
}

#[tokio::test]
async fn a_taken_port_is_refused_when_exact_and_avoided_when_preferred() {
    let (_folder, first) = started().await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path()).await;
    options.port = Port::Exact(first.port());
    let error = Server::start(options.clone()).await.unwrap_err();
    assert!(error.port_taken(), "{error}");
    options.port = Port::Prefer(first.port());
    let second = Server::start(options.clone()).await.unwrap();
    assert_ne!(second.port(), first.port());
    first.stop().await.unwrap();
    let free = second.port();
    second.stop().await.unwrap();
    options.port = Port::Prefer(free);
    assert_eq!(Server::start(options).await.unwrap().port(), free);
}

#[tokio::test]
async fn a_given_file_and_extra_text_count_but_not_where_it_listens_and_stores() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given.conf");
    let given = "host: 0.0.0.0\nport: 1\nmax_payload: 4096\njetstream { store_dir: \"/nonexistent/a\" }\n\
                 accounts { A { jetstream: enabled, users: [ { user: a, password: b } ] } }";
    fs::write(&file, given).unwrap();
    let mut options = options(&folder.path().join("server")).await;
    options.config = Some(file);
    options.extra_config = "server_name: extra".to_owned();
    options.sync_always = true;
    let server = Server::start(options).await.unwrap();
    let stream = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    let mut info = String::new();
    BufReader::new(stream).read_line(&mut info).await.unwrap();
    for part in
        ["\"server_name\":\"extra\"", "\"max_payload\":4096", "\"auth_required\":true", "\"host\":\"127.0.0.1\""]
    {
        assert!(info.contains(part), "{part} in {info}");
    }
    assert!(folder.path().join("server/jetstream").is_dir());
}

#[tokio::test]
async fn a_dropped_server_ends() {
    let (_folder, server) = started().await;
    let pid = pid_of(&server);
    drop(server);
    until("the end of the server", || is_gone(pid)).await;
}

/// Not a test of its own: in a process that [`parent`] started it runs a server until it is killed.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "ends as by the signal, so that no destructor runs")]
async fn as_a_parent() {
    let Some(folder) = env::var_os(PARENT).map(PathBuf::from) else {
        return;
    };
    // Whoever runs the tests may ignore it, which is inherited.
    let mut interrupted = tokio::signal::unix::signal(SignalKind::interrupt()).unwrap();
    let server = Server::start(options(&folder).await).await.unwrap();
    fs::write(folder.join("started"), server.pid().unwrap().to_string()).unwrap();
    // Should the test that started this process die, this one does not stay for ever.
    if timeout(LONG, interrupted.recv()).await.is_ok() {
        std::process::exit(INTERRUPTED);
    }
}

/// Starts this test binary as the parent of a server; returns it and the server's pid.
async fn parent(folder: &Path) -> (std::process::Child, Pid) {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "server::run::tests::as_a_parent"])
        .env(PARENT, folder)
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(folder.join("started")).ok().and_then(|text| text.parse().ok());
    until("the start of the server", || read().is_some()).await;
    (child, Pid::from_raw(read().unwrap()).unwrap())
}

#[tokio::test]
async fn the_server_ends_when_its_parent_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, pid) = parent(folder.path()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    until("the end of the server", || is_gone(pid)).await;
    // And its folder is free again.
    Server::start(options(folder.path()).await).await.unwrap();
}

#[tokio::test]
async fn a_ctrl_c_reaches_the_parent_alone_and_the_server_ends_in_order_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, pid) = parent(folder.path()).await;
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(INTERRUPTED));
    until("the end of the server", || is_gone(pid)).await;
    let log = fs::read_to_string(folder.path().join("nats-server.log")).unwrap();
    assert!(log.contains("Initiating Shutdown"), "{log}");
}
