//! Dependencies point down (ARCHITECTURE.md): which module of the crate may name which, read from the source files.
//!
//! The check works on text: comments and strings are blanked, then every path that begins at the crate's root is
//! looked at, whether by `crate::`, by `super::` as far as the root, or in a group `crate::{…}`.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate with those it may name. A module may name only modules that stand above it here, so the
/// table itself cannot hold a circle; modules of one layer do not know each other.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    // Empty in a normal build.
    ("killpoint", &[]),
    ("broker", &["model"]),
    ("journal", &["model"]),
    ("exec", &["model", "killpoint"]),
    ("server", &[]),
    ("methods", &["model", "exec"]),
    ("agent", &["model", "killpoint", "broker", "journal", "exec", "methods"]),
    ("hub", &["model", "killpoint", "broker"]),
    // The usual kind of a method, for messages that do not say theirs.
    ("operator", &["model", "broker", "methods"]),
    ("cli", &["model", "broker", "journal", "exec", "server", "methods", "agent", "hub", "operator"]),
];

/// The one module that may name the NATS client.
const CLIENT_OWNER: &str = "broker";
const CLIENT: &str = "async_nats";

/// What is wrong with one file of `src`; `path` is relative to `src`.
fn problems(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push("does not open with `//!`".to_owned());
    }
    let code = blank(text);
    let tokens = tokens(&code);
    let module = module_of(path);
    if module.first().map(String::as_str) != Some(CLIENT_OWNER) && tokens.iter().any(|token| token == CLIENT) {
        found.push(format!("names {CLIENT}; only src/{CLIENT_OWNER} may"));
    }
    // The crate's root and the binary stand above all.
    let Some(own) = module.first() else { return found };
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == own) else {
        found.push(format!("module `{own}` is not in the table of layers"));
        return found;
    };
    for named in named_from_root(&tokens, module.len()) {
        if named != *own && !allowed.contains(&named.as_str()) {
            found.push(format!("`{own}` must not name `crate::{named}`"));
        }
    }
    found
}

/// The path of modules of a file, without the root: `model/mod.rs` and `model.rs` are `[model]`.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") || parts == ["lib"] || parts == ["main"] {
        parts.pop();
    }
    parts
}

/// The first name after the root in every path that starts there, in a module `depth` levels below it.
fn named_from_root(tokens: &[String], depth: usize) -> Vec<String> {
    let mut named = Vec::new();
    for at in 0..tokens.len() {
        let rest = &tokens[at..];
        match rest {
            [word, colons, ..] if word == "crate" && colons == "::" => reach(rest, depth, &mut named),
            [word, ..] if word == "super" => {
                let mut reached = Vec::new();
                reach(rest, depth, &mut reached);
                // Inside an inline module (`mod tests`) as many `super` end one level below the root; so the name
                // counts only where it is one of the root's modules.
                named.extend(reached.into_iter().filter(|name| MAY_USE.iter().any(|(known, _)| known == name)));
            }
            _ => {}
        }
    }
    named
}

/// Follows the paths that begin here, `above` levels below the root, and notes the name with which each leaves it.
fn reach(tokens: &[String], above: usize, named: &mut Vec<String>) {
    match tokens {
        [word, colons, rest @ ..] if word == "crate" && colons == "::" => reach(rest, 0, named),
        [word, colons, rest @ ..] if word == "super" && colons == "::" => reach(rest, above.saturating_sub(1), named),
        [word, ..] if word == "{" => members(tokens).into_iter().for_each(|member| reach(member, above, named)),
        [word, ..] if above == 0 => named.push(word.clone()),
        _ => {}
    }
}

/// The members of the group `{a, b::{c}, …}` that begins here, each from its first token on.
fn members(tokens: &[String]) -> Vec<&[String]> {
    let (mut members, mut depth, mut fresh) = (Vec::new(), 0, true);
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," if depth == 1 => fresh = true,
            other => {
                if depth == 1 && fresh {
                    members.push(&tokens[at..]);
                    fresh = false;
                }
                depth += usize::from(other == "{");
            }
        }
    }
    members
}

/// Names, `::`, and single other characters.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in code.chars() {
        let word = c.is_alphanumeric() || c == '_';
        match tokens.last_mut() {
            Some(last) if word && in_word => last.push(c),
            Some(last) if c == ':' && last == ":" => last.push(c),
            _ if c.is_whitespace() => {}
            _ => tokens.push(c.to_string()),
        }
        in_word = word;
    }
    tokens
}

/// The text with comments, strings and characters blanked.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let length = literal(rest, at.checked_sub(1).map(|before| chars[before]));
        if length == 0 {
            code.push(rest[0]);
            at += 1;
        } else {
            code.push(' ');
            at += length;
        }
    }
    code
}

/// How long the comment, string or character at the beginning of `rest` is; 0 where there is none.
fn literal(rest: &[char], before: Option<char>) -> usize {
    let until = |from: usize, end: &[char]| {
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match rest {
        ['/', '/', ..] => until(0, &['\n']),
        ['/', '*', ..] => block_comment(rest),
        ['r', '"' | '#', ..] if !in_word => {
            let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
            // `r#name` is a name.
            if rest.get(1 + hashes) != Some(&'"') {
                return 0;
            }
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            until(2 + hashes, &end)
        }
        ['"', ..] => quoted(rest, '"'),
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest, '\''),
        _ => 0,
    }
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn block_comment(rest: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Every `.rs` file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn dependencies_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&src);
    assert!(files.len() > 20, "only {} files: is this the right folder?", files.len());
    let mut all = Vec::new();
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        all.extend(problems(path, &text).into_iter().map(|problem| format!("src/{}: {problem}", path.display())));
    }
    assert!(all.is_empty(), "{all:#?}");
}

#[test]
fn every_test_file_says_what_it_is_about() {
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")) {
        assert!(fs::read_to_string(&file).unwrap().starts_with("//!"), "{}", file.display());
    }
}

#[test]
fn the_table_points_down() {
    for (at, (module, allowed)) in MAY_USE.iter().enumerate() {
        for name in *allowed {
            assert!(
                MAY_USE[..at].iter().any(|(lower, _)| lower == name),
                "`{module}` names `{name}`, which is not lower"
            );
        }
    }
}

/// The problems of a file whose first line is in order.
fn check(path: &str, code: &str) -> Vec<String> {
    problems(Path::new(path), &format!("//! A file.\n{code}"))
}

#[test]
fn what_is_forbidden_is_found() {
    for (path, code, named) in [
        ("model/a.rs", "use crate::broker::Broker;", "crate::broker"),
        ("broker/a.rs", "use crate::journal::Journal;", "crate::journal"),
        ("exec/mod.rs", "fn f() { crate::agent::run() }", "crate::agent"),
        ("hub/a.rs", "use crate::{model::{id, name}, agent::Agent};", "crate::agent"),
        ("hub/a.rs", "use crate::{\n    agent,\n};", "crate::agent"),
        ("server/mod.rs", "use super::model::id;", "crate::model"),
        ("journal/a/b.rs", "use super::super::super::cli;", "crate::cli"),
        ("operator/a.rs", "use super::{super::hub::Hub, b};", "crate::hub"),
        ("model/a.rs", "pub(in crate::cli) fn f() {}", "crate::cli"),
        ("model/a.rs", "let a = \"nats://x\"; crate::agent::f();", "crate::agent"),
        ("model/a.rs", "let a = '\"'; crate::agent::f(); let b = '\"';", "crate::agent"),
        ("model/a.rs", "fn f<'a>(a: &'a str) { crate::agent::f('a', a) }", "crate::agent"),
        ("model/a.rs", "let a = r#\"x\"y\"#; crate::agent::f();", "crate::agent"),
        ("model/a.rs", "use crate::*;", "crate::*"),
        ("model/a.rs", "use crate::Thing;", "crate::Thing"),
        ("model.rs", "use crate::agent;", "crate::agent"),
        ("stray.rs", "", "not in the table"),
        ("agent/a.rs", "use async_nats::Client;", "async_nats"),
        ("main.rs", "fn main() { ::async_nats::connect(\"\"); }", "async_nats"),
        ("lib.rs", "pub use async_nats;", "async_nats"),
    ] {
        let found = check(path, code);
        assert!(found.len() == 1 && found[0].contains(named), "{path}: {code}: {found:?}");
    }
    assert_eq!(problems(Path::new("model/a.rs"), "use std::fmt;").len(), 1, "no `//!`");
}

#[test]
fn what_is_allowed_passes() {
    for (path, code) in [
        ("broker/a.rs", "use async_nats::Client; use crate::model::id; use super::b; pub(crate) fn f() {}"),
        ("agent/a.rs", "use crate::{model, broker::{Broker, hub}, journal};"),
        ("model/a.rs", "/// See [`crate::agent`] and async_nats.\n/* crate::agent /* async_nats */ */\nfn f() {}"),
        ("model/a.rs", "const A: &str = \"crate::agent async_nats \\\" crate::agent\";"),
        ("model/a.rs", "const A: &str = r##\"crate::agent \"# async_nats\"##;"),
        ("model/a/b.rs", "use super::super::name; mod tests { use super::super::agent; }"),
        ("main.rs", "fn main() { edgeward::cli::main() }"),
        ("lib.rs", "pub mod agent; pub use crate::model::name;"),
        ("agent/a.rs", "fn f(my_async_nats_thing: u8, r#type: u8) {}"),
    ] {
        assert_eq!(check(path, code), Vec::<String>::new(), "{path}: {code}");
    }
}
