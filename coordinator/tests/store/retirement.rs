//! Marks, pins and collections as rows (G1, R7, R8), in Postgres and in its twin.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_coordinator::store::{AdmitUpkeep, Applied, Marking, PipelineRow, Store, UpkeepApplied};
use lockstep_protocol::{
    commit::CommitRef,
    garbage::{Candidates, Retiring, RoundState},
    id::{Generation, RoundId, Step},
    problem::{Problem, Reason},
    round::{Event, Kind, Phase, Resolved, Round, Source, decide},
    upkeep::{self, Outcome, Tally, Work},
};
use uuid::Uuid;

use crate::{
    location_scene::upkeep,
    rig::{FINGERPRINT, LEASE, Rig, admitted, alice, events_of_a_push, found, pull, push, refused, replica, rigs},
};

async fn committed(rig: &Rig, pipeline: &PipelineRow, step: u64) -> CommitRef {
    let Kind::Push(push) = rig.commit(pipeline, step).await.kind else { panic!("a push") };
    push.committed.unwrap()
}

async fn mark(store: &Store, pipeline: &PipelineRow, commits: &[CommitRef], since: DateTime<Utc>) -> Vec<CommitRef> {
    let marking = Marking {
        pipeline: pipeline.id,
        generation: Generation::FIRST,
        candidates: Candidates { retire: commits.to_vec(), kept: Vec::new() },
        since,
        caller: replica(),
        cause: "a test".to_owned(),
    };
    let open = store.mark_retired(marking).await.unwrap();
    open.iter().map(|retiring: &Retiring| retiring.tombstone().commit).collect()
}

fn from_location(round: &Round, commit: CommitRef, step: u64) -> Event {
    Event::Resolved {
        resolved: Resolved {
            source: Source::Location,
            location: Some(round.location.clone()),
            commit: Some(commit),
            step: Some(Step::new(step).unwrap()),
            fingerprint: Some(FINGERPRINT),
            processed_records: None,
            parts: Vec::new(),
        },
        hosts: found(round, step),
        discard: false,
    }
}

fn pin(commit: CommitRef) -> Work {
    Work::Pin { commit, key: "pins/keep-x.json".to_owned(), bytes: "{}".to_owned() }
}

#[tokio::test]
async fn r7_neither_the_newest_commit_nor_the_base_of_a_push_is_marked() {
    for rig in rigs().await {
        let pipeline = rig.pipeline("orders").await;
        let old = committed(&rig, &pipeline, 10).await;
        let base = committed(&rig, &pipeline, 20).await;
        let record = admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
        let Kind::Push(state) = &record.round.kind else { panic!("a push") };
        assert_eq!(state.base, Some(base), "pinned in the admission");
        let now = rig.store.now().await.unwrap();
        assert_eq!(mark(&rig.store, &pipeline, &[old, base], now).await, [old]);
        let mut round = rig.claim().await;
        for event in events_of_a_push(&round, 30) {
            round = rig.step(round, event).await;
        }
        assert_eq!(mark(&rig.store, &pipeline, &[base], now).await, [old, base], "the push is over");
    }
}

#[tokio::test]
async fn r8_a_pull_is_not_given_a_marked_source_and_what_it_was_given_is_not_marked() {
    for rig in rigs().await {
        let pipeline = rig.pipeline("orders").await;
        let commits = [
            committed(&rig, &pipeline, 10).await,
            committed(&rig, &pipeline, 20).await,
            committed(&rig, &pipeline, 30).await,
        ];
        let now = rig.store.now().await.unwrap();
        admitted(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap());
        let round = rig.claim().await;
        assert_eq!(mark(&rig.store, &pipeline, &commits[..1], now).await, commits[..1]);
        let decision = decide(&round, &from_location(&round, commits[0], 10), Utc::now());
        let applied = rig.store.apply(&round, &decision, &replica()).await.unwrap();
        assert_eq!(applied, Applied::SourceRetired(commits[0]));
        assert_eq!(rig.store.get_round(round.id).await.unwrap().round, round, "nothing was written");

        let round = rig.step(round.clone(), from_location(&round, commits[1], 20)).await;
        assert_eq!(round.phase, Phase::Transferring);
        assert_eq!(mark(&rig.store, &pipeline, &commits[1..2], now).await, commits[..1], "its source stays");
        let view = rig.store.collection_view(pipeline.id, BTreeSet::from([round.id])).await.unwrap();
        assert_eq!(view.rounds.in_use, BTreeSet::from([commits[1]]));
        assert_eq!(view.rounds.rounds.get(&round.id), Some(&RoundState::Undecided));
    }
}

#[tokio::test]
async fn a_mark_that_landed_is_not_open_and_one_that_is_taken_back_frees_its_commit() {
    for rig in rigs().await {
        let pipeline = rig.pipeline("orders").await;
        let commits = [
            committed(&rig, &pipeline, 10).await,
            committed(&rig, &pipeline, 20).await,
            committed(&rig, &pipeline, 30).await,
        ];
        let now = rig.store.now().await.unwrap();
        assert_eq!(mark(&rig.store, &pipeline, &commits, now).await, commits[..2]);
        rig.store.retirement_landed(pipeline.id, commits[0]).await.unwrap();
        rig.store.take_mark_back(pipeline.id, commits[1]).await.unwrap();
        assert_eq!(mark(&rig.store, &pipeline, &[], now).await, []);
        rig.store.admit_upkeep(upkeep(&pipeline, pin(commits[1])), &alice()).await.unwrap();
        let gone = rig.store.admit_upkeep(upkeep(&pipeline, pin(commits[0])), &alice()).await;
        refused(gone.unwrap_err(), Reason::CheckpointNotFound);
    }
}

#[tokio::test]
async fn what_is_pinned_while_a_collector_looks_is_not_marked() {
    for rig in rigs().await {
        let pipeline = rig.pipeline("orders").await;
        let old = committed(&rig, &pipeline, 10).await;
        committed(&rig, &pipeline, 20).await;
        let before = rig.store.now().await.unwrap();
        let admitted = rig.store.admit_upkeep(upkeep(&pipeline, pin(old)), &alice()).await.unwrap();
        assert_eq!(mark(&rig.store, &pipeline, &[old], before).await, [], "its pin is on its way");
        let claimed = rig.store.claim_upkeep("one", LEASE, 9).await.unwrap().pop().unwrap();
        assert_eq!(claimed.id, admitted.id);
        let next = upkeep::decide(&claimed, Outcome::Done(None), Tally::default(), Utc::now());
        rig.store.apply_upkeep(&claimed, &next, &replica()).await.unwrap();
        assert_eq!(mark(&rig.store, &pipeline, &[old], before).await, [], "it came after the listing of pins");
        let after = rig.store.now().await.unwrap();
        assert_eq!(mark(&rig.store, &pipeline, &[old], after).await, [old], "a listing after it decides by itself");
    }
}

#[tokio::test]
async fn a_collection_is_one_row_that_only_its_term_moves() {
    for rig in rigs().await {
        let pipeline = rig.pipeline("orders").await;
        let first = rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await.unwrap();
        let second = rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await.unwrap();
        assert_eq!(first, second, "one at a time");
        let old = rig.store.claim_upkeep("one", Duration::ZERO, 9).await.unwrap().pop().unwrap();
        let new = rig.store.claim_upkeep("two", LEASE, 9).await.unwrap().pop().expect("the lease is over");
        let tally = Tally { objects: 3, ..Tally::default() };
        assert!(!rig.store.renew_upkeep(old.id, old.term, LEASE, tally).await.unwrap());
        assert!(rig.store.renew_upkeep(new.id, new.term, LEASE, tally).await.unwrap());
        let slow = Outcome::Stopped { problem: Problem::new(Reason::StoreThrottled, "slow"), jitter: 0 };
        let late = upkeep::decide(&old, slow.clone(), tally, Utc::now());
        assert_eq!(rig.store.apply_upkeep(&old, &late, &replica()).await.unwrap(), UpkeepApplied::Moved);
        let next = upkeep::decide(&new, slow, tally, Utc::now());
        let UpkeepApplied::Stored(waits) = rig.store.apply_upkeep(&new, &next, &replica()).await.unwrap() else {
            panic!("it is this replica's")
        };
        assert_eq!((waits.phase, waits.tries, waits.tally), (upkeep::Phase::Waiting, 1, tally));
        let end = upkeep::decide(&waits, Outcome::Done(None), tally, Utc::now());
        rig.store.apply_upkeep(&waits, &end, &replica()).await.unwrap();
        let last = rig.store.last_collection(pipeline.id).await.unwrap().unwrap();
        assert_eq!((last.id, last.phase, last.version), (first.id, upkeep::Phase::Done, new.version + 2));
        assert_eq!(rig.store.due_collections(Duration::from_secs(3600), 9).await.unwrap(), []);
        assert_eq!(rig.store.due_collections(Duration::ZERO, 9).await.unwrap(), [pipeline.id]);
        let soon = AdmitUpkeep { at_least_apart: Some(LEASE), ..upkeep(&pipeline, Work::Collect) };
        assert_eq!(rig.store.admit_upkeep(soon, &alice()).await.unwrap().id, first.id, "not twice in a minute");
        let again = rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await.unwrap();
        assert_ne!(again.id, first.id);
        let unknown = RoundId::new(Uuid::from_u128(7));
        let view = rig.store.collection_view(pipeline.id, BTreeSet::from([unknown])).await.unwrap();
        assert!(view.rounds.rounds.is_empty(), "a round that nobody knows has no state");
    }
}
