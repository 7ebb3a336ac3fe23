//! The README says what the code does, as far as that can be compared.

use edgeward::model::config::{Config, Sources};
use edgeward::model::error_event::Code;
use std::fs;
use std::path::Path;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn the_table_of_error_codes_is_the_codes() {
    let readme = file("README.md");
    let table = readme.split("## Error codes").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let codes: Vec<String> =
        Code::TABLE.iter().map(|(code, meaning)| format!("| `{code}` | {} |", meaning.trim())).collect();
    assert_eq!(rows, codes);
}

#[test]
fn the_sample_configuration_is_the_defaults_of_every_key() {
    let readme = file("README.md");
    let sample = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let sources = Sources { file: Some(("README.md".to_owned(), sample.to_owned())), ..Sources::default() };
    assert_eq!(Config::load(&sources).unwrap(), Config::default());
    let all = serde_json::to_value(Config::default()).unwrap();
    let tables = [&all, &all["agent"], &all["agent"]["escalation"], &all["hub"]];
    for key in tables.into_iter().flat_map(|table| table.as_object().unwrap().keys()) {
        let is_shown = sample.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()).any(|word| word == key);
        assert!(is_shown, "`{key}` is not shown");
    }
}

#[test]
fn the_map_stays_short_enough_to_read() {
    let lines = file("ARCHITECTURE.md").lines().count();
    assert!(lines <= 200, "{lines} lines");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for name in DOCUMENTS {
        let text = file(name);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let path = root.join(name).with_file_name(target);
            assert!(path.exists(), "{name}: {target}");
            seen += 1;
        }
    }
    assert!(seen > 5, "{seen} links");
}

const DOCUMENTS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/deployment.md",
    "docs/design/runner.md",
    "docs/faults/README.md",
];
