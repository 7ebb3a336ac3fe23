//! `edgeward.toml`: every key, its default, and how the layers (file, environment, flags) are laid over each other.
//!
//! Owns the shape of the configuration. Never reads a file or the environment itself; it is handed texts.

use super::directive::{Escalation, Rule};
use super::name::{NodeName, Sender};
use super::time::duration_text;
use config::{Config as Layers, Environment, FileFormat};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

/// The whole configuration of agent, hub and operator's tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Broker addresses, tried in turn: a list, or one text with commas.
    #[serde(deserialize_with = "text_or_list")]
    pub server: Vec<String>,
    /// A credentials file: a user's JWT and seed.
    pub creds: Option<PathBuf>,
    /// A file with a user's nkey seed.
    pub nkey: Option<PathBuf>,
    /// The certificate authority that signs the broker's certificate.
    pub tls_ca: Option<PathBuf>,
    /// The first token of every subject.
    pub prefix: String,
    /// The prefix of the JetStream API; found out by itself where absent.
    pub api_prefix: Option<String>,
    /// Talk to other hosts without credentials.
    pub insecure: bool,
    /// Who sends.
    pub from: Option<Sender>,
    /// This node's name; the first label of the host's name where absent.
    pub node: Option<NodeName>,
    /// Where journal, logs and `inmsg.txt` are.
    pub state_dir: Option<PathBuf>,
    /// The agent.
    pub agent: AgentConfig,
    /// The hub.
    pub hub: HubConfig,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// How often the node says how it is.
    #[serde(with = "duration_text")]
    pub interval: Duration,
    /// How many messages run at once.
    pub max_running: usize,
    /// The disk space that bodies of waiting messages may take: no lane more than a quarter, no sender more than half.
    pub journal_bytes: u64,
    /// How long events that run may go on after SIGTERM; commands go on outside the agent.
    #[serde(with = "duration_text")]
    pub grace: Duration,
    /// Bytes of each of a command's two outputs that are kept in full; of more, the first so many and the tail.
    pub output_bytes: u64,
    /// Bytes of output that are published in a second, of all commands together.
    pub output_rate: u64,
    /// What becomes of processes that a command leaves running.
    pub left_running: LeftRunning,
    /// The policy file; `policy.toml` beside the config file where absent.
    pub policy: Option<PathBuf>,
    /// Where `log` writes; `<state>/log` where absent.
    pub log_dir: Option<PathBuf>,
    /// Labels of this node.
    pub labels: BTreeMap<String, String>,
    /// Timeouts by method.
    #[serde(with = "duration_map")]
    pub timeouts: BTreeMap<String, Duration>,
    /// What is done about failures; the first that applies, ahead of what is built in.
    pub errors: Vec<Rule>,
    /// When restarting, or stopping, has not helped.
    pub escalation: Escalation,
}

/// What becomes of processes that a command leaves running when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeftRunning {
    /// They live on; where the command failed, its error says so.
    Report,
    /// They are ended.
    Kill,
}

/// `[hub]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// The disk space that the streams share, where the account has no limit of its own.
    pub store_bytes: u64,
    /// How long streams keep what they hold.
    #[serde(with = "duration_text")]
    pub retention: Duration,
    /// How many copies of each stream a cluster keeps.
    pub replicas: usize,
    /// Make a node of each new name that is written to; by default only without credentials.
    pub auto_nodes: Option<bool>,
    /// A stream that was quiet for so long is tried with a message for nobody: whether the broker still stores.
    #[serde(with = "duration_text")]
    pub probe: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            server: vec!["nats://127.0.0.1:4222".to_owned()],
            creds: None,
            nkey: None,
            tls_ca: None,
            prefix: "fleet".to_owned(),
            api_prefix: None,
            insecure: false,
            from: None,
            node: None,
            state_dir: None,
            agent: AgentConfig::default(),
            hub: HubConfig::default(),
        }
    }
}

impl Default for AgentConfig {
    fn default() -> AgentConfig {
        AgentConfig {
            interval: Duration::from_secs(30),
            max_running: 64,
            journal_bytes: 1 << 30,
            grace: Duration::from_secs(10),
            output_bytes: 64 << 20,
            output_rate: 8 << 20,
            left_running: LeftRunning::Report,
            policy: None,
            log_dir: None,
            labels: BTreeMap::new(),
            timeouts: BTreeMap::new(),
            errors: Vec::new(),
            escalation: Escalation::default(),
        }
    }
}

impl Default for HubConfig {
    fn default() -> HubConfig {
        HubConfig {
            store_bytes: 10 << 30,
            retention: Duration::from_secs(30 * 86_400),
            replicas: 1,
            auto_nodes: None,
            probe: Duration::from_secs(300),
        }
    }
}

/// The layers of a configuration, lowest first: file, environment, flags.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The config file: its name for messages, and its text.
    pub file: Option<(String, String)>,
    /// Environment variables, `EDGEWARD_…` as they are; `__` goes down into a table. Others are left alone.
    pub env: HashMap<String, String>,
    /// Flags: key and value.
    pub flags: Vec<(&'static str, String)>,
}

/// Below this a journal could not hold one message of each lane.
const MIN_JOURNAL: u64 = 64 << 10;

/// Below this one chunk takes longer than a publish may.
const MIN_RATE: u64 = 1 << 10;

/// As many copies of a stream as JetStream keeps.
const MOST_REPLICAS: usize = 5;

/// Variables with our prefix that are not configuration keys.
const NOT_KEYS: [&str; 4] = ["EDGEWARD_CONFIG", "EDGEWARD_LOG", "EDGEWARD_CACHE", "EDGEWARD_RUN"];

/// What a command's script is told of its message begins so; a tool of ours called in it must not take it for its own.
const MESSAGE_VARIABLES: &str = "EDGEWARD_MSG_";

/// What is wrong with a configuration: one text that names the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadConfig(pub String);

impl Config {
    /// Lays the layers over each other.
    pub fn load(sources: &Sources) -> Result<Config, BadConfig> {
        let mut layers = Layers::builder();
        if let Some((name, text)) = &sources.file {
            // Alone first: this parser tells line and column of a typo, the merge below cannot.
            toml::from_str::<Config>(text).map_err(|e| BadConfig(format!("{name}: {}", e.to_string().trim_end())))?;
            layers = layers.add_source(config::File::from_str(text, FileFormat::Toml));
        }
        let ours = |(name, _): &(&String, &String)| {
            name.starts_with("EDGEWARD_") && !name.starts_with(MESSAGE_VARIABLES) && !NOT_KEYS.contains(&name.as_str())
        };
        let env: HashMap<String, String> =
            sources.env.iter().filter(ours).map(|(n, v)| (n.clone(), v.clone())).collect();
        let env = Environment::with_prefix("EDGEWARD").prefix_separator("_").separator("__").source(Some(env));
        layers = layers.add_source(env);
        for (key, value) in &sources.flags {
            layers = layers.set_override(*key, value.as_str()).map_err(|e| BadConfig(e.to_string()))?;
        }
        let merged = layers.build().map_err(|e| BadConfig(e.to_string()))?;
        // The file was right alone, so this is about what lies over it.
        let over_file = |e| BadConfig(format!("environment (EDGEWARD_…) or options: {e}"));
        let mut config: Config = merged.try_deserialize().map_err(over_file)?;
        // An empty path takes back what a lower layer says.
        let empty = |path: &mut PathBuf| path.as_os_str().is_empty();
        config.creds.take_if(empty);
        config.nkey.take_if(empty);
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BadConfig> {
        let mut problems = Vec::new();
        if let Err(bad) = super::subject::Names::new(&self.prefix) {
            problems.push(bad.to_string());
        }
        if self.creds.is_some() && self.nkey.is_some() {
            problems.push("`creds` and `nkey` exclude each other".to_owned());
        }
        if self.server.iter().all(|s| s.trim().is_empty()) {
            problems.push("`server` is empty".to_owned());
        }
        if self.agent.interval < Duration::from_millis(100) {
            problems.push("`agent.interval` is below 100ms".to_owned());
        }
        if self.agent.journal_bytes < MIN_JOURNAL {
            problems.push(format!("`agent.journal_bytes` is below {MIN_JOURNAL}"));
        }
        if self.agent.output_rate < MIN_RATE {
            problems.push(format!("`agent.output_rate` is below {MIN_RATE}"));
        }
        problems.extend(self.agent.errors.iter().filter_map(Rule::problem));
        problems.extend(self.agent.escalation.problem());
        let zero = self.agent.timeouts.iter().filter(|(_, timeout)| timeout.is_zero());
        problems.extend(zero.map(|(method, _)| format!("`agent.timeouts.{method}` is zero")));
        if self.hub.retention < Duration::from_secs(60) {
            problems.push("`hub.retention` is below 1m".to_owned());
        }
        if self.hub.probe < Duration::from_millis(100) {
            problems.push("`hub.probe` is below 100ms".to_owned());
        }
        if !(1..=MOST_REPLICAS).contains(&self.hub.replicas) {
            problems.push(format!("`hub.replicas` is from 1 to {MOST_REPLICAS}"));
        }
        if problems.is_empty() { Ok(()) } else { Err(BadConfig(problems.join("; "))) }
    }

    /// True where it names credentials.
    pub fn has_credentials(&self) -> bool {
        self.creds.is_some() || self.nkey.is_some()
    }
}

fn text_or_list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an address or a list of addresses")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = seq.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_any(Visitor)
}

/// Serde for maps of durations written as text.
mod duration_map {
    use crate::model::time::{format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;
    use std::time::Duration;

    pub fn serialize<S: Serializer>(map: &BTreeMap<String, Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        let texts: BTreeMap<&str, String> = map.iter().map(|(k, v)| (k.as_str(), format_duration(*v))).collect();
        texts.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Duration>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
        let parse = |(key, text): (String, String)| Ok((key, parse_duration(&text).map_err(serde::de::Error::custom)?));
        texts.into_iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &str, env: &[(&str, &str)], flags: Vec<(&'static str, String)>) -> Sources {
        Sources {
            file: Some(("edgeward.toml".to_owned(), file.to_owned())),
            env: env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            flags,
        }
    }

    #[test]
    fn flags_win_over_environment_and_environment_over_file() {
        let file = "from = \"ops\"\n[agent]\ninterval = \"1s\"\nmax_running = 2\n";
        let env = [("EDGEWARD_FROM", "bob"), ("EDGEWARD_AGENT__MAX_RUNNING", "7"), ("EDGEWARD_NODE", "0123")];
        let config = Config::load(&sources(file, &env, vec![("from", "carol".into())])).unwrap();
        assert_eq!(config.from.unwrap().as_str(), "carol");
        assert_eq!((config.agent.interval, config.agent.max_running), (Duration::from_secs(1), 7));
        assert_eq!(config.node.unwrap().as_str(), "0123", "text stays text");
    }

    #[test]
    fn a_typo_in_the_file_is_told_with_line_and_column() {
        let error =
            Config::load(&sources("prefix = \"fleet\"\n[agent]\nintervall = \"1s\"\n", &[], vec![])).unwrap_err();
        assert!(
            error.0.contains("edgeward.toml") && error.0.contains("line 3") && error.0.contains("intervall"),
            "{error}"
        );
    }

    #[test]
    fn a_typo_in_the_environment_names_the_variable() {
        let error = Config::load(&sources("", &[("EDGEWARD_FORM", "x")], vec![])).unwrap_err();
        assert!(error.0.contains("form") && error.0.contains("environment"), "{error}");
        let error = Config::load(&sources("", &[("EDGEWARD_AGENT__INTERVAL", "x")], vec![])).unwrap_err();
        assert!(error.0.contains("agent.interval") && error.0.contains("environment"), "{error}");
        assert!(Config::load(&sources("", &[("EDGEWARD_LOG", "debug")], vec![])).is_ok());
    }

    #[test]
    fn numbers_that_no_service_can_work_with_are_refused() {
        for (file, key) in [
            ("[hub]\nprobe = \"0s\"", "hub.probe"),
            ("[hub]\nreplicas = 0", "hub.replicas"),
            ("[hub]\nreplicas = 6", "hub.replicas"),
            ("[agent.timeouts]\nshell = \"0s\"", "agent.timeouts.shell"),
        ] {
            let error = Config::load(&sources(file, &[], vec![])).unwrap_err();
            assert!(error.0.contains(key), "{error}");
        }
    }

    #[test]
    fn servers_come_as_list_or_text() {
        let list = Config::load(&sources("server = [\"a:1\", \"b:2\"]", &[], vec![])).unwrap().server;
        let text = Config::load(&sources("", &[("EDGEWARD_SERVER", "a:1, b:2")], vec![])).unwrap().server;
        assert_eq!(list, text);
    }

    #[test]
    fn an_empty_path_takes_back_a_lower_layer() {
        let flags = vec![("creds", "a.creds".to_owned()), ("nkey", String::new())];
        let config = Config::load(&sources("nkey = \"b.nk\"", &[], flags)).unwrap();
        assert_eq!((config.creds, config.nkey), (Some("a.creds".into()), None));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let error = Config::load(&sources("prefix = \"a.b\"\nserver = []\n", &[], vec![])).unwrap_err();
        assert!(error.0.contains("prefix") && error.0.contains("server"), "{error}");
    }
}
