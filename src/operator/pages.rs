//! Reading a stream page by page, so that memory does not grow with what is read.

use crate::broker::{Broker, BrokerError, From as Begin, Query, RawMessage};
use crate::model::id::StreamSeq;
use std::ops::ControlFlow;

/// Messages asked for at first, and at most: most readings end within the first page, and a long one of small messages has
/// few. (The broker ends a page of large ones sooner.)
const PAGE: (usize, usize) = (256, 4096);

/// Hands every message that matches to `each`, in stream order, until it breaks off or nothing is left.
pub(super) async fn each_message(
    broker: &Broker,
    stream: &str,
    filter: &str,
    begin: Begin,
    mut each: impl FnMut(RawMessage) -> ControlFlow<()>,
) -> Result<(), BrokerError> {
    let mut begin = begin;
    let mut batch = PAGE.0;
    loop {
        let query = Query { stream: stream.to_owned(), filter: filter.to_owned(), from: begin, batch };
        let page = broker.read(&query).await?;
        let Some(last) = page.messages.last() else { return Ok(()) };
        begin = Begin::Seq(StreamSeq(last.seq.0 + 1));
        batch = (batch * 4).min(PAGE.1);
        for message in page.messages {
            if each(message).is_break() {
                return Ok(());
            }
        }
        if page.pending == 0 {
            return Ok(());
        }
    }
}
