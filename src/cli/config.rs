//! Which configuration holds: finding the file, laying flags, environment, `nats` context and file over each other, and
//! telling who sends.
//!
//! Owns their order: flags, environment, context, file. Never connects.

use super::context::{self, NatsContext};
use super::error::CliError;
use crate::broker::{Access, ConnectOptions};
use crate::model::config::{Config, Sources};
use crate::model::name::Sender;
use crate::model::subject::Names;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Options that every verb has.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct GlobalArgs {
    /// The broker's addresses, separated by commas.
    #[arg(long, global = true, value_name = "URLS")]
    pub server: Option<String>,
    /// A credentials file: a user's JWT and seed.
    #[arg(long, global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// A file with a user's nkey seed.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "creds")]
    pub nkey: Option<PathBuf>,
    /// The certificate authority of the broker's certificate.
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// A context of the `nats` CLI (operator's verbs only).
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Talk to other hosts without credentials.
    #[arg(long, global = true)]
    pub insecure: bool,
}

impl GlobalArgs {
    /// The option that tells which broker is meant, or who one is there, where one is given.
    pub(super) fn broker_option(&self) -> Option<&'static str> {
        let given = [
            ("--server", self.server.is_some()),
            ("--creds", self.creds.is_some()),
            ("--nkey", self.nkey.is_some()),
            ("--tls-ca", self.tls_ca.is_some()),
            ("--context", self.context.is_some()),
        ];
        given.into_iter().find_map(|(name, is_given)| is_given.then_some(name))
    }
}

/// The environment, taken once.
#[derive(Debug, Clone, Default)]
pub struct Env {
    vars: HashMap<String, String>,
}

impl Env {
    /// The process's own; what is not UTF-8 is left out.
    pub fn current() -> Env {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Env { vars: std::env::vars_os().filter_map(text).collect() }
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub fn config_home(&self) -> Option<PathBuf> {
        let xdg = self.get("XDG_CONFIG_HOME").map(PathBuf::from);
        xdg.or_else(|| self.get("HOME").map(|home| Path::new(home).join(".config")))
    }
}

/// Who asks: only an operator's verbs read `nats` contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `send`, `status`, …
    Operator,
    /// `agent`, `hub`, `up`, `demo`.
    Service,
}

/// The configuration that holds.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// All keys.
    pub config: Config,
    /// The file, where there is one.
    pub file: Option<PathBuf>,
    /// Who sends, where that is known.
    pub from: Option<Sender>,
    /// Whose inbox answers come to, where a context tells.
    inbox: Option<String>,
}

impl Loaded {
    /// Finds and lays over each other. `from` is the verb's own `--from`.
    pub fn load(global: &GlobalArgs, from: Option<&Sender>, env: &Env, scope: Scope) -> Result<Loaded, CliError> {
        let file = find_file(global, env)?;
        let wanted = global.context.as_deref().or_else(|| env.get("NATS_CONTEXT"));
        let context = match scope {
            Scope::Operator => context::read(env, wanted)?.unwrap_or_default(),
            Scope::Service if global.context.is_some() => {
                return Err(CliError::usage("--context is for the operator's verbs; a service reads none"));
            }
            Scope::Service => NatsContext::default(),
        };
        let mut flags = flags(global, from);
        flags.extend(access(global, env, &context));
        let sources = Sources { file, env: with_fallbacks(env, &context), flags };
        let config = Config::load(&sources)?;
        let inbox = (!context.inbox_prefix.is_empty()).then(|| context.inbox_prefix.clone());
        // Rights give a user an inbox under its own name: a context that has it tells the name, too.
        let of_inbox = || inbox.as_deref()?.strip_prefix("_INBOX_")?.parse().ok();
        let from = sender(&config, env)?.or_else(of_inbox);
        Ok(Loaded { config, file: sources.file.map(|(name, _)| name.into()), from, inbox })
    }

    /// Who sends; without one nothing can be sent.
    pub fn sender(&self) -> Result<&Sender, CliError> {
        self.from.as_ref().ok_or_else(|| {
            CliError::usage("it is not known who sends")
                .hint("give --from NAME, EDGEWARD_FROM, or `from` in the config")
        })
    }

    /// How to connect, under this name in the broker's list of connections.
    pub fn connect_options(&self, name: &str) -> Result<ConnectOptions, CliError> {
        let config = &self.config;
        Ok(ConnectOptions {
            servers: config.server.clone(),
            access: Access::from_config(config),
            tls_ca: config.tls_ca.clone(),
            insecure: config.insecure,
            name: name.to_owned(),
            identity: self.identity()?,
            names: Names::new(&config.prefix)?,
            api_prefix: config.api_prefix.clone(),
            keep_trying: false,
        })
    }

    /// The name in the inbox prefix `_INBOX_<name>`: the context's, else the sender's where there are credentials.
    pub(super) fn identity(&self) -> Result<Option<String>, CliError> {
        match &self.inbox {
            Some(prefix) => match prefix.strip_prefix("_INBOX_") {
                Some(name) => Ok(Some(name.to_owned())),
                None if prefix == "_INBOX" => Ok(None),
                None => Err(CliError::usage(format!("the context's inbox prefix `{prefix}` is not `_INBOX_<name>`"))),
            },
            None => Ok(self.from.as_ref().filter(|_| self.config.has_credentials()).map(ToString::to_string)),
        }
    }
}

fn find_file(global: &GlobalArgs, env: &Env) -> Result<Option<(String, String)>, CliError> {
    let named = global.config.clone().or_else(|| env.get("EDGEWARD_CONFIG").map(PathBuf::from));
    let read = |path: &Path| std::fs::read_to_string(path).map(|text| (path.display().to_string(), text));
    if let Some(path) = named {
        return read(&path).map(Some).map_err(|e| CliError::usage(format!("{}: {e}", path.display())));
    }
    let own = env.config_home().map(|home| home.join("edgeward/edgeward.toml"));
    for path in own.into_iter().chain([PathBuf::from("/etc/edgeward/edgeward.toml")]) {
        match read(&path) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(CliError::usage(format!("{}: {error}", path.display()))),
        }
    }
    Ok(None)
}

fn flags(global: &GlobalArgs, from: Option<&Sender>) -> Vec<(&'static str, String)> {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let given = [
        ("server", global.server.clone()),
        ("tls_ca", path(&global.tls_ca)),
        ("insecure", global.insecure.then(|| "true".to_owned())),
        ("from", from.map(ToString::to_string)),
    ];
    given.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))).collect()
}

/// Credentials count by layer: the highest layer that names any decides, and takes back what lower ones name.
fn access(global: &GlobalArgs, env: &Env, context: &NatsContext) -> Vec<(&'static str, String)> {
    let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
    let var = |name: &str| env.get(name).unwrap_or_default().to_owned();
    let layers = [
        (path(&global.creds), path(&global.nkey)),
        (var("EDGEWARD_CREDS"), var("EDGEWARD_NKEY")),
        (var("NATS_CREDS"), var("NATS_NKEY")),
        (context.creds.clone(), context.nkey.clone()),
    ];
    let named = layers.into_iter().find(|(creds, nkey)| !creds.is_empty() || !nkey.is_empty());
    named.map(|(creds, nkey)| vec![("creds", creds), ("nkey", nkey)]).unwrap_or_default()
}

/// The environment with the `nats` CLI's own variables and the context under our names, where ours are not set.
fn with_fallbacks(env: &Env, context: &NatsContext) -> HashMap<String, String> {
    let mut vars = env.vars.clone();
    // As everywhere: a variable that is set to nothing is not set.
    vars.retain(|_, value| !value.is_empty());
    let mut fallback = |ours: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            vars.entry(ours.to_owned()).or_insert_with(|| value.to_owned());
        }
    };
    fallback("EDGEWARD_SERVER", env.get("NATS_URL"));
    fallback("EDGEWARD_SERVER", Some(&context.url));
    fallback("EDGEWARD_TLS_CA", env.get("NATS_CA"));
    fallback("EDGEWARD_TLS_CA", Some(&context.ca));
    fallback("EDGEWARD_API_PREFIX", Some(&context.jetstream_api_prefix));
    vars
}

/// `from` of the configuration, else the name in the user JWT, else, without credentials only, the login name.
fn sender(config: &Config, env: &Env) -> Result<Option<Sender>, CliError> {
    if let Some(from) = &config.from {
        return Ok(Some(from.clone()));
    }
    let name = match (&config.creds, &config.nkey) {
        (Some(creds), _) => jwt_name(creds),
        (None, Some(_)) => None,
        (None, None) => login_name(env),
    };
    // A name that is no subject token cannot send; the verbs that need a sender say so.
    Ok(name.and_then(|name| name.parse().ok()))
}

/// The `name` in the user JWT of a credentials file. The broker checks the signature; we only read.
fn jwt_name(creds: &Path) -> Option<String> {
    let text = std::fs::read_to_string(creds).ok()?;
    let jwt = text.lines().map(str::trim).find(|line| line.matches('.').count() == 2 && !line.starts_with('-'))?;
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims.get("name")?.as_str().map(str::to_owned)
}

fn login_name(env: &Env) -> Option<String> {
    let told = env.get("LOGNAME").or_else(|| env.get("USER")).map(str::to_owned);
    told.or_else(|| {
        let uid = rustix::process::getuid().as_raw().to_string();
        let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
        let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        users.find(|fields| fields.get(2) == Some(&uid.as_str())).map(|fields| fields[0].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(files: &[(&str, &str)]) -> Home {
            let home = Home(tempfile::tempdir().unwrap());
            for (name, text) in files {
                let path = home.0.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            home
        }

        fn env(&self, vars: &[(&str, &str)]) -> Env {
            let home = [("HOME", self.0.path().to_str().unwrap()), ("LOGNAME", "olga")];
            let all = home.iter().chain(vars).map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            Env { vars: all.collect() }
        }
    }

    const CONTEXT: &str = r#"{"url":"nats://ctx:1","nkey":"~/ctx.nk","inbox_prefix":"_INBOX_ops",
        "jetstream_api_prefix":"fleet.api","description":"x"}"#;

    fn load(env: &Env, args: &GlobalArgs, scope: Scope) -> Loaded {
        Loaded::load(args, None, env, scope).unwrap()
    }

    #[test]
    fn flag_over_environment_over_context_over_file() {
        let home = Home::new(&[
            (
                ".config/edgeward/edgeward.toml",
                "server = \"nats://file:1\"\nfrom = \"filed\"\ncreds = \"file.creds\"\n",
            ),
            (".config/nats/context.txt", "work\n"),
            (".config/nats/context/work.json", CONTEXT),
        ]);
        let none = GlobalArgs::default();
        let loaded = load(&home.env(&[]), &none, Scope::Operator);
        assert_eq!(loaded.config.server, ["nats://ctx:1"]);
        assert_eq!(loaded.config.creds, None, "the context's nkey takes back the file's creds");
        assert!(loaded.config.nkey.as_ref().unwrap().ends_with("ctx.nk"));
        assert!(loaded.config.nkey.as_ref().unwrap().starts_with(home.0.path()));
        let options = loaded.connect_options("x").unwrap();
        assert_eq!((options.identity.as_deref(), options.api_prefix.as_deref()), (Some("ops"), Some("fleet.api")));

        let env = home.env(&[("NATS_URL", "nats://env:1"), ("NATS_CREDS", "env.creds")]);
        let loaded = load(&env, &none, Scope::Operator);
        assert_eq!(loaded.config.server, ["nats://env:1"]);
        assert_eq!((loaded.config.creds, loaded.config.nkey), (Some("env.creds".into()), None));

        let flags = GlobalArgs { server: Some("nats://flag:1".into()), nkey: Some("f.nk".into()), ..none.clone() };
        let loaded = load(&env, &flags, Scope::Operator);
        assert_eq!(loaded.config.server, ["nats://flag:1"]);
        assert_eq!((loaded.config.creds, loaded.config.nkey), (None, Some("f.nk".into())));

        let service = load(&home.env(&[]), &none, Scope::Service);
        assert_eq!(service.config.server, ["nats://file:1"], "services read no context");
        assert_eq!(service.from.unwrap().as_str(), "filed");
    }

    #[test]
    fn a_context_that_was_asked_for_must_be_there() {
        let home = Home::new(&[(".config/nats/context.txt", "gone")]);
        assert!(Loaded::load(&GlobalArgs::default(), None, &home.env(&[]), Scope::Operator).is_ok());
        let asked = GlobalArgs { context: Some("gone".into()), ..GlobalArgs::default() };
        let error = Loaded::load(&asked, None, &home.env(&[]), Scope::Operator).unwrap_err();
        assert!(error.exit == super::super::exit::ExitCode::Usage && error.message.contains("gone"), "{error:?}");
        let error = Loaded::load(&asked, None, &home.env(&[]), Scope::Service).unwrap_err();
        assert!(error.message.contains("--context is for the operator's verbs"), "{error:?}");
    }

    #[test]
    fn the_sender_is_told_by_flag_environment_file_jwt_or_login() {
        // {"name":"alice"}
        let jwt = "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJKV1QifQ.eyJuYW1lIjoiYWxpY2UifQ.c2ln\n------END NATS USER JWT------\n";
        let home = Home::new(&[("a.creds", jwt)]);
        let creds = home.0.path().join("a.creds").display().to_string();
        let from = |vars: &[(&str, &str)], flag: Option<&str>| {
            let flag: Option<Sender> = flag.map(|f| f.parse().unwrap());
            let loaded = Loaded::load(&GlobalArgs::default(), flag.as_ref(), &home.env(vars), Scope::Operator);
            loaded.unwrap().from.map(|from| from.to_string())
        };
        assert_eq!(from(&[], None).as_deref(), Some("olga"));
        assert_eq!(from(&[("NATS_CREDS", &creds)], None).as_deref(), Some("alice"));
        assert_eq!(from(&[("NATS_CREDS", &creds), ("EDGEWARD_FROM", "bob")], None).as_deref(), Some("bob"));
        assert_eq!(from(&[("EDGEWARD_FROM", "bob")], Some("carol")).as_deref(), Some("carol"));
        assert_eq!(from(&[("NATS_NKEY", "x.nk")], None), None, "credentials are not a login");
        assert_eq!(from(&[("LOGNAME", "o.lga")], None), None);
    }
}
