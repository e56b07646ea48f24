//! Two deaths in one round, at places drawn from a seed: `LOCKSTEP_FAILPOINTS_PAIRS` of each kind. Some second places are never reached, because the first death
//! leads around them; the round ends all the same.

use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    agents::{self, Supervised},
    coordinators::{self, Replicas},
    lane::{go_through, number},
};

/// Pairs of each kind in `make test`.
const PAIRS: usize = 4;

fn sample<C: Clone>(what: &str, all: &[C]) -> Vec<C> {
    let seed = number("LOCKSTEP_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let count = number("LOCKSTEP_FAILPOINTS_PAIRS").unwrap_or(PAIRS);
    println!("{what}: {count} of {} pairs, replay with LOCKSTEP_SEED={seed}", all.len());
    all.choose_multiple(&mut StdRng::seed_from_u64(seed), count).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s36_two_coordinators_die_one_after_the_other() {
    go_through::<Replicas>("s36 pair", sample("s36 pairs", &coordinators::pairs())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s37_an_agent_dies_twice() {
    go_through::<Supervised>("s37 pair", sample("s37 pairs", &agents::pairs())).await;
}
