//! Flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::secret::SecretHash;

/// The central service of nftfleet.
#[derive(Clone, Debug, Parser)]
#[command(name = "nftfleet-server", version)]
pub struct Flags {
    /// Where to listen.
    #[arg(long, env = "NFTFLEET_LISTEN", default_value = "127.0.0.1:8640")]
    pub listen: SocketAddr,

    /// Postgres to use, for example `postgres://nftfleet@db/nftfleet`. Without it a private one is started in the data
    /// folder.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Data folder of the private Postgres.
    #[arg(long, env = "NFTFLEET_DATA_DIR", default_value = "./.nftfleet/server")]
    pub data_dir: PathBuf,

    /// File with the operators' bearer token. Needed unless the service listens on a loopback address only.
    #[arg(long, env = "NFTFLEET_OPERATOR_TOKEN_FILE")]
    pub operator_token_file: Option<PathBuf>,

    /// The operators' bearer token itself.
    #[arg(
        long,
        env = "NFTFLEET_OPERATOR_TOKEN",
        hide_env_values = true,
        conflicts_with = "operator_token_file"
    )]
    pub operator_token: Option<String>,

    /// How often rollouts are looked at when nothing happens, in seconds.
    #[arg(long, env = "NFTFLEET_TICK_SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub tick_seconds: u32,

    /// How log lines are written.
    #[arg(long, env = "NFTFLEET_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where the data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A Postgres that somebody runs.
    Url(String),
    /// A private Postgres in this folder.
    Embedded(PathBuf),
}

/// What the service is to do, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the data are.
    pub database: Database,
    /// The operators' token; without one their calls need none.
    pub operator_token: Option<SecretHash>,
    /// How often rollouts are looked at when nothing happens.
    pub tick_every: Duration,
}

/// Why the service can't run like this.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Anyone on the network could steer the fleet.
    #[error(
        "{0} is not a loopback address: give --operator-token-file or NFTFLEET_OPERATOR_TOKEN, so that not everyone who \
         reaches it can steer the fleet"
    )]
    TokenNeeded(SocketAddr),
    /// The token's file can't be read.
    #[error("can't read the operator token from {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The token is too weak.
    #[error("the operator token has {0} characters; at least 16 are needed")]
    TokenTooShort(usize),
}

impl Flags {
    /// Checks the flags and reads the token's file.
    pub fn check(self) -> Result<Config, ConfigError> {
        let token = match (self.operator_token, self.operator_token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(&path);
                Some(text.map_err(|source| ConfigError::TokenFile { path, source })?)
            }
            (None, None) => None,
        };
        let token = token.map(|t| t.trim().to_owned());
        match &token {
            Some(token) if token.len() < 16 => return Err(ConfigError::TokenTooShort(token.len())),
            None if !self.listen.ip().is_loopback() => return Err(ConfigError::TokenNeeded(self.listen)),
            _ => {}
        }
        Ok(Config {
            listen: self.listen,
            database: match self.database_url.filter(|url| !url.is_empty()) {
                Some(url) => Database::Url(url),
                None => Database::Embedded(self.data_dir),
            },
            operator_token: token.as_deref().map(SecretHash::of),
            tick_every: Duration::from_secs(self.tick_seconds.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str]) -> Result<Config, ConfigError> {
        let arguments = ["nftfleet-server"].iter().chain(arguments);
        Flags::try_parse_from(arguments).unwrap().check()
    }

    #[test]
    fn a_network_address_needs_a_token_and_loopback_does_not() {
        assert!(check(&["--listen", "127.0.0.1:0"]).unwrap().operator_token.is_none());
        assert!(check(&["--listen", "[::1]:0"]).is_ok());
        let open = check(&["--listen", "0.0.0.0:8640"]).unwrap_err();
        assert!(matches!(open, ConfigError::TokenNeeded(_)), "{open}");
        let token = "0123456789abcdef";
        let with = check(&["--listen", "0.0.0.0:8640", "--operator-token", token]).unwrap();
        assert_eq!(with.operator_token, Some(SecretHash::of(token)));
    }

    #[test]
    fn a_token_from_a_file_loses_its_line_feed_and_must_not_be_short() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let path = file.path().to_str().unwrap();
        let config = check(&["--operator-token-file", path]).unwrap();
        assert_eq!(config.operator_token, Some(SecretHash::of("0123456789abcdef")));
        let short = check(&["--operator-token", "short"]).unwrap_err();
        assert!(matches!(short, ConfigError::TokenTooShort(5)));
        let gone = check(&["--operator-token-file", "/nowhere/token"]).unwrap_err();
        assert!(matches!(gone, ConfigError::TokenFile { .. }));
    }
}
