//! What lies in `deploy/` is what systemd and edgeward accept.

use edgeward::model::config::{Config, Sources};
use edgeward::model::message::Kind;
use edgeward::model::policy::Policy;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const UNITS: [&str; 2] = ["edgeward-agent.service", "edgeward-hub.service"];

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a key that is given once.
fn value<'a>(unit: &'a str, key: &str) -> Option<&'a str> {
    unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// Writes the units with the path of the binary that was built: `verify` looks whether it can be run.
fn installed(folder: &Path) -> Vec<PathBuf> {
    let install = |name: &&str| {
        let path = folder.join(name);
        let unit = sample(name).replace("/usr/bin/edgeward", env!("CARGO_BIN_EXE_edgeward"));
        std::fs::write(&path, unit).unwrap();
        path
    };
    UNITS.iter().map(install).collect()
}

/// The agent's unit with one of its drop-ins, as it is installed.
fn installed_with(folder: &Path, dropin: &str) -> PathBuf {
    let agent = installed(folder).swap_remove(0);
    let dropins = folder.join("edgeward-agent.service.d");
    std::fs::create_dir(&dropins).unwrap();
    std::fs::write(dropins.join(dropin), sample(&format!("edgeward-agent.service.d/{dropin}"))).unwrap();
    agent
}

fn said(output: std::process::Output) -> String {
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn has_systemd_analyze() -> bool {
    let found = Command::new("systemd-analyze").arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "systemd-analyze is required in CI");
        eprintln!("SKIPPED: no systemd-analyze on the PATH; the units in deploy/ were not verified");
    }
    found
}

#[test]
fn systemd_takes_the_units_without_a_word() {
    if !has_systemd_analyze() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(installed(folder.path()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!UNITS.iter().any(|unit| said.contains(unit)), "{said}");
}

#[test]
fn systemd_takes_both_variants_of_the_agent() {
    if !has_systemd_analyze() {
        return;
    }
    for dropin in ["open.conf", "hardened.conf"] {
        let folder = tempfile::tempdir().unwrap();
        let agent = installed_with(folder.path(), dropin);
        let verify = |agent: &Path| {
            let mut command = Command::new("systemd-analyze");
            command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(agent).output().unwrap()
        };
        let output = verify(&agent);
        let (is_well, words) = (output.status.success(), said(output));
        assert!(is_well && !words.contains("edgeward-agent"), "{dropin}: {words}");
        // The drop-in is looked at: one with a typo is told of.
        let path = folder.path().join("edgeward-agent.service.d").join(dropin);
        std::fs::write(&path, "[Service]\nProtectHomes=yes\n").unwrap();
        assert!(said(verify(&agent)).contains("ProtectHomes"), "{dropin}");
    }
}

#[test]
fn the_hardened_agent_is_confined_and_the_open_one_is_not() {
    if !has_systemd_analyze() {
        return;
    }
    let exposure = |dropin: &str, threshold: &str| {
        let folder = tempfile::tempdir().unwrap();
        let agent = installed_with(folder.path(), dropin);
        let threshold = format!("--threshold={threshold}");
        let args = ["security", "--no-pager", "--offline=yes", &threshold];
        Command::new("systemd-analyze").args(args).arg(agent).output().unwrap()
    };
    let hardened = exposure("hardened.conf", "25");
    assert!(hardened.status.success(), "{}", said(hardened));
    assert!(!exposure("open.conf", "25").status.success());
}

#[test]
fn the_hub_is_confined() {
    if !has_systemd_analyze() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let hub = installed(folder.path()).swap_remove(1);
    // Exposure in tenths: 20 is 2.0 of 10, "OK".
    let output = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=yes", "--threshold=20"])
        .arg(hub)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_units_keep_their_promises() {
    for name in UNITS {
        let unit = sample(name);
        for (key, wanted) in [
            ("Type", "notify"),
            ("Restart", "always"),
            ("StartLimitIntervalSec", "0"),
            ("RestartPreventExitStatus", "100"),
        ] {
            assert_eq!(value(&unit, key), Some(wanted), "{name}: {key}");
        }
        let active: Vec<&str> = unit.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(!active.iter().any(|line| line.contains("network-online")), "{name}");
        assert!(value(&unit, "WatchdogSec").is_some(), "{name}");
    }
    assert_eq!(value(&sample(UNITS[0]), "KillMode"), Some("process"), "commands outlive the agent");
    assert_eq!(value(&sample(UNITS[0]), "Delegate"), Some("yes"), "commands get control groups");
    let stop: u64 = value(&sample(UNITS[0]), "TimeoutStopSec").unwrap().parse().unwrap();
    let needed = Config::default().agent.grace + Duration::from_secs(5);
    assert!(Duration::from_secs(stop) > needed, "killed before its grace is over");
}

#[test]
fn the_sample_configuration_is_the_defaults() {
    let file = Some(("deploy/edgeward.toml".to_owned(), sample("edgeward.toml")));
    assert_eq!(Config::load(&Sources { file, ..Sources::default() }).unwrap(), Config::default());
}

#[test]
fn the_sample_configuration_shows_every_key() {
    // What is a comment, too, as if it was set.
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|b| b == b'_' || b.is_ascii_lowercase()))
    };
    let set = |line: &str| match line.strip_prefix("# ") {
        Some(setting) if is_key(setting) || setting.starts_with('[') => setting.to_owned(),
        _ => line.to_owned(),
    };
    let all: Vec<String> = sample("edgeward.toml").lines().map(set).collect();
    let shown: Config = toml::from_str(&all.join("\n")).unwrap();
    let rule = shown.agent.errors.first().expect("a rule").clone();
    assert!(rule.problem().is_none() && rule.code.is_some() && rule.severity.is_some() && rule.process.is_some());

    let mut config = Config::default();
    config.agent.errors.push(rule);
    let (mut wanted, mut found) = (BTreeSet::new(), BTreeSet::new());
    keys(&serde_json::to_value(config).unwrap(), "", &mut wanted);
    keys(&serde_json::to_value(toml::from_str::<toml::Table>(&all.join("\n")).unwrap()).unwrap(), "", &mut found);
    let missing: Vec<&String> = wanted.difference(&found).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(wanted.contains("agent.errors.directive") && wanted.contains("hub.auto_nodes"), "{wanted:?}");
}

/// The path of every key: `agent.errors.code`.
fn keys(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys(value, &path, found);
                found.insert(path);
            }
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| keys(value, path, found)),
        _ => {}
    }
}

#[test]
fn the_sample_policy_is_read() {
    let policy = Policy::parse(&sample("policy.toml")).unwrap();
    let allows = |from: &str, kind, method: &str| policy.allows(&from.parse().unwrap(), kind, &method.parse().unwrap());
    assert!(allows("ops", Kind::Command, "shell") && allows("van2", Kind::Event, "log"));
    assert!(!allows("van2", Kind::Command, "shell"));
    assert!(allows("admin", Kind::Control, "stop") && !allows("ops", Kind::Control, "stop"));
}
