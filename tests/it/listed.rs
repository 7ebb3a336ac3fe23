//! Every file below `tests/it` is part of the test binary: one that no `mod` line names would be compiled by nobody,
//! and its tests would be green for ever.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules that a file declares with `mod name;`.
fn declared(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .map(|line| line.strip_prefix("pub ").unwrap_or(line))
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .collect()
}

/// Files and folders beside `root` (a `main.rs` or `mod.rs`) that it does not declare, and the same further down.
fn unlisted(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let declared = declared(&text);
    let folder = root.parent().unwrap();
    let mut missing = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let inner = path.join("mod.rs");
        let module = path.is_dir() || path.extension().is_some_and(|e| e == "rs");
        if path == root || !module {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        if !declared.contains(&name) {
            missing.push(path);
        } else if inner.exists() {
            missing.extend(unlisted(&inner));
        }
    }
    missing
}

#[test]
fn every_file_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/main.rs");
    let missing = unlisted(&root);
    assert!(missing.is_empty(), "no `mod` line names these: {missing:#?}");
}

#[test]
fn a_forgotten_file_is_found_at_any_depth() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("deep")).unwrap();
    fs::write(at("main.rs"), "mod deep;\nmod known;\n// mod forgotten;\n").unwrap();
    fs::write(at("deep/mod.rs"), "pub mod a;\n").unwrap();
    for file in ["known.rs", "forgotten.rs", "deep/a.rs", "deep/b.rs"] {
        fs::write(at(file), "").unwrap();
    }
    let mut missing = unlisted(&at("main.rs"));
    missing.sort();
    assert_eq!(missing, [at("deep/b.rs"), at("forgotten.rs")]);
}
