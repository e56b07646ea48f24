//! What a solo engine starts from without a coordinator.

use lockstep_protocol::{
    commit::CommitDocument,
    host::Layout,
    id::{Fingerprint, Step},
    location::Location,
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
    spec::PullSelector,
    start::{FoundCommit, StartFrom, StartPull, parse_selector, start_from},
};

use crate::sample;

fn step(step: u64) -> Step {
    Step::new(step).unwrap()
}

fn local(id: u128, at: u64, fingerprint: Option<u64>) -> LocalCheckpoint {
    LocalCheckpoint {
        id: sample::local(id),
        step: step(at),
        fingerprint: fingerprint.map(Fingerprint),
        processed_records: None,
        bytes: 0,
        files: 0,
        created_at: None,
    }
}

/// A commit of a solo pipeline whose part was made of this local checkpoint.
fn commit(of: &LocalCheckpoint) -> CommitDocument {
    let mut document = sample::commit(1);
    document.layout = Layout::Solo;
    document.step = of.step;
    document.fingerprint = of.fingerprint;
    document.parts[0].local_checkpoint = of.id;
    document
}

fn choose(
    from: PullSelector,
    fail_if_none: Option<bool>,
    disk: &[LocalCheckpoint],
    found: Option<(&CommitDocument, bool)>,
) -> Result<StartFrom, Problem> {
    let location: Location = "s3://acme/orders".parse().unwrap();
    let found = found.map(|(document, damaged)| FoundCommit { document, damaged });
    start_from(&StartPull { from, fail_if_none }, &location, disk, found)
}

#[test]
fn a_disk_that_is_not_behind_is_the_latest_and_one_that_is_behind_is_not() {
    let disk = [local(1, 10, None), local(2, 20, None)];
    let on_disk = |local: &LocalCheckpoint| Ok(StartFrom::Disk(local.id, local.step));
    for newest in [None, Some(commit(&disk[0])), Some(commit(&disk[1]))] {
        let found = newest.as_ref().map(|document| (document, false));
        assert_eq!(choose(PullSelector::Latest, None, &disk, found), on_disk(&disk[1]));
    }
    // Made on another disk, while this one was away; of the same step too.
    let beside = commit(&local(3, 20, None));
    assert_eq!(choose(PullSelector::Latest, None, &disk, Some((&beside, false))), Ok(StartFrom::Commit));
    let ahead = commit(&local(3, 30, None));
    assert_eq!(choose(PullSelector::Latest, None, &disk, Some((&ahead, false))), Ok(StartFrom::Commit));
    assert_eq!(choose(PullSelector::Latest, None, &[], Some((&ahead, false))), Ok(StartFrom::Commit));
}

#[test]
fn a_step_is_taken_from_the_disk_and_an_id_only_if_the_disk_has_that_very_checkpoint() {
    let disk = [local(1, 10, Some(5)), local(2, 20, Some(5))];
    let (own, other) = (commit(&disk[0]), commit(&local(9, 10, Some(5))));
    assert_eq!(choose(PullSelector::Step(step(10)), None, &disk, None), Ok(StartFrom::Disk(disk[0].id, step(10))));
    let by_id = PullSelector::Checkpoint(own.round);
    assert_eq!(choose(by_id, None, &disk, Some((&own, false))), Ok(StartFrom::Disk(disk[0].id, step(10))));
    assert_eq!(choose(by_id, None, &disk, Some((&other, false))), Ok(StartFrom::Commit));
}

#[test]
fn fresh_needs_nothing_anywhere_and_leave_to_do_so() {
    let named = PullSelector::Step(step(7));
    let reason =
        |from, fail_if_none, disk: &[LocalCheckpoint]| choose(from, fail_if_none, disk, None).unwrap_err().reason;
    assert_eq!(choose(PullSelector::Latest, None, &[], None), Ok(StartFrom::Fresh));
    assert_eq!(choose(named, Some(false), &[], None), Ok(StartFrom::Fresh));
    assert_eq!(reason(PullSelector::Latest, Some(true), &[]), Reason::CheckpointNotFound);
    assert_eq!(reason(named, None, &[]), Reason::CheckpointNotFound);
    // It would abandon what is on the disk.
    assert_eq!(reason(named, Some(false), &[local(1, 10, None)]), Reason::NoCommonCheckpoint);
}

#[test]
fn what_can_t_work_is_refused_before_any_download() {
    let of = local(1, 10, Some(5));
    let document = commit(&of);
    let reason = |document: &CommitDocument, damaged, disk: &[LocalCheckpoint]| {
        choose(PullSelector::Checkpoint(document.round), None, disk, Some((document, damaged))).unwrap_err().reason
    };
    assert_eq!(reason(&document, true, &[]), Reason::CheckpointDamaged);
    assert_eq!(reason(&document, false, &[local(2, 8, Some(6))]), Reason::FingerprintMismatch);
    let hosts = CommitDocument { layout: Layout::from_n_hosts(3).unwrap(), ..document };
    assert_eq!(reason(&hosts, false, &[]), Reason::LayoutMismatch);
}

#[test]
fn selectors_are_words_of_four_kinds() {
    let shown = |text: &str| parse_selector(text).map(|selector| selector.to_string());
    assert_eq!(shown("latest").unwrap(), "latest");
    assert_eq!(shown("12").unwrap(), "step 12");
    assert_eq!(
        shown("7d4f0a52-9c1e-4b7a-8f6e-2a1b3c4d5e6f").unwrap(),
        "checkpoint 7d4f0a52-9c1e-4b7a-8f6e-2a1b3c4d5e6f"
    );
    assert_eq!(shown("2026-01-31T12:00:00Z").unwrap(), "time 2026-01-31T12:00:00+00:00");
    for bad in ["", "newest", "-1", "99999999999999999999999", "12.5"] {
        assert_eq!(parse_selector(bad).unwrap_err().reason, Reason::SpecInvalid, "{bad}");
    }
}
