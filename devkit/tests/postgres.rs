//! The Postgres launcher, on real binaries.

#![expect(clippy::unwrap_used, reason = "a test that can not go on fails")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_devkit::postgres::BinarySearch;
use lockstep_devkit::{Postgres, PostgresError, PostgresOptions, SharedPostgres, TestDatabase};
use sqlx::{Connection as _, PgConnection};

/// A directory that the user postgres can reach, unlike a plain temporary directory of root's.
fn kept_directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let data = directory.path().join("below/data");
    (directory, data)
}

async fn setting(connection: &mut PgConnection, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(connection).await.unwrap()
}

fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// There and no zombie.
fn running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_database_is_created_and_answers() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("orders").await.unwrap();
    assert_eq!(url, postgres.url("orders"));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE t (x int)").execute(&mut connection).await.unwrap();
    assert_eq!(setting(&mut connection, "fsync").await, "off");
    assert_eq!(setting(&mut connection, "listen_addresses").await, "127.0.0.1");
    connection.close().await.unwrap();

    let copy = postgres.create_database_from("orders_copy", "orders").await.unwrap();
    let mut connection = PgConnection::connect(&copy).await.unwrap();
    sqlx::query("SELECT x FROM t").fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let (pid, data) = (postgres.pid(), postgres.data_dir().to_path_buf());
    assert!(exists(pid));
    postgres.stop().await.unwrap();
    assert!(!exists(pid));
    assert!(!data.exists(), "the temporary cluster is still there");
}

#[tokio::test]
async fn kept_data_is_there_after_a_restart_and_after_a_crash() {
    let (_directory, data) = kept_directory();
    let options = PostgresOptions { data_dir: Some(data.clone()), durable: true, ..PostgresOptions::default() };
    let postgres = Postgres::start(options.clone()).await.unwrap();
    let url = postgres.create_database("orders").await.unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_eq!(setting(&mut connection, "fsync").await, "on");
    sqlx::query("CREATE TABLE t (x int)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection).await.unwrap();
    drop(connection);
    postgres.stop().await.unwrap();

    let postgres = Postgres::start(options.clone()).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url("orders")).await.unwrap();
    sqlx::query("INSERT INTO t VALUES (2)").execute(&mut connection).await.unwrap();
    postgres.crash().await.unwrap();
    assert!(sqlx::query("SELECT 1").execute(&mut connection).await.is_err());

    let postgres = Postgres::start(options).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url("orders")).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, 2);
    drop(connection);
    drop(postgres);
    assert!(data.join("PG_VERSION").exists());
}

#[tokio::test]
async fn dropping_the_handle_ends_the_server() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let (pid, data) = (postgres.pid(), postgres.data_dir().to_path_buf());
    drop(postgres);
    assert!(!exists(pid));
    assert!(!data.exists());
}

#[tokio::test]
async fn a_directory_in_use_is_refused_with_its_pid() {
    let (_directory, data) = kept_directory();
    let options = PostgresOptions { data_dir: Some(data), ..PostgresOptions::default() };
    let first = Postgres::start(options.clone()).await.unwrap();
    let error = Postgres::start(options).await.unwrap_err();
    assert!(matches!(error, PostgresError::AlreadyRunning { pid, .. } if pid == first.pid()), "{error}");
}

#[tokio::test]
async fn a_directory_with_something_else_in_it_is_left_alone() {
    let (_directory, data) = kept_directory();
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("letter.txt"), "dear").unwrap();
    let options = PostgresOptions { data_dir: Some(data.clone()), ..PostgresOptions::default() };
    let error = Postgres::start(options).await.unwrap_err();
    assert!(matches!(error, PostgresError::NotACluster { .. }), "{error}");
    assert!(data.join("letter.txt").exists());
}

#[tokio::test]
async fn missing_binaries_say_what_to_install() {
    let nowhere = tempfile::tempdir().unwrap();
    let search = BinarySearch { explicit: None, path: None, versions: nowhere.path().to_path_buf() };
    let error = Postgres::start(PostgresOptions { search, ..PostgresOptions::default() }).await.unwrap_err();
    assert!(error.to_string().contains("apt-get install postgresql"), "{error}");
}

#[tokio::test]
async fn a_parent_that_postgres_cannot_traverse_is_named() {
    if !nix::unistd::geteuid().is_root() {
        // Without root, postgres runs as ourselves and goes where we go.
        return;
    }
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let options = PostgresOptions { data_dir: Some(closed.path().join("data")), ..PostgresOptions::default() };
    let error = Postgres::start(options).await.unwrap_err();
    assert!(
        matches!(&error, PostgresError::NotTraversable { parent, .. } if parent.ends_with(closed.path())),
        "{error}"
    );
}

#[tokio::test]
async fn database_names_that_need_quoting_are_refused() {
    let shared = SharedPostgres::get().await.unwrap();
    if let SharedPostgres::Private(postgres) = shared {
        for name in ["", "A", "1a", "a b", "a\"; DROP TABLE t; --", &"a".repeat(64)] {
            let error = postgres.create_database(name).await.unwrap_err();
            assert!(matches!(error, PostgresError::BadDatabaseName { .. }), "{name:?}: {error}");
        }
    }
}

#[tokio::test]
async fn tests_of_a_process_share_a_cluster_but_no_database() {
    let (one, other) = tokio::join!(TestDatabase::create(), TestDatabase::create());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.name(), other.name());
    let mut connection = PgConnection::connect(one.url()).await.unwrap();
    sqlx::query("CREATE TABLE only_here (x int)").execute(&mut connection).await.unwrap();
    let mut connection = PgConnection::connect(other.url()).await.unwrap();
    assert!(sqlx::query("SELECT * FROM only_here").execute(&mut connection).await.is_err());
    let port = |url: &str| url.split(':').nth(2).unwrap().split('/').next().unwrap().to_owned();
    assert_eq!(port(one.url()), port(other.url()));
}

/// Run as a child by the test below: starts a cluster, says its pid and directory, and waits to be killed.
#[tokio::test]
async fn child_that_holds_a_cluster() {
    if std::env::var_os("DEVKIT_TEST_CHILD").is_none() {
        return;
    }
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    println!("cluster {} {}", postgres.pid(), postgres.data_dir().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn the_server_dies_with_a_killed_process_and_the_next_start_sweeps_up() {
    use tokio::io::AsyncBufReadExt as _;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_holds_a_cluster", "--nocapture"])
        .env("DEVKIT_TEST_CHILD", "1")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let (pid, data) = loop {
        let line = lines.next_line().await.unwrap().expect("the child ended");
        if let Some((_, words)) = line.split_once("cluster ") {
            let (pid, data) = words.split_once(' ').unwrap();
            break (pid.parse::<i32>().unwrap(), PathBuf::from(data));
        }
    };
    assert!(exists(pid));
    child.kill().await.unwrap();
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let gone = async {
        // Whoever inherits it may take its time to reap it.
        while running(pid) {
            look.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("postgres outlived its parent");
    // This start sweeps it, or another test's did or is about to.
    drop(Postgres::start(PostgresOptions::default()).await.unwrap());
    let swept = async {
        while data.exists() {
            look.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), swept).await.expect("the cluster was not swept");
}
