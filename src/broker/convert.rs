//! Between the client library's headers and the model's.
//!
//! Owns the guard that no text of ours can panic the client: a header with a line break is refused, not sent.

use crate::model::header::RawHeaders;
use async_nats::{HeaderMap, HeaderName, HeaderValue};

/// Headers for the wire; the error names the one that cannot be sent.
pub(super) fn to_wire(headers: &RawHeaders) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in &headers.0 {
        let key: HeaderName = name.parse().map_err(|_| format!("header name `{}`", name.escape_debug()))?;
        let value: HeaderValue = value.parse().map_err(|_| format!("value of header `{name}`"))?;
        map.append(key, value);
    }
    Ok(map)
}

/// Headers from the wire, ordered by name, since the client does not keep their order.
pub(super) fn from_wire(map: Option<&HeaderMap>) -> RawHeaders {
    let mut pairs: Vec<(String, String)> = map
        .into_iter()
        .flat_map(|map| map.iter())
        .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str().to_owned())))
        .collect();
    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
    RawHeaders(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_way_and_bad_ones_are_named() {
        let headers = RawHeaders::default().with("A-One", "1").with("B-Two", "ü").with("B-Two", "again");
        assert_eq!(from_wire(Some(&to_wire(&headers).unwrap())), headers);
        assert!(to_wire(&RawHeaders::default().with("A", "a\r\nb")).unwrap_err().contains('A'));
        assert!(to_wire(&RawHeaders::default().with("A b", "x")).is_err());
    }
}
