//! Messages written in a file: `edgeward send --file` and `inmsg.txt`.
//!
//! Owns the fields of such a file, their other names, and errors that tell line, column and field. Never reads a file,
//! and never fills in an id or a default but the kind, which is the method's.

mod json;

use super::header::{MsgHeaders, RawHeaders, names};
use super::message::Kind;
use super::name::{LaneToken, MethodName, Target};
use bytes::Bytes;
pub use json::Place;
use json::{Shape, Value};
use std::collections::HashSet;

/// The longest file that is read: the watcher holds it in memory several times over.
pub const MAX_FILE: usize = 4 << 20;

/// A message as it was written, not yet sent: one for each of its targets, with the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Whom it is for, each once, in the order of the file.
    pub to: Vec<Target>,
    /// Its kind.
    pub kind: Kind,
    /// What to do.
    pub method: MethodName,
    /// A lane of its own.
    pub lane: Option<LaneToken>,
    /// The body.
    pub body: Bytes,
    /// Id, timeout, start-by, retries, first wait and what to do after a crash, where given.
    pub headers: MsgHeaders,
}

/// Why a file gives no messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// What is there is the beginning of JSON: more may be on its way.
    #[error("{at}: the JSON ends early")]
    Incomplete {
        /// Where it ends.
        at: Place,
    },
    /// More text will not mend it.
    #[error("{at}: {}{reason}", field.as_ref().map(|f| format!("`{f}` ")).unwrap_or_default())]
    Bad {
        /// Where.
        at: Place,
        /// The field, as it was written.
        field: Option<String>,
        /// What is wrong, a fragment that follows the field's name.
        reason: String,
    },
}

impl FileError {
    fn bad(at: Place, field: Option<&str>, reason: impl Into<String>) -> FileError {
        FileError::Bad { at, field: field.map(short), reason: reason.into() }
    }
}

/// Reads a file: one message, or a list of them. `kind_of` tells the kind of a method that is known here.
pub fn parse(bytes: &[u8], kind_of: &dyn Fn(&str) -> Option<Kind>) -> Result<Vec<Draft>, FileError> {
    if bytes.len() > MAX_FILE {
        let reason = format!("the file has {} bytes; {MAX_FILE} is the limit", bytes.len());
        return Err(FileError::bad(Place { line: 1, column: 1 }, None, reason));
    }
    let value = json::read(bytes)?;
    let messages = match value.shape() {
        Shape::Object => vec![value],
        Shape::List => value.items(),
        other => return Err(not_a_message(value, other)),
    };
    if messages.is_empty() {
        return Err(FileError::bad(value.place(), None, "an empty list has nothing to send"));
    }
    messages.into_iter().map(|message| draft(message, kind_of)).collect()
}

fn not_a_message(value: Value<'_>, shape: Shape) -> FileError {
    FileError::bad(value.place(), None, format!("a message is an object, not {}", shape.describe()))
}

/// The fields of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    To,
    Kind,
    Method,
    Lane,
    Body,
    Args,
    /// One that becomes a header of this name.
    Header(&'static str),
}

impl Field {
    fn named(name: &str) -> Option<Field> {
        Some(match name {
            "to" | "toNode" => Field::To,
            "kind" | "commandOrEvent" => Field::Kind,
            "method" => Field::Method,
            "lane" => Field::Lane,
            "body" => Field::Body,
            "args" | "data" => Field::Args,
            "id" => Field::Header(names::ID),
            "timeout" => Field::Header(names::TIMEOUT),
            "start_by" => Field::Header(names::START_BY),
            "retries" => Field::Header(names::RETRIES),
            "retry_wait" => Field::Header(names::RETRY_WAIT),
            "on_crash" => Field::Header(names::ON_CRASH),
            _ => return None,
        })
    }
}

/// A field with its name as it was written, and its value.
struct Given<'a> {
    field: Field,
    name: String,
    key: Value<'a>,
    value: Value<'a>,
}

impl Given<'_> {
    fn bad(&self, reason: impl Into<String>) -> FileError {
        FileError::bad(self.value.place(), Some(&self.name), reason)
    }

    fn text(&self) -> Result<String, FileError> {
        self.text_of(self.value)
    }

    fn text_of(&self, value: Value<'_>) -> Result<String, FileError> {
        value.text().ok_or_else(|| {
            let reason = format!("is {}, not text", value.shape().describe());
            FileError::bad(value.place(), Some(&self.name), reason)
        })
    }

    fn parsed<T>(&self) -> Result<T, FileError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        self.text()?.parse().map_err(|bad: T::Err| self.bad(format!("is no good: {bad}")))
    }

    fn texts(&self) -> Result<Vec<String>, FileError> {
        match self.value.shape() {
            Shape::List => self.value.items().into_iter().map(|item| self.text_of(item)).collect(),
            other => Err(self.bad(format!("is {}, not a list of texts", other.describe()))),
        }
    }
}

fn draft(message: Value<'_>, kind_of: &dyn Fn(&str) -> Option<Kind>) -> Result<Draft, FileError> {
    if message.shape() != Shape::Object {
        return Err(not_a_message(message, message.shape()));
    }
    let fields = fields(message)?;
    let find = |field: Field| fields.iter().find(|given| given.field == field);
    let missing = |name: &str| FileError::bad(message.place(), Some(name), "is missing");
    let to = targets(find(Field::To).ok_or_else(|| missing("to"))?)?;
    let given = find(Field::Method).ok_or_else(|| missing("method"))?;
    let method = method(given)?;
    let kind = match find(Field::Kind) {
        Some(kind) => kind.parsed()?,
        None => kind_of(method.as_str())
            .ok_or_else(|| given.bad(format!("names `{method}`, which is not known here: give its `kind`")))?,
    };
    let lane = find(Field::Lane);
    if let (Some(lane), Kind::Control) = (lane, kind) {
        return Err(lane.bad("is given, but control messages have no lanes"));
    }
    let lane = lane.map(Given::parsed).transpose()?;
    let body = match (find(Field::Body), find(Field::Args)) {
        (Some(_), Some(args)) => {
            return Err(FileError::bad(
                args.key.place(),
                Some(&args.name),
                "is given beside `body`; one of them says what is sent",
            ));
        }
        (Some(body), None) => body.value.text().unwrap_or_else(|| body.value.compact()),
        (None, Some(args)) => body_of_args(args, &method)?,
        (None, None) => String::new(),
    };
    Ok(Draft { to, kind, method, lane, body: body.into(), headers: headers(&fields)? })
}

/// The fields of a message, each known and given once, whatever name it has.
fn fields(message: Value<'_>) -> Result<Vec<Given<'_>>, FileError> {
    let mut fields: Vec<Given<'_>> = Vec::new();
    for (key, value) in message.members() {
        let name = key.text().unwrap_or_default();
        let bad = |reason: String| FileError::bad(key.place(), Some(&name), reason);
        let field = Field::named(&name).ok_or_else(|| bad("is not a field of a message".to_owned()))?;
        match fields.iter().find(|other| other.field == field) {
            Some(other) if other.name == name => return Err(bad("is given twice".to_owned())),
            Some(other) => return Err(bad(format!("is another name of `{}`, which is given too", other.name))),
            None => fields.push(Given { field, key, value, name }),
        }
    }
    Ok(fields)
}

fn targets(to: &Given<'_>) -> Result<Vec<Target>, FileError> {
    let items = if to.value.shape() == Shape::List { to.value.items() } else { vec![to.value] };
    if items.is_empty() {
        return Err(to.bad("is an empty list"));
    }
    let (mut targets, mut known) = (Vec::new(), HashSet::new());
    for item in items {
        let reason = |bad| FileError::bad(item.place(), Some(&to.name), format!("is no good: {bad}"));
        let target: Target = to.text_of(item)?.parse().map_err(reason)?;
        if known.insert(target.clone()) {
            targets.push(target);
        }
    }
    Ok(targets)
}

fn method(given: &Given<'_>) -> Result<MethodName, FileError> {
    let name = match given.text()?.as_str() {
        "shellCommand" => "exec".to_owned(),
        "textLogging" => "log".to_owned(),
        other => other.to_owned(),
    };
    name.parse().map_err(|bad| given.bad(format!("is no good: {bad}")))
}

fn body_of_args(args: &Given<'_>, method: &MethodName) -> Result<String, FileError> {
    let texts = args.texts()?;
    match method.as_str() {
        "exec" => Ok(serde_json::json!({ "argv": texts }).to_string()),
        _ => Ok(texts.join("\n")),
    }
}

/// Each is judged alone, so that an error stands where its value stands.
fn headers(fields: &[Given<'_>]) -> Result<MsgHeaders, FileError> {
    let mut all = RawHeaders::default();
    for given in fields {
        let Field::Header(name) = given.field else { continue };
        let number = name == names::RETRIES && given.value.shape() == Shape::Number;
        let value = if number { given.value.source().to_owned() } else { given.text()? };
        // The kind only matters to a header that no field makes.
        MsgHeaders::parse(&RawHeaders::default().with(name, value.as_str()), Kind::Command)
            .map_err(|bad| given.bad(bad.reason))?;
        all.push(name, value);
    }
    MsgHeaders::parse(&all, Kind::Command)
        .map_err(|bad| FileError::bad(Place { line: 1, column: 1 }, None, bad.to_string()))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests;
