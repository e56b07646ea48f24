//! Which source serves a pull, over everything that the places it looks in may answer.

use lockstep_bucket::{
    MemoryBuckets, Operation,
    memory::fault::{Fault, FaultRule},
};
use lockstep_protocol::{
    host::Layout,
    id::{Fingerprint, PipelineId},
    key::Key,
    problem::{Problem, Reason},
    round::{PullRequest, Source},
    spec::PullSelector,
    takeover::NotFound,
};

use super::{PullPlan, fixture::*, resolve_pull};

async fn resolve(buckets: &MemoryBuckets, agents: FakeAgents, request: PullRequest) -> Result<PullPlan, Problem> {
    resolve_pull(&context(buckets, agents), &pull(request), Some(&seed())).await
}

/// What one place may answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Found,
    Absent,
    Unknown,
}

const PLACES: [Place; 3] = [Place::Found, Place::Absent, Place::Unknown];

/// What the disks hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Disks {
    Empty,
    Uneven,
    Common,
}

fn set_up(own_place: Place, read: Option<Place>) -> MemoryBuckets {
    let buckets = buckets();
    fence(&buckets, &own(), 1, pipeline());
    for (location, place) in [(own(), Some(own_place)), (seed(), read)] {
        match place {
            Some(Place::Found) => {
                fence(&buckets, &location, 1, pipeline());
                commit(&buckets, &location, 1, 5);
            }
            Some(Place::Unknown) => buckets.inject(FaultRule::new(Fault::FailBefore).key(location.prefix())),
            Some(Place::Absent) | None => {}
        }
    }
    buckets
}

/// protocol.md, "Pull" 1, written down once more and plainly.
fn expected(disks: Disks, own: Place, read: Option<Place>, request: &PullRequest) -> Result<(Source, bool), Reason> {
    let local = disks == Disks::Common && !request.standby && !request.discard_local;
    match (own, local) {
        // Whether ours is the highest generation can't be told.
        (Place::Unknown, _) => return Err(Reason::StoreUnavailable),
        (_, true) => return Ok((Source::Local, false)),
        (Place::Found, false) => return Ok((Source::Location, false)),
        (Place::Absent, false) => {}
    }
    match read {
        Some(Place::Unknown) => return Err(Reason::StoreUnavailable),
        Some(Place::Found) => return Ok((Source::ReadLocation, false)),
        Some(Place::Absent) | None => {}
    }
    if request.fail_if_none || request.standby {
        return Err(Reason::CheckpointNotFound);
    }
    match (disks, request.discard_local) {
        (Disks::Empty, _) => Ok((Source::Fresh, false)),
        (_, true) => Ok((Source::Fresh, true)),
        (_, false) => Err(Reason::NoCommonCheckpoint),
    }
}

#[tokio::test]
async fn every_combination_of_answers_leads_to_the_one_right_source_and_unknown_never_to_a_fresh_start() {
    let reads = PLACES.map(Some).into_iter().chain([None]);
    for read in reads {
        for (own_place, disks) in
            PLACES.iter().flat_map(|place| [Disks::Empty, Disks::Uneven, Disks::Common].map(|disks| (*place, disks)))
        {
            for flags in 0..8_u8 {
                let request = PullRequest {
                    standby: flags & 1 != 0,
                    fail_if_none: flags & 2 != 0,
                    discard_local: flags & 4 != 0,
                    ..request(PullSelector::Latest)
                };
                let agents = FakeAgents::holding(match disks {
                    Disks::Empty => [&[], &[], &[]],
                    Disks::Uneven => [&[3, 4], &[4], &[3]],
                    Disks::Common => [&[3, 4], &[4], &[4]],
                });
                let case = format!("{disks:?}, own {own_place:?}, read {read:?}, {request:?}");
                let buckets = set_up(own_place, read);
                let before = buckets.keys("acme", "");
                let read_location = read.map(|_| seed());
                let outcome = resolve_pull(&context(&buckets, agents), &pull(request), read_location.as_ref()).await;
                let found = outcome.map(|plan| (plan.resolved.source, plan.discard)).map_err(|problem| problem.reason);
                assert_eq!(found, expected(disks, own_place, read, &request), "{case}");
                assert_eq!(buckets.keys("acme", ""), before, "{case}: resolving wrote something");
            }
        }
    }
}

#[tokio::test]
async fn what_is_refused_or_unknown_carries_the_stores_words() {
    let buckets = set_up(Place::Absent, None);
    buckets.inject(FaultRule::new(Fault::Deny).key("own/"));
    for fail_if_none in [false, true] {
        let request = PullRequest { fail_if_none, ..request(PullSelector::Latest) };
        let problem = resolve(&buckets, FakeAgents::holding([&[], &[], &[]]), request).await.unwrap_err();
        assert_eq!(problem.reason, Reason::StoreDenied);
        for (key, value) in
            [("operation", "list"), ("bucket", "acme"), ("http_status", "403"), ("s3_code", "AccessDenied")]
        {
            assert_eq!(problem.metadata.get(key).map(String::as_str), Some(value), "{problem:?}");
        }
    }
}

#[tokio::test]
async fn a_passing_fault_is_waited_for() {
    let buckets = set_up(Place::Found, None);
    buckets.inject(FaultRule::new(Fault::Throttle).operation(Operation::List).times(2));
    let mut context = context(&buckets, FakeAgents::holding([&[], &[], &[]]));
    context.options.store_patience = std::time::Duration::from_secs(20);
    let plan = resolve_pull(&context, &pull(request(PullSelector::Latest)), None).await.unwrap();
    assert_eq!(plan.resolved.source, Source::Location);
}

#[tokio::test]
async fn a_missing_checkpoint_names_every_place_that_was_looked_in() {
    let buckets = set_up(Place::Absent, Some(Place::Absent));
    let request = PullRequest { fail_if_none: true, ..request(PullSelector::Step(step(9))) };
    let problem = resolve(&buckets, FakeAgents::holding([&[], &[], &[]]), request).await.unwrap_err();
    assert_eq!(problem.reason, Reason::CheckpointNotFound);
    for place in ["disks of 3 hosts", "location s3://acme/own", "read location s3://acme/seed", "step 9"] {
        assert!(problem.message.contains(place), "{}", problem.message);
    }
    assert_eq!(NotFound::of(&problem), Some(NotFound::Nowhere), "an activation takes it for an empty location");
}

#[tokio::test]
async fn a_step_is_taken_from_the_disks_and_its_commit_is_remembered_if_it_is_the_very_one() {
    let buckets = set_up(Place::Absent, None);
    let same = commit(&buckets, &own(), 1, 4);
    let holding = || FakeAgents::holding([&[3, 4], &[4], &[4, 5]]);
    let plan = resolve(&buckets, holding(), request(PullSelector::Step(step(4)))).await.unwrap();
    assert_eq!((plan.resolved.source, plan.resolved.commit), (Source::Local, Some(same)));
    assert_eq!(plan.resolved.location, Some(own()));
    assert_eq!(plan.resolved.processed_records, Some(30));
    assert_eq!(plan.hosts[2].local_checkpoint, Some(local_id(2, 4)));

    // The same step of an abandoned history: other local checkpoints.
    commit_with(&buckets, &own(), 2, 4, |document| document.step = step(4));
    let mut other = commit_parts(&buckets);
    other[1].local_checkpoint = local_id(1, 400);
    commit_with(&buckets, &own(), 3, 4, |document| {
        for part in &mut other {
            part.manifest = part.manifest.replace(&round_of(1).to_string(), &round_of(3).to_string());
        }
        document.parts = other;
    });
    let plan = resolve(&buckets, holding(), request(PullSelector::Step(step(4)))).await.unwrap();
    assert_eq!((plan.resolved.source, plan.resolved.commit), (Source::Local, None));
    assert!(plan.resolved.parts.is_empty());
}

fn commit_parts(buckets: &MemoryBuckets) -> Vec<lockstep_protocol::commit::CommitPart> {
    let key = Key::Commit(generation(1), seq(1)).to_string();
    let bytes = buckets.read("acme", &own().full_key(&key)).unwrap();
    match lockstep_protocol::commit::DecisionObject::parse(&key, &bytes).unwrap() {
        lockstep_protocol::commit::DecisionObject::Commit(document) => document.parts,
        lockstep_protocol::commit::DecisionObject::Abort(_) => panic!("an abort record"),
    }
}

#[tokio::test]
async fn a_step_is_served_from_the_disks_while_the_store_is_down() {
    let buckets = set_up(Place::Unknown, None);
    let agents = FakeAgents::holding([&[4], &[4], &[4]]);
    let plan = resolve(&buckets, agents, request(PullSelector::Step(step(4)))).await.unwrap();
    assert_eq!((plan.resolved.source, plan.resolved.commit), (Source::Local, None));
}

#[tokio::test]
async fn a_named_checkpoint_is_served_from_the_disks_only_where_every_host_has_exactly_its_part() {
    let buckets = set_up(Place::Absent, None);
    let first = commit(&buckets, &own(), 1, 4);
    commit(&buckets, &own(), 2, 6);
    for (selector, disks, source) in [
        (PullSelector::Checkpoint(round_of(1)), [&[4][..], &[4, 6], &[4]], Source::Local),
        (PullSelector::Checkpoint(round_of(1)), [&[4], &[6], &[4]], Source::Location),
        (PullSelector::Time(time(1)), [&[4], &[4], &[4]], Source::Local),
        (PullSelector::Time(time(1)), [&[], &[], &[]], Source::Location),
    ] {
        let plan = resolve(&buckets, FakeAgents::holding(disks), request(selector)).await.unwrap();
        assert_eq!((plan.resolved.source, plan.resolved.commit), (source, Some(first)), "{selector} with {disks:?}");
        assert_eq!(plan.hosts[1].local_checkpoint, Some(local_id(1, 4)));
    }
    let too_early = PullRequest { fail_if_none: true, ..request(PullSelector::Time(time(0))) };
    let problem = resolve(&buckets, FakeAgents::holding([&[4], &[4], &[4]]), too_early).await.unwrap_err();
    assert_eq!(problem.reason, Reason::CheckpointNotFound);
}

#[tokio::test]
async fn local_is_not_the_latest_once_somebody_else_owns_the_location() {
    let buckets = set_up(Place::Absent, None);
    let newest = commit(&buckets, &own(), 1, 4);
    let stranger = PipelineId::new(uuid(99));
    fence(&buckets, &own(), 2, stranger);
    base(&buckets, &own(), 2, Some(newest));
    let agents = || FakeAgents::holding([&[9], &[9], &[9]]);
    let plan = resolve(&buckets, agents(), request(PullSelector::Latest)).await.unwrap();
    assert_eq!((plan.resolved.source, plan.resolved.commit), (Source::Location, Some(newest)));
    // With nothing in the location it is no reason to start from nothing either.
    base(&buckets, &own(), 2, None);
    let problem = resolve(&buckets, agents(), request(PullSelector::Latest)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::NoCommonCheckpoint);
    assert!(problem.message.contains("step 9 is on every host's disk"), "{}", problem.message);
}

#[tokio::test]
async fn a_take_over_in_a_read_location_is_unknown_and_never_finished_by_a_reader() {
    let buckets = set_up(Place::Absent, Some(Place::Found));
    fence(&buckets, &seed(), 2, PipelineId::new(uuid(99)));
    let problem =
        resolve(&buckets, FakeAgents::holding([&[], &[], &[]]), request(PullSelector::Latest)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::TakeOverInProgress);
    assert!(!holds(&buckets, &seed(), &Key::FenceBase(generation(2))));
}

#[tokio::test]
async fn another_layout_or_program_is_refused_before_any_download() {
    let buckets = set_up(Place::Absent, None);
    commit_with(&buckets, &own(), 1, 4, |document| document.layout = Layout::hosts(2).unwrap());
    let wiped = || FakeAgents::holding([&[], &[], &[]]);
    let problem = resolve(&buckets, wiped(), request(PullSelector::Latest)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::LayoutMismatch);
    assert_eq!((problem.metadata["checkpoint_n_hosts"].as_str(), problem.metadata["n_hosts"].as_str()), ("2", "3"));

    commit_with(&buckets, &own(), 2, 6, |document| document.fingerprint = Some(Fingerprint(8)));
    let uneven = || FakeAgents::holding([&[1], &[2], &[]]);
    let problem = resolve(&buckets, uneven(), request(PullSelector::Latest)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::FingerprintMismatch);
    assert_eq!(
        (problem.metadata["checkpoint_fingerprint"].as_str(), problem.metadata["fingerprint"].as_str()),
        ("8", "7")
    );
    let allowed = PullRequest { allow_fingerprint: true, ..request(PullSelector::Latest) };
    assert_eq!(resolve(&buckets, uneven(), allowed).await.unwrap().resolved.source, Source::Location);
    // After all disks are lost nobody knows which program it is.
    let plan = resolve(&buckets, wiped(), request(PullSelector::Latest)).await.unwrap();
    assert_eq!(plan.resolved.fingerprint, Some(Fingerprint(8)));
}

#[tokio::test]
async fn a_damaged_checkpoint_is_passed_over_and_refused_by_name() {
    let buckets = set_up(Place::Absent, None);
    let good = commit(&buckets, &own(), 1, 4);
    commit(&buckets, &own(), 2, 6);
    put(&buckets, &own(), &Key::Damaged(generation(1), seq(2)), b"{}".to_vec());
    let wiped = || FakeAgents::holding([&[], &[], &[]]);
    let plan = resolve(&buckets, wiped(), request(PullSelector::Latest)).await.unwrap();
    assert_eq!(plan.resolved.commit, Some(good));
    let named = request(PullSelector::Checkpoint(round_of(2)));
    let problem = resolve(&buckets, wiped(), named).await.unwrap_err();
    assert_eq!(problem.reason, Reason::CheckpointDamaged);
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_refused_early() {
    let buckets = set_up(Place::Found, None);
    let mut agents = FakeAgents::holding([&[], &[], &[]]);
    agents.0[1].described.free_bytes = Some(99);
    let problem = resolve(&buckets, agents, request(PullSelector::Latest)).await.unwrap_err();
    assert_eq!(problem.reason, Reason::NoSpace);
    assert_eq!((problem.metadata["host_idx"].as_str(), problem.metadata["needed_bytes"].as_str()), ("1", "100"));
}
