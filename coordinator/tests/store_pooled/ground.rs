//! How stores of these tests reach their database: through PgBouncer in transaction mode, with two server connections for all of them, so that
//! whatever rests on a connection falls over.

use lockstep_coordinator::store::{Store, StoreOptions};
use lockstep_devkit::{PgBouncer, PgBouncerOptions, TestDatabase};
use tokio::sync::OnceCell;

/// Never dropped, as statics are: it ends with the process.
static SHARED: OnceCell<PgBouncer> = OnceCell::const_new();

/// The database's URL through the pooler.
pub(crate) async fn through_the_pooler(database: &TestDatabase) -> String {
    let pooler = SHARED.get_or_init(|| async {
        let options = PgBouncerOptions { pool_size: 2, ..PgBouncerOptions::default() };
        PgBouncer::start(port(database.url()), options).await.unwrap()
    });
    pooler.await.url(database.name())
}

pub(crate) async fn connect(database: &TestDatabase) -> Store {
    connect_with(database, StoreOptions::default()).await
}

pub(crate) async fn connect_with(database: &TestDatabase, options: StoreOptions) -> Store {
    let url = through_the_pooler(database).await;
    Store::connect_around(&url, Some(database.url()), options).await.unwrap()
}

/// Of a URL with a host, a port and a database.
fn port(url: &str) -> u16 {
    let address = url.rsplit('@').next().unwrap().split('/').next().unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}
