//! What the tests of handlers share: a node in a temporary folder, messages, short ways to read outcomes.

use super::{Context, NodeFacts, ProcessLog, Work};
use crate::exec::Started;
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
use tokio_util::sync::CancellationToken;

/// A node with folders of its own, which go when it is dropped.
pub(super) struct Node {
    pub cx: Context,
    pub folder: TempDir,
    processes: Arc<Processes>,
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
        let run_dir = folder.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        let processes = Arc::new(Processes::default());
        let cx = Context {
            node: "n1".parse().unwrap(),
            run_dir,
            log_dir: folder.path().join("state/log"),
            facts: Arc::new(Facts),
            stop: CancellationToken::new(),
            processes: Arc::clone(&processes) as Arc<dyn ProcessLog>,
            run_marker: MessageId::fresh().to_string(),
        };
        Node { cx, folder, processes }
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
