//! What edgeward is compared with: the same stream operations by async-nats alone.
//!
//! The same means: the streams are set up as edgeward's own are (republish on, direct gets on); each answer stands on a
//! subject of its own, stored only where that is empty, and has the headers and the body of a real record. What is left out
//! is what edgeward adds to that: the journal, the judging, the hub that reads along.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer, stream};
use bytes::Bytes;
use futures::StreamExt;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// What a raw worker does between taking a message and publishing its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Nothing,
    /// `sh -c 'echo hi'`, spawned and waited for.
    Shell,
    /// The same between two notes on the disk, each durable before the next step, as a journal's of start and end are.
    KeptShell,
}

/// A file that is only ever added to.
struct Notes(Arc<File>);

impl Notes {
    fn new() -> Notes {
        Notes(Arc::new(tempfile::tempfile().expect("a file")))
    }

    /// Adds a page and has it written through, beside the thread that serves the connection.
    async fn add(&self) {
        let file = Arc::clone(&self.0);
        let add = move || (&*file).write_all(&[b'x'; 4096]).and_then(|()| file.sync_data());
        tokio::task::spawn_blocking(add).await.expect("a thread").expect("written");
    }
}

async fn work_on(work: Work, notes: &Notes) {
    match work {
        Work::Nothing => {}
        Work::Shell => spawn_shell().await,
        Work::KeptShell => {
            notes.add().await;
            spawn_shell().await;
            notes.add().await;
        }
    }
}

/// What a raw worker stores as its answers.
#[derive(Debug, Clone)]
pub struct Answers {
    headers: HeaderMap,
    body: Bytes,
    /// What stands between the stream's part of a subject and the last token.
    middle: String,
    /// As the stream with the real records is set up.
    records: stream::Config,
    /// As the stream with the real messages is set up.
    messages: stream::Config,
}

impl Answers {
    /// Answers like the last record of this node and method; there is one.
    pub async fn like(url: &str, node: &str, method: &str) -> Arc<Answers> {
        let client = async_nats::connect(url).await.expect("a connection");
        let jetstream = jetstream::new(client);
        let records = jetstream.get_stream("FLEET_ACKS").await.expect("the stream");
        let wanted = format!("fleet.ack.{node}.bench.{method}.*");
        let record = records.get_last_raw_message_by_subject(&wanted).await.expect("a record");
        let mut headers = record.headers;
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let middle = format!("{node}.bench.{method}");
        let messages = jetstream.get_stream("FLEET_EVENTS").await.expect("the stream");
        let (records, messages) = (records.cached_info().config.clone(), messages.cached_info().config.clone());
        Arc::new(Answers { headers, body: record.payload, middle, records, messages })
    }

    /// Stores the answer to one message.
    async fn store(&self, jetstream: &jetstream::Context, name: &str, seq: u64) {
        let subject = format!("{name}.ack.{}.e{seq}", self.middle);
        let answer = jetstream.publish_with_headers(subject, self.headers.clone(), self.body.clone());
        answer.await.expect("sent").await.expect("stored");
    }

    async fn make_streams(&self, jetstream: &jetstream::Context, name: &str) -> stream::Stream {
        // Reserved space has nothing to do with speed, and all rows share one disk.
        let config = |part: &str, like: &stream::Config| stream::Config {
            name: format!("{name}_{part}"),
            subjects: vec![format!("{name}.{part}.>")],
            max_bytes: -1,
            ..like.clone()
        };
        let republish = stream::Republish {
            source: format!("{name}.ack.>"),
            destination: format!("{name}.stored.>"),
            headers_only: false,
        };
        let answers = stream::Config { republish: Some(republish), ..config("ack", &self.records) };
        jetstream.create_stream(answers).await.expect("a stream");
        jetstream.create_stream(config("msg", &self.messages)).await.expect("a stream")
    }
}

/// A raw operator and worker on streams of their own.
pub struct Raw {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    answers: async_nats::Subscriber,
    worker: JoinHandle<()>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Raw {
    /// Streams, consumer and worker; `name` keeps several apart.
    pub async fn start(url: &str, name: &str, work: Work, answers: &Arc<Answers>) -> Raw {
        let client = async_nats::connect(url).await.expect("a connection");
        let jetstream = jetstream::new(client.clone());
        let messages = answers.make_streams(&jetstream, name).await;
        let consumer = consumer(&messages, name).await;
        let like = Arc::clone(answers);
        let answers = client.subscribe(format!("{name}.stored.>")).await.expect("a subscription");
        let worker_client = async_nats::connect(url).await.expect("a connection");
        let publisher = jetstream::new(worker_client);
        let name = name.to_owned();
        let worker = tokio::spawn(async move {
            let notes = Notes::new();
            let mut messages = consumer.messages().await.expect("messages");
            while let Some(Ok(message)) = messages.next().await {
                work_on(work, &notes).await;
                like.store(&publisher, &name, sequence(&message)).await;
                message.ack().await.expect("acked");
            }
        });
        client.flush().await.expect("flushed");
        Raw { client, jetstream, answers, worker }
    }

    /// One message to the worker and its answer back, as the operator sees it.
    pub async fn round_trip(&mut self, name: &str) -> Duration {
        let begin = Instant::now();
        let sent = self.jetstream.publish(format!("{name}.msg.x"), "x".into()).await.expect("sent");
        let (stored, answer) = tokio::join!(sent.into_future(), self.answers.next());
        stored.expect("stored");
        answer.expect("an answer");
        begin.elapsed()
    }

    /// The address it is connected to.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }
}

/// `count` messages that wait are pulled, an answer is stored for each, and each is acked: how long that takes.
pub async fn backlog(url: &str, name: &str, count: usize, answers: &Answers) -> Duration {
    const WINDOW: usize = 256;
    let client = async_nats::connect(url).await.expect("a connection");
    let jetstream = jetstream::new(client.clone());
    let messages = answers.make_streams(&jetstream, name).await;
    publish_many(&client, &format!("{name}.msg.x"), count).await;
    let consumer = consumer(&messages, name).await;
    let begin = Instant::now();
    let pulled = consumer.messages().await.expect("messages").take(count);
    pulled
        .map(|message| {
            let jetstream = jetstream.clone();
            async move {
                let message = message.expect("a message");
                answers.store(&jetstream, name, sequence(&message)).await;
                message.ack().await.expect("acked");
            }
        })
        .buffered(WINDOW)
        .for_each(|()| std::future::ready(()))
        .await;
    begin.elapsed()
}

/// Stores many messages on one subject, a window of them under way at once.
pub async fn publish_many(client: &async_nats::Client, subject: &str, count: usize) {
    let jetstream = jetstream::new(client.clone());
    futures::stream::iter(0..count)
        .map(|_| {
            let (jetstream, subject) = (jetstream.clone(), subject.to_owned());
            async move { jetstream.publish(subject, "x".into()).await.expect("sent").await.expect("stored") }
        })
        .buffered(512)
        .for_each(|_| std::future::ready(()))
        .await;
}

fn sequence(message: &jetstream::Message) -> u64 {
    message.info().expect("an ack subject").stream_sequence
}

async fn consumer(messages: &stream::Stream, name: &str) -> consumer::Consumer<consumer::pull::Config> {
    let config = consumer::pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        max_ack_pending: 10_000,
        ..Default::default()
    };
    messages.create_consumer(config).await.expect("a consumer")
}

/// The bare spawn and wait of the shell line.
pub async fn spawn_shell() {
    let output = tokio::process::Command::new("/bin/sh").args(["-c", "echo hi"]).output().await.expect("a shell");
    assert_eq!(output.stdout, b"hi\n");
}
