//! What the operator's verbs promise besides their main way (see `cli`): the README's lines, each exit code by a real case,
//! output for machines, files, configuration.

use crate::harness::{Cli, Fleet, SOON, path_with_nats, wait_until};
use crate::{accounts, local};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A shell of somebody without a name of his own, with `edgeward` on the `PATH`.
fn shell(url: &str) -> Cli {
    let edgeward = Path::new(env!("CARGO_BIN_EXE_edgeward")).parent().unwrap();
    let path = format!("{}:{}", edgeward.display(), std::env::var("PATH").unwrap());
    Cli::shell(&path).env("NATS_URL", url).env("LOGNAME", "ops")
}

/// The objects of `-o json`, one a line.
#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[tokio::test]
async fn the_lines_of_the_readme_for_edgeward_work_as_written() {
    let (mut up, url) = local::up().await;
    let sh = shell(&url);
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split("In another terminal").nth(1).expect("the section");
    let lines: Vec<&str> = section.split("```\n").nth(1).expect("its block").lines().collect();
    let [uname, ls, send, status, nodes] = lines[..] else { panic!("{lines:#?}") };
    assert!(sh.run(&["-c", uname]).await.ok().starts_with("Linux "));
    let said = sh.run(&["-c", ls]).await;
    assert_eq!(said.code == Some(0), Path::new("/srv").is_dir(), "{said:?}");
    let said = sh.run(&["-c", send]).await.ok();
    assert!(said.contains("  e1  ship1"), "{said}");
    sh.run(&["-c", "edgeward wait last --for 20s"]).await.ok();
    assert!(sh.run(&["-c", status]).await.ok().contains("e1"));
    assert!(sh.run(&["-c", nodes]).await.ok().contains("in contact"));
    let audit = up.state_dir().join("log/ops/audit.log");
    assert!(fs::read_to_string(&audit).unwrap().ends_with(" a line\n"));
    assert!(up.stop().await.success());
}

#[tokio::test]
async fn no_verb_says_the_password_in_an_address() {
    let fleet = Fleet::start(&["ship1"]).await;
    let of_broker = fleet.broker.url().replace("nats://", "nats://ops:s3cr3t@");
    for (server, code) in [
        (of_broker.as_str(), 0),
        ("nats://ops:s3cr3t@127.0.0.1:1", 8),
        ("nats://ops:s3cr3t@10.0.0.1:4222", 2),
        ("nats://ops:s3cr3t@127.0.0.1:port", 2),
    ] {
        let doctor = fleet.cli().run(&["--server", server, "doctor", "--from", "ops"]).await;
        let nodes = fleet.cli().run(&["--server", server, "nodes"]).await.exits(code);
        for text in [doctor.stdout, doctor.stderr, nodes.stdout, nodes.stderr] {
            assert!(!text.contains("s3cr3t"), "{text}");
        }
    }
}

#[tokio::test]
async fn each_exit_code_has_a_case() {
    let mut fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    for (code, args) in [
        (0, &["run", "ship1", "true"][..]),
        (1, &["run", "ship1", "false"]),
        (1, &["run", "ship1", "sleep 30", "--timeout", "100ms"]),
        (2, &["run", "ship1,ship2", "true", "--exit-status"]),
        (2, &["run", "ship1", "true", "--timeout", "5"]),
        (2, &["run", "", "true"]),
        (2, &["wait", "4711"]),
        (2, &["wait", "0"]),
        (3, &["run", "ship1", "sleep 10", "--lane", "a", "--wait", "100ms"]),
        (3, &["wait", "last", "--for", "1ms"]),
        (7, &["run", "ship1", "-m", "no-such", "x"]),
        (7, &["run", "ship1", "-m", "shell", "--kind", "event", "true"]),
        (8, &["run", "ship1", "true", "--server", "nats://127.0.0.1:1"]),
        (42, &["run", "ship1", "exit 42", "--exit-status"]),
        (137, &["run", "ship1", "kill -9 $$", "--exit-status"]),
    ] {
        let said = cli.run(args).await;
        assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
        assert_eq!(said.stderr.is_empty(), matches!(code, 0), "{args:?}: {said:?}");
    }
    // 4: the time to begin passed while the node was away.
    fleet.agent("ship2").stop().await;
    cli.run(&["send", "ship2", "true", "--start-by", "100ms", "--id", "too-late"]).await.ok();
    wait_until(SOON, "its time to pass", async || {
        cli.run(&["status", "too-late"]).await.stdout.contains("will expire")
    })
    .await;
    fleet.start_agent("ship2").await;
    let said = cli.run(&["wait", "too-late", "--for", "20s"]).await.exits(4);
    assert!(said.stdout.contains("ship2  expired"), "{said:?}");
    // 6: broken off by a crash of what runs it.
    cli.run(&["send", "ship2", "sleep 60", "--id", "broken-off"]).await.ok();
    wait_until(SOON, "it to run", async || cli.run(&["status", "broken-off"]).await.stdout.contains("running")).await;
    let runner = fleet.agent("ship2").runner().expect("a runner");
    kill_process(runner, Signal::KILL).unwrap();
    let said = cli.run(&["wait", "broken-off", "--for", "20s"]).await.exits(6);
    assert!(said.stdout.contains("ship2  interrupted"), "{said:?}");
    // Of several the worst: one succeeds, one fails; one is refused, one fails.
    cli.run(&["run", "ship1,ship2", "test $EDGEWARD_MSG_NODE = ship1"]).await.exits(1);
}

#[tokio::test]
async fn output_is_bytes_on_a_pipe_and_objects_for_machines() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let sh = shell(&fleet.broker.url());
    // Bytes as they are: stdout and stderr apart, nothing added.
    let said = sh.run(&["-c", r#"edgeward run ship1 'printf "\377\000\001\n"; printf "\200" >&2' 2>err | od -An -tx1; od -An -tx1 err; rm err"#]);
    assert_eq!(said.await.ok(), " ff 00 01 0a\n 80\n");
    let said =
        sh.run(&["-c", r#"edgeward run ship1,ship2 'printf "\377\nx"' | LC_ALL=C sort | od -An -c | tr -d '\n '"#]);
    assert_eq!(said.await.ok(), r"ship1:x\nship1:377\nship2:x\nship2:377\n");

    let cli = fleet.cli();
    cli.run(&["run", "ship1", "exit 3"]).await.exits(1);
    wait_until(SOON, "the error event", async || !cli.run(&["errors"]).await.ok().is_empty()).await;
    for (args, count) in [
        (&["run", "ship1,ship2", "echo hi"][..], 2),
        (&["send", "ship1,ship2", "true"], 2),
        (&["status"], 2),
        (&["wait", "last"], 2),
        (&["result", "last"], 2),
        (&["history", "ship1"], 7),
        (&["nodes"], 2),
        (&["errors"], 1),
        (&["config", "show"], 1),
        (&["config", "check"], 1),
        (&["init", "--diff"], 6),
        (&["run", "ship1,@all", "true", "--dry-run"], 2),
        (&["send", "ship1", "true", "--dry-run"], 1),
        (&["replay", "last", "--dry-run"], 2),
    ] {
        let said = cli.run(&[args, &["-o", "json"]].concat()).await;
        let objects = objects(&said.stdout);
        assert_eq!(objects.len(), count, "{args:?}: {said:?}");
        assert!(objects.iter().all(|object| object["v"] == 1), "{args:?}: {said:?}");
        assert!(!said.stdout.contains("\"contact\":\"never\""), "{args:?}: both nodes are in contact: {said:?}");
        let plain = cli.run(args).await;
        assert!(!(plain.stdout + &plain.stderr).contains('\u{1b}'), "{args:?}: colour on a pipe");
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let fleet = Fleet::start(&["ship1"]).await;
    let sh = shell(&fleet.broker.url());
    for n in 0..3 {
        sh.run(&["-c", &format!("edgeward run ship1 'echo {n}'")]).await.ok();
    }
    // More than a pipe holds, so that the writer notices.
    for verb in
        ["run ship1 'seq 1 3000; echo x >&2'", "history -o json", "nodes", "completions bash", "--help", "config show"]
    {
        let line = format!("{{ edgeward {verb} 2>err; echo $? >code; }} | head -1 | wc -l; cat err code; rm err code");
        let said = sh.run(&["-c", &line]).await.ok();
        let mut lines: Vec<&str> = said.lines().collect();
        lines.retain(|line| *line != "x");
        assert!(matches!(lines[..], ["1", "0"]), "{verb}: {said}");
    }
    // Where the output cannot be written the message is stored all the same.
    for verb in ["run ship1 'echo x'", "send ship1 true"] {
        let said = sh.run(&["-c", &format!("edgeward {verb} > /dev/full")]).await.exits(6);
        assert!(said.stderr.contains("the message is stored: edgeward status "), "{verb}: {said:?}");
    }
    // One that has seen all that there is for now is not waited for with the next line.
    let running = fleet.command("ship1", "shell", "echo one; sleep 1000").await;
    sh.run(&["-c", "edgeward run ship1 'exit 3' --lane other"]).await.exits(1);
    let follow = format!("result {running} --follow");
    for verb in ["errors --follow", "nodes --watch", &follow, "run ship1 'echo one; sleep 1000' --id left --lane left"]
    {
        let line = format!("{{ edgeward {verb} 2>err; echo $? >code; }} | head -1 | wc -l; cat err code; rm err code");
        assert_eq!(sh.run(&["-c", &line]).await.ok(), "1\n0\n", "{verb}");
    }
    assert!(fleet.cli().run(&["status", "left"]).await.exits(3).stdout.contains("running"), "it goes on");
}

#[tokio::test]
async fn messages_come_from_files_and_from_stdin() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("messages.json");
    fs::write(
        &path,
        r#"[{"to": ["ship1", "ship2"], "method": "shell", "body": "echo $EDGEWARD_MSG_NODE", "id": "from-file", "timeout": "20s"},
            {"toNode": "ship1", "commandOrEvent": "command", "method": "shellCommand", "data": ["printf", "%s!", "a b"], "id": "other-names"}]"#,
    )
    .unwrap();
    let file = path.to_str().unwrap();
    assert_eq!(cli.run(&["send", "--file", file]).await.ok().lines().count(), 3);
    cli.run(&["wait", "from-file", "--for", "20s"]).await.ok();
    assert_eq!(cli.run(&["result", "from-file", "ship2"]).await.ok(), "ship2\n");
    cli.run(&["wait", "other-names", "--for", "20s"]).await.ok();
    assert_eq!(cli.run(&["result", "other-names"]).await.ok(), "a b!");
    // The same file again is the same messages.
    let said = cli.run(&["send", "--file", file, "-o", "json"]).await.ok();
    assert!(objects(&said).iter().all(|sent| sent["again"] == true), "{said}");

    for (text, words) in [
        ("{\"to\": \"ship1\",\n \"method\": 7}", "line 2"),
        ("{\"to\": \"ship1\"}", "method"),
        ("{\"method\": \"shell\", \"body\": \"x\"}", "to"),
        ("[]", "an empty list"),
        ("{\"to\": \"ship1\",", "line 1"),
    ] {
        fs::write(&path, text).unwrap();
        let said = cli.run(&["send", "--file", file]).await.exits(2);
        assert!(said.stderr.contains("messages.json") && said.stderr.contains(words), "{text}: {said:?}");
    }
    cli.run(&["send", "--file", "/no/such/file"]).await.exits(2);
    let said = cli.run_with(&["run", "ship1", "-m", "shell", "-"], b"printf '%s' \"$(seq 1 3)\"\n").await.ok();
    assert_eq!(said, "1\n2\n3");
}

#[tokio::test]
async fn history_shows_what_is_asked_for() {
    let fleet = Fleet::start(&["ship1", "ship2"]).await;
    let cli = fleet.cli();
    cli.run(&["run", "ship1,ship2", "true"]).await.ok();
    cli.run(&["run", "ship1", "-m", "log", "--lane", "audit", "x", "--from", "bob"]).await.ok();
    for (args, count) in [
        (&[][..], 3),
        (&["ship2"], 1),
        (&["--from", "bob"], 1),
        (&["-m", "shell"], 2),
        (&["--kind", "event"], 1),
        (&["--kind", "command", "ship1"], 1),
        (&["--since", "1h", "--limit", "2"], 2),
        (&["--from", "nobody"], 0),
    ] {
        let said = cli.run(&[&["history", "-o", "json"], args].concat()).await.ok();
        assert_eq!(said.lines().count(), count, "{args:?}: {said}");
    }
}

#[tokio::test]
async fn a_dry_run_under_rights_prints_a_line_that_works() {
    let fleet = accounts::Fleet::start(&["ship1"]).await;
    let Some(path) = path_with_nats().await else { return };
    let sh = Cli::shell(&path);
    let server = fleet.broker.url();
    let nkey = accounts::key("ops");
    let send =
        format!("edgeward send ship1 'echo \"{{{{it}}}}\" works' --id dry --server {server} --nkey {nkey} --from ops");
    let dry = sh.run(&["-c", &format!("{send} --dry-run")]).await.ok();
    let line = dry.lines().find(|line| line.starts_with("nats pub ")).expect(&dry);
    let said = sh.run(&["-c", line]).await.exits(0);
    assert!((said.stdout.clone() + &said.stderr).contains("FLEET_COMMANDS"), "{said:?}");
    // The broker has it, and it is the very same.
    assert!(objects(&sh.run(&["-c", &format!("{send} -o json")]).await.ok())[0]["again"] == true);
    let wait = format!("edgeward result dry --server {server} --nkey {nkey} --from ops");
    wait_until(SOON, "its result", async || sh.run(&["-c", &wait]).await.stdout == "{{it}} works\n").await;
}

#[tokio::test]
async fn configuration_is_checked_shown_and_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edgeward.toml");
    let file = path.to_str().unwrap();
    let cli = Cli::edgeward("nats://127.0.0.1:1").env("EDGEWARD_AGENT__INTERVAL", "7s");
    fs::write(&path, "from = \"bob\"\n\n[agent]\n  intervall = \"1s\"\n").unwrap();
    for verb in ["check", "show"] {
        let said = cli.run(&["config", verb, "--config", file]).await.exits(2);
        for words in [file, "line 4, column 3", "intervall"] {
            assert!(said.stderr.contains(words), "no `{words}`: {said:?}");
        }
    }
    fs::write(&path, "from = \"bob\"\nserver = \"nats://u:secret@h:1\"\n[agent]\nmax_running = 3\n").unwrap();
    fs::write(folder.path().join("policy.toml"), "[[allow]]\nsenders = [\"*\"]\nkinds = [\"*\"]\nmethods = [\"*\"]\n")
        .unwrap();
    let said = cli.run(&["config", "check", "--config", file]).await.ok();
    assert_eq!(said, format!("ok: {file}\nok: {}\n", folder.path().join("policy.toml").display()));
    // Flag over environment over file over default.
    let said = cli.run(&["config", "show", "--config", file, "--server", "nats://u:secret@flag:2"]).await.ok();
    for line in ["from = \"ops\"", "interval = \"7s\"", "max_running = 3", "prefix = \"fleet\"", "nats://***@flag:2"] {
        assert!(said.contains(line), "no `{line}` in {said}");
    }
    assert!(!said.contains("secret"), "{said}");
    // What is shown is a file that is accepted.
    let again = folder.path().join("again.toml");
    fs::write(&again, &said).unwrap();
    cli.run(&["config", "check", "--config", again.to_str().unwrap()]).await.ok();

    let script = cli.run(&["completions", "bash"]).await.ok();
    Cli::shell(&std::env::var("PATH").unwrap()).run_with(&["-c", "exec bash -n"], script.as_bytes()).await.ok();
    for other in ["zsh", "fish"] {
        assert!(cli.run(&["completions", other]).await.ok().contains("edgeward"));
    }
}
