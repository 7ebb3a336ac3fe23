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

/// What `folder` holds that `root`, the file of its module, does not declare, and the same further down.
fn unlisted(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let declared = declared(&text);
    let mut missing = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_module = path.is_dir() || path.extension().is_some_and(|e| e == "rs");
        if path == root || !is_module {
            continue;
        }
        if !declared.contains(&path.file_stem().unwrap().to_str().unwrap()) {
            missing.push(path);
        } else if path.is_dir() {
            let inside = path.join("mod.rs");
            let beside = path.with_extension("rs");
            missing.extend(unlisted(if inside.exists() { &inside } else { &beside }, &path));
        }
    }
    missing
}

#[test]
fn every_file_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let missing = unlisted(&folder.join("main.rs"), &folder);
    assert!(missing.is_empty(), "no `mod` line names these: {missing:#?}");
}

#[test]
fn a_forgotten_file_is_found_at_any_depth() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("deep")).unwrap();
    fs::create_dir(at("known")).unwrap();
    for (file, text) in [
        ("main.rs", "mod deep;\nmod known;\n// mod forgotten;\n"),
        ("deep/mod.rs", "pub mod a;\n"),
        ("known.rs", "mod c;\n"),
    ] {
        fs::write(at(file), text).unwrap();
    }
    for file in ["forgotten.rs", "deep/a.rs", "deep/b.rs", "known/c.rs", "known/d.rs"] {
        fs::write(at(file), "").unwrap();
    }
    let mut missing = unlisted(&at("main.rs"), folder.path());
    missing.sort();
    assert_eq!(missing, [at("deep/b.rs"), at("forgotten.rs"), at("known/d.rs")]);
}
