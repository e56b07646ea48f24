//! An owner whose location was taken over follows it and takes it back, alike by Postgres and by its twin.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use lockstep_coordinator::store::{
    AdmitTakeOver, Adoption, AuditFilter, ClaimState, Difference, Marking, Page, PipelineRow, TakeOverApplied,
};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::{Fence, FenceBase},
    garbage::Candidates,
    id::{Generation, PipelineId, PipelineName, RoundId, Seq},
    problem::{Problem, Reason, Retryable},
    round::{CancelRequest, Event as RoundEvent, RetryPolicy},
    takeover::{Event, FenceKnown, Phase, Purpose, TakeOver, decide},
    upkeep::{Outcome, Tally, Work, decide as decide_upkeep},
};
use uuid::Uuid;

use crate::{
    location_scene::upkeep,
    ready::installed,
    rig::{LEASE, Rig, admitted, alice, both, pull, push, refused, replica},
};

async fn fence_out(rig: &Rig, row: &PipelineRow) -> bool {
    let problem = Problem::new(Reason::Fenced, "generation 2 of pipeline heir took it over");
    rig.store.fence_out(row.id, row.generation, problem, &replica()).await.unwrap()
}

/// Owned its location, its hosts were told to start, and is fenced since.
async fn fenced(rig: &Rig) -> PipelineRow {
    let row = rig.pipeline("orders").await;
    rig.commit(&row, 10).await;
    installed(rig, &row).await;
    assert!(fence_out(rig, &row).await);
    get(rig, &row).await
}

async fn get(rig: &Rig, row: &PipelineRow) -> PipelineRow {
    rig.store.get_pipeline(&row.id.into()).await.unwrap()
}

async fn start(rig: &Rig, row: &PipelineRow) -> Result<PipelineRow, lockstep_coordinator::store::StoreError> {
    rig.store.start_standby(&row.id.into(), None, &alice()).await
}

async fn trail(rig: &Rig, row: &PipelineRow) -> Vec<(String, Option<String>, Option<String>, String)> {
    let filter = AuditFilter { pipeline: Some(row.id), ..AuditFilter::default() };
    let listed = rig.store.list_audit(filter, Page { size: 1000, token: None }).await.unwrap();
    let told = |event: &str| event == "pipeline_claim" || event.starts_with("standby");
    let rows = listed.items.into_iter().filter(|row| told(&row.event) && row.from.as_deref() != Some("claiming"));
    rows.map(|row| (row.event, row.from, row.to, row.actor)).collect()
}

#[tokio::test]
async fn a_fenced_owner_becomes_a_standby_in_its_generation_and_nothing_of_it_is_an_owners_any_more() {
    both(async |rig| {
        let before = fenced(&rig).await;
        let after = start(&rig, &before).await.unwrap();
        assert_eq!((&after.claim, &after.fence_bytes, &after.fenced), (&ClaimState::Standby, &None, &None));
        // Agents obey nothing older than what they have seen.
        assert_eq!((after.generation, after.next_round_no), (Generation::FIRST, before.next_round_no));
        assert_eq!((after.version, get(&rig, &before).await), (before.version + 1, after.clone()));

        // Its hosts are not told any more that they may start, and it follows.
        assert_eq!(rig.store.word_of(after.id).await.unwrap(), None);
        let standby = rig.store.standbys(Some(after.id)).await.unwrap().pop().unwrap();
        assert!(standby.standing.following().is_some() && standby.ended_fenced.is_none(), "{standby:?}");
        let due = rig.store.due_standbys(LEASE, 10).await.unwrap().due;
        assert_eq!(due.iter().map(|due| due.following.pipeline()).collect::<Vec<_>>(), [after.id]);
        let round = admitted(rig.store.admit_pull(pull(&after), &alice()).await.unwrap()).round;
        assert_eq!(round.generation, Generation::FIRST);

        // Nothing is pushed, kept, retired or collected by it, and it has nothing that could be taken from it.
        let problem = refused(rig.store.admit_push(push(&after), &alice()).await.unwrap_err(), Reason::NotOwner);
        assert_eq!(problem.retryable(), Retryable::AfterFix, "{problem}");
        assert!(problem.message.contains("activate it to push"), "{problem}");
        let collect = upkeep(&after, Work::Collect);
        refused(rig.store.admit_upkeep(collect, &alice()).await.unwrap_err(), Reason::NotOwner);
        let marking = Marking {
            pipeline: after.id,
            generation: after.generation,
            candidates: Candidates { retire: Vec::new(), kept: Vec::new() },
            since: Utc::now(),
            caller: replica(),
            cause: "a collection of the owner that it was".to_owned(),
        };
        refused(rig.store.mark_retired(marking).await.unwrap_err(), Reason::NotOwner);
        assert!(rig.store.collection_view(after.id, BTreeSet::new()).await.unwrap().rounds.fenced);
        assert_eq!(rig.store.due_collections(std::time::Duration::ZERO, 10).await.unwrap(), []);
        assert!(!fence_out(&rig, &after).await);

        // Asked once more, it changes nothing.
        start(&rig, &after).await.unwrap();
        let line = |event: &str, from: Option<&str>, to: Option<&str>| {
            (event.to_owned(), from.map(str::to_owned), to.map(str::to_owned), "alice".to_owned())
        };
        let mut told = trail(&rig, &after).await;
        told.sort();
        let turned = line("pipeline_claim", Some("owned"), Some("standby"));
        assert_eq!(told, [turned, line("standby_started", None, None)]);
    })
    .await;
}

#[tokio::test]
async fn who_is_not_fenced_or_has_something_under_way_as_an_owner_does_not_become_a_standby() {
    both(async |rig| {
        let row = rig.pipeline("orders").await;
        let problem = refused(start(&rig, &row).await.unwrap_err(), Reason::LocationOwned);
        assert!(problem.message.contains("generation 1, and nobody has taken it over since"), "{problem}");
        assert!(problem.message.contains("lockstep standby activate OTHER"), "{problem}");

        // A push that may be about to commit, and upkeep that writes.
        admitted(rig.store.admit_push(push(&row), &alice()).await.unwrap());
        let round = rig.claim().await;
        rig.store.admit_upkeep(upkeep(&row, Work::Collect), &alice()).await.unwrap();
        assert!(fence_out(&rig, &row).await);
        let problem = refused(start(&rig, &row).await.unwrap_err(), Reason::RoundInProgress);
        assert_eq!(problem.metadata["round"], round.id.to_string(), "{problem}");
        let cancel = CancelRequest { by: "bob".to_owned(), cause: "fenced".to_owned() };
        rig.step(round, RoundEvent::CancelRequested(cancel)).await;
        let problem = refused(start(&rig, &row).await.unwrap_err(), Reason::RoundInProgress);
        assert_eq!(problem.metadata["work"], "collect", "{problem}");
        let open = rig.store.claim_upkeep("one", LEASE, 1).await.unwrap().pop().unwrap();
        let stopped = Outcome::Stopped { problem: Problem::new(Reason::Fenced, "it is fenced"), jitter: 0 };
        let ended = decide_upkeep(&open, stopped, Tally::default(), Utc::now());
        rig.store.apply_upkeep(&open, &ended, &replica()).await.unwrap();

        // Only a start makes it one.
        let row = get(&rig, &row).await;
        let stop = rig.store.stop_standby(&row.id.into(), &alice()).await.unwrap_err();
        assert!(refused(stop, Reason::LocationOwned).message.contains("lockstep standby start orders"));
        let activate = rig.store.admit_take_over(activation(&row), &alice()).await.unwrap_err();
        assert!(refused(activate, Reason::LocationOwned).message.contains("lockstep standby start orders"));
        assert_eq!(get(&rig, &row).await, row);
        assert_eq!(start(&rig, &row).await.unwrap().claim, ClaimState::Standby);

        let behind = rig.pipeline("behind").await;
        let lost = Problem::new(Reason::DatabaseBehind, "it was restored from a dump");
        let of = (behind.id, behind.generation);
        assert!(rig.store.note_difference(of, Difference::Behind, lost, &replica()).await.unwrap());
        assert!(fence_out(&rig, &behind).await);
        refused(start(&rig, &behind).await.unwrap_err(), Reason::DatabaseBehind);
    })
    .await;
}

fn activation(row: &PipelineRow) -> AdmitTakeOver {
    AdmitTakeOver {
        pipeline: row.id.into(),
        purpose: Purpose::Activate,
        chosen: None,
        request_id: None,
        seen: None,
        retry: RetryPolicy::default(),
    }
}

async fn activate(rig: &Rig, row: &PipelineRow) -> TakeOver {
    rig.store.admit_take_over(activation(row), &alice()).await.unwrap();
    rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap()
}

async fn step(rig: &Rig, before: TakeOver, event: Event) -> TakeOver {
    let adoption = (event == Event::Adopted).then(|| Adoption { round: None, last: None, learnt: Vec::new() });
    let decision = decide(&before, &event, Utc::now());
    match rig.store.apply_take_over(&before, &decision, adoption, &replica()).await.unwrap() {
        TakeOverApplied::Stored(next) => next,
        TakeOverApplied::Moved => panic!("nobody else moves it"),
    }
}

/// Of the pipeline that has taken its location over.
fn of_the_heir(own: &TakeOver, generation: u64) -> Fence {
    Fence {
        generation: Generation::new(generation).unwrap(),
        pipeline: PipelineId::new(Uuid::from_u128(7)),
        pipeline_name: PipelineName::new("heir").unwrap(),
        writer: own.writer.clone(),
        take_over: Uuid::from_u128(8),
        created_at: DateTime::UNIX_EPOCH,
        released: false,
    }
}

#[tokio::test]
async fn it_takes_its_location_back_in_a_higher_generation_and_follows_on_where_another_was_first() {
    Box::pin(both(async |rig| {
        let before = fenced(&rig).await;
        let row = start(&rig, &before).await.unwrap();
        let lost = activate(&rig, &row).await;
        assert_eq!(lost.holds, Generation::FIRST);
        let lost = step(&rig, lost, Event::Warmed(None)).await;
        let survey = |own: &TakeOver| Event::Surveyed { highest: Some(of_the_heir(own, 2)) };
        let event = survey(&lost);
        let lost = step(&rig, lost, event).await;
        let other = FenceKnown::Lost(Box::new(of_the_heir(&lost, 3)));
        let lost = step(&rig, lost, Event::Fenced(other)).await;
        assert_eq!((lost.phase, get(&rig, &row).await.fenced), (Phase::Failed, None), "nothing was taken from it");
        assert_eq!(rig.store.due_standbys(LEASE, 10).await.unwrap().due.len(), 1, "it follows on");

        let own = activate(&rig, &row).await;
        let own = step(&rig, own, Event::Warmed(None)).await;
        let event = survey(&own);
        let mut own = step(&rig, own, event).await;
        let generation = own.generation().unwrap();
        assert_eq!(generation, Generation::new(3).unwrap());
        let newest = CommitRef {
            generation: generation.before(),
            seq: Seq::FIRST,
            round: RoundId::new(Uuid::from_u128(9)),
            digest: Digest::of(b"base"),
        };
        let base = FenceBase { generation, newest: Some(newest), tombstones: Vec::new() };
        for event in [Event::Fenced(FenceKnown::Mine), Event::BaseStands(base), Event::Adopted] {
            own = step(&rig, own, event).await;
        }
        // Its hosts may lack the base: told apart from one that follows by the fence it has again.
        let pulling = get(&rig, &row).await;
        assert_eq!(
            (&pulling.claim, pulling.generation, pulling.holds_fence()),
            (&ClaimState::Standby, generation, true)
        );
        let problem = refused(rig.store.admit_push(push(&pulling), &alice()).await.unwrap_err(), Reason::NotOwner);
        assert_eq!(problem.retryable(), Retryable::Yes, "{problem}");
        step(&rig, own, Event::Pulled(newest)).await;
        let owner = get(&rig, &row).await;
        assert_eq!((&owner.claim, owner.next_seq), (&ClaimState::Owned, Seq::FIRST));
        let pushed = admitted(rig.store.admit_push(push(&owner), &alice()).await.unwrap()).round;
        assert_eq!(pushed.generation, generation);
    }))
    .await;
}
