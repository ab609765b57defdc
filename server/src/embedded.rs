//! A private Postgres in a data folder, for a server without a `DATABASE_URL`.
//!
//! It listens on a Unix socket in a folder that only its user (and root) can enter, and on no network address. It is
//! started with the server and stopped with it; its data stay. If the server was killed, its Postgres lives on as an
//! orphan: the next start of a server on the same folder stops it cleanly and starts its own, so there is one road only.
//!
//! Postgres refuses to run as root. A server that is root starts it as the user `postgres` if there is one, else as
//! `nobody`.

mod binaries;
mod folder;
mod process;
pub mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};

use binaries::Binaries;
use folder::Folder;
use process::Postgres;

/// Name of the database.
pub const DATABASE: &str = "nftfleet";
/// Name of the database's owner.
const ROLE: &str = "nftfleet";
/// Part of the socket's file name; nothing listens on the network.
const PORT: u16 = 5432;
/// How long Postgres may take until it answers. Crash recovery of a large database takes its time.
const READY_WITHIN: Duration = Duration::from_mins(5);

/// Why the private Postgres can't run.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No `initdb` and `postgres` were found.
    #[error(
        "can't find PostgreSQL's initdb and postgres{} in any of {}; install PostgreSQL 15 or newer (Debian: apt install \
         postgresql), or give DATABASE_URL",
        version.as_ref().map(|v| format!(" of version {v}, which wrote the data folder,")).unwrap_or_default(),
        searched.join(", ")
    )]
    NoBinaries {
        /// Where was looked.
        searched: Vec<String>,
        /// The major version that is needed, if only one will do.
        version: Option<String>,
    },
    /// A server that is root found no user to run Postgres as.
    #[error("Postgres must not run as root, and there is neither a user postgres nor a user nobody")]
    NoUser,
    /// Another server uses the data folder.
    #[error("another nftfleet-server uses the data folder {}", .0.display())]
    InUse(PathBuf),
    /// The user that runs Postgres can't get to the data folder.
    #[error("the user {user}, who runs Postgres, may not enter {}; choose another data folder", folder.display())]
    NoWay {
        /// The user's name.
        user: String,
        /// The first folder on the way that is closed.
        folder: PathBuf,
    },
    /// A folder in the temporary folder belongs to someone else.
    #[error("{} is not a folder of the user who runs Postgres; remove it", .0.display())]
    ForeignFolder(PathBuf),
    /// A file or folder could not be used.
    #[error("can't {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("can't start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// Postgres ended while it was to start.
    #[error("postgres ended with {status}; the end of its log {}: {tail}", log.display())]
    Ended {
        /// Its exit status.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Postgres does not answer.
    #[error("postgres does not answer after {} s", READY_WITHIN.as_secs())]
    Silent(#[source] sqlx::Error),
    /// The database could not be made.
    #[error("can't create the database {DATABASE}")]
    Database(#[source] sqlx::Error),
    /// A Postgres that an earlier server left behind does not stop.
    #[error("an orphaned postgres (process {0}) of this data folder does not stop")]
    OrphanStays(i32),
}

/// A running private Postgres. It is stopped by [`Embedded::stop`], or asked to stop when dropped.
#[derive(Debug)]
pub struct Embedded {
    postgres: Postgres,
    options: PgConnectOptions,
    // Held as long as Postgres runs: keeps a second server away from the folder.
    _folder: Folder,
}

impl Embedded {
    /// Starts Postgres on `data`, which is made if it does not exist, and makes the database [`DATABASE`] in it.
    pub async fn start(data: &Path) -> Result<Self, EmbeddedError> {
        Self::start_with(data, &[]).await
    }

    /// The same with Postgres settings (`name=value`) on top.
    pub(crate) async fn start_with(data: &Path, settings: &[&str]) -> Result<Self, EmbeddedError> {
        let folder = Folder::open(data)?;
        let binaries = Binaries::find(folder.version()?.as_deref())?;
        folder.initialise(&binaries)?;
        process::stop_orphan(&folder).await?;
        let mut postgres = Postgres::start(&binaries, &folder, settings)?;
        let options = PgConnectOptions::new_without_pgpass()
            .socket(folder.sockets())
            .port(PORT)
            .username(ROLE)
            .database(DATABASE)
            .application_name("nftfleet-server");
        wait_until_ready(&mut postgres, &options).await?;
        create_database(&options).await.map_err(EmbeddedError::Database)?;
        Ok(Self {
            postgres,
            options,
            _folder: folder,
        })
    }

    /// How to connect to the database.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The process id of Postgres.
    pub fn process_id(&self) -> u32 {
        self.postgres.id()
    }

    /// Ends every connection, stops Postgres and waits for it; the data stay.
    pub async fn stop(mut self) {
        self.postgres.stop().await;
    }
}

async fn wait_until_ready(postgres: &mut Postgres, options: &PgConnectOptions) -> Result<(), EmbeddedError> {
    let options = options.clone().database("postgres");
    let mut left = READY_WITHIN;
    let pause = Duration::from_millis(50);
    loop {
        match PgConnection::connect_with(&options).await {
            Ok(connection) => {
                // Whether it hears of the end of the connection does not matter.
                let _ = connection.close().await;
                return Ok(());
            }
            Err(why) => {
                postgres.check_alive()?;
                left = left.saturating_sub(pause);
                if left.is_zero() {
                    return Err(EmbeddedError::Silent(why));
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn create_database(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect_with(&options.clone().database("postgres")).await?;
    let there: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_database WHERE datname = $1")
        .bind(DATABASE)
        .fetch_optional(&mut connection)
        .await?;
    if there.is_none() {
        connection.execute("CREATE DATABASE nftfleet").await?;
    }
    connection.close().await
}
