//! Who we are to the broker: credentials as they lie in files, and how far one may speak with them.
//!
//! Owns the rule that without credentials of one's own only loopback is spoken to, and how an address is shown. Never
//! connects, and never says what a secret is.

use super::connect::ConnectOptions;
use super::error::BrokerError;
use crate::model::config::Config;
use crate::model::rights::is_sample_key;
use async_nats::ServerAddr;
use nkeys::KeyPair;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// How we prove who we are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    /// Not at all: development, on loopback.
    #[default]
    Open,
    /// A credentials file: JWT and seed.
    Creds(PathBuf),
    /// A file with an nkey seed.
    Nkey(PathBuf),
}

impl Access {
    /// As a configuration says.
    pub fn from_config(config: &Config) -> Access {
        match (&config.creds, &config.nkey) {
            (Some(creds), _) => Access::Creds(creds.clone()),
            (None, Some(nkey)) => Access::Nkey(nkey.clone()),
            (None, None) => Access::Open,
        }
    }
}

/// Without credentials only loopback; with sample keys, too.
pub(super) fn check_reach(options: &ConnectOptions, addresses: &[ServerAddr]) -> Result<(), BrokerError> {
    let Some(far) = addresses.iter().find(|address| !is_loopback(address)) else { return Ok(()) };
    let far = without_password(far.as_url_str());
    match &options.access {
        Access::Open if options.insecure => Ok(()),
        Access::Open => Err(BrokerError::Options(format!(
            "{far} is another host and there are no credentials: give --creds or --nkey, or --insecure if the link is trusted"
        ))),
        Access::Nkey(path) => {
            let key = KeyPair::from_seed(&read_seed(path)?)
                .map_err(|e| BrokerError::Options(format!("nkey {}: {e}", path.display())))?;
            if is_sample_key(&key.public_key()) {
                return Err(BrokerError::Options(format!(
                    "{} is a sample key that everybody knows; it is refused off loopback ({far}): make keys of your own",
                    path.display()
                )));
            }
            Ok(())
        }
        Access::Creds(_) => Ok(()),
    }
}

/// True for addresses on this machine: `localhost`, `127.0.0.0/8`, `::1`. The host is the one that is connected to, whatever
/// else an address has in it.
fn is_loopback(address: &ServerAddr) -> bool {
    let host = address.host();
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An address as it may be shown: the user, password or token in it are nobody's to see.
pub fn without_password(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").map_or(("", address), |(scheme, rest)| (scheme, rest));
    let rest = rest.rsplit_once('@').map_or_else(|| rest.to_owned(), |(_, host)| format!("***@{host}"));
    if scheme.is_empty() { rest } else { format!("{scheme}://{rest}") }
}

/// The JWT and the key of a credentials file.
pub(super) fn read_creds(path: &Path) -> Result<(String, KeyPair), BrokerError> {
    let bad = |what: &str| BrokerError::Options(format!("credentials {}: {what}", path.display()));
    let text = read_secret(path)?;
    let blocks = blocks(&text);
    let jwt = blocks.first().ok_or_else(|| bad("no user JWT in this file"))?;
    let seed = blocks.get(1).ok_or_else(|| bad("no nkey seed in this file"))?;
    let key = KeyPair::from_seed(seed).map_err(|e| bad(&e.to_string()))?;
    Ok(((*jwt).to_owned(), key))
}

/// What stands alone between two lines of dashes, such as `-----BEGIN USER NKEY SEED-----`.
fn blocks(text: &str) -> Vec<&str> {
    let is_fence = |line: &str| line.starts_with("---") && line.ends_with("---");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let threes = lines.windows(3).filter(|three| is_fence(three[0]) && is_fence(three[2]));
    threes.map(|three| three[1]).filter(|block| !block.is_empty() && !is_fence(block)).collect()
}

/// The seed in an nkey file.
pub(super) fn read_seed(path: &Path) -> Result<String, BrokerError> {
    let text = read_secret(path)?;
    let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
    seed.map(str::to_owned)
        .ok_or_else(|| BrokerError::Options(format!("{}: no nkey seed in this file", path.display())))
}

fn read_secret(path: &Path) -> Result<String, BrokerError> {
    std::fs::read_to_string(path).map_err(|e| BrokerError::Options(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for near in ["nats://127.0.0.1:4222", "localhost:4222", "127.9.9.9", "nats://[::1]:4222", "tls://a:b@localhost"]
        {
            assert!(is_loopback(&near.parse().unwrap()), "{near}");
        }
        for far in [
            "nats://10.0.0.1:4222",
            "broker.example:4222",
            "localhost.evil.example",
            "nats://127.0.0.1@evil:4222",
            "nats://evil:4222/@127.0.0.1",
            "nats://evil:4222?@127.0.0.1",
            "nats://evil:4222#@localhost",
        ] {
            assert!(!is_loopback(&far.parse().unwrap()), "{far}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        assert_eq!(without_password("nats://ops:s3cr3t@h:4222"), "nats://***@h:4222");
        assert_eq!(without_password("nats://h:4222"), "nats://h:4222");
        assert_eq!(without_password("token@h"), "***@h");
    }

    fn creds(text: &str) -> Result<(String, KeyPair), BrokerError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_creds(file.path())
    }

    #[test]
    fn credentials_are_read_as_the_tools_write_them() {
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq-_.c2ln\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n"
        );
        for text in [text.clone(), text.replace('\n', "\r\n"), text.trim_end_matches(['*', '\n']).to_owned()] {
            let (jwt, read) = creds(&text).unwrap();
            assert_eq!((jwt.as_str(), read.public_key()), ("eyJ0.eyJq-_.c2ln", key.public_key()));
        }
        for (text, why) in [
            ("", "no user JWT"),
            ("-----BEGIN-----\neyJ\n", "no user JWT"),
            (text.split("****").next().unwrap(), "no nkey seed"),
            (&text.replace(&seed, "SUNOSEED"), "credentials"),
        ] {
            let error = creds(text).err().unwrap().to_string();
            assert!(error.contains(why) && !error.contains("SUNOSEED"), "{error}");
        }
    }
}
