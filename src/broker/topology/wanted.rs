//! The streams as edgeward wants them, as data.
//!
//! Owns every stream setting and how the disk is shared out. Never speaks to the broker.

use crate::broker::api::nanos;
use crate::broker::error::BrokerError;
use crate::model::config::HubConfig;
use crate::model::message::StreamKind;
use crate::model::subject::{Names, RecordStream};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Sizes below this fill up with a handful of large messages.
pub(super) const LEAST_SHARE: u64 = 64 << 20;

/// nats-server stops at 1,000 consumers on a stream that does not say otherwise; each node needs one.
const MAX_CONSUMERS: u64 = 100_000;

/// How long a repeated `Nats-Msg-Id` is known again: long enough for a sender that lost its link.
const MESSAGE_DEDUP: Duration = Duration::from_secs(3600);

/// For records, which the broker keeps single by other means.
const RECORD_DEDUP: Duration = Duration::from_secs(120);

/// One stream as it should be, but for its size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// Its name.
    pub name: String,
    /// Which of the two message streams it is, if one.
    pub messages: Option<StreamKind>,
    /// Its share of the disk, in hundredths.
    pub percent: u64,
    /// Its settings, by the API's field names, without `max_bytes`.
    pub config: Map<String, Value>,
}

/// All six, in the order in which they are made.
pub(super) fn streams(names: &Names, hub: &HubConfig) -> Vec<Wanted> {
    let message = |kind: StreamKind, percent| {
        let subjects = json!(names.stream_subjects(kind));
        let own = json!({ "discard": "new", "duplicate_window": nanos(MESSAGE_DEDUP.min(hub.retention)) });
        wanted(names.stream(kind), Some(kind), percent, hub, subjects, own)
    };
    let records = |stream: RecordStream, percent, subjects: Value| {
        let republish =
            json!({ "src": format!("{}.>", names.prefix()), "dest": names.stored(&format!("{}.>", names.prefix())) });
        let own = json!({ "republish": republish, "duplicate_window": nanos(RECORD_DEDUP.min(hub.retention)) });
        wanted(names.record_stream(stream), None, percent, hub, subjects, own)
    };
    let p = names.prefix();
    let acks = json!([format!("{p}.ack.>"), format!("{p}.progress.>"), format!("{p}.late.>")]);
    vec![
        message(StreamKind::Commands, 20),
        message(StreamKind::Events, 15),
        records(RecordStream::Acks, 20, acks),
        records(RecordStream::Output, 15, json!([format!("{p}.output.>")])),
        records(RecordStream::Errors, 4, json!([format!("{p}.error.>")])),
        nodes(names, hub),
    ]
}

/// Node state. An ordinary bucket lets anybody who may write one key wipe them all with one rollup header.
fn nodes(names: &Names, hub: &HubConfig) -> Wanted {
    let bucket = format!("$KV.{}.>", names.bucket());
    let own = json!({
        "max_age": 0,
        "discard": "new",
        "max_msgs_per_subject": 1,
        "deny_delete": true,
        "duplicate_window": nanos(RECORD_DEDUP),
        "republish": { "src": bucket, "dest": names.stored(&format!("{}.nodes.>", names.prefix())) },
    });
    wanted(names.record_stream(RecordStream::Nodes), None, 1, hub, json!([bucket]), own)
}

fn wanted(
    name: String,
    messages: Option<StreamKind>,
    percent: u64,
    hub: &HubConfig,
    subjects: Value,
    own: Value,
) -> Wanted {
    let mut config = into_map(json!({
        "name": name,
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        "num_replicas": hub.replicas,
        "max_age": nanos(hub.retention),
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": MAX_CONSUMERS,
        "discard": "old",
        "allow_direct": true,
        "allow_rollup_hdrs": false,
        "allow_msg_ttl": false,
        "allow_msg_schedules": false,
    }));
    config.extend(into_map(own));
    Wanted { name, messages, percent, config }
}

pub(super) fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Shares `total` bytes out by these hundredths. Shares below the least one are raised to it, at the cost of the larger
/// ones; what cannot fit even so is refused with what to set.
pub(super) fn shares(total: u64, percents: &[u64], limit: &str) -> Result<Vec<u64>, BrokerError> {
    let needed = LEAST_SHARE * percents.len() as u64;
    if total < needed {
        return Err(BrokerError::Options(format!(
            "{limit} is {} MiB, and the streams need {} MiB at least: raise it",
            total >> 20,
            needed >> 20
        )));
    }
    let raised: Vec<u64> = percents.iter().map(|p| (total / 100 * p).max(LEAST_SHARE)).collect();
    let above: u64 = raised.iter().map(|share| share - LEAST_SHARE).sum();
    let spare = total - needed;
    let fit = |share: u64| {
        let part = u128::from(share - LEAST_SHARE) * u128::from(spare) / u128::from(above.max(1));
        LEAST_SHARE + u64::try_from(part).unwrap_or(0)
    };
    Ok(if above > spare { raised.into_iter().map(fit).collect() } else { raised })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERCENTS: [u64; 6] = [20, 15, 20, 15, 4, 1];

    #[test]
    fn the_streams_are_those_of_the_protocol() {
        let all = streams(&Names::default(), &HubConfig::default());
        let names: Vec<&str> = all.iter().map(|w| w.name.as_str()).collect();
        let six = ["FLEET_COMMANDS", "FLEET_EVENTS", "FLEET_ACKS", "FLEET_OUTPUT", "FLEET_ERRORS", "KV_FLEET_NODES"];
        assert_eq!(names, six);
        assert_eq!(all[0].config["subjects"], json!(["fleet.msg.*.command.*.>", "fleet.msg.*.control.*.>"]));
        assert_eq!(all[0].config["discard"], "new");
        assert_eq!(all[2].config["republish"], json!({ "src": "fleet.>", "dest": "fleet.stored.>" }));
        let kv = json!({ "src": "$KV.FLEET_NODES.>", "dest": "fleet.stored.nodes.>" });
        assert_eq!(all[5].config["republish"], kv);
        for wanted in &all {
            assert_eq!(wanted.config["allow_rollup_hdrs"], false, "{}", wanted.name);
            assert!(!wanted.config.contains_key("max_bytes"));
        }
    }

    #[test]
    fn shares_are_hundredths_with_a_floor() {
        let large = shares(10 << 30, &PERCENTS, "x").unwrap();
        assert_eq!(large[0], (10u64 << 30) / 100 * 20);
        let small = shares(400 << 20, &PERCENTS, "x").unwrap();
        assert!(small.iter().all(|share| *share >= LEAST_SHARE), "{small:?}");
        assert!(small.iter().sum::<u64>() <= 400 << 20, "{small:?}");
        let refusal = shares(300 << 20, &PERCENTS, "`hub.store_bytes`").unwrap_err().to_string();
        assert_eq!(refusal, "`hub.store_bytes` is 300 MiB, and the streams need 384 MiB at least: raise it");
    }

    #[test]
    fn the_dedup_window_never_exceeds_the_retention() {
        let hub = HubConfig { retention: Duration::from_secs(60), ..HubConfig::default() };
        let all = streams(&Names::default(), &hub);
        assert_eq!(all[0].config["duplicate_window"], 60_000_000_000u64);
    }
}
