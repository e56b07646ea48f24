//! What a push round costs the database: transactions and round trips, counted on the wire.

use crate::{
    ground,
    rig::Rig,
    wire::{Count, Wire},
};

/// Admission, claim, and one write each for: planned, three parts, parts checked, settled. Nothing else that this store does counts as one.
const TRANSACTIONS: u64 = 8;

#[tokio::test]
async fn a_push_round_of_three_hosts_is_eight_transactions_however_it_reaches_postgres() {
    let wire = Wire::before(ground::port().await).await;
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let store = ground::connect_by(&rig.database, |url| wire.url(url)).await;
    let rig = Rig { store, database: rig.database };
    // The first one prepares its statements, where they are kept.
    rig.commit(&pipeline, 10).await;
    let before = wire.count();
    rig.commit(&pipeline, 11).await;
    let after = wire.count();
    let cost = Count {
        transactions: after.transactions - before.transactions,
        round_trips: after.round_trips - before.round_trips,
    };
    println!("{cost:?}");
    assert_eq!(cost.transactions, TRANSACTIONS, "{cost:?}");
    assert!(cost.round_trips <= ground::ROUND_TRIPS_OF_A_PUSH, "{cost:?}");
}
