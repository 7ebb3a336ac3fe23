//! `edgeward demo`: a broker in a temporary folder, a hub and three nodes, all on this machine, and what edgeward does
//! shown step by step, each checked against what it has to be.
//!
//! Owns the steps. Sends and waits as any operator does, through `operator`.

use super::error::{CliError, chain};
use super::exit::ExitCode;
use super::service;
use super::session::Session;
use super::up::{self, Part, UpError, connect, describe, find_server, in_contact, show};
use crate::broker::Broker;
use crate::model::config::Config;
use crate::model::header::MsgHeaders;
use crate::model::id::IdRef;
use crate::model::message::Kind;
use crate::model::name::{BadName, NodeName, Sender, Target};
use crate::model::policy::Policy;
use crate::model::record::Record;
use crate::model::state::State;
use crate::model::time::Timestamp;
use crate::operator::{self, Draft, OperatorError, SendError, SendOptions, Sent, Watch};
use crate::server::{self, Server};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

/// How long one step may take; each takes well under two seconds on a healthy machine.
const STEP: Duration = Duration::from_secs(10);
/// How often a file is looked at that a node is about to write.
const LOOK: Duration = Duration::from_millis(50);
/// The disk space that the demo's streams may share.
const STORE: u64 = 2 << 30;
/// The timeout of the command that takes too long.
const TOO_SHORT: Duration = Duration::from_millis(500);

const SENDER: &str = "ops";
const NODES: [&str; 3] = ["ship1", "ship2", "central"];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave it running, with lines to try in another terminal.
    #[arg(long)]
    keep: bool,
}

/// The verb.
pub(super) async fn verb(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    up::check_own_broker(session, "demo")?;
    match run(args.keep, service::stop_on_signal()?).await {
        Ok(true) => Ok(ExitCode::Succeeded),
        Ok(false) => Ok(ExitCode::Failed),
        Err(error) => Err(CliError::new(ExitCode::Failed, chain(&error))),
    }
}

/// Why the demo could not go on, as opposed to a step that came out wrong.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A part of it does not run.
    #[error(transparent)]
    Up(#[from] UpError),
    /// Its temporary folder cannot be made.
    #[error("the folder `{}` cannot be used", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A name in the demo is none.
    #[error(transparent)]
    Name(#[from] BadName),
}

/// Why a step did not come out right.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Up(#[from] UpError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("{0}")]
    Value(String),
}

/// Runs the demo; true when every step came out right. With `keep` it stays until `stop`.
pub async fn run(keep: bool, stop: CancellationToken) -> Result<bool, DemoError> {
    let folder = TempFolder::make()?;
    let found = find_server().await?;
    let begin = Instant::now();
    let server =
        Server::start(server::Options::new(&found.path, folder.path().join("nats"))).await.map_err(UpError::from)?;
    show(&format!("✓ {} at {}", describe(&found), server.url()));
    let mut demo = Demo::start(&server, folder.path()).await?;
    let right = tokio::select! {
        right = demo.steps() => right,
        () = stop.cancelled() => false,
    };
    let seconds = begin.elapsed().as_secs_f64();
    if !stop.is_cancelled() {
        show(&if right {
            format!("✓ all of it came out right, in {seconds:.1} s")
        } else {
            format!("✗ not all of it came out right ({seconds:.1} s)")
        });
        if keep {
            demo.invite(&server.url());
            stop.cancelled().await;
        }
    }
    let stopped = demo.stop().await;
    server.stop().await.map_err(UpError::from)?;
    stopped?;
    Ok(right)
}

/// Hub and nodes, and an operator's connection.
struct Demo {
    broker: Broker,
    config: Config,
    folder: PathBuf,
    from: Sender,
    hub: Part,
    /// The agents that run now, each with its node.
    agents: Vec<(NodeName, Part)>,
}

impl Demo {
    async fn start(server: &Server, folder: &Path) -> Result<Demo, DemoError> {
        let mut config = Config::default();
        config.agent.interval = Duration::from_secs(1);
        config.agent.grace = Duration::from_secs(1);
        config.hub.store_bytes = up::half_of_free(folder)?.min(STORE);
        let config = up::local_config(&config, &server.url());
        let broker = connect(&config).await?;
        let hub = Part::hub(&config)?;
        let mut demo =
            Demo { broker, config, folder: folder.to_owned(), from: SENDER.parse()?, hub, agents: Vec::new() };
        for node in NODES {
            demo.start_agent(&node.parse()?);
        }
        Ok(demo)
    }

    fn start_agent(&mut self, node: &NodeName) {
        let part = Part::agent(&self.config, node, &self.state_dir(node.as_str()), &Policy::Open);
        self.agents.push((node.clone(), part));
    }

    async fn stop_agent(&mut self, node: &NodeName) -> Result<(), UpError> {
        match self.agents.iter().position(|(known, _)| known == node) {
            Some(at) => self.agents.swap_remove(at).1.stop().await,
            None => Ok(()),
        }
    }

    fn state_dir(&self, node: &str) -> PathBuf {
        self.folder.join(node)
    }

    async fn stop(self) -> Result<(), UpError> {
        let agents = self.agents.into_iter().map(|(_, part)| part);
        let agents = up::stop_all(agents.collect()).await;
        agents.and(self.hub.stop().await)
    }

    /// All steps, each shown as it ends. One that fails does not keep the others from being tried, unless no node is
    /// there at all.
    async fn steps(&mut self) -> bool {
        if !shown("a hub and three nodes", self.contact()).await {
            return false;
        }
        let mut right = true;
        for node in NODES {
            right &= shown("a command", self.answers(node)).await;
        }
        right &= shown("a command that fails", self.fails("ship1")).await;
        right &= shown("a command that takes too long", self.times_out("ship1")).await;
        right &= shown("a command for a node that is down", self.waits_for("ship2")).await;
        right &= shown("a log event from node to node", self.logs("ship1", "central")).await;
        right
    }

    async fn contact(&self) -> Result<String, Wrong> {
        let nodes = NODES.iter().map(|node| node.parse()).collect::<Result<Vec<NodeName>, _>>()?;
        in_contact(&self.broker, &nodes, STEP).await?;
        Ok(format!("{} are in contact", NODES.join(", ")))
    }

    async fn answers(&self, node: &str) -> Result<String, Wrong> {
        let script = format!("echo \"6 x 7 is $((6 * 7)) on {node}\"");
        let record = self.call(node, &script, MsgHeaders::default()).await?.settled().await?;
        expect(&record, node, State::Succeeded, Some(0))?;
        same("stdout", record.stdout.as_deref(), Some(format!("6 x 7 is 42 on {node}\n").as_str()))?;
        Ok(format!("{node} ran it and said: {}", record.stdout.unwrap_or_default().trim_end()))
    }

    async fn fails(&self, node: &str) -> Result<String, Wrong> {
        let record = self.call(node, "echo no fuel >&2; exit 3", MsgHeaders::default()).await?.settled().await?;
        expect(&record, node, State::Failed, Some(3))?;
        same("stderr", record.stderr.as_deref(), Some("no fuel\n"))?;
        Ok(format!("{node} says: failed, exit code 3, stderr: no fuel"))
    }

    async fn times_out(&self, node: &str) -> Result<String, Wrong> {
        let headers = MsgHeaders { timeout: Some(TOO_SHORT), ..MsgHeaders::default() };
        let record = self.call(node, "echo started; sleep 60", headers).await?.settled().await?;
        expect(&record, node, State::TimedOut, None)?;
        same("stdout", record.stdout.as_deref(), Some("started\n"))?;
        Ok(format!("{node} ended `sleep 60` after {} ms: timed_out", TOO_SHORT.as_millis()))
    }

    async fn waits_for(&mut self, name: &str) -> Result<String, Wrong> {
        let node: NodeName = name.parse()?;
        self.stop_agent(&node).await?;
        show(&format!("  {node} is stopped"));
        let mut call = self.call(name, "echo better late", MsgHeaders::default()).await?;
        call.watch.read().await?;
        let state = call.watch.view().rows().next().map(|row| row.state);
        same("the state while it is down", state, Some(State::Queued))?;
        show(&format!("  a command for it is stored as {}, and waits at the broker: queued", call.sent.id_ref()));
        let back = Instant::now();
        self.start_agent(&node);
        let record = call.settled().await?;
        expect(&record, name, State::Succeeded, Some(0))?;
        same("stdout", record.stdout.as_deref(), Some("better late\n"))?;
        Ok(format!("{name} ran it {} ms after it was started again: better late", back.elapsed().as_millis()))
    }

    async fn logs(&self, node: &str, centre: &str) -> Result<String, Wrong> {
        const TEXT: &str = "anchor is up";
        let message = serde_json::json!({ "to": centre, "kind": "event", "method": "log", "body": TEXT });
        let inmsg = self.state_dir(node).join("inmsg.txt");
        fs::write(&inmsg, message.to_string())?;
        show(&format!("  {message} > {node}/inmsg.txt"));
        let log = self.state_dir(centre).join("log").join(node).join("default.log");
        let mut looks = interval(LOOK);
        let line = loop {
            looks.tick().await;
            // Not there until the first event is.
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some((line, _)) = text.split_once('\n') {
                break line.to_owned();
            }
        };
        let [at, from, id, text] = line.splitn(4, ' ').collect::<Vec<_>>()[..] else {
            return Err(Wrong::Value(format!("{centre}'s log holds: {line}")));
        };
        let is_time = at.parse::<Timestamp>().is_ok();
        same("the log line", (is_time, from, text), (true, node, TEXT))?;
        let what = IdRef::Id(id.to_owned().try_into()?);
        let call = operator::find(&self.broker, &what, Some(&node.parse()?), None).await?;
        let record = settled(&mut Watch::of(&self.broker, &call).await?).await?;
        expect(&record, centre, State::Succeeded, None)?;
        Ok(format!("{centre}'s log holds: {line}"))
    }

    /// Sends a script to a node.
    async fn call(&self, node: &str, script: &str, headers: MsgHeaders) -> Result<Call, Wrong> {
        let target = Target::Node(node.parse()?);
        let mut draft = Draft::new(vec![target], Kind::Command, "shell".parse()?, script.to_owned());
        draft.headers = headers;
        let mut watch = Watch::open(&self.broker, self.from.as_str(), &draft.id).await?;
        let deliveries = operator::send(&self.broker, &self.from, &draft, &SendOptions::default()).await;
        let delivery = deliveries.into_iter().next().ok_or_else(|| Wrong::Value("nothing was sent".to_owned()))?;
        let sent = delivery.result?;
        watch.add_sent(&[sent]).await?;
        Ok(Call { watch, sent })
    }

    /// What to try while it stays.
    fn invite(&self, url: &str) {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("edgeward"));
        let program = program.display();
        show("\nIt stays until Ctrl-C. In another terminal:");
        show(&format!("  {program} --server {url} run ship1,ship2 'uname -a'"));
        show(&format!("  {program} --server {url} nodes"));
        let inmsg = self.state_dir("ship1").join("inmsg.txt");
        let message = r#"{"to":"ship2","method":"shell","body":"date"}"#;
        show(&format!("  echo '{message}' > {}   # its result: acks.jsonl beside it", inmsg.display()));
    }
}

/// A message on its way.
struct Call {
    watch: Watch,
    sent: Sent,
}

impl Call {
    async fn settled(mut self) -> Result<Record, Wrong> {
        settled(&mut self.watch).await
    }
}

/// Waits for the terminal record of the one message that is watched.
async fn settled(watch: &mut Watch) -> Result<Record, Wrong> {
    loop {
        let row = watch.view().rows().next().filter(operator::Row::is_settled);
        if let Some(row) = row {
            return row.record.cloned().ok_or_else(|| Wrong::Value(format!("it is {}", row.state)));
        }
        watch.changed().await?;
    }
}

/// Runs one step, shows what came of it, and tells whether it came out right.
async fn shown(what: &str, step: impl Future<Output = Result<String, Wrong>>) -> bool {
    let outcome = timeout(STEP, step).await;
    let outcome = outcome.unwrap_or_else(|_| Err(Wrong::Value(format!("not done within {} s", STEP.as_secs()))));
    match &outcome {
        Ok(seen) => show(&format!("✓ {what}: {seen}")),
        Err(wrong) => show(&format!("✗ {what}: {}", chain(wrong))),
    }
    outcome.is_ok()
}

/// Checks what every record has to say: which node, whose message, and what became of it.
fn expect(record: &Record, node: &str, state: State, exit_code: Option<i32>) -> Result<(), Wrong> {
    same("node and state", (record.node.as_str(), record.state), (node, state))?;
    same("exit code", record.exit_code, exit_code)?;
    same("attempt", record.attempt, 1)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, wanted: T) -> Result<(), Wrong> {
    if seen == wanted { Ok(()) } else { Err(Wrong::Value(format!("{what}: {seen:?} instead of {wanted:?}"))) }
}

/// A folder of the demo's own, removed at its end.
struct TempFolder(PathBuf);

impl TempFolder {
    fn make() -> Result<TempFolder, DemoError> {
        let path = std::env::temp_dir().join(format!("edgeward-demo-{}", uuid::Uuid::new_v4()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| DemoError::Folder { path: path.clone(), source })?;
        Ok(TempFolder(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the demo's folder stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{MessageId, MsgRef, StreamSeq};
    use crate::model::message::StreamKind;
    use crate::model::record::By;

    #[test]
    fn a_record_that_says_anything_else_is_wrong() {
        let at = MsgRef { stream: StreamKind::Commands, seq: StreamSeq(1), stored_at: Timestamp::from_nanos(0) };
        let stream = "FLEET_COMMANDS".to_owned();
        let mut record = Record::bare(MessageId::fresh(), at, stream, "ship1", State::Failed, By::Node);
        (record.exit_code, record.attempt) = (Some(3), 1);
        expect(&record, "ship1", State::Failed, Some(3)).unwrap();
        for (node, state, exit_code) in [
            ("ship2", State::Failed, Some(3)),
            ("ship1", State::Succeeded, Some(3)),
            ("ship1", State::Failed, Some(0)),
            ("ship1", State::Failed, None),
        ] {
            assert!(expect(&record, node, state, exit_code).is_err(), "{node} {state} {exit_code:?}");
        }
        record.attempt = 2;
        assert!(expect(&record, "ship1", State::Failed, Some(3)).is_err());
    }

    #[tokio::test]
    async fn a_step_that_is_wrong_is_not_taken_for_right() {
        assert!(shown("right", async { Ok("seen".to_owned()) }).await);
        assert!(!shown("wrong", async { same("it", 1, 2).map(|()| String::new()) }).await);
    }
}
