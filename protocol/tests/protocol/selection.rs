use lockstep_protocol::{
    id::{Fingerprint, Step},
    problem::Reason,
    selection::{LocalCheckpoint, Wanted, common_cut},
};
use proptest::prelude::*;

use crate::sample;

fn checkpoint(id: u128, step: u64, fingerprint: Option<u64>) -> LocalCheckpoint {
    LocalCheckpoint {
        id: sample::local(id),
        step: Step::new(step).unwrap(),
        fingerprint: fingerprint.map(Fingerprint),
        processed_records: None,
        bytes: 0,
        files: 0,
        created_at: None,
    }
}

fn host(base: u128, steps: &[u64]) -> Vec<LocalCheckpoint> {
    (base..).zip(steps).map(|(id, step)| checkpoint(id, *step, Some(1))).collect()
}

#[test]
fn the_newest_step_on_every_host_is_chosen() {
    let hosts = [host(0, &[4, 8, 12]), host(10, &[4, 8]), host(20, &[8, 12])];
    let cut = common_cut(&hosts, Wanted::Newest).unwrap();
    assert_eq!(cut.step.get(), 8);
    assert_eq!(
        cut.checkpoints.iter().map(|c| c.id).collect::<Vec<_>>(),
        [sample::local(1), sample::local(11), sample::local(20)]
    );
    assert_eq!(common_cut(&hosts, Wanted::Local(sample::local(1))).unwrap().step.get(), 8);
}

#[test]
fn no_common_step_names_each_hosts_newest_steps() {
    let hosts = [host(0, &[1, 3]), host(10, &[2]), vec![]];
    for wanted in [
        Wanted::Newest,
        Wanted::Step(Step::new(3).unwrap()),
        Wanted::Local(sample::local(0)),
        Wanted::Local(sample::local(99)),
    ] {
        let problem = common_cut(&hosts, wanted).expect_err("nothing in common");
        assert_eq!(problem.reason, Reason::NoCommonCheckpoint);
        assert_eq!(problem.metadata["host0_steps"], "3,1");
        assert_eq!(problem.metadata["host1_steps"], "2");
        assert_eq!(problem.metadata["host2_steps"], "none");
        assert!(problem.message.contains("host 1: 2"), "{problem}");
    }
}

#[test]
fn the_same_step_of_another_program_is_not_common() {
    let hosts = [
        vec![checkpoint(0, 5, Some(1)), checkpoint(1, 7, Some(1))],
        vec![checkpoint(2, 5, Some(1)), checkpoint(3, 7, Some(2))],
    ];
    assert_eq!(common_cut(&hosts, Wanted::Newest).unwrap().step.get(), 5);
    common_cut(&hosts, Wanted::Step(Step::new(7).unwrap())).expect_err("two programs");
}

proptest! {
    #[test]
    fn a_cut_is_one_step_on_every_host_and_none_newer_exists(steps in prop::collection::vec(prop::collection::btree_set(0_u64..12, 0..6), 1..5)) {
        let hosts: Vec<Vec<LocalCheckpoint>> =
            steps.iter().enumerate().map(|(i, s)| host(100 * i as u128, &s.iter().copied().collect::<Vec<_>>())).collect();
        let best = (0..12).rev().find(|step| steps.iter().all(|s| s.contains(step)));
        match common_cut(&hosts, Wanted::Newest) {
            Ok(cut) => {
                prop_assert_eq!(Some(cut.step.get()), best);
                prop_assert_eq!(cut.checkpoints.len(), hosts.len());
                for (chosen, host) in cut.checkpoints.iter().zip(&hosts) {
                    prop_assert!(chosen.step == cut.step && host.contains(chosen));
                }
            }
            Err(_) => prop_assert_eq!(best, None),
        }
    }
}
