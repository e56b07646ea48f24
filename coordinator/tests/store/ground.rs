//! How stores of these tests reach their database: as one reaches Postgres.

use lockstep_coordinator::store::{Store, StoreOptions};
use lockstep_devkit::TestDatabase;

pub(crate) async fn connect(database: &TestDatabase) -> Store {
    connect_with(database, StoreOptions::default()).await
}

pub(crate) async fn connect_with(database: &TestDatabase, options: StoreOptions) -> Store {
    Store::connect(database.url(), options).await.unwrap()
}
