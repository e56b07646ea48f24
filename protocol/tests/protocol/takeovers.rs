//! Taking a location over: every phase, what is refused, and what becomes of open rounds.

use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::{Fence, FenceBase, Writer},
    finish::AtKey,
    id::{DatabaseId, Generation, PipelineId, PipelineName, RoundId, Seq, Step, Term},
    key::Key,
    problem::{Problem, Reason},
    round::{CancelRequest, KeyRead, Kind, ParticipantPhase, Phase as RoundPhase, RetryPolicy, Round},
    takeover::{
        Chosen, Effect, Event, FenceKnown, Phase, Purpose, PutAnswer, Settlement, TakeOver, check_cancellable, decide,
        effects, judge_fence, learn_commit, next_wake, settle,
    },
};
use proptest::prelude::*;

use crate::sample::{self, location, pull, push, round_id, time, uuid};

fn generation(g: u64) -> Generation {
    Generation::new(g).unwrap()
}

fn seq(s: u64) -> Seq {
    Seq::new(s).unwrap()
}

fn writer(n: u128) -> Writer {
    Writer::Database { database: DatabaseId::new(uuid(n)), system_identifier: "7".to_owned(), timeline: 1 }
}

fn commit(g: u64, s: u64) -> CommitRef {
    CommitRef { generation: generation(g), seq: seq(s), round: round_id(), digest: Digest::of(&[1]) }
}

fn base(g: u64, newest: Option<CommitRef>) -> FenceBase {
    FenceBase { generation: generation(g), newest, tombstones: Vec::new() }
}

fn take_over(purpose: Purpose) -> TakeOver {
    TakeOver {
        id: uuid(9),
        pipeline: PipelineId::new(uuid(1)),
        pipeline_name: PipelineName::new("orders").unwrap(),
        writer: writer(1),
        location: location(),
        purpose,
        holds: Generation::NONE,
        version: 1,
        term: Term::new(1).unwrap(),
        phase: if purpose == Purpose::Activate { Phase::Warming } else { Phase::Preparing },
        chosen: None,
        warm: None,
        fence: None,
        base: None,
        problem: None,
        cancel: None,
        tries: 0,
        retry_at: None,
        retry: RetryPolicy::default(),
    }
}

/// Somebody else's fence.
fn fence(g: u64) -> Fence {
    Fence {
        generation: generation(g),
        pipeline: PipelineId::new(uuid(2)),
        pipeline_name: PipelineName::new("billing").unwrap(),
        writer: writer(2),
        take_over: uuid(8),
        created_at: time(0),
        released: false,
    }
}

fn after(take_over: &TakeOver, events: &[Event]) -> TakeOver {
    events.iter().fold(take_over.clone(), |at, event| decide(&at, event, time(5)).next)
}

fn surveyed(g: u64) -> Event {
    Event::Surveyed { highest: Some(fence(g)) }
}

fn unknown() -> Event {
    Event::Unknown { problem: Problem::new(Reason::StoreUnavailable, "no answer"), jitter: 1000 }
}

fn cancel() -> CancelRequest {
    CancelRequest { by: "alice".to_owned(), cause: "wrong bucket".to_owned() }
}

#[test]
fn an_activation_warms_fences_bases_adopts_and_pulls_exactly_the_base() {
    let mut at = take_over(Purpose::Activate);
    let steps = [
        (Effect::WarmPull, Event::Warmed(Some(commit(1, 4)))),
        (Effect::Survey, surveyed(1)),
        (Effect::PutFence(generation(2)), Event::Fenced(FenceKnown::Mine)),
        (Effect::FinishBase(generation(2)), Event::BaseStands(base(2, Some(commit(1, 5))))),
        (Effect::Adopt, Event::Adopted),
        (Effect::Pull(commit(1, 5)), Event::Pulled(commit(1, 5))),
    ];
    for (effect, event) in steps {
        assert_eq!(effects(&at, time(5)), [effect]);
        let decision = decide(&at, &event, time(5));
        assert_eq!(decision.transitions.len(), 1, "{event:?} in {}", at.phase);
        at = decision.next;
    }
    assert_eq!(at.phase, Phase::Done);
    assert_eq!(effects(&at, time(5)), []);
}

#[test]
fn the_fence_is_stored_before_it_is_put_and_its_bytes_never_change() {
    let prepared = after(&take_over(Purpose::TakeOver), &[surveyed(3)]);
    let stored = prepared.fence.clone().unwrap();
    let parsed = Fence::parse(&Key::Fence(generation(4)).to_string(), stored.bytes.as_bytes()).unwrap();
    assert_eq!((parsed.generation, parsed.take_over, parsed.created_at), (generation(4), uuid(9), time(5)));
    let later = after(&prepared, &[unknown(), surveyed(7), unknown(), Event::Fenced(FenceKnown::Mine)]);
    assert_eq!((later.phase, later.fence), (Phase::Basing, Some(stored)));
}

#[test]
fn nothing_is_taken_over_without_a_base() {
    let claimed = after(&take_over(Purpose::Claim), &[Event::Surveyed { highest: None }]);
    assert_eq!(claimed.generation(), Some(Generation::FIRST));
    assert_eq!(after(&claimed, &[Event::Fenced(FenceKnown::Mine), Event::Adopted]).phase, Phase::Done);
}

#[test]
fn an_activation_over_an_empty_base_has_nothing_to_pull() {
    let events = [
        Event::Warmed(None),
        surveyed(1),
        Event::Fenced(FenceKnown::Mine),
        Event::BaseStands(base(2, None)),
        Event::Adopted,
    ];
    assert_eq!(after(&take_over(Purpose::Activate), &events).phase, Phase::Done);
}

#[test]
fn another_pull_than_that_of_the_base_does_not_start_the_engine() {
    let events = [
        Event::Warmed(None),
        surveyed(1),
        Event::Fenced(FenceKnown::Mine),
        Event::BaseStands(base(2, Some(commit(1, 5)))),
        Event::Adopted,
        Event::Pulled(commit(1, 4)),
        unknown(),
    ];
    let at = after(&take_over(Purpose::Activate), &events);
    assert_eq!(at.phase, Phase::Pulling, "fenced, not started, retried");
    assert_eq!(at.problem.as_ref().map(|problem| problem.reason), Some(Reason::StoreUnavailable));
    assert_eq!(effects(&at, time(5)), []);
    assert_eq!(effects(&at, next_wake(&at).unwrap()), [Effect::Pull(commit(1, 5))]);
}

#[test]
fn it_is_cancelled_before_its_first_put_only() {
    let at = take_over(Purpose::TakeOver);
    assert!(check_cancellable(&at).is_ok());
    assert_eq!(after(&at, &[Event::CancelRequested(cancel())]).phase, Phase::Cancelled);
    let fencing = after(&at, &[surveyed(1)]);
    assert_eq!(check_cancellable(&fencing).unwrap_err().reason, Reason::RoundNotCancellable);
    assert_eq!(after(&fencing, &[Event::CancelRequested(cancel())]), fencing);
    let refused = Event::Refused(Problem::new(Reason::LocationUnsuitable, "no create-only put"));
    assert_eq!(after(&at, std::slice::from_ref(&refused)).phase, Phase::Failed);
    assert_eq!(after(&fencing, &[refused]), fencing, "its fence may land whatever is known");
}

#[test]
fn whoever_lost_the_fence_names_both_and_fences_its_own_row() {
    let mut at = after(&take_over(Purpose::TakeOver), &[surveyed(1)]);
    at.holds = generation(1);
    let decision = decide(&at, &Event::Fenced(FenceKnown::Lost(Box::new(fence(2)))), time(5));
    assert!(decision.fence_pipeline);
    assert_eq!(decision.next.phase, Phase::Failed);
    let problem = decision.next.problem.unwrap();
    assert_eq!(problem.reason, Reason::LocationOwned);
    assert!(problem.message.contains("billing") && problem.message.contains("orders"), "{problem}");
}

#[test]
fn a_claim_and_a_release_respect_the_owner() {
    let refused = |at: &TakeOver, highest: Option<Fence>| {
        let next = after(at, &[Event::Surveyed { highest }]);
        (next.phase, next.problem.map(|problem| problem.reason))
    };
    let claim = take_over(Purpose::Claim);
    let released = Fence { released: true, ..fence(3) };
    assert_eq!(refused(&claim, Some(fence(3))), (Phase::Failed, Some(Reason::LocationOwned)));
    assert_eq!(refused(&claim, Some(released.clone())), (Phase::Fencing, None));
    let mut release = take_over(Purpose::Release);
    assert_eq!(refused(&release, None), (Phase::Failed, Some(Reason::NotOwner)));
    assert_eq!(refused(&release, Some(fence(3))), (Phase::Failed, Some(Reason::LocationOwned)));
    release.holds = generation(3);
    let own = Fence { pipeline: release.pipeline, writer: writer(1), ..fence(3) };
    assert_eq!(refused(&release, Some(own.clone())), (Phase::Fencing, None));
    let restored = Fence { writer: writer(3), ..own.clone() };
    assert_eq!(refused(&release, Some(restored)), (Phase::Failed, Some(Reason::LocationOwned)));
    let next = after(&release, &[Event::Surveyed { highest: Some(own) }]);
    let bytes = next.fence.unwrap().bytes;
    assert!(Fence::parse(&Key::Fence(generation(4)).to_string(), bytes.as_bytes()).unwrap().released);
    // The bucket has fewer fences than the row: nothing is built on that.
    assert_eq!(refused(&release, Some(fence(2))), (Phase::Failed, Some(Reason::LocationUnsuitable)));
}

#[test]
fn a_resync_is_of_the_own_location_whatever_database_wrote_its_fence() {
    let resync = take_over(Purpose::Resync);
    let after_looking = |highest: Option<Fence>| {
        let next = after(&resync, &[Event::Surveyed { highest }]);
        (next.generation(), next.phase, next.problem.map(|problem| problem.reason))
    };
    let own = Fence { pipeline: resync.pipeline, writer: writer(3), ..fence(3) };
    assert_eq!(after_looking(Some(own.clone())), (Some(generation(4)), Phase::Fencing, None));
    let released = Fence { released: true, ..own };
    assert_eq!(after_looking(Some(released)), (None, Phase::Failed, Some(Reason::LocationOwned)));
    assert_eq!(after_looking(Some(fence(3))), (None, Phase::Failed, Some(Reason::LocationOwned)));
    assert_eq!(after_looking(None), (None, Phase::Failed, Some(Reason::NotOwner)));
}

#[test]
fn exists_is_judged_by_bytes() {
    let key = Key::Fence(generation(2)).to_string();
    let (mine, other) = (fence(2).encode(), Fence { take_over: uuid(77), ..fence(2) });
    let theirs = other.encode();
    let lost = Some(FenceKnown::Lost(Box::new(other)));
    for (answer, found, known) in [
        (PutAnswer::Created, None, Some(FenceKnown::Mine)),
        (PutAnswer::Exists, Some(&mine), Some(FenceKnown::Mine)),
        (PutAnswer::Exists, Some(&theirs), lost.clone()),
        (PutAnswer::Exists, None, None),
        (PutAnswer::Unknown, None, None),
        (PutAnswer::Unknown, Some(&mine), Some(FenceKnown::Mine)),
        (PutAnswer::Unknown, Some(&theirs), lost),
    ] {
        assert_eq!(judge_fence(&key, &mine, answer, found.map(Vec::as_slice)), Ok(known), "{answer:?}");
    }
    assert!(judge_fence(&key, &mine, PutAnswer::Exists, Some(b"{}")).is_err());
}

fn committing(digest_of: &str) -> Round {
    let mut round = push(1);
    round.phase = RoundPhase::Committing;
    if let Kind::Push(state) = &mut round.kind {
        state.commit_bytes = Some(digest_of.to_owned());
        state.seq = seq(3);
    }
    round
}

fn settled(round: &Round, base: &FenceBase, key: KeyRead) -> (RoundPhase, Option<Reason>) {
    match settle(round, base, key, time(5)) {
        Settlement::Settled(decision) => (decision.next.phase, decision.next.problem.map(|problem| problem.reason)),
        other => panic!("not settled: {other:?}"),
    }
}

#[test]
fn the_base_settles_an_open_push() {
    let round = committing("{}");
    let fenced = (RoundPhase::Failed, Some(Reason::Fenced));
    let committed = (RoundPhase::Committed, None);
    assert_eq!(settled(&round, &base(2, None), KeyRead::NotYet), fenced);
    assert_eq!(settled(&round, &base(2, Some(commit(1, 2))), KeyRead::NotYet), fenced);
    assert_eq!(settled(&round, &base(2, Some(commit(1, 3))), KeyRead::NotYet), committed);
    let other = CommitRef { round: RoundId::new(uuid(5)), ..commit(1, 3) };
    let behind = (RoundPhase::Failed, Some(Reason::DatabaseBehind));
    assert_eq!(settled(&round, &base(2, Some(other)), KeyRead::NotYet), behind);
    // Exactly the next generation's base decides.
    assert_eq!(
        settle(&round, &base(3, Some(commit(2, 1))), KeyRead::NotYet, time(5)),
        Settlement::NeedsBase(generation(2))
    );
    // An older place than the base names: its key says.
    let newer = base(2, Some(CommitRef { round: RoundId::new(uuid(5)), ..commit(1, 4) }));
    let ask = Settlement::NeedsKey(generation(1), seq(3));
    assert_eq!(settle(&round, &newer, KeyRead::NotYet, time(5)), ask);
    assert_eq!(settle(&round, &newer, KeyRead::Absent, time(5)), Settlement::Undecided);
    assert_eq!(settled(&round, &newer, KeyRead::Holds(AtKey::Commit(commit(1, 3)))), committed);
    assert_eq!(settled(&round, &newer, KeyRead::Holds(AtKey::Commit(other))), behind);
    assert_eq!(settled(&round, &newer, KeyRead::Holds(AtKey::Swept)), behind);
    let cancelled = (RoundPhase::Cancelled, Some(Reason::Cancelled));
    assert_eq!(settled(&round, &newer, KeyRead::Holds(AtKey::Abort)), cancelled);
}

#[test]
fn a_restored_row_learns_that_its_push_was_committed() {
    // The backup was taken while the round transferred; it went on and committed afterwards (R13).
    assert_eq!(settled(&push(1), &base(2, Some(commit(1, 1))), KeyRead::NotYet), (RoundPhase::Committed, None));
    let newer = base(2, Some(commit(1, 4)));
    assert_eq!(settled(&push(1), &newer, KeyRead::Absent), (RoundPhase::Failed, Some(Reason::Fenced)));
}

#[test]
fn a_restored_row_takes_steps_and_parts_from_the_document_that_committed_it() {
    let round = push(3);
    let Settlement::Settled(mut decision) = settle(&round, &base(2, Some(commit(1, 1))), KeyRead::NotYet, time(5))
    else {
        panic!("the base names it")
    };
    let document = sample::commit(3);
    learn_commit(&mut decision, &document);
    let Kind::Push(learnt) = &decision.next.kind else { panic!("a push") };
    assert_eq!((learnt.step, learnt.fingerprint), (Some(document.step), document.fingerprint));
    for (host, part) in decision.next.participants.iter().zip(&document.parts) {
        assert_eq!((host.phase, host.part.as_ref()), (ParticipantPhase::Done, Some(part)));
        let Some(Key::PartManifest(path)) = Key::parse(&part.manifest) else { panic!("{}", part.manifest) };
        assert_eq!((host.incarnation, host.attempt), (Some(path.incarnation), path.attempt), "of the try that counts");
    }
    assert_eq!(decision.transitions.len(), 1 + 3, "the round's and each host's");
}

#[test]
fn open_pulls_are_superseded() {
    for phase in [RoundPhase::Resolving, RoundPhase::Transferring, RoundPhase::Installing] {
        let round = Round { phase, ..pull(2) };
        let superseded = (RoundPhase::Failed, Some(Reason::Superseded));
        assert_eq!(settled(&round, &base(2, None), KeyRead::NotYet), superseded);
    }
}

/// An activation whose last pull is to be done.
fn pulling(activation: &TakeOver, warm: Option<CommitRef>) -> TakeOver {
    let events = [
        Event::Warmed(warm),
        surveyed(1),
        Event::Fenced(FenceKnown::Mine),
        Event::BaseStands(base(2, Some(commit(1, 5)))),
        Event::Adopted,
    ];
    after(activation, &events)
}

#[test]
fn a_last_pull_ends_for_a_newer_fence_and_for_what_is_damaged_or_gone_and_no_other_failure_ends_it() {
    let at = pulling(&take_over(Purpose::Activate), None);
    let refused = |reason| Event::Refused(Problem::new(reason, "because"));
    for reason in Reason::ALL.iter().copied() {
        let ends = matches!(reason, Reason::Fenced | Reason::CheckpointDamaged | Reason::CheckpointNotFound);
        let ended = after(&at, &[refused(reason)]);
        let expected = if ends { (Phase::Failed, Some(reason)) } else { (Phase::Pulling, None) };
        assert_eq!((ended.phase, ended.problem.map(|problem| problem.reason)), expected);
        assert_eq!((&ended.fence, &ended.base), (&at.fence, &at.base), "what stands in the bucket stays known");
    }
    assert!(Purpose::parse(Purpose::Activate.as_str()) == Some(Purpose::Activate) && Purpose::parse("?").is_none());
}

#[test]
fn an_activation_with_a_choice_pulls_that_one_and_leaves_the_base_what_it_is() {
    for chosen in [Chosen::Step(Step::new(3).unwrap()), Chosen::Checkpoint(round_id())] {
        let activation = TakeOver { chosen: Some(chosen), ..take_over(Purpose::Activate) };
        let at = pulling(&activation, Some(commit(1, 3)));
        assert_eq!(
            at.base.as_ref().unwrap().newest,
            Some(commit(1, 5)),
            "the newest counts, whoever goes on from what"
        );
        assert_eq!(effects(&at, time(5)), [Effect::Pull(commit(1, 3))]);
        assert_eq!(after(&at, &[Event::Pulled(commit(1, 5))]).phase, Phase::Pulling, "that is not what was chosen");
        assert_eq!(after(&at, &[Event::Pulled(commit(1, 3))]).phase, Phase::Done);
        // From a read location, over an own one that nobody wrote.
        let events = [Event::Warmed(Some(commit(1, 3))), Event::Surveyed { highest: None }];
        let first = after(&activation, &events);
        let adopted = after(&first, &[Event::Fenced(FenceKnown::Mine), Event::Adopted]);
        assert_eq!(effects(&adopted, time(5)), [Effect::Pull(commit(1, 3))]);
        // What is not there is not exchanged for something else.
        let none = after(&activation, &[Event::Warmed(None)]);
        assert_eq!((none.phase, none.fence), (Phase::Failed, None));
        assert_eq!(none.problem.unwrap().reason, Reason::CheckpointNotFound);
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Warmed(Some(commit(1, 2)))),
        Just(Event::Surveyed { highest: None }),
        (1_u64..4).prop_map(surveyed),
        Just(Event::Refused(Problem::new(Reason::LocationUnsuitable, "no"))),
        Just(Event::Refused(Problem::new(Reason::CheckpointDamaged, "an object is gone"))),
        Just(Event::Fenced(FenceKnown::Mine)),
        (1_u64..5).prop_map(|g| Event::Fenced(FenceKnown::Lost(Box::new(fence(g))))),
        (2_u64..5, any::<bool>()).prop_map(|(g, some)| Event::BaseStands(base(g, some.then(|| commit(1, 2))))),
        Just(Event::Adopted),
        Just(Event::Pulled(commit(1, 2))),
        Just(unknown()),
        Just(Event::CancelRequested(cancel())),
    ]
}

fn any_purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![
        Just(Purpose::Claim),
        Just(Purpose::TakeOver),
        Just(Purpose::Activate),
        Just(Purpose::Resync),
        Just(Purpose::Release),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_stored_bytes_stay_and_phases_only_go_forward(
        purpose in any_purpose(), chooses in any::<bool>(), events in prop::collection::vec(any_event(), 0..30)
    ) {
        let rank = |phase: Phase| Phase::ALL.iter().position(|p| *p == phase);
        let chosen = (chooses && purpose == Purpose::Activate).then_some(Chosen::Checkpoint(round_id()));
        let mut at = TakeOver { chosen, ..take_over(purpose) };
        for event in &events {
            let decision = decide(&at, event, time(5));
            let next = decision.next;
            prop_assert!(rank(next.phase) >= rank(at.phase));
            prop_assert!(!at.phase.is_terminal() || next == at, "terminal");
            prop_assert!(at.fence.is_none() || next.fence == at.fence, "stored bytes changed");
            prop_assert!(at.base.is_none() || next.base == at.base, "the base changed");
            prop_assert_eq!(next.phase == at.phase, decision.transitions.is_empty());
            // Nothing is put before it is stored.
            prop_assert!(!effects(&next, time(5000)).iter().any(|e| matches!(e, Effect::PutFence(_))) || next.fence.is_some());
            // Every active take-over wants something, or will.
            prop_assert_eq!(next.phase.is_terminal(), effects(&next, time(5000)).is_empty());
            if let (Some(base), Some(generation)) = (&next.base, next.generation()) {
                prop_assert_eq!(base.generation, generation);
            }
            at = next;
        }
        prop_assert_eq!(Phase::parse(at.phase.as_str()), Some(at.phase));
    }
}
