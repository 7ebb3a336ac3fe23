//! Writing results: tables for people, one versioned JSON object a line for programs, output bytes as they are.
//!
//! Owns the JSON shapes of the command line (`"v": 1`), the words for states, and that what a node says of itself does not
//! act on a terminal. stdout is data, stderr is talk.

use crate::model::error_event::Code;
use crate::model::id::{IdRef, MessageId, MsgRef, StreamSeq};
use crate::model::message::{Kind, StreamKind};
use crate::model::node::Contact;
use crate::model::record::Record;
use crate::model::state::State;
use crate::model::time::{Timestamp, rough};
use crate::operator::Row;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, Write};

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One object a line.
    Json,
}

/// A table without lines: columns, two spaces between them.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Prints a table; nothing where it has no rows.
pub(super) fn print_table(table: &Table) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !table.is_empty() {
        for line in table.lines() {
            writeln!(out, "{}", plain(line.trim_end()))?;
        }
    }
    out.flush()
}

/// Prints a line for people.
pub(super) fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", plain(line.trim_end()))
}

/// Text as it may go to a terminal. Errors, versions, labels are a node's own words: what would act there is escaped. What a
/// command wrote is its reader's own matter, and goes as it is.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && c != '\n';
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if acts(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Prints one object, on a line of its own.
pub(super) fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// How a person names a stored message.
pub(super) fn id_ref(at: MsgRef) -> IdRef {
    IdRef::Stored(at.stream, at.seq)
}

/// The age of something, as people say it.
pub(super) fn age(at: Timestamp, now: Timestamp) -> String {
    rough(now.since(at))
}

/// A number of things: `1 node`, `2 nodes`.
pub(super) fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// One message on one node, as JSON.
#[derive(Debug, Serialize)]
pub(super) struct RowJson<'a> {
    v: u32,
    id: &'a MessageId,
    stream: StreamKind,
    seq: StreamSeq,
    stored_at: Timestamp,
    to: String,
    node: &'a str,
    from: &'a str,
    kind: Option<Kind>,
    method: &'a str,
    lane: Option<&'a str>,
    body: &'a str,
    state: State,
    first_state: Option<State>,
    cancel_requested: bool,
    will_expire: bool,
    copy_of: Option<MsgRef>,
    contact: Option<Contact>,
    heard_at: Option<Timestamp>,
    since: Option<Timestamp>,
    behind: Option<StreamSeq>,
    record: Option<&'a Record>,
}

impl<'a> RowJson<'a> {
    /// The object of a row.
    pub(super) fn new(row: &'a Row<'a>) -> RowJson<'a> {
        let message = row.message;
        RowJson {
            v: 1,
            id: &message.id,
            stream: message.at.stream,
            seq: message.at.seq,
            stored_at: message.at.stored_at,
            to: message.to_text(),
            node: &row.node,
            from: &message.from,
            kind: message.kind,
            method: &message.method,
            lane: message.lane.as_deref(),
            body: &message.preview,
            state: row.state,
            first_state: row.first.map(|record| record.state),
            cancel_requested: row.cancel_requested,
            will_expire: row.will_expire,
            copy_of: row.copy_of,
            contact: row.contact,
            heard_at: row.heard_at,
            since: row.since(),
            behind: row.behind.map(|behind| behind.head.seq),
            record: row.record,
        }
    }
}

/// Everything worth saying of a row besides its state, joined by `; `.
pub(super) fn notes(row: &Row<'_>, now: Timestamp) -> String {
    let mut notes = notes_but_contact(row);
    if !row.is_settled() && row.is_out_of_contact() {
        let contact = contact_text(row, now);
        notes = if notes.is_empty() { contact } else { format!("{notes}; {contact}") };
    }
    notes
}

/// The same for a table in which contact has a column of its own.
pub(super) fn notes_but_contact(row: &Row<'_>) -> String {
    let mut notes: Vec<String> = Vec::new();
    notes.extend(row.record.and_then(reason));
    notes.extend(row.first.map(|first| format!("late; first told as {}", first.state)));
    notes.extend(row.copy_of.map(|first| format!("copy of {}", id_ref(first))));
    if row.cancel_requested {
        notes.push("cancel requested".to_owned());
    }
    if row.will_expire {
        notes.push("will expire".to_owned());
    }
    notes.extend(row.behind.map(|behind| {
        let running = if behind.running { ", which runs" } else { "" };
        format!("behind {}{running}", id_ref(behind.head))
    }));
    notes.join("; ")
}

/// `silent for 3 h`, `stopped 2 min ago`, `never heard`.
pub(super) fn contact_text(row: &Row<'_>, now: Timestamp) -> String {
    row.contact.map(|contact| out_of_contact(contact, row.heard_at, now)).unwrap_or_default()
}

/// The same of a node; nothing where it is in contact.
pub(super) fn out_of_contact(contact: Contact, heard_at: Option<Timestamp>, now: Timestamp) -> String {
    let age = heard_at.map(|at| age(at, now)).unwrap_or_default();
    match contact {
        Contact::Silent => format!("silent for {age}"),
        Contact::Stopped => format!("stopped {age} ago"),
        Contact::Never => "never heard".to_owned(),
        Contact::InContact => String::new(),
    }
}

/// Why a message did not succeed, where its record says: exit code, signal, or the error's code and line.
pub(super) fn reason(record: &Record) -> Option<String> {
    match (record.exit_code, record.signal, &record.error) {
        (Some(0), None, None) => None,
        (Some(code), ..) if record.state == State::Failed => Some(format!("exit code {code}")),
        (_, Some(signal), _) if record.state == State::Failed => Some(format!("signal {signal}")),
        // The state has said it already.
        (_, _, Some(error))
            if matches!(
                error.code,
                Code::Failed | Code::TimedOut | Code::Expired | Code::Interrupted | Code::Cancelled
            ) =>
        {
            Some(error.message.clone())
        }
        (_, _, Some(error)) => Some(format!("{}: {}", error.code, error.message)),
        _ => None,
    }
}

/// Writes a record's output: as it is, or each line behind the node's name.
pub(super) fn print_output(record: &Record, prefix: Option<&str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write_output(&mut out, &record.stdout_bytes_inline(), prefix)?;
    out.flush()?;
    drop(out);
    let mut err = io::stderr().lock();
    write_output(&mut err, &record.stderr_bytes_inline(), prefix)?;
    err.flush()
}

pub(super) fn write_output(to: &mut impl Write, bytes: &[u8], prefix: Option<&str>) -> io::Result<()> {
    let Some(prefix) = prefix else { return to.write_all(bytes) };
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        write!(to, "{prefix}: ")?;
        to.write_all(line)?;
        if !line.ends_with(b"\n") {
            to.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// What to say of a finished row on stderr: nothing where it simply succeeded.
pub(super) fn verdict(row: &Row<'_>, now: Timestamp) -> Option<String> {
    let notes = notes(row, now);
    let text = if notes.is_empty() { row.state.to_string() } else { format!("{}: {notes}", row.state) };
    let said = row.state == State::Succeeded && notes.is_empty();
    (!said).then(|| format!("{}: {text}", row.node))
}

/// What to say of output that was cut and is nowhere whole.
pub(super) fn cut(row: &Row<'_>) -> Option<String> {
    let record = row.record.filter(|record| record.truncated && record.chunks == 0)?;
    let (out, err) = (record.stdout_bytes, record.stderr_bytes);
    Some(format!(
        "{}: the output is cut: head and tail of {out} bytes on stdout and {err} on stderr are shown",
        row.node
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_behind_its_node_and_bytes_stay_bytes() {
        let written = |bytes: &[u8], prefix| {
            let mut to = Vec::new();
            write_output(&mut to, bytes, prefix).unwrap();
            to
        };
        assert_eq!(written(b"a\n\xff", None), b"a\n\xff");
        assert_eq!(written(b"a\n\xff", Some("ship1")), b"ship1: a\nship1: \xff\n");
        assert_eq!(written(b"", Some("ship1")), b"");
    }
}
