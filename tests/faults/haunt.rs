//! Processes that die: where they are, or right after a named step, and come back.
//!
//! Owns what becomes of one process; it watches that none ends which nobody killed.

use super::chaos::{Kill, LEFT, Shared, Stage};
use super::harness::{Process, runner_of};
use super::history::runner_name;
use edgeward::killpoint::{Point, VARIABLE};
use rustix::process::{Signal, kill_process};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::sleep;

/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Where a process, or its runner, is to die.
struct Armed {
    point: Point,
    /// What a runner makes as it dies: it is nobody's child that could be asked.
    note: Option<PathBuf>,
}

/// An agent or a hub that is killed now and then.
pub struct Haunted<F> {
    pub name: String,
    pub process: Process,
    /// An agent's state folder, in which its runner is found.
    pub state: Option<PathBuf>,
    pub shared: Shared,
    /// Whether it may end by itself just now.
    pub excuse: F,
    armed: Option<Armed>,
    notes: usize,
}

impl<F: Fn() -> bool> Haunted<F> {
    pub fn new(name: String, process: Process, state: Option<PathBuf>, shared: Shared, excuse: F) -> Haunted<F> {
        Haunted { name, process, state, shared, excuse, armed: None, notes: 0 }
    }

    /// Carries out the kills, and gives the process back, running, when all is over.
    pub async fn haunt(mut self, kills: Vec<Kill>) -> Process {
        for kill in kills {
            let due = self.shared.wait(kill.when);
            tokio::pin!(due);
            let go_on = loop {
                tokio::select! {
                    go_on = &mut due => break go_on,
                    () = sleep(LOOK) => self.watch_over().await,
                }
            };
            if !go_on {
                break;
            }
            self.kill();
            self.shared.count(self.kind());
            sleep(kill.down).await;
            self.arm(kill.at);
            self.process.start();
        }
        self.watch_until(Stage::Rest).await;
        if self.armed.is_some() {
            self.kill();
            self.arm(None);
            self.process.start();
        }
        self.watch_until(Stage::Over).await;
        self.process
    }

    fn kind(&self) -> &'static str {
        if self.state.is_none() { "hub_kill" } else { "agent_kill" }
    }

    fn kill(&mut self) {
        self.process.kill();
        self.shared.killed(&self.name);
        self.look_for_note();
        // What is armed must not go on so.
        if self.armed.take().is_some_and(|armed| armed.note.is_some()) {
            self.kill_runner();
        }
    }

    fn arm(&mut self, at: Option<(Point, usize)>) {
        let Some((point, times)) = at else { return self.process.set_env(VARIABLE, "") };
        let mut note = None;
        let mut arming = format!("{}:{times}", point.as_str());
        if Point::RUNNER.contains(&point) {
            self.notes += 1;
            let file = self.process.state_dir().with_file_name(format!("died-{}", self.notes));
            arming = format!("{arming}:{}", file.display());
            note = Some(file);
            self.kill_runner();
        }
        self.process.set_env(VARIABLE, &arming);
        self.armed = Some(Armed { point, note });
    }

    fn kill_runner(&self) {
        if let Some(state) = &self.state {
            end_runner(&self.name, state, &self.shared);
        }
    }

    /// Sees whether an armed runner has died.
    fn look_for_note(&mut self) {
        let note = self.armed.as_ref().and_then(|armed| armed.note.as_ref());
        let Some(died) = note.and_then(|note| note.metadata().ok()?.modified().ok()) else { return };
        if let Some(armed) = self.armed.take() {
            self.shared.killed_at(&runner_name(&self.name), died);
            self.shared.died_at(armed.point);
            self.shared.count("runner_kill");
        }
    }

    async fn watch_until(&mut self, stage: Stage) {
        while *self.shared.stage.borrow() < stage {
            self.watch_over().await;
            sleep(LOOK).await;
        }
    }

    /// Starts the process again where it died at its point or was told to end; notes one that ended otherwise.
    async fn watch_over(&mut self) {
        const ABORT: i32 = 6;
        const FOR_GOOD: i32 = 100;
        self.look_for_note();
        if self.process.is_running() {
            return;
        }
        let status = self.process.exited(Duration::from_secs(1)).await;
        self.shared.killed(&self.name);
        let died_at = self.armed.as_ref().filter(|armed| armed.note.is_none()).map(|armed| armed.point);
        match died_at {
            Some(point) if status.signal() == Some(ABORT) => {
                self.shared.died_at(point);
                self.shared.count(self.kind());
                self.armed = None;
                self.process.set_env(VARIABLE, "");
            }
            // Somebody starts it again; it goes on as it was armed.
            _ if self.state.is_some() && status.code() == Some(FOR_GOOD) => self.shared.count(LEFT),
            _ if (self.excuse)() => {
                self.shared.count("ended_on_a_full_disk");
                sleep(Duration::from_millis(500)).await;
            }
            _ => {
                let words: Vec<String> = self.process.stderr().lines().rev().take(5).map(str::to_owned).collect();
                let words = words.into_iter().rev().collect::<Vec<_>>().join(" | ");
                let text = format!("{}: {status}; {words}", self.name);
                eprintln!("{text}");
                self.shared.tally.lock().unwrap().fallen.push(text);
                sleep(Duration::from_millis(500)).await;
            }
        }
        self.process.start();
    }
}

/// Kills the runner of a node now and then, where it has one just then. Who needs it starts another.
pub async fn orphan(node: String, state: PathBuf, kills: Vec<Duration>, shared: Shared) {
    for when in kills {
        if !shared.wait(when).await {
            return;
        }
        end_runner(&node, &state, &shared);
    }
}

fn end_runner(node: &str, state: &std::path::Path, shared: &Shared) {
    if runner_of(state).is_some_and(|runner| kill_process(runner, Signal::KILL).is_ok()) {
        shared.killed(&runner_name(node));
        shared.count("runner_kill");
    }
}
