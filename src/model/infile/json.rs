//! JSON that remembers where it stands in its text, so that an error can point at the very place.
//!
//! Owns the way from bytes to values with places. serde_json judges the whole text first; what walks it afterwards only
//! has to find where values begin and end.

use super::FileError;
use std::fmt;

/// A place in a text, both from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Place {
    /// The place of the byte at `offset`.
    fn of(text: &[u8], offset: usize) -> Place {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
        Place { line: before.iter().filter(|b| **b == b'\n').count() + 1, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Object,
    List,
    Text,
    Number,
    Bool,
    Null,
}

impl Shape {
    /// With its article, for messages.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Shape::Object => "an object",
            Shape::List => "a list",
            Shape::Text => "text",
            Shape::Number => "a number",
            Shape::Bool => "true or false",
            Shape::Null => "null",
        }
    }
}

/// One value, without the white space around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a> {
    whole: &'a str,
    start: usize,
    end: usize,
}

/// Judges the bytes of a file: text, JSON, complete, not nested deeper than serde_json follows (128).
pub(super) fn read(bytes: &[u8]) -> Result<Value<'_>, FileError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = Place::of(bytes, error.valid_up_to());
        match error.error_len() {
            None => FileError::Incomplete { at },
            Some(_) => FileError::bad(at, None, "is not UTF-8"),
        }
    })?;
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(_) => Ok(Value { whole: text, start: 0, end: text.len() }.trimmed()),
        Err(error) => {
            let at = place_of(text, &error);
            if error.is_eof() {
                Err(FileError::Incomplete { at })
            } else {
                Err(FileError::bad(at, None, plain(&error)))
            }
        }
    }
}

/// serde_json counts columns in bytes and says 0 for the end of a line.
fn place_of(text: &str, error: &serde_json::Error) -> Place {
    let line_start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let offset = (line_start + error.column().saturating_sub(1)).min(text.len());
    Place::of(text.as_bytes(), offset)
}

/// serde_json's own words, without the place that it adds.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(words, _)| format!("is not JSON: {words}"))
}

impl<'a> Value<'a> {
    pub(super) fn place(self) -> Place {
        Place::of(self.whole.as_bytes(), self.start)
    }

    /// The value as it is written.
    pub(super) fn source(self) -> &'a str {
        self.whole.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn shape(self) -> Shape {
        match self.source().as_bytes().first() {
            Some(b'{') => Shape::Object,
            Some(b'[') => Shape::List,
            Some(b'"') => Shape::Text,
            Some(b't' | b'f') => Shape::Bool,
            Some(b'n') => Shape::Null,
            _ => Shape::Number,
        }
    }

    /// The text of a text.
    pub(super) fn text(self) -> Option<String> {
        serde_json::from_str(self.source()).ok()
    }

    /// The values of a list.
    pub(super) fn items(self) -> Vec<Value<'a>> {
        self.parts()
    }

    /// The keys and values of an object.
    pub(super) fn members(self) -> Vec<(Value<'a>, Value<'a>)> {
        let parts = self.parts();
        parts.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))).collect()
    }

    /// The value without white space between its tokens; numbers and the order of keys stay as they were written.
    pub(super) fn compact(self) -> String {
        let mut strings = Strings::default();
        let keep = |c: &char| strings.is_inside(*c) || !c.is_ascii_whitespace();
        self.source().chars().filter(keep).collect()
    }

    /// What stands between the outer brackets, divided at the commas and colons of that level.
    fn parts(self) -> Vec<Value<'a>> {
        let inner = Value { start: self.start + 1, end: self.end.saturating_sub(1), ..self };
        let (mut parts, mut strings, mut depth, mut start) = (Vec::new(), Strings::default(), 0_usize, inner.start);
        for (at, c) in inner.source().char_indices() {
            if strings.is_inside(c) {
                continue;
            }
            match c {
                '{' | '[' => depth += 1,
                '}' | ']' => depth = depth.saturating_sub(1),
                ',' | ':' if depth == 0 => {
                    parts.push(Value { start, end: inner.start + at, ..self }.trimmed());
                    start = inner.start + at + 1;
                }
                _ => {}
            }
        }
        parts.push(Value { start, end: inner.end, ..self }.trimmed());
        parts.retain(|part| !part.source().is_empty());
        parts
    }

    fn trimmed(self) -> Value<'a> {
        let source = self.source();
        let start = self.start + (source.len() - source.trim_ascii_start().len());
        Value { start, end: start + source.trim_ascii().len(), ..self }
    }
}

/// Tells, character by character, what is inside of a JSON string.
#[derive(Default)]
struct Strings {
    inside: bool,
    escaped: bool,
}

impl Strings {
    /// True for the characters of a string and its closing quote.
    fn is_inside(&mut self, c: char) -> bool {
        let was_inside = self.inside;
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.inside => self.escaped = true,
            '"' => self.inside = !self.inside,
            _ => {}
        }
        was_inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_found_where_they_stand() {
        let value = read(b" {\n \"a\" : [1, \"x,}\\\"]\"],\n \"\xc3\xa9\": null }\n").unwrap();
        let members = value.members();
        assert_eq!(members.len(), 2);
        assert_eq!(members[0].1.source(), "[1, \"x,}\\\"]\"]");
        assert_eq!(members[0].1.items()[1].text().unwrap(), "x,}\"]");
        assert_eq!(members[1].1.place(), Place { line: 3, column: 7 }, "columns are characters");
        assert_eq!(members[1].1.shape(), Shape::Null);
        assert!(read(b"[ ]").unwrap().items().is_empty());
    }

    #[test]
    fn a_compact_value_keeps_numbers_and_order() {
        let value = read(b"{ \"b\" : 12345678901234567890123, \"a\":[ 1.0 , \" x \\\" \" ] }").unwrap();
        assert_eq!(value.compact(), r#"{"b":12345678901234567890123,"a":[1.0," x \" "]}"#);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..5)
                    .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_compact_value_means_the_same(value in json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(read(pretty.as_bytes()).unwrap().compact(), value.to_string());
        }

        #[test]
        fn walking_finds_what_serde_json_finds(value in json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let read = read(pretty.as_bytes()).unwrap();
            if let Some(list) = value.as_array() {
                prop_assert_eq!(read.items().len(), list.len());
            }
            if let Some(object) = value.as_object() {
                let keys: Vec<String> = read.members().iter().map(|(key, _)| key.text().unwrap()).collect();
                prop_assert_eq!(keys, object.keys().cloned().collect::<Vec<_>>());
            }
        }
    }
}
