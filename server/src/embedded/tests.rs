//! What becomes of the private Postgres when servers come, go and die.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sqlx::Row;

use super::*;

/// A folder that the user who runs Postgres can get to.
fn folder() -> tempfile::TempDir {
    folder_of_mode(0o755)
}

fn folder_of_mode(mode: u32) -> tempfile::TempDir {
    let permissions = fs::Permissions::from_mode(mode);
    tempfile::Builder::new().permissions(permissions).tempdir().unwrap()
}

async fn ask(embedded: &Embedded, sql: &'static str) -> Option<i32> {
    let mut connection = PgConnection::connect_with(&embedded.options()).await.unwrap();
    let row = connection.fetch_optional(sql).await.unwrap();
    row.map(|row| row.get(0))
}

fn process(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap())
}

#[tokio::test]
async fn data_outlive_a_stop_and_nothing_listens_on_the_network() {
    let folder = folder();
    let embedded = Embedded::start(folder.path()).await.unwrap();
    ask(&embedded, "CREATE TABLE kept AS SELECT 7 AS n").await;
    let mut connection = PgConnection::connect_with(&embedded.options()).await.unwrap();
    let addresses: String = sqlx::query_scalar("SHOW listen_addresses")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(addresses, "");
    connection.close().await.unwrap();
    for private in ["postgres", "run"] {
        let about = fs::metadata(folder.path().join(private)).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o700, "{private}");
        assert!(
            !geteuid().is_root() || about.uid() != 0,
            "{private} belongs to who runs Postgres"
        );
    }
    let id = embedded.process_id();
    embedded.stop().await;
    assert!(kill(process(id), None).is_err(), "it has ended");
    let again = Embedded::start(folder.path()).await.unwrap();
    assert_eq!(ask(&again, "SELECT n FROM kept").await, Some(7));
    again.stop().await;
}

#[tokio::test]
async fn an_orphan_of_a_killed_server_is_stopped_and_its_data_are_there() {
    let folder = folder();
    let killed = Embedded::start(folder.path()).await.unwrap();
    ask(&killed, "CREATE TABLE kept AS SELECT 7 AS n").await;
    let orphan = killed.process_id();
    // As the kernel does with a server that was killed: its lock goes, its Postgres stays.
    let Embedded {
        postgres,
        _folder: lock,
        ..
    } = killed;
    drop(lock);
    let again = Embedded::start(folder.path()).await.unwrap();
    assert_ne!(again.process_id(), orphan);
    assert_eq!(ask(&again, "SELECT n FROM kept").await, Some(7));
    again.stop().await;
    drop(postgres);
}

#[tokio::test]
async fn a_postmaster_pid_that_names_another_process_does_not_keep_it_from_starting() {
    let folder = folder();
    let mut killed = Embedded::start(folder.path()).await.unwrap();
    let pid_file = folder.path().join("postgres/postmaster.pid");
    let text = fs::read_to_string(&pid_file).unwrap();
    kill(process(killed.process_id()), Signal::SIGKILL).unwrap();
    killed.postgres.stop().await;
    drop(killed);
    // The number was given to another process meanwhile: to this one, say.
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(&pid_file, format!("{}\n{rest}", std::process::id())).unwrap();
    let again = Embedded::start(folder.path()).await.unwrap();
    assert_eq!(ask(&again, "SELECT 1").await, Some(1));
    again.stop().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let folder = folder();
    let first = Embedded::start(folder.path()).await.unwrap();
    let second = Embedded::start(folder.path()).await.unwrap_err();
    assert!(matches!(second, EmbeddedError::InUse(_)), "{second}");
    assert_eq!(ask(&first, "SELECT 1").await, Some(1));
    first.stop().await;
}

#[tokio::test]
async fn a_long_path_has_its_sockets_elsewhere() {
    let folder = folder();
    let long = folder.path().join("x".repeat(120));
    let embedded = Embedded::start(&long).await.unwrap();
    assert_eq!(ask(&embedded, "SELECT 1").await, Some(1));
    let sockets = embedded.options().get_socket().unwrap().clone();
    assert!(!sockets.starts_with(&long), "{}", sockets.display());
    embedded.stop().await;
    fs::remove_dir_all(sockets).unwrap();
}

#[tokio::test]
async fn a_folder_that_is_closed_to_the_user_who_runs_postgres_is_named() {
    if !geteuid().is_root() {
        // Then Postgres runs as the user who made the folder, and there is no such case.
        return;
    }
    let closed = folder_of_mode(0o700);
    let refused = Embedded::start(&closed.path().join("data")).await.unwrap_err();
    assert!(
        matches!(&refused, EmbeddedError::NoWay { folder, .. } if folder == closed.path()),
        "{refused}"
    );
}
