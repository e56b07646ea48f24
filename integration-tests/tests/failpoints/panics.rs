//! Something panics at a failpoint, and its process lives on: no state lives in a task alone, so no round and no status hangs.

use crate::{
    agents::{self, Supervised},
    coordinators::{self, Replicas},
    lane::{everything, go_through},
};

/// All, or each third one.
fn share<C>(cases: Vec<C>) -> Vec<C> {
    cases.into_iter().step_by(if everything() { 1 } else { 3 }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_panics_anywhere_drives_the_round_again() {
    go_through::<Replicas>("panic", share(coordinators::panics())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_panics_anywhere_tells_so_and_is_ordered_again() {
    go_through::<Supervised>("panic", share(agents::panics())).await;
}
