//! What the binary does about poolers, old and new schemas, and standbys.

use std::{os::unix::fs::PermissionsExt, process::Command};

use lockstep_coordinator::store::{Schema, Store, StoreOptions};
use lockstep_devkit::{PgBouncer, PgBouncerOptions, Postgres, PostgresOptions};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::binary::{coordinator, refused};

/// A Postgres with an empty database, and a pooler before it.
async fn pooled() -> (Postgres, PgBouncer) {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    postgres.create_database("orders").await.unwrap();
    let pooler = PgBouncer::start(postgres.port(), PgBouncerOptions::default()).await.unwrap();
    (postgres, pooler)
}

fn serve(url: &str) -> Command {
    let mut command = coordinator(&["--insecure", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    command.env("DATABASE_URL", url).args(["--database-wait", "1s"]);
    command
}

fn migrate(url: &str) -> Command {
    let mut command = coordinator(&["migrate"]);
    command.env("DATABASE_URL", url);
    command
}

fn done(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn behind_a_pooler_an_old_schema_is_refused_and_migrate_brings_it_up() {
    let (postgres, pooler) = pooled().await;
    for command in [serve(&pooler.url("orders")), migrate(&pooler.url("orders"))] {
        let (code, message) = refused(command);
        assert_eq!(code, 1, "{message}");
        assert!(message.contains("run `lockstep-coordinator migrate`"), "{message}");
        assert!(message.contains("pooler"), "{message}");
    }
    let said = done(migrate(&postgres.url("orders")));
    assert!(said.contains(&format!("was at migration 0 and is at {}", Schema::known())), "{said}");
    // By flags, around the pooler; in the place where people write them.
    let mut again = coordinator(&["migrate", "--database-url", &pooler.url("orders")]);
    again.args(["--direct-database-url", &postgres.url("orders")]);
    let said = done(again);
    assert!(said.contains("nothing to do"), "{said}");
    let through = Store::connect(&pooler.url("orders"), StoreOptions::default()).await.unwrap();
    assert_eq!(through.migrate().await.unwrap().missing, 0);
}

#[tokio::test]
async fn a_malformed_direct_url_is_refused_without_showing_it() {
    let mut command = serve("postgres://lockstep@127.0.0.1:1/orders");
    command.env("LOCKSTEP_DIRECT_DATABASE_URL", "lockstep:hunter2@db/orders");
    let (code, message) = refused(command);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("LOCKSTEP_DIRECT_DATABASE_URL") && !message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn a_newer_schema_serves_if_it_says_so_and_is_refused_if_not() {
    let postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = postgres.create_database("orders").await.unwrap();
    let store = Store::connect(&url, StoreOptions::default()).await.unwrap();
    store.migrate().await.unwrap();
    let mut sql = PgConnection::connect(&url).await.unwrap();
    // As a later version would leave it: another migration, a column more.
    sql.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9000, 'later', true, '\\x00', 0);
         ALTER TABLE rounds ADD COLUMN later text",
    )
    .await
    .unwrap();
    let schema = store.migrate().await.unwrap();
    assert_eq!((schema.newest, schema.missing), (9000, 0));
    let said = done(migrate(&url));
    assert!(said.contains("at migration 9000, nothing to do"), "{said}");

    sql.execute("UPDATE schema_compatibility SET oldest_reader = 9000").await.unwrap();
    for command in [serve(&url), migrate(&url)] {
        let (code, message) = refused(command);
        assert_eq!(code, 1, "{message}");
        assert!(message.contains("know migration 9000") && message.contains("upgrade this replica"), "{message}");
        assert!(message.contains(&format!("knows {}", Schema::known())), "{message}");
    }
}

#[tokio::test]
async fn a_standby_is_refused_with_what_to_do_and_serves_once_promoted() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let primary = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = primary.create_database("orders").await.unwrap();
    Store::connect(&url, StoreOptions::default()).await.unwrap().migrate().await.unwrap();
    let standby = primary.standby(&directory.path().join("standby")).await.unwrap();
    for command in [serve(&standby.url("orders")), migrate(&standby.url("orders"))] {
        let (code, message) = refused(command);
        assert_eq!(code, 1, "{message}");
        assert!(message.contains("DATABASE_UNAVAILABLE") && message.contains("in recovery (a standby)"), "{message}");
        assert!(message.contains("lead DATABASE_URL to the primary"), "{message}");
    }
    let mut sql = PgConnection::connect(&standby.url("orders")).await.unwrap();
    assert!(sqlx::query_scalar::<_, bool>("SELECT pg_promote()").fetch_one(&mut sql).await.unwrap());
    let said = done(migrate(&standby.url("orders")));
    assert!(said.contains("nothing to do"), "{said}");
}
