//! The harness itself: a wait that never fails, a link that is never cut or a process that is never killed would make
//! every test above it green.

use super::cli::split;
use super::*;
use edgeward::broker::Outgoing;
use edgeward::model::state::State;
use futures::FutureExt;
use rustix::process::Signal;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// What a future panicked with.
async fn panic_of<T>(future: impl Future<Output = T>) -> String {
    let panic = AssertUnwindSafe(future).catch_unwind().await.err().expect("a panic");
    panic.downcast_ref::<String>().expect("a text").clone()
}

#[tokio::test]
async fn a_wait_ends_when_its_state_holds() {
    let mut looks = 0;
    let value = wait_until(SOON, "the third look", async || {
        looks += 1;
        if looks == 3 { Ok(looks) } else { Err(format!("look {looks}")) }
    })
    .await;
    assert_eq!(value, 3);
}

#[tokio::test]
async fn a_wait_in_vain_tells_what_for_where_and_what_was_seen() {
    let text = panic_of(wait_until(Duration::from_millis(50), "rain", async || Err::<(), _>("sun"))).await;
    for part in [file!(), "in vain for rain", "last seen: sun"] {
        assert!(text.contains(part), "{text}");
    }
    let stuck = wait_until(Duration::from_millis(50), "a look", async || std::future::pending::<bool>().await);
    assert!(panic_of(stuck).await.contains("did not return"));
}

#[tokio::test]
async fn a_broker_takes_extra_configuration_and_comes_back_with_what_it_stored() {
    let mut broker = TestBroker::with(|options| options.extra_config = "max_payload: 4096".to_owned()).await;
    let client = broker.client().await;
    assert_eq!(client.max_payload(), 4096);
    let within = Duration::from_secs(2);
    let nobody = client.publish(&Outgoing::new("fleet.msg.n1.command.ops.shell", "true"), within).await;
    assert!(nobody.is_err(), "no stream is made by the broker alone: {nobody:?}");
    let port = broker.server.port();
    broker.server.kill().await.unwrap();
    wait_until(SOON, "the client to see the broker's end", async || !client.link().borrow().up).await;
    broker.server.restart().await.unwrap();
    assert_eq!(broker.server.port(), port);
    wait_until(SOON, "the client to come back", async || client.link().borrow().up).await;
}

#[tokio::test]
async fn the_real_nats_cli_stores_and_reads() {
    let broker = TestBroker::start().await;
    let Some(nats) = Cli::nats(&broker.url()).await else { return };
    nats.line("stream add S --subjects 's.>' --defaults").await.ok();
    nats.line("pub -J --no-templates s.1 'uname -a'   # stored").await.ok();
    let got = nats.line("stream get S --last-for s.1").await.ok();
    assert!(got.contains("uname -a"), "{got}");
    let missing = nats.line("stream get S --last-for s.2").await;
    assert_ne!(missing.code, Some(0));
    assert!(panic_of(async { missing.ok() }).await.contains("stderr"));
}

#[tokio::test]
async fn a_run_past_its_deadline_fails_the_test() {
    let broker = TestBroker::start().await;
    let Some(nats) = Cli::nats(&broker.url()).await else { return };
    let text = panic_of(nats.within(Duration::from_millis(300)).line("sub never")).await;
    assert!(text.contains("sub never` did not end within"), "{text}");
}

#[test]
fn a_line_is_taken_apart_as_a_shell_does() {
    assert_eq!(
        split("nats pub a 'b  \"c\"' \"d'e\" f'g h'i '' -H X:1  # comment 'x"),
        ["nats", "pub", "a", "b  \"c\"", "d'e", "fg hi", "", "-H", "X:1"]
    );
    assert_eq!(split("a#b"), ["a#b"]);
}

/// A port that sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    port
}

async fn there_and_back(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).await?;
    Ok(back)
}

#[tokio::test]
async fn a_link_carries_counts_and_can_be_cut() {
    let proxy = Proxy::start(echo().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(there_and_back(&mut stream, b"hello").await.unwrap(), b"hello");
    wait_until(SOON, "the count", async || (proxy.up(), proxy.down(), proxy.connections()) == (5, 5, 1)).await;
    proxy.set(Link::Cut);
    let ended = timeout(SOON, there_and_back(&mut stream, b"more")).await.expect("an end");
    assert!(ended.is_err(), "{ended:?}");
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(timeout(SOON, there_and_back(&mut refused, b"new")).await.expect("an end").is_err());
    proxy.set(Link::Open);
    let mut again = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(there_and_back(&mut again, b"again").await.unwrap(), b"again");
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn a_stalled_link_keeps_the_connection_and_passes_nothing_until_it_heals() {
    let proxy = Proxy::start(echo().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    there_and_back(&mut stream, b"one").await.unwrap();
    proxy.set(Link::Stalled);
    stream.write_all(b"two").await.unwrap();
    let mut back = [0; 3];
    assert!(timeout(Duration::from_millis(200), stream.read_exact(&mut back)).await.is_err(), "it passed");
    assert_eq!(proxy.up(), 3);
    proxy.set(Link::Open);
    timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"two");
}

#[tokio::test]
async fn a_deaf_link_passes_towards_the_broker_only() {
    let proxy = Proxy::start(echo().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.set(Link::Deaf);
    stream.write_all(b"one").await.unwrap();
    wait_until(SOON, "the bytes to pass", async || proxy.up() == 3).await;
    let mut back = [0; 3];
    assert!(timeout(Duration::from_millis(200), stream.read_exact(&mut back)).await.is_err(), "an answer came");
    proxy.set(Link::Open);
    timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"one");
}

#[tokio::test]
async fn a_slow_link_takes_its_time() {
    let proxy = Proxy::start(echo().await).await;
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.set(Link::Slow(10_000));
    let before = Instant::now();
    timeout(SOON, there_and_back(&mut stream, &[7; 5_000])).await.unwrap().unwrap();
    assert!(before.elapsed() >= Duration::from_millis(400), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_client_behind_a_cut_link_sees_it_and_comes_back() {
    let broker = TestBroker::start().await;
    let proxy = Proxy::start(broker.server.port()).await;
    let Some(nats) = Cli::nats(&proxy.url()).await else { return };
    nats.line("account info").await.ok();
    proxy.set(Link::Cut);
    assert_ne!(nats.line("account info").await.code, Some(0));
}

#[tokio::test]
async fn a_process_is_killed_stopped_and_started_again() {
    let mut process = Process::running("a sleeper", "/bin/sh", &["-c", "echo here >&2; exec sleep 600"]);
    process.start();
    wait_until(SOON, "its first words", async || process.stderr() == "here\n").await;
    let first = process.pid();
    process.restart();
    assert_ne!(process.pid(), first);
    wait_until(SOON, "both runs' words", async || process.stderr() == "here\nhere\n").await;
    process.signal(Signal::STOP);
    assert!(process.is_running());
    process.signal(Signal::CONT);
    let status = process.stop().await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::TERM.as_raw()));
    assert!(!process.is_running());
}

#[tokio::test]
async fn a_fleet_runs_commands_and_comes_back_after_kills() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    for node in ["ship1", "ship2"] {
        let record = fleet.run(node, "shell", format!("echo {node}")).await;
        assert_eq!((record.state, record.stdout), (State::Succeeded, Some(format!("{node}\n"))));
    }
    fleet.agent("ship2").kill();
    let waiting = fleet.command("ship2", "shell", "echo later").await;
    fleet.start_agent("ship2").await;
    assert_eq!(fleet.record("ship2", "ops", "shell", &waiting).await.stdout.as_deref(), Some("later\n"));
    let ended = fleet.agent("ship1").stop().await;
    assert!(ended.success(), "{ended}");
    assert_eq!(fleet.status("ship1").await.and_then(|status| status.stopped), Some(true));
    fleet.hub.restart();
    fleet.start_agent("ship1").await;
    let failed = fleet.run("ship1", "shell", "exit 3").await;
    assert_eq!((failed.state, failed.exit_code), (State::Failed, Some(3)));
    assert_eq!(fleet.cli().run(&["run", "ship1", "echo hi"]).await.ok(), "hi\n");
}
