//! Databases for tests: one private Postgres per test process, and a fresh database with every migration for each test.
//!
//! A test process can end in any way, so nothing in it can be trusted to clean up. A small shell waits on a pipe that the
//! kernel closes with the test process, then stops Postgres and removes its folder.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::sync::OnceCell;

use super::Embedded;
use crate::store::MIGRATIONS;

/// A database of its own for one test.
#[derive(Debug)]
pub struct TestDatabase {
    /// Connections to it.
    pub pool: PgPool,
    /// How to connect to it.
    pub options: PgConnectOptions,
}

impl TestDatabase {
    /// A `DATABASE_URL` for a server that is a process of its own.
    pub fn url(&self) -> String {
        let folder = self.options.get_socket().map(|socket| socket.display().to_string());
        let database = self.options.get_database().unwrap_or_default();
        let user = self.options.get_username();
        format!(
            "postgres://{user}@localhost/{database}?host={}",
            folder.unwrap_or_default()
        )
    }
}

#[derive(Debug)]
struct Shared {
    embedded: Embedded,
    // Its input is closed by the kernel when this process ends.
    _guard: Child,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A fresh database with every migration.
///
/// # Panics
/// When Postgres is not installed or does not start: a test that can't have its database fails.
pub async fn database() -> TestDatabase {
    let shared = SHARED.get_or_init(start).await;
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let admin = shared.embedded.options().database("postgres");
    let mut connection = PgConnection::connect_with(&admin).await.expect("Postgres answers");
    connection
        .execute(AssertSqlSafe(format!(
            "CREATE DATABASE {name} TEMPLATE {}",
            super::DATABASE
        )))
        .await
        .expect("a database is made of the template");
    connection.close().await.expect("the connection closes");
    let options = shared.embedded.options().database(&name);
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect_lazy_with(options.clone());
    TestDatabase { pool, options }
}

async fn start() -> Shared {
    let folder = tempfile::Builder::new()
        .prefix("nftfleet-test-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .expect("there is room for a temporary folder")
        .keep();
    // Nothing of a test outlives a crash of the machine.
    let settings = [
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "max_connections=500",
    ];
    let embedded = Embedded::start_with(&folder, &settings).await.expect("Postgres starts");
    let guard = Command::new("/bin/sh")
        .arg("-c")
        .arg("read -r _; kill -INT \"$1\"; while kill -0 \"$1\" 2>/dev/null; do sleep 0.1; done; rm -rf \"$2\"")
        .arg("sh")
        .arg(embedded.process_id().to_string())
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("there is a shell");
    let mut template = PgConnection::connect_with(&embedded.options())
        .await
        .expect("Postgres answers");
    MIGRATIONS
        .run_direct(None, &mut template, false)
        .await
        .expect("the migrations run");
    template.close().await.expect("the connection closes");
    Shared {
        embedded,
        _guard: guard,
    }
}
