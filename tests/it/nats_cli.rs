//! The README's lines for the plain `nats` CLI, taken from it and run as written with the real `nats`.

use crate::accounts::{self, key};
use crate::harness::{Cli, Process, SOON, path_with_nats, wait_until};
use crate::local::{broker_pid, gone, up};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// The lines of the block below "With the plain `nats` CLI".
fn lines() -> Vec<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split("### With the plain `nats` CLI\n").nth(1).expect("the section");
    let block = section.split("```\n").nth(1).expect("its block");
    block.lines().map(str::to_owned).collect()
}

/// A terminal of somebody who follows the README.
struct Terminal {
    env: Vec<(&'static str, String)>,
    /// Programs of its own.
    folder: TempDir,
}

impl Terminal {
    /// With this broker in `NATS_URL`. `None` where there is no `nats`.
    async fn new(url: &str) -> Option<Terminal> {
        let folder = tempfile::tempdir().unwrap();
        let path = format!("{}:{}", folder.path().display(), path_with_nats().await?);
        let home = folder.path().join("config").display().to_string();
        let env = vec![("PATH", path), ("NATS_URL", url.to_owned()), ("XDG_CONFIG_HOME", home)];
        Some(Terminal { env, folder })
    }

    /// Puts these flags behind `nats` in every line.
    async fn with_flags(&self, flags: &str) {
        let real = self.run("command -v nats").await;
        let script = format!("#!/bin/sh\nexec {} \"$@\" {flags}\n", real.trim());
        let path = self.folder.path().join("nats");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn shell(&self) -> Cli {
        let (_, path) = &self.env[0];
        self.env[1..].iter().fold(Cli::shell(path), |cli, (name, value)| cli.env(name, value))
    }

    /// A line that ends by itself, and well; what it wrote, on stdout and stderr.
    async fn run(&self, line: &str) -> String {
        let said = self.shell().run(&["-c", line]).await;
        assert_eq!(said.code, Some(0), "{line}\n{said:#?}");
        said.stdout + &said.stderr
    }

    /// A line that goes on until it is ended.
    fn follow(&self, line: &str) -> Process {
        let process = Process::running(line, "/bin/sh", &["-c", &format!("exec {line}")]);
        let mut process = self.env.iter().fold(process, |process, (name, value)| process.env(name, value));
        process.start();
        process
    }

    /// Runs a line until what it writes has these words.
    async fn until(&self, line: &str, words: &str) -> String {
        wait_until(SOON, format!("`{words}` of `{line}`"), async || {
            let said = self.shell().run(&["-c", line]).await;
            if said.code == Some(0) && said.stdout.contains(words) { Ok(said.stdout) } else { Err(format!("{said:?}")) }
        })
        .await
    }
}

async fn shows(following: &Process, words: &str) {
    wait_until(SOON, format!("`{words}`"), async || {
        let said = following.stdout();
        if said.contains(words) { Ok(()) } else { Err(said + &following.stderr()) }
    })
    .await;
}

/// Each line does what its comment says.
async fn the_lines_hold(terminal: &Terminal, may_make_consumers: bool) {
    let lines = lines();
    let [send, result, all_results, new_results, group, look] = &lines[..] else { panic!("{lines:#?}") };
    // One command before, so that the sequence of the first line is the 2 of the lines below.
    terminal.run("nats pub -J fleet.msg.ship1.command.ops.shell 'echo zero'").await;
    terminal.until("nats stream get FLEET_ACKS --last-for fleet.ack.ship1.ops.shell.s1", "zero").await;

    let said = terminal.run(send).await;
    assert!(said.contains("FLEET_COMMANDS") && said.contains("Sequence: 2"), "{said}");
    let said = terminal.until(result, "\"state\":\"succeeded\"").await;
    assert!(said.contains("\"stdout\":\"Linux "), "{said}");

    let all = may_make_consumers.then(|| terminal.follow(all_results));
    if let Some(all) = &all {
        shows(all, "fleet.ack.ship1.ops.shell.s1").await;
        shows(all, "fleet.ack.ship1.ops.shell.s2").await;
    }
    let new = terminal.follow(new_results);
    // It is not told when it listens: send until it has heard of one.
    wait_until(SOON, "a new result", async || {
        terminal.run("nats pub -J fleet.msg.ship1.command.ops.shell true").await;
        let said = new.stdout();
        if said.contains("fleet.stored.ack.ship1.ops.shell.s") { Ok(()) } else { Err(said + &new.stderr()) }
    })
    .await;
    assert!(!new.stdout().contains("shell.s2\""), "only new ones: {}", new.stdout());

    assert!(terminal.run(group).await.contains("FLEET_COMMANDS"));
    let ack = "fleet.ack._.ops.shell.restart-7";
    let said = terminal.until(&format!("nats stream get FLEET_ACKS --last-for {ack}"), "undeliverable").await;
    assert!(said.contains("unknown_group"), "{said}");
    shows(&new, "fleet.stored.ack._.ops.shell.restart-7").await;
    if let Some(all) = &all {
        shows(all, ack).await;
    }
    // The same `Nats-Msg-Id` is the same message.
    assert!(terminal.run(group).await.contains("Duplicate: true"));

    let said = terminal.run(look).await;
    for words in ["uname -a", "fleet.msg.ship1.command.ops.shell", "Name: ship1", "\"node\":\"ship1\""] {
        assert!(said.contains(words), "no `{words}` in: {said}");
    }
    // Exit 1 when nothing was stored.
    let nowhere = terminal.shell().run(&["-c", "nats pub -J fleet.msg.ship1.shell 'uname -a'"]).await;
    assert_eq!(nowhere.code, Some(1), "{nowhere:?}");
}

#[tokio::test]
async fn the_lines_of_the_readme_work_as_written_beside_up() {
    let (mut up, url) = up().await;
    let Some(terminal) = Terminal::new(&url).await else { return };
    the_lines_hold(&terminal, true).await;
    // Ctrl-C.
    let broker = broker_pid(&up.state_dir()).unwrap();
    up.signal(Signal::INT);
    assert!(up.exited(SOON).await.success());
    gone(broker).await;
}

#[tokio::test]
async fn the_lines_of_the_readme_work_for_an_operator_with_the_shipped_rights() {
    let fleet = accounts::Fleet::start(&["ship1"]).await;
    let Some(terminal) = Terminal::new(&fleet.broker.url()).await else { return };
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let flags = readme.split('`').find(|code| code.starts_with("--js-api-prefix")).expect("the flags in the README");
    terminal.with_flags(&flags.replace("FILE", &key("ops"))).await;
    the_lines_hold(&terminal, false).await;
}

#[tokio::test]
async fn the_lines_of_the_readme_work_with_a_context_and_so_does_edgeward() {
    let fleet = accounts::Fleet::start(&["ship1"]).await;
    let Some(mut terminal) = Terminal::new(&fleet.broker.url()).await else { return };
    let (url, nkey) = (fleet.broker.url(), key("ops"));
    terminal.env.retain(|(name, _)| *name != "NATS_URL");
    let flags = "--js-api-prefix fleet.api --inbox-prefix _INBOX_ops";
    terminal.run(&format!("nats context add ops --server {url} --nkey {nkey} {flags} --select")).await;
    the_lines_hold(&terminal, false).await;
    assert!(terminal.run("edgeward nodes").await.contains("in contact"));
    assert_eq!(terminal.run("edgeward run ship1 'echo hi'").await, "hi\n");
    terminal.run("nats context unselect").await;
    assert!(terminal.run("edgeward nodes --context ops").await.contains("in contact"));
}
