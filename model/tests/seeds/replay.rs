//! One seed, with its log: `LOCKSTEP_SEED=17 cargo test -p lockstep-model --test seeds replay -- --nocapture`.

use std::env;

use lockstep_model::simulate;
use lockstep_protocol::planted::{self, Bug};

use crate::report::setting;

/// With `LOCKSTEP_BUG=UnknownTakenAsFailed` it runs with that bug. Without a seed: the same seed must take the same steps.
#[test]
fn replay_takes_the_same_steps() {
    let bug = env::var("LOCKSTEP_BUG").ok();
    let bug = bug.map(|name| {
        let found = Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name);
        found.unwrap_or_else(|| panic!("there is no bug {name}"))
    });
    planted::plant(bug);
    let seed = setting("LOCKSTEP_SEED", 17);
    let first = simulate::run(seed, true).unwrap();
    println!("{}", first.log.join("\n"));
    println!("seed {seed}: {:?}", first.violation);
    let second = simulate::run(seed, true).unwrap();
    assert!(first.log == second.log, "seed {seed} took other steps the second time");
    assert!(bug.is_some() || first.violation.is_none(), "seed {seed}: {:?}", first.violation);
}
