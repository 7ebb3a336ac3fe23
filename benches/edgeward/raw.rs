//! What edgeward is compared with: the same stream operations by async-nats alone, on streams of the same kind.

use async_nats::jetstream::{self, consumer, stream};
use futures::StreamExt;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// What a raw worker does between taking a message and publishing its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Nothing,
    /// `sh -c 'echo hi'`, spawned and waited for.
    Shell,
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
    pub async fn start(url: &str, name: &str, work: Work) -> Raw {
        let client = async_nats::connect(url).await.expect("a connection");
        let jetstream = jetstream::new(client.clone());
        let messages = make_streams(&jetstream, name).await;
        let consumer = consumer(&messages, name).await;
        let answers = client.subscribe(format!("{name}.stored.>")).await.expect("a subscription");
        let worker_client = async_nats::connect(url).await.expect("a connection");
        let publisher = jetstream::new(worker_client);
        let name = name.to_owned();
        let worker = tokio::spawn(async move {
            let mut messages = consumer.messages().await.expect("messages");
            while let Some(Ok(message)) = messages.next().await {
                if work == Work::Shell {
                    spawn_shell().await;
                }
                let answer = publisher.publish(format!("{name}.ack.x"), vec![b'x'; 600].into()).await.expect("sent");
                answer.await.expect("stored");
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
pub async fn backlog(url: &str, name: &str, count: usize) -> Duration {
    const WINDOW: usize = 256;
    let client = async_nats::connect(url).await.expect("a connection");
    let jetstream = jetstream::new(client.clone());
    let messages = make_streams(&jetstream, name).await;
    publish_many(&client, &format!("{name}.msg.x"), count).await;
    let consumer = consumer(&messages, name).await;
    let begin = Instant::now();
    let pulled = consumer.messages().await.expect("messages").take(count);
    pulled
        .map(|message| {
            let (jetstream, name) = (jetstream.clone(), name.to_owned());
            async move {
                let message = message.expect("a message");
                let answer = jetstream.publish(format!("{name}.ack.x"), vec![b'x'; 600].into()).await.expect("sent");
                answer.await.expect("stored");
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

async fn make_streams(jetstream: &jetstream::Context, name: &str) -> stream::Stream {
    let config = |part: &str| stream::Config {
        name: format!("{name}_{part}"),
        subjects: vec![format!("{name}.{part}.>")],
        storage: stream::StorageType::File,
        allow_direct: true,
        ..Default::default()
    };
    let republish = stream::Republish {
        source: format!("{name}.ack.>"),
        destination: format!("{name}.stored.>"),
        headers_only: false,
    };
    let answers = stream::Config { republish: Some(republish), ..config("ack") };
    jetstream.create_stream(answers).await.expect("a stream");
    jetstream.create_stream(config("msg")).await.expect("a stream")
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
