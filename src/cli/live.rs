//! Output of commands as it comes: as it is for one node, line by line behind the node's name for several.
//!
//! Owns what of the output has been shown, and lines that are not complete yet. stdout is what commands wrote there, stderr
//! what they wrote there and what is said of it.

use super::error::CliError;
use super::output::{self, Format, RowJson, id_ref, write_output};
use super::progress::Counters;
use super::say;
use super::watching::End;
use crate::model::name::NodeName;
use crate::model::output::{Channel, Chunk};
use crate::model::record::By;
use crate::model::state::State;
use crate::operator::{Outputs, Piece, Row, Told, Watch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// A line that has not ended after so many bytes is shown in parts.
const LONGEST_LINE: usize = 64 << 10;

/// The output of one call on its way to the terminal.
#[derive(Debug)]
pub(super) struct Live {
    outputs: Outputs,
    format: Format,
    many: bool,
    /// Only this node's is shown.
    node: Option<NodeName>,
    /// Output from before the following began is shown, too.
    with_past: bool,
    /// Only this try's is shown, and tries are not told.
    attempt: Option<u32>,
    /// What of the last line of each is there.
    lines: BTreeMap<(String, Channel), Vec<u8>>,
    is_short: bool,
    is_lost: bool,
}

/// One chunk, as JSON.
#[derive(Debug, Serialize)]
struct ChunkJson<'a> {
    v: u32,
    node: &'a str,
    stream: &'static str,
    attempt: u32,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl Live {
    /// Shows these; `many`: behind the nodes' names.
    pub(super) fn new(outputs: Outputs, format: Format, many: bool) -> Live {
        Live {
            outputs,
            format,
            many,
            node: None,
            with_past: false,
            attempt: None,
            lines: BTreeMap::new(),
            is_short: false,
            is_lost: false,
        }
    }

    /// The same from the command's begin, of this node only where one is given.
    #[must_use]
    pub(super) fn with_past(self, node: Option<NodeName>) -> Live {
        Live { with_past: true, node, ..self }
    }

    /// True where this row's output is to be shown.
    pub(super) fn wants(&self, row: &Row<'_>) -> bool {
        self.node.as_ref().is_none_or(|node| node.as_str() == row.node)
    }

    /// How it writes.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// What it counts as that output is not whole: not finished where the rest may come, unknown where it cannot.
    pub(super) fn shortfall(&self) -> Option<State> {
        match (self.is_short, self.is_lost) {
            (true, _) => Some(State::Running),
            (_, true) => Some(State::Unknown),
            _ => None,
        }
    }

    /// Takes in what the row says of its output. True where all that is to be shown of it before its end is shown.
    pub(super) fn has_shown(&mut self, row: &Row<'_>, counters: &mut Counters) -> Result<bool, CliError> {
        if may_have_chunks(row) {
            self.outputs.expect(&row.node, row.message.at.stored_at, self.with_past);
        }
        if !row.is_settled() {
            return Ok(false);
        }
        self.tell(row);
        let over = self.outputs.is_over(&row.node);
        if over {
            self.flush_node(&row.node, counters)?;
        }
        Ok(over)
    }

    /// Shows what comes, until one node's output is all shown. Safe to drop.
    pub(super) async fn show(&mut self, counters: &mut Counters) -> Result<(), CliError> {
        loop {
            let Some((node, piece)) = self.outputs.next().await? else { return Ok(()) };
            if self.node.as_ref().is_none_or(|only| only.as_str() == node) {
                counters.clear();
                self.piece(&node, &piece)?;
            }
            if self.outputs.is_over(&node) {
                return Ok(());
            }
        }
    }

    /// Shows all that is stored of a row's output: of one that is over, what its last try wrote.
    pub(super) async fn show_stored(&mut self, row: &Row<'_>) -> Result<(), CliError> {
        if !may_have_chunks(row) {
            return Ok(());
        }
        self.attempt = row.record.filter(|record| row.is_settled() && record.attempt > 0).map(|record| record.attempt);
        self.outputs.expect(&row.node, row.message.at.stored_at, true);
        if row.is_settled() {
            self.tell(row);
        }
        while let Some((node, piece)) = self.outputs.next_stored().await? {
            self.piece(&node, &piece)?;
        }
        self.flush()
    }

    /// Shows lines that have not ended.
    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        for ((node, channel), rest) in std::mem::take(&mut self.lines) {
            write_to(channel, &rest, Some(&node))?;
        }
        Ok(())
    }

    /// Says how to come back to output that goes on.
    pub(super) fn tell_end(&self, end: End, watch: &Watch) {
        if let (End::Detached, [first, ..]) = (end, watch.view().messages()) {
            say(&format!("the output goes on in: edgeward result {} --follow", id_ref(first.at)));
        }
    }

    /// Says of a settled row how much there is to come.
    fn tell(&mut self, row: &Row<'_>) {
        match row.record {
            // Of several tries only one that wrote much tells of chunks, and the hub does not know of any.
            Some(record) if record.chunks > 0 || (record.attempt < 2 && !may_have_chunks(row)) => {
                let (chunks, attempt, sha256) = (record.chunks, record.attempt, record.output_sha256.clone());
                self.outputs.tell(&row.node, Told { chunks, attempt, sha256 });
            }
            _ => self.outputs.close(&row.node),
        }
    }

    fn flush_node(&mut self, node: &str, counters: &mut Counters) -> Result<(), CliError> {
        for channel in [Channel::Stdout, Channel::Stderr] {
            if let Some(rest) = self.lines.remove(&(node.to_owned(), channel)) {
                counters.clear();
                write_to(channel, &rest, Some(node))?;
            }
        }
        Ok(())
    }

    fn piece(&mut self, node: &str, piece: &Piece) -> Result<(), CliError> {
        let text = match piece {
            Piece::Chunk(chunk) => {
                let wanted = self.attempt.is_none_or(|only| only == chunk.attempt);
                return if wanted { self.chunk(node, chunk) } else { Ok(()) };
            }
            Piece::Try(_) if self.attempt.is_some() => return Ok(()),
            Piece::Try(attempt) => format!("try {attempt}"),
            Piece::LeftOut { channel, bytes } => {
                format!("{bytes} bytes of its {} are not kept: it is longer than agent.output_bytes", channel.as_str())
            }
            Piece::Lost { first, last } => {
                self.is_lost = true;
                format!("chunks {first} to {last} of the output are not in the stream any more")
            }
            Piece::Missing { stored, of } => {
                self.is_short = true;
                format!(
                    "the output is not whole: {stored} of {of} chunks are stored; the others have not come, or are not kept"
                )
            }
            Piece::Differs => {
                self.is_lost = true;
                "the output is not what the node says that it was: its hash differs".to_owned()
            }
        };
        self.flush_node(node, &mut Counters::new())?;
        say(&format!("{node}: {text}"));
        Ok(())
    }

    fn chunk(&mut self, node: &str, chunk: &Chunk) -> Result<(), CliError> {
        if self.format == Format::Json {
            let text = std::str::from_utf8(&chunk.bytes).ok();
            return Ok(output::print_json(&ChunkJson {
                v: 1,
                node,
                stream: chunk.channel.as_str(),
                attempt: chunk.attempt,
                offset: chunk.offset,
                data: text,
                data_base64: text.is_none().then(|| BASE64.encode(&chunk.bytes)),
            })?);
        }
        if !self.many {
            return Ok(write_to(chunk.channel, &chunk.bytes, None)?);
        }
        let held = self.lines.entry((node.to_owned(), chunk.channel)).or_default();
        held.extend_from_slice(&chunk.bytes);
        let ended = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = held.split_off(ended);
        let mut whole = std::mem::replace(held, rest);
        if held.len() > LONGEST_LINE {
            whole.append(held);
        }
        Ok(write_to(chunk.channel, &whole, Some(node))?)
    }
}

/// Shows the end of a row: output that its record alone holds, and what is to be said of it.
pub(super) fn show_end(row: &Row<'_>, watch: &Watch, format: Format, many: bool) -> Result<(), CliError> {
    if format == Format::Json {
        return Ok(output::print_json(&RowJson::new(row))?);
    }
    if let Some(record) = row.record.filter(|record| record.chunks == 0) {
        output::print_output(record, many.then_some(row.node.as_str()))?;
    }
    output::cut(row).iter().chain(output::verdict(row, watch.view().now()).iter()).for_each(|line| say(line));
    Ok(())
}

/// Writes to where the command wrote; lines behind their node's name, where one is given.
fn write_to(channel: Channel, bytes: &[u8], prefix: Option<&str>) -> io::Result<()> {
    // As one write: a line each would be a system call each.
    let mut all = Vec::with_capacity(bytes.len());
    write_output(&mut all, bytes, prefix)?;
    match channel {
        Channel::Stdout => write_all(io::stdout().lock(), &all),
        Channel::Stderr => write_all(io::stderr().lock(), &all),
    }
}

fn write_all(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// True where some of a row's output may be in the stream: what ran and has not told of its end holds it nowhere else.
fn may_have_chunks(row: &Row<'_>) -> bool {
    match row.record {
        Some(record) if record.chunks > 0 => true,
        Some(record) if record.by == By::Node && row.state.is_terminal() => {
            row.state == State::Interrupted && record.stdout_bytes == 0 && record.stderr_bytes == 0
        }
        _ => matches!(row.state, State::Running | State::Retrying | State::Interrupted | State::Unknown),
    }
}
