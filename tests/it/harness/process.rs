//! `edgeward agent` and `edgeward hub` as processes, each with a state folder of its own, to be killed and started again.

use super::cli::clean_environment;
use super::wait::{SOON, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// One long-running `edgeward`, with what it takes to start it again as it was. Killed when it is dropped; a failed
/// test shows what it wrote to stderr.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    folder: TempDir,
    child: Option<Child>,
}

impl Process {
    /// An `edgeward` that is not started yet: its name in messages, its arguments.
    pub fn new(name: &str, args: &[&str]) -> Process {
        Process::running(name, env!("CARGO_BIN_EXE_edgeward"), args)
    }

    /// The same with another program.
    pub fn running(name: &str, program: &str, args: &[&str]) -> Process {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Process { name: name.to_owned(), program: program.to_owned(), args, env: Vec::new(), folder, child: None }
    }

    /// `edgeward hub` at this broker.
    pub fn hub(server: &str) -> Process {
        // The streams of one test are small; the disk of a CI machine may be, too.
        Process::new("hub", &["hub"]).env("EDGEWARD_SERVER", server).env("EDGEWARD_HUB__STORE_BYTES", "1073741824")
    }

    /// `edgeward agent` for this node at this broker, with a beat every second.
    pub fn agent(node: &str, server: &str) -> Process {
        let process = Process::new(&format!("agent {node}"), &["agent", "--node", node]);
        let state = process.state_dir().display().to_string();
        process
            .env("EDGEWARD_SERVER", server)
            .env("EDGEWARD_STATE_DIR", &state)
            .env("EDGEWARD_AGENT__INTERVAL", "1s")
            .env("EDGEWARD_AGENT__GRACE", "5s")
    }

    /// With more arguments, from the next start on.
    #[must_use]
    pub fn args(mut self, more: &[&str]) -> Process {
        self.args.extend(more.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// With a variable in its environment, from the next start on; a later value replaces an earlier one.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Process {
        self.set_env(name, value);
        self
    }

    /// The same for a process that is there already.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Its state folder: journal, logs, `inmsg.txt`. It outlives kills and restarts.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Starts it. What it writes to stderr is added to what earlier runs wrote.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} is running", self.name);
        let log = |name: &str| {
            let path = self.folder.path().join(name);
            File::options().create(true).append(true).open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let mut command = Command::new(&self.program);
        clean_environment(&mut command, self.folder.path());
        command.args(&self.args).envs(self.env.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::null()).stdout(log("stdout")).stderr(log("stderr"));
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.name)));
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.name));
        Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|e| panic!("signal to {}: {e}", self.name));
    }

    /// Kills it as `kill -9` does and waits until it is gone. Its state folder stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The process that runs the agent's commands and outlives it, where one lives.
    pub fn runner(&self) -> Option<Pid> {
        runner_of(&self.state_dir())
    }

    /// Kills it and what runs its commands, as the power going would.
    pub fn kill_with_commands(&mut self) {
        let runner = self.runner();
        self.kill();
        if let Some(runner) = runner {
            kill_process(runner, Signal::KILL).unwrap_or_else(|e| panic!("the runner of {}: {e}", self.name));
        }
    }

    /// Stops it in order: TERM, then waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exited(SOON).await
    }

    /// Waits until it has ended by itself.
    pub async fn exited(&mut self, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{name} is not running"));
        let status = wait_until(within, format!("the end of {name}"), async || child.try_wait().ok().flatten()).await;
        self.child = None;
        status
    }

    /// Kills it and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What all its runs wrote to stderr.
    pub fn stderr(&self) -> String {
        read(&self.folder.path().join("stderr"))
    }

    /// What all its runs wrote to stdout.
    pub fn stdout(&self) -> String {
        read(&self.folder.path().join("stdout"))
    }
}

/// The runner of the agent whose state is here, where one lives.
pub fn runner_of(state_dir: &Path) -> Option<Pid> {
    let folder = state_dir.join("run");
    let pid = fs::read_to_string(folder.join("runner.lock")).ok()?.trim().parse().ok()?;
    // The number may be somebody else's by now.
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    command.contains(folder.to_str()?).then(|| Pid::from_raw(pid))?
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if let Some(runner) = self.runner() {
            // It ends what it runs.
            let _ = kill_process(runner, Signal::TERM);
        }
        if std::thread::panicking() {
            eprintln!("---- stderr of {} ----\n{}---- end ----", self.name, self.stderr());
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
