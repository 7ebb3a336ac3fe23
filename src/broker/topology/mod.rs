//! The streams on the broker: looked at, made, and changed where that loses nothing.
//!
//! Owns the plan and its carrying out, safe to repeat and to run twice at once, and the one-line refusals that say what to
//! set. A size, once set, stays. Never removes a stream.

mod diff;
mod first;
mod state;
mod wanted;

use super::connect::Broker;
use super::error::BrokerError;
use crate::model::config::HubConfig;
pub use diff::{Difference, Handling};
use serde::Deserialize;
use serde_json::{Map, Value, json};
pub use state::StreamState;
use std::fmt;
use wanted::Wanted;

/// JetStream's codes that this module understands.
mod code {
    pub const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub const NOT_ENABLED: u64 = 10076;
    pub const STREAM_NOT_FOUND: u64 = 10059;
    pub const NAME_IN_USE: u64 = 10058;
    pub const SUBJECTS_OVERLAP: u64 = 10065;
    pub const NO_STORAGE: [u64; 4] = [10047, 10023, 10028, 10002];
    pub const NO_CLUSTER: [u64; 2] = [10074, 10005];
}

/// How a stream stands against the wanted one.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// It is not there; it will be made with this many bytes.
    Missing {
        /// Its `max_bytes`.
        bytes: u64,
    },
    /// It is as wanted.
    Same,
    /// These settings are not.
    Differs(Vec<Difference>),
}

/// The plan for one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamPlan {
    /// How it stands.
    pub standing: Standing,
    wanted: Wanted,
    found: Map<String, Value>,
}

impl StreamPlan {
    /// The stream's name.
    pub fn name(&self) -> &str {
        &self.wanted.name
    }

    fn differences(&self) -> &[Difference] {
        match &self.standing {
            Standing::Differs(all) => all,
            Standing::Missing { .. } | Standing::Same => &[],
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self.standing, Standing::Missing { .. })
    }

    /// True where it has to be made or changed.
    pub fn needs_work(&self) -> bool {
        self.is_missing() || self.differences().iter().any(|d| d.handling == Handling::Change)
    }

    /// The settings as found, with what may be changed.
    fn changed(&self) -> Map<String, Value> {
        let mut config = self.found.clone();
        for difference in self.differences().iter().filter(|d| d.handling == Handling::Change) {
            config.insert(difference.field.clone(), difference.wanted.clone());
        }
        config
    }
}

/// What there is to do for the streams. Its `Display` is the diff that `edgeward init --diff` shows, a line per stream and
/// per difference.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One entry per stream.
    pub streams: Vec<StreamPlan>,
}

impl Plan {
    /// True where a stream has to be made or changed.
    pub fn needs_work(&self) -> bool {
        self.streams.iter().any(StreamPlan::needs_work)
    }

    /// The names of the streams that are not there.
    pub fn missing(&self) -> Vec<String> {
        self.streams.iter().filter(|stream| stream.is_missing()).map(|stream| stream.name().to_owned()).collect()
    }

    fn refusal(&self) -> Option<BrokerError> {
        let refused = |stream: &StreamPlan| {
            let bad = stream.differences().iter().find(|d| matches!(d.handling, Handling::Refuse(_)))?;
            Some(BrokerError::Options(format!("stream {}: {bad}", stream.name())))
        };
        self.streams.iter().find_map(refused)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for stream in &self.streams {
            let name = stream.name();
            match &stream.standing {
                Standing::Missing { bytes } => writeln!(f, "{name}: missing, to be made with {} MiB", bytes >> 20)?,
                Standing::Same => writeln!(f, "{name}: as wanted")?,
                Standing::Differs(all) => all.iter().try_for_each(|d| writeln!(f, "{name}: {d}"))?,
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct StreamInfo {
    config: Map<String, Value>,
}

#[derive(Deserialize)]
struct Limits {
    #[serde(default)]
    max_storage: i64,
}

#[derive(Deserialize)]
struct Tier {
    limits: Limits,
}

#[derive(Deserialize)]
struct AccountInfo {
    limits: Limits,
    #[serde(default)]
    tiers: std::collections::BTreeMap<String, Tier>,
}

/// Looks at the streams. Changes nothing. Refuses a broker that is too old or has no JetStream, and a disk that is too
/// small for what is missing.
pub async fn plan(broker: &Broker, hub: &HubConfig) -> Result<Plan, BrokerError> {
    broker.check_version()?;
    let account: AccountInfo = broker.api("INFO", &Value::Null).await.map_err(|e| explain_api(broker, e))?;
    let wanted = wanted::streams(broker.names(), hub);
    let mut found = Vec::with_capacity(wanted.len());
    for stream in &wanted {
        found.push(look(broker, &stream.name).await?);
    }
    let percents: Vec<u64> = wanted.iter().map(|w| w.percent).collect();
    // Sizes that are set stay, so the disk is looked at only where a stream has to be made.
    let sizes = if found.iter().any(Option::is_none) {
        let (total, limit) = disk(&account, hub);
        wanted::shares(total, &percents, limit)?
    } else {
        vec![0; wanted.len()]
    };
    let streams = wanted.into_iter().zip(found).zip(sizes).map(|((wanted, found), bytes)| judge(wanted, found, bytes));
    Ok(Plan { streams: streams.collect() })
}

fn judge(wanted: Wanted, found: Option<Map<String, Value>>, bytes: u64) -> StreamPlan {
    let Some(found) = found else {
        return StreamPlan { standing: Standing::Missing { bytes }, wanted, found: Map::new() };
    };
    let differences = diff::differences(&found, &wanted.config);
    let standing = if differences.is_empty() { Standing::Same } else { Standing::Differs(differences) };
    StreamPlan { standing, wanted, found }
}

async fn look(broker: &Broker, name: &str) -> Result<Option<Map<String, Value>>, BrokerError> {
    match broker.api::<StreamInfo>(&format!("STREAM.INFO.{name}"), &Value::Null).await {
        Ok(info) => Ok(Some(info.config)),
        Err(error) if error.code() == Some(code::STREAM_NOT_FOUND) => Ok(None),
        Err(error) => Err(explain_api(broker, error)),
    }
}

/// The bytes to share out, and what sets them. An account without tiers counts every copy.
fn disk(account: &AccountInfo, hub: &HubConfig) -> (u64, &'static str) {
    let replicas = u64::try_from(hub.replicas).unwrap_or(1).max(1);
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    let tier = account.tiers.get(&format!("R{replicas}")).and_then(|tier| positive(tier.limits.max_storage));
    match tier.or_else(|| positive(account.limits.max_storage).map(|n| n / replicas)) {
        Some(total) => (total, "the account's `max_storage`"),
        None => (hub.store_bytes, "`hub.store_bytes`"),
    }
}

/// A stream whose size was set anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resized {
    /// Its name.
    pub stream: String,
    /// How many bytes it could take.
    pub from: u64,
    /// How many it can take now.
    pub to: u64,
}

impl fmt::Display for Resized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} MiB -> {} MiB", self.stream, self.from >> 20, self.to >> 20)
    }
}

/// Shares the disk out anew among the streams that are there. None gets less than it holds and a tenth more: what a stream
/// holds is not dropped.
pub async fn resize(broker: &Broker, hub: &HubConfig) -> Result<Vec<Resized>, BrokerError> {
    let account: AccountInfo = broker.api("INFO", &Value::Null).await.map_err(|e| explain_api(broker, e))?;
    let wanted = wanted::streams(broker.names(), hub);
    let percents: Vec<u64> = wanted.iter().map(|w| w.percent).collect();
    let (total, limit) = disk(&account, hub);
    let mut changes = Vec::new();
    for (wanted, share) in wanted.iter().zip(wanted::shares(total, &percents, limit)?) {
        let state = broker.stream_state(&wanted.name).await?;
        let (from, to) = (state.max_bytes.unwrap_or(0), share.max(state.bytes + state.bytes / 10));
        if from != to {
            changes.push(Resized { stream: wanted.name.clone(), from, to });
        }
    }
    // Those that give first: sizes are reserved, and what they give up the others get.
    changes.sort_by_key(|change| change.to > change.from);
    for change in &changes {
        broker.set_max_bytes(&change.stream, change.to).await?;
    }
    Ok(changes)
}

impl Broker {
    /// The bytes that all six streams may share out.
    pub async fn disk_share(&self, hub: &HubConfig) -> Result<u64, BrokerError> {
        let account: AccountInfo = self.api("INFO", &Value::Null).await?;
        Ok(disk(&account, hub).0)
    }
}

/// Makes and changes what the plan says, one stream after the other; the first refusal ends it.
pub async fn apply(broker: &Broker, plan: &Plan) -> Result<(), BrokerError> {
    if let Some(refusal) = plan.refusal() {
        return Err(refusal);
    }
    // Records first: a message stream that is made anew begins above what they name.
    let (messages, records): (Vec<_>, Vec<_>) = plan.streams.iter().partition(|s| s.wanted.messages.is_some());
    for stream in records.into_iter().chain(messages).filter(|stream| stream.needs_work()) {
        let name = stream.name();
        let (verb, config) = match stream.standing {
            Standing::Missing { bytes } => ("CREATE", create_config(broker, stream, bytes).await?),
            Standing::Same | Standing::Differs(_) => ("UPDATE", stream.changed()),
        };
        let path = format!("STREAM.{verb}.{name}");
        broker.api::<Value>(&path, &Value::Object(config)).await.map_err(|e| explain(broker, name, e))?;
    }
    Ok(())
}

async fn create_config(broker: &Broker, stream: &StreamPlan, bytes: u64) -> Result<Map<String, Value>, BrokerError> {
    let mut config = stream.wanted.config.clone();
    config.insert("max_bytes".to_owned(), json!(bytes));
    if let Some(kind) = stream.wanted.messages {
        let first = first::sequence_above_records(broker, kind).await?;
        if first.0 > 1 {
            config.insert("first_seq".to_owned(), json!(first));
        }
    }
    Ok(config)
}

/// Brings the streams to what is wanted and tells how they stand then. Another hub may be doing the same.
pub async fn ensure(broker: &Broker, hub: &HubConfig) -> Result<Plan, BrokerError> {
    /// Another hub's step between our look and ours is seen at the next look.
    const ROUNDS: u32 = 5;
    let mut last = None;
    for _ in 0..ROUNDS {
        let plan = plan(broker, hub).await?;
        if !plan.needs_work() {
            return plan.refusal().map_or(Ok(plan), Err);
        }
        match apply(broker, &plan).await {
            Ok(()) => {}
            Err(error) if error.code() == Some(code::NAME_IN_USE) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        BrokerError::Options("the streams do not keep the settings they are given: two releases may be at work".into())
    }))
}

/// Words for an API that does not answer as it should.
fn explain_api(broker: &Broker, error: BrokerError) -> BrokerError {
    let text = match &error {
        BrokerError::NoResponders { .. } if !broker.has_jetstream() => {
            "JetStream is off on this nats-server: start it with `-js`, or put `jetstream {}` into its configuration"
                .into()
        }
        BrokerError::NoResponders { what } => {
            format!(
                "nobody answers {what}: is `api_prefix` right, and may this user's account reach the JetStream API?"
            )
        }
        BrokerError::Refused { code, .. } if [code::NOT_ENABLED, code::NOT_ENABLED_FOR_ACCOUNT].contains(code) => {
            "JetStream is off for this account: put `jetstream: enabled` into it".into()
        }
        _ => return error,
    };
    BrokerError::Options(text)
}

/// Words for a stream that is refused.
fn explain(broker: &Broker, stream: &str, error: BrokerError) -> BrokerError {
    let BrokerError::Refused { code, description, .. } = &error else { return explain_api(broker, error) };
    BrokerError::Options(match *code {
        c if code::NO_STORAGE.contains(&c) => format!(
            "no room for stream {stream} ({description}): lower `hub.store_bytes`, or raise `max_file_store` of nats-server \
             or the account's `max_storage`; sizes are reserved"
        ),
        c if code::NO_CLUSTER.contains(&c) => {
            format!("stream {stream}: {description}: `hub.replicas` is more than this broker has servers")
        }
        code::SUBJECTS_OVERLAP => {
            format!("another stream already takes subjects of {stream}: remove it, or choose another `prefix`")
        }
        _ => return explain_api(broker, error),
    })
}
