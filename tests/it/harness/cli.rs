//! Short runs of `edgeward …` and of the real `nats` CLI: output captured, a deadline for each.

use super::wait::SOON;
use edgeward::server::{Found, default_cache, nats_cli};
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// What a run said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Said {
    /// The stdout of a run that succeeded; any other fails the test with all that it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// The same for a run that is to end with this exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Said {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

/// Runs a program against one broker, with an environment that holds nothing of the machine's own set-up.
#[derive(Debug)]
pub struct Cli {
    program: String,
    env: Vec<(String, String)>,
    within: Duration,
    home: TempDir,
}

impl Cli {
    /// `edgeward`, as the operator `ops`.
    pub fn edgeward(server: &str) -> Cli {
        Cli::new(env!("CARGO_BIN_EXE_edgeward")).env("NATS_URL", server).env("EDGEWARD_FROM", "ops")
    }

    /// The `nats` CLI. `None`, loudly, where this machine cannot get one; in CI (`CI=true`) that fails the test.
    pub async fn nats(server: &str) -> Option<Cli> {
        let found = nats_binary().await?;
        Some(Cli::new(found.path.to_str().expect("a path in UTF-8")).env("NATS_URL", server))
    }

    /// A shell that finds these programs first, for lines as people type them: `run(&["-c", line])`.
    pub fn shell(path: &str) -> Cli {
        Cli::new("/bin/sh").env("PATH", path)
    }

    fn new(program: &str) -> Cli {
        let home = tempfile::tempdir().expect("a temporary folder");
        Cli { program: program.to_owned(), env: Vec::new(), within: SOON, home }
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Cli {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another deadline.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Cli {
        self.within = within;
        self
    }

    /// Runs it with these arguments.
    pub async fn run(&self, args: &[&str]) -> Said {
        self.run_with(args, b"").await
    }

    /// Runs a line as a shell takes it apart (quotes, no variables): for lines copied out of the documentation.
    pub async fn line(&self, line: &str) -> Said {
        let words = split(line);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Runs a line of `edgeward …` with a terminal as its stdout and stderr, which come together; needs `script`.
    pub async fn run_in_terminal(&self, line: &str) -> Said {
        let line = line.replacen("edgeward", &self.program, 1);
        let args = ["-qec", &line, "/dev/null"];
        self.start("/usr/bin/script", &args, b"").await
    }

    /// Runs it with these arguments and this on stdin.
    pub async fn run_with(&self, args: &[&str], stdin: &[u8]) -> Said {
        self.start(&self.program, args, stdin).await
    }

    async fn start(&self, program: &str, args: &[&str], stdin: &[u8]) -> Said {
        let mut command = Command::new(program);
        clean_environment(&mut command, self.home.path());
        command.args(args).envs(self.env.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
        let mut pipe = child.stdin.take().expect("its stdin");
        let run = async {
            // A program that does not read its stdin closes it early; that is no error.
            let _ = pipe.write_all(stdin).await;
            drop(pipe);
            child.wait_with_output().await.unwrap_or_else(|e| panic!("{program}: {e}"))
        };
        let Ok(output) = timeout(self.within, run).await else {
            panic!("`{program} {}` did not end within {:?}", args.join(" "), self.within)
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A `PATH` on which `nats` is the real one and `edgeward` the one that was built. `None` as for [`Cli::nats`].
pub async fn path_with_nats() -> Option<String> {
    let folder = |program: &Path| program.parent().map(Path::to_path_buf).expect("a folder");
    let first = [folder(&nats_binary().await?.path), folder(Path::new(env!("CARGO_BIN_EXE_edgeward")))];
    let rest = env::var_os("PATH").unwrap_or_default();
    let all = env::join_paths(first.into_iter().chain(env::split_paths(&rest))).expect("folders without colons");
    Some(all.into_string().expect("a path in UTF-8"))
}

pub async fn nats_binary() -> Option<&'static Found> {
    static FOUND: OnceLock<Option<Found>> = OnceLock::new();
    let find = || match nats_cli(&default_cache(), &mut |line| eprintln!("{line}")) {
        Ok(found) => Some(found),
        Err(error) if env::var("CI").is_ok_and(|ci| ci == "true") => panic!("the nats CLI is required in CI: {error}"),
        Err(error) => {
            eprintln!("\n!!!! SKIPPED: tests with the real nats CLI do not run here: {error}\n");
            None
        }
    };
    spawn_blocking(move || FOUND.get_or_init(find)).await.expect("looking for the nats CLI").as_ref()
}

/// Takes out every variable that would let this machine's set-up into the test; configuration is looked for in `home`.
pub(super) fn clean_environment(command: &mut Command, home: &Path) {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let ours = name.starts_with("EDGEWARD_") && name != "EDGEWARD_CACHE";
        if ours || name.starts_with("NATS_") || name.starts_with("XDG_") {
            command.env_remove(name.as_ref());
        }
    }
    command.env("HOME", home);
}

/// The words of a line: split at blanks, quotes keep blanks, `#` at a word's start ends the line.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
