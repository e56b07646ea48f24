//! How stores of these tests reach their database: as one reaches Postgres.

use lockstep_coordinator::store::{Store, StoreOptions};
use lockstep_devkit::TestDatabase;

/// Measured: 30, and up to two hints to other replicas. See docs/reliability/database.md.
pub(crate) const ROUND_TRIPS_OF_A_PUSH: u64 = 34;

/// Where stores connect to.
pub(crate) async fn port() -> u16 {
    port_of(TestDatabase::create().await.unwrap().url())
}

/// Of a URL with a host, a port and a database.
fn port_of(url: &str) -> u16 {
    let address = url.rsplit('@').next().unwrap().split('/').next().unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

/// By another address of the same server.
pub(crate) async fn connect_by(database: &TestDatabase, by: impl Fn(&str) -> String) -> Store {
    Store::connect(&by(database.url()), StoreOptions::default()).await.unwrap()
}

pub(crate) async fn connect(database: &TestDatabase) -> Store {
    connect_with(database, StoreOptions::default()).await
}

pub(crate) async fn connect_with(database: &TestDatabase, options: StoreOptions) -> Store {
    Store::connect(database.url(), options).await.unwrap()
}
