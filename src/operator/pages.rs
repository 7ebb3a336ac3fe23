//! Reading a stream page by page, so that memory does not grow with what is read.

use crate::broker::{Broker, BrokerError, From as Begin, Query, RawMessage};
use crate::model::id::StreamSeq;
use std::ops::ControlFlow;

/// Messages asked for at once; bodies may be large, and the broker ends a page at about 64 MB by itself.
const PAGE: usize = 512;

/// Hands every message that matches to `each`, in stream order, until it breaks off or nothing is left.
pub(super) async fn each_message(
    broker: &Broker,
    stream: &str,
    filter: &str,
    begin: Begin,
    mut each: impl FnMut(RawMessage) -> ControlFlow<()>,
) -> Result<(), BrokerError> {
    let mut begin = begin;
    loop {
        let query = Query { stream: stream.to_owned(), filter: filter.to_owned(), from: begin, batch: PAGE };
        let page = broker.read(&query).await?;
        let Some(last) = page.messages.last() else { return Ok(()) };
        begin = Begin::Seq(StreamSeq(last.seq.0 + 1));
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
