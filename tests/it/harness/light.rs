//! Light nodes: many in one process, for what depends on their number and not on what they do.
//!
//! Each has a connection and a session of its own, as an agent has, asks the hub in by a hello, takes what comes and answers
//! it at once with a record. It keeps nothing but its position, in memory, runs nothing, and beats only when it has taken
//! something: what is measured with it is the broker, the hub and the operator's side.

use super::broker::open_to;
use super::wait::{SOON, wait_until};
use edgeward::broker::{
    AnchorError, Anchors, Broker, ConnectOptions, Earlier, Outgoing, Resume, Session, SessionError,
};
use edgeward::model::header::id_of;
use edgeward::model::id::{JournalId, MsgRef, StreamSeq};
use edgeward::model::jitter::Backoff;
use edgeward::model::message::{StoredMessage, StreamKind};
use edgeward::model::name::NodeName;
use edgeward::model::node::Spec;
use edgeward::model::record::{By, Record};
use edgeward::model::state::State;
use edgeward::model::subject::{Names, NodeKey, RecordClass, RecordStream};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a publish or a request of a light node may take: all of them may want something at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all light nodes together have done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sessions that began.
    pub sessions: AtomicU64,
    /// Messages answered; their records are stored.
    pub answered: AtomicU64,
    /// What went wrong besides a link that was lost, in words.
    pub failures: Mutex<Vec<String>>,
}

/// Nodes `n0`, `n1`, …; they end when this is dropped.
#[derive(Debug)]
pub struct LightNodes {
    /// Their names.
    pub names: Vec<NodeName>,
    /// What they have done.
    pub counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

impl LightNodes {
    /// So many at this broker, each in a session.
    pub async fn start(server: &str, count: usize) -> LightNodes {
        let names: Vec<NodeName> = (0..count).map(|n| format!("n{n}").parse().expect("a name")).collect();
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        for node in names.clone() {
            let (server, counts) = (server.to_owned(), counts.clone());
            tasks.spawn(async move { live(&server, &node, &counts).await });
        }
        let nodes = LightNodes { names, counts, _tasks: tasks };
        nodes.wait("a session for each", |counts| &counts.sessions, count).await;
        nodes
    }

    /// Waits until all together have done so many of these.
    pub async fn wait(&self, what: &str, of: fn(&Counts) -> &AtomicU64, wanted: usize) {
        // A thousand nodes take a few seconds on a quiet machine.
        let within = SOON.max(Duration::from_millis(120) * u32::try_from(wanted).expect("a small number"));
        wait_until(within, what, async || {
            let done = of(&self.counts).load(Ordering::Relaxed);
            let enough = usize::try_from(done).is_ok_and(|done| done >= wanted);
            if enough { Ok(()) } else { Err(format!("{done} of {wanted}; {:?}", self.counts.failures)) }
        })
        .await;
    }

    /// All their names as a list of targets.
    pub fn targets(&self) -> String {
        self.names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(",")
    }
}

/// What a light node knows of what it has taken: nothing before the last.
struct LastAlone;

impl Anchors for LastAlone {
    fn earlier(&self, _steps: u64) -> BoxFuture<'_, Result<Option<Earlier>, AnchorError>> {
        std::future::ready(Ok(None)).boxed()
    }
}

async fn live(server: &str, node: &NodeName, counts: &Counts) {
    let options = ConnectOptions { name: node.to_string(), ..open_to(vec![server.to_owned()]) };
    let broker = Broker::connect(&options).await.expect("options that are good");
    broker.wait_up().await.expect("a link");
    let journal = JournalId::fresh();
    let start = ask_in(&broker, node, journal).await;
    let (mut last, mut created): (Option<(MsgRef, u64)>, Option<String>) = (None, None);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        broker.wait_up().await.expect("a link");
        let resume =
            Resume { start, last: last.map(|(at, _)| at), anchor: last, created: created.clone(), patience: PATIENCE };
        let ended = match Session::open(&broker, node, StreamKind::Commands, &resume, &LastAlone).await {
            Ok((session, begun)) => {
                created = Some(begun.created);
                counts.sessions.fetch_add(1, Ordering::Relaxed);
                backoff.reset();
                serve(&broker, node, journal, session, &mut last, counts).await
            }
            Err(error) => error,
        };
        // A consumer that is not there yet, and a link that was lost, are part of the way.
        if !matches!(ended, SessionError::LinkLost | SessionError::ConsumerMissing) {
            counts.failures.lock().expect("no panic").push(format!("{node}: {ended}"));
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Says hello until the hub has decided where this node's messages begin.
async fn ask_in(broker: &Broker, node: &NodeName, journal: JournalId) -> StreamSeq {
    let names = broker.names();
    let hello = json!({ "v": 1, "node": node, "journal": journal });
    let hello = Outgoing::new(names.node_key(NodeKey::Hello, node.as_str()), hello.to_string());
    let key = names.node_key(NodeKey::Spec, node.as_str());
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    let mut said = false;
    loop {
        said = said || broker.publish(&hello, PATIENCE).await.is_ok();
        let spec = broker.get_last(&names.record_stream(RecordStream::Nodes), &key).await.ok().flatten();
        let spec = spec.and_then(|spec| serde_json::from_slice::<Spec>(&spec.body).ok());
        if let Some(start) = spec.filter(|spec| spec.journal == Some(journal)).and_then(|spec| spec.start.commands) {
            return start;
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Takes and answers until the session ends.
async fn serve(
    broker: &Broker,
    node: &NodeName,
    journal: JournalId,
    mut session: Session,
    last: &mut Option<(MsgRef, u64)>,
    counts: &Counts,
) -> SessionError {
    beat(broker, node, journal, last.map(|(at, _)| at.seq)).await;
    loop {
        let batch = match session.next().await {
            Ok(batch) => batch,
            Err(error) => return error,
        };
        for message in &batch.messages {
            answer(broker, node, message, counts).await;
            *last = Some((message.at, message.body.len() as u64));
        }
        session.ack(&batch).await;
        beat(broker, node, journal, last.map(|(at, _)| at.seq)).await;
    }
}

async fn answer(broker: &Broker, node: &NodeName, message: &StoredMessage, counts: &Counts) {
    let names = broker.names();
    let Ok(subject) = names.parse_message(&message.subject) else { return };
    let id = id_of(&message.headers, message.at);
    let stream = names.stream(message.at.stream);
    let record = Record::bare(id.clone(), message.at, stream, node.as_str(), State::Succeeded, By::Node);
    let subject = names.record(RecordClass::Ack, &subject.record(node, id));
    let outgoing = Outgoing { subject, headers: record.headers(), body: record.encode().into() }.expecting_last(0);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match broker.publish(&outgoing, PATIENCE).await {
            // Another session has answered it already.
            Ok(_) | Err(edgeward::broker::PublishError::WrongLast) => break,
            Err(_) => tokio::time::sleep(backoff.next_wait()).await,
        }
    }
    counts.answered.fetch_add(1, Ordering::Relaxed);
}

async fn beat(broker: &Broker, node: &NodeName, journal: JournalId, position: Option<StreamSeq>) {
    let status =
        json!({ "v": 1, "node": node, "journal": journal, "interval_s": 3600, "position": { "commands": position } });
    let subject = broker.names().node_key(NodeKey::Status, node.as_str());
    // The next one tells more.
    let _ = broker.publish(&Outgoing::new(subject, status.to_string()), PATIENCE).await;
}
