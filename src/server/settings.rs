//! The configuration and arguments that a server is started with. Text only.
//!
//! In a nats-server configuration a later key replaces an earlier one, blocks as a whole. So the order is:
//! the file that was given, what this module always sets, the caller's extra text. The listener is set by
//! arguments, which replace whatever the configuration says.

use std::fmt::Write;
use std::path::{Component, Path};

use super::run::{Options, RunError};

/// The text of the configuration file in `options.store_dir` (an absolute path).
pub fn text(options: &Options) -> Result<String, RunError> {
    let mut text = String::new();
    let folder = &options.store_dir;
    match &options.config {
        Some(file) => {
            let file = std::path::absolute(file).map_err(|source| RunError::Io { path: file.clone(), source })?;
            line(&mut text, format_args!("include \"{}\"", relative(folder, &file)?));
        }
        None => line(&mut text, format_args!("server_name: \"edgeward\"")),
    }
    // A dead client is noticed within a minute; the default takes five.
    line(&mut text, format_args!("ping_interval: \"20s\"\nping_max: 2"));
    line(&mut text, format_args!("pid_file: \"{}\"", plain(&folder.join("nats-server.pid"))?));
    if let Some(bytes) = options.max_payload {
        line(&mut text, format_args!("max_payload: {bytes}"));
    }
    let sync = if options.sync_always { "sync_interval: always" } else { "" };
    // Without the limit the server refuses the 1001st consumer of a stream, and each node has one.
    line(
        &mut text,
        format_args!(
            "jetstream {{\n  store_dir: \"{}\"\n  limits {{ default_max_consumers: -1 }}\n  {sync}\n}}",
            plain(folder)?
        ),
    );
    text.push_str(&options.extra_config);
    text.push('\n');
    Ok(text)
}

/// The arguments; without a port the server takes a free one and writes it to a file in `ports`.
pub fn arguments(config: &Path, ports: &Path, port: Option<u16>) -> Result<Vec<String>, RunError> {
    let port = port.map_or("-1".to_owned(), |port| port.to_string());
    let (config, ports) = (plain(config)?, plain(ports)?);
    let all = ["--config", config, "--addr", "127.0.0.1", "--port", &port, "--ports_file_dir", ports];
    Ok(all.map(str::to_owned).to_vec())
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// The path as it can stand between quotes.
fn plain(path: &Path) -> Result<&str, RunError> {
    path.to_str()
        .filter(|text| !text.contains(|c: char| matches!(c, '"' | '\\') || c.is_control()))
        .ok_or_else(|| RunError::Path(path.to_owned()))
}

/// `file` as seen from `folder`: nats-server takes an include to be relative, even with a leading slash.
fn relative(folder: &Path, file: &Path) -> Result<String, RunError> {
    let up = folder.components().filter(|part| matches!(part, Component::Normal(_))).count();
    let file = plain(file)?;
    Ok("../".repeat(up) + file.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_comes_after_the_given_file_and_before_the_extra_text() {
        let mut options = Options::new("/bin/nats-server", "/tmp/a b/store");
        options.config = Some("/etc/nats/nats-server.conf".into());
        options.extra_config = "max_connections: 7".to_owned();
        options.max_payload = Some(2048);
        options.sync_always = true;
        let text = text(&options).unwrap();
        assert!(text.starts_with("include \"../../../etc/nats/nats-server.conf\"\n"), "{text}");
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part} in {text}"));
        assert!(at("store_dir: \"/tmp/a b/store\"") < at("max_connections: 7"));
        assert!(at("max_payload: 2048") < at("sync_interval: always"));
    }

    #[test]
    fn a_path_that_would_break_the_file_is_refused() {
        for bad in ["/tmp/a\"b", "/tmp/a\nb", "/tmp/a\\b"] {
            let error = text(&Options::new("/bin/nats-server", bad)).unwrap_err();
            assert!(matches!(error, RunError::Path(_)), "{error}");
        }
    }
}
