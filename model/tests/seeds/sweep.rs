//! The sweep of each CI run: `LOCKSTEP_SEEDS` seeds (2,000 unless told, 20,000 in CI) from `LOCKSTEP_FIRST_SEED`.

use lockstep_model::simulate::Fault;

use crate::report::{setting, sweep};

#[test]
fn invariants_hold_in_every_seed_and_every_fault_is_met() {
    let (first, count) = (setting("LOCKSTEP_FIRST_SEED", 0), setting("LOCKSTEP_SEEDS", 2_000));
    let mut sweep = sweep(first, count, None);
    sweep.print();
    for (seed, what) in sweep.violations.iter().take(20) {
        println!("seed {seed}: {what}");
    }
    assert!(
        sweep.violations.is_empty(),
        "{} of {count} seeds broke an invariant, the first is {}; LOCKSTEP_SEED replays it",
        sweep.violations.len(),
        sweep.violations[0].0
    );
    if count >= 1_000 {
        for &fault in Fault::ALL {
            assert!(sweep.share(fault) >= 5.0, "{} in {:.1} % of the seeds only", fault.as_str(), sweep.share(fault));
        }
    }
}
