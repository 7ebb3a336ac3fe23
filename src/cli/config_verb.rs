//! `edgeward config`: is it right, and what holds.

use super::error::CliError;
use super::exit::ExitCode;
use super::output::{self, Format};
use super::session::Session;
use crate::broker::without_password;
use crate::model::config::Config;
use crate::model::policy::Policy;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigVerb {
    /// Read the configuration and all files that it names; exit 2 where one is wrong.
    Check,
    /// Print what holds, all layers laid over each other, as TOML.
    Show,
}

/// Carries it out.
pub(super) fn run(session: &Session, args: &Args) -> Result<ExitCode, CliError> {
    let loaded = session.load(None)?;
    let mut out = std::io::stdout().lock();
    let file = loaded.file.as_ref().map(|file| file.display().to_string());
    match args.verb {
        ConfigVerb::Check => {
            let files = check_files(&loaded.config, loaded.file.as_deref())?;
            if session.format == Format::Json {
                drop(out);
                output::print_json(&serde_json::json!({ "v": 1, "file": file, "files": files }))?;
                return Ok(ExitCode::Succeeded);
            }
            writeln!(out, "ok: {}", file.as_deref().unwrap_or("no file, defaults and environment"))?;
            for file in files {
                writeln!(out, "ok: {}", file.display())?;
            }
        }
        ConfigVerb::Show => {
            let mut shown = loaded.config.clone();
            shown.server = shown.server.iter().map(|server| without_password(server)).collect();
            shown.from = loaded.from.clone();
            if session.format == Format::Json {
                drop(out);
                output::print_json(&serde_json::json!({ "v": 1, "file": file, "config": shown }))?;
                return Ok(ExitCode::Succeeded);
            }
            writeln!(out, "# {}", file.as_deref().unwrap_or("no file"))?;
            let text = toml::to_string(&shown).map_err(|e| CliError::usage(format!("it cannot be written: {e}")))?;
            write!(out, "{text}")?;
        }
    }
    Ok(ExitCode::Succeeded)
}

/// Reads the files that the configuration names; returns those that are there and right.
pub(super) fn check_files(config: &Config, file: Option<&Path>) -> Result<Vec<PathBuf>, CliError> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| CliError::usage(format!("{}: {error}", path.display()));
    let mut right = Vec::new();
    for (key, path) in [("creds", &config.creds), ("nkey", &config.nkey), ("tls_ca", &config.tls_ca)] {
        let Some(path) = path else { continue };
        std::fs::read(path)
            .map_err(|error| CliError::usage(format!("{}, which `{key}` names: {error}", path.display())))?;
        right.push(path.clone());
    }
    let beside = file.and_then(Path::parent).map(|folder| folder.join("policy.toml")).filter(|path| path.exists());
    if let Some(path) = config.agent.policy.clone().or(beside) {
        let text = std::fs::read_to_string(&path).map_err(|error| wrong(&path, &error))?;
        Policy::parse(&text).map_err(|error| wrong(&path, &error))?;
        right.push(path);
    }
    Ok(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_it_names_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy.toml");
        std::fs::write(&policy, "[[allow]]\nsenders = 7\n").unwrap();
        let error = check_files(&Config::default(), Some(&dir.path().join("edgeward.toml"))).unwrap_err();
        assert!(error.message.contains("policy.toml") && error.message.contains("line 2"), "{error:?}");
        let config = Config { creds: Some(dir.path().join("no.creds")), ..Config::default() };
        assert!(check_files(&config, None).unwrap_err().message.contains("no.creds"));
    }
}
