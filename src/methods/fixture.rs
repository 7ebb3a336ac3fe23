//! What the tests of handlers share: a node in a temporary folder, messages, short ways to read outcomes.

use super::{Context, NodeFacts, ProcessLog, Work};
use crate::exec::Started;
use crate::exec::runner::{Place, Role, RunName, Runner, serve};
use crate::model::admit::Admitted;
use crate::model::error_event::Code;
use crate::model::header::MsgHeaders;
use crate::model::id::{MessageId, MsgRef, StreamSeq};
use crate::model::message::StreamKind;
use crate::model::record::{Outcome, Output};
use crate::model::settings::{Defaults, Settings};
use crate::model::subject::Names;
use crate::model::time::Timestamp;
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The name of a try that no other has.
pub(super) fn fresh_run() -> RunName {
    RunName::try_from(MessageId::fresh().to_string()).unwrap()
}

/// A node with folders of its own, which go when it is dropped.
pub(super) struct Node {
    pub cx: Context,
    pub folder: TempDir,
    processes: Arc<Processes>,
    _end: DropGuard,
}

#[derive(Default)]
struct Processes(Mutex<Vec<Started>>);

impl ProcessLog for Processes {
    fn started(&self, process: Started) {
        self.0.lock().unwrap().push(process);
    }
}

struct Facts;

impl NodeFacts for Facts {
    fn broker_version(&self) -> Option<String> {
        Some("2.15.1".to_owned())
    }
    fn started_at(&self) -> Timestamp {
        Timestamp::from_nanos(1)
    }
    fn broker_now(&self) -> Timestamp {
        Timestamp::from_nanos(2)
    }
}

impl Node {
    pub fn new() -> Node {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::make(&folder.path().join("run")).unwrap();
        let end = CancellationToken::new();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(serve(place.clone(), Role::Part, end.clone()));
        }
        let processes = Arc::new(Processes::default());
        let cx = Context {
            node: "n1".parse().unwrap(),
            log_dir: folder.path().join("state/log"),
            facts: Arc::new(Facts),
            stop: CancellationToken::new(),
            processes: Arc::clone(&processes) as Arc<dyn ProcessLog>,
            // The one that serves is found; another could not be started.
            runner: Runner::new(place, "/no/such/program".into()),
            run: fresh_run(),
            output_bytes: 1 << 20,
            kill_left: false,
        };
        Node { cx, folder, processes, _end: end.drop_guard() }
    }

    /// The same node for another try.
    pub fn again(self) -> Node {
        let stop = CancellationToken::new();
        Node { cx: Context { run: fresh_run(), stop, ..self.cx }, ..self }
    }

    /// The processes told so far.
    pub fn started(&self) -> Vec<Started> {
        self.processes.0.lock().unwrap().clone()
    }
}

/// The first try of a message with id `x1`, stored as 7, from `ops` to `n1`. `method` may have a lane: `log.audit`.
pub(super) fn work(method: &str, body: impl Into<Vec<u8>>) -> Work {
    let kind = if method.starts_with("log") { "event" } else { "command" };
    let subject = Names::default().parse_message(&format!("fleet.msg.n1.{kind}.ops.{method}")).unwrap();
    let stream = if kind == "event" { StreamKind::Events } else { StreamKind::Commands };
    let at = MsgRef { stream, seq: StreamSeq(7), stored_at: Timestamp::from_nanos(1_700_000_000_000_000_001) };
    let headers = MsgHeaders::default();
    let settings = Settings::resolve(&headers, subject.kind, &subject.method, at.stored_at, &Defaults::default());
    let message = Admitted { at, id: MessageId::given("x1").unwrap(), subject, headers, settings };
    Work { message, body: Bytes::from(body.into()), attempt: 1 }
}

/// The code and the line of an outcome that is no success.
pub(super) fn error(outcome: &Outcome) -> (Code, &str) {
    let error = outcome.error.as_ref().unwrap();
    (error.code, &error.message)
}

/// Output that is text and all there.
pub(super) fn text(output: &Output) -> String {
    assert_eq!(output.total, (output.head.len() + output.tail.len()) as u64, "part is left out");
    String::from_utf8([&output.head[..], &output.tail].concat()).unwrap()
}

/// Waits for a state, at most 20 s.
pub(super) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
