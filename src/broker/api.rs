//! Requests to the JetStream API.
//!
//! Owns asking and reading the JSON answer. Never interprets it.

use super::connect::Broker;
use super::error::BrokerError;
use async_nats::RequestErrorKind;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// How long an API request may take; a broker that is alive answers in milliseconds.
pub(super) const API_TIMEOUT: Duration = Duration::from_secs(5);

/// On a cluster a request that finds no leader is dropped without a word; asked again, the next one hears it.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How often it is asked again: longer than a cluster takes to elect a leader, which is 4 to 9 s.
pub(super) const TIMES: u32 = 10;

impl Broker {
    /// Asks `<api prefix>.<path>` and reads the JSON answer. On a cluster it may be asked several times.
    pub(crate) async fn api<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, BrokerError> {
        if !self.is_clustered() {
            return self.api_within(path, body, API_TIMEOUT).await;
        }
        for _ in 1..TIMES {
            match self.api_within(path, body, ASK_AGAIN).await {
                Err(BrokerError::Timeout { .. }) => {}
                // A server says so itself instead of leaving it unanswered.
                Err(error) if error.code().is_some_and(has_no_leader) => tokio::time::sleep(ASK_AGAIN).await,
                answered => return answered,
            }
        }
        self.api_within(path, body, ASK_AGAIN).await
    }

    /// The same with a limit of its own, for what may never be answered.
    pub(super) async fn api_within<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<T, BrokerError> {
        let payload = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let answer = self.ask(&format!("{}.{path}", self.api), payload, within).await?;
        let value: Value = serde_json::from_slice(&answer)
            .map_err(|e| BrokerError::BadAnswer { what: path.to_owned(), reason: e.to_string() })?;
        if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
            let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
            let number = |key: &str| error.get(key).and_then(Value::as_u64);
            let code = number("err_code").or_else(|| number("code")).unwrap_or(0);
            return Err(BrokerError::Refused { what: path.to_owned(), code, description: text("description") });
        }
        serde_json::from_value(value)
            .map_err(|e| BrokerError::BadAnswer { what: path.to_owned(), reason: e.to_string() })
    }

    /// One request, one answer's payload.
    pub(super) async fn ask(&self, subject: &str, payload: Bytes, within: Duration) -> Result<Bytes, BrokerError> {
        self.ask_message(subject, payload, within).await.map(|message| message.payload)
    }

    /// One request, one answer.
    pub(super) async fn ask_message(
        &self,
        subject: &str,
        payload: Bytes,
        within: Duration,
    ) -> Result<async_nats::Message, BrokerError> {
        let request = async_nats::Request::new().payload(payload).timeout(Some(within));
        self.count_request();
        let mark = self.mark();
        let answer = tokio::select! {
            biased;
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            error = self.no_answer(subject, mark) => return Err(error),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::TimedOut => BrokerError::Timeout { what: subject.to_owned(), after: within },
            RequestErrorKind::NoResponders => BrokerError::NoResponders { what: subject.to_owned() },
            RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                BrokerError::Options(format!("{subject}: {error}"))
            }
            RequestErrorKind::Other => BrokerError::Closed,
        })
    }
}

/// True for the codes by which a cluster says that a leader is still to be elected.
pub(super) fn has_no_leader(code: u64) -> bool {
    matches!(code, 10008 | 10009 | 10118)
}

/// A duration as the API has it: in nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
