//! Upkeep of the journal: what nobody waits for.
//!
//! Thins it once an hour, publishes records again where the broker may have lost them, reads a large one through after
//! a start, and says when it could not be written for a while, or when its file has been taken away. All of it in small
//! steps between the commits of others. Never decides what is kept; that is the journal's.

use super::node::Node;
use crate::journal::{Class, Condition, JournalError, Keep, Key};
use crate::model::error_event::{Code, Severity};
use crate::model::jitter;
use crate::model::message::StreamKind;
use crate::model::time::format_duration;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often finished rows are looked through.
const THIN_EVERY: Duration = Duration::from_secs(3600);

/// After a start, when other things matter more.
const THIN_FIRST: Duration = Duration::from_secs(60);

/// How often a journal that cannot be written is tried.
const PROBE: Duration = Duration::from_secs(1);

/// How long all writes must have succeeded before it counts as healed, so that a disk on the brink is told of once.
const STEADY: Duration = Duration::from_secs(3);

/// How often it is looked whether the journal's file is where it was.
const PLACE_LOOK: Duration = Duration::from_secs(5);

/// Entries in the outbox above which publishing records again waits.
const OUTBOX_FULL: u64 = 2048;

/// How often that is looked at.
const OUTBOX_LOOK: Duration = Duration::from_millis(200);

/// Keeps the journal until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let all =
        async { tokio::join!(tell_trouble(&node), tell_gone(&node), thin(&node), republish(&node), check(&node)) };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        _ = all => {}
    }
}

/// Says, once, that this journal was made in place of a damaged one.
pub(crate) async fn tell_replaced(node: &Node) -> Result<(), JournalError> {
    if let Some(text) = node.journal.meta::<String>(Key::Replaced).await? {
        let event = node.error_report(&node.event(Severity::Critical, Code::Journal, &text));
        node.journal.report_once(Key::ReplacedTold, text, vec![event]).await?;
    }
    Ok(())
}

/// `status` tells of a journal that cannot be written while that lasts; the error event can only be kept afterwards.
async fn tell_trouble(node: &Node) {
    let mut health = node.journal.health();
    loop {
        let failing = health.wait_for(|condition| matches!(condition, Condition::Failing { .. })).await;
        let Ok(Condition::Failing { since, reason }) = failing.map(|condition| condition.clone()) else { return };
        node.wakes.beat.notify_one();
        healed(node).await;
        let lasted = format_duration(Duration::from_secs(since.elapsed().as_secs().max(1)));
        let text = format!("the journal could not be written for {lasted} ({reason}); nothing was taken meanwhile");
        if let Err(error) = node.tell(node.event(Severity::Error, Code::Journal, &text)).await {
            tracing::debug!(%error, "not healed after all");
        }
        node.wakes.beat.notify_one();
    }
}

/// A file without a name serves as before as long as the agent lives, and can still report what is in it.
async fn tell_gone(node: &Node) {
    while node.journal.is_in_place() {
        tokio::time::sleep(PLACE_LOOK).await;
    }
    let text = "the journal's file was removed or replaced under the agent: what it keeps goes when the agent ends. Let it \
                report what it has, then restart it";
    tracing::error!(folder = %node.journal.folder().display(), "{text}");
    if let Err(error) = node.tell(node.event(Severity::Critical, Code::Journal, text)).await {
        tracing::warn!(%error, "that could not be kept as an error event");
    }
}

/// Writes, and waits until that and everything else has succeeded for a while.
async fn healed(node: &Node) {
    let mut failures = node.journal.failures();
    let mut since = Instant::now();
    while since.elapsed() < STEADY {
        tokio::time::sleep(PROBE).await;
        let kept = node.journal.report(Vec::new()).await.is_ok();
        let now = node.journal.failures();
        if !kept || now != failures {
            (failures, since) = (now, Instant::now());
        }
    }
}

/// Only by the broker's clock: a node's own may be years ahead, and then everything would go.
async fn thin(node: &Node) {
    let mut wait = THIN_FIRST;
    loop {
        tokio::time::sleep(wait.mul_f64(0.5 + jitter::fraction())).await;
        if !node.clock.is_known() {
            continue;
        }
        wait = THIN_EVERY;
        match node.journal.thin(node.clock.now(), Keep::with_retention(node.retention())).await {
            Ok(thinned) => tracing::debug!(?thinned, "the journal"),
            Err(error) if error.may_heal() => tracing::debug!(%error, "the journal is not thinned"),
            Err(error) => tracing::error!(%error, "the journal is not thinned"),
        }
    }
}

async fn republish(node: &Arc<Node>) {
    loop {
        for stream in StreamKind::ALL {
            if let Err(error) = republish_stream(node, stream).await {
                tracing::warn!(?stream, %error, "records are not published again yet");
                tokio::time::sleep(PROBE * 5).await;
                node.wakes.republish.notify_one();
            }
        }
        node.wakes.republish.notified().await;
    }
}

async fn republish_stream(node: &Arc<Node>, stream: StreamKind) -> Result<(), JournalError> {
    loop {
        while node.journal.outbox_len().await? > OUTBOX_FULL {
            tokio::time::sleep(OUTBOX_LOOK).await;
        }
        let reporter = Arc::clone(node);
        let more = node.journal.republish(stream, move |finished| reporter.again(finished)).await?;
        if !more {
            return Ok(());
        }
        node.wakes.ring(Class::Ack);
    }
}

async fn check(node: &Node) {
    match node.journal.check().await {
        // The agent ends by the journal's condition.
        Ok(()) | Err(JournalError::Damaged(_)) => {}
        Err(error) => tracing::warn!(%error, "the journal could not be read through"),
    }
}
