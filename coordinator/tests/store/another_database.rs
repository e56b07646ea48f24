//! Rows that another database wrote (R13): as a restored backup, a dump or a promoted replica has them. Nothing of such a pipeline is claimed, renewed, cancelled or written until a
//! take-over has settled it.

use std::time::Duration;

use chrono::Utc;
use lockstep_coordinator::store::{
    Adoption, Applied, ClaimState, Page, PipelineRow, TakeOverApplied, UpkeepApplied, memory::MemoryDatabase,
};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::FenceBase,
    id::{Generation, Seq},
    problem::Reason,
    round::{CancelRequest, KeyRead, Kind, Phase, Round, decide},
    takeover::{self, Purpose, Settlement, TakeOver, settle},
    upkeep::{Tally, Work},
};

use crate::{
    location_scene::{finding, take_over, to, upkeep},
    ready::installed,
    rig::{LEASE, Rig, admitted, alice, new_pipeline, planned, pull, push, refused, replica, spec},
};

/// From now on this database is not the one that wrote its rows: another timeline than theirs.
async fn promote(rig: &Rig) {
    let statement = "UPDATE pipelines SET timeline = timeline + 1";
    sqlx::query(statement).execute(&mut rig.sql().await).await.unwrap();
}

async fn seen(rig: &Rig, pipeline: &PipelineRow) -> PipelineRow {
    rig.store.get_pipeline(&pipeline.id.into()).await.unwrap()
}

/// A push that is claimed and planned, with a lease that is over.
async fn open_push(rig: &Rig, pipeline: &PipelineRow) -> Round {
    admitted(rig.store.admit_push(push(pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let event = planned(&round, 10);
    let round = rig.step(round, event).await;
    assert!(rig.store.renew(round.id, round.term, Duration::ZERO).await.unwrap());
    round
}

#[tokio::test]
async fn an_open_round_is_neither_claimed_nor_renewed_nor_cancelled_nor_written() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let round = open_push(&rig, &pipeline).await;
    promote(&rig).await;
    let home = rig.pipeline("invoices").await;
    let other = admitted(rig.store.admit_push(push(&home), &alice()).await.unwrap()).round;
    let before = rig.store.get_round(round.id).await.unwrap();

    let claimed = rig.store.claim_rounds("two", LEASE, 10).await.unwrap();
    assert_eq!(claimed.iter().map(|record| record.round.id).collect::<Vec<_>>(), [other.id], "that of its own alone");
    assert!(!rig.store.renew(round.id, round.term, LEASE).await.unwrap(), "its driver stops");
    let request = CancelRequest { by: "bob".to_owned(), cause: "enough".to_owned() };
    let decision = decide(&round, &lockstep_protocol::round::Event::CancelRequested(request.clone()), Utc::now());
    assert_eq!(rig.store.apply(&round, &decision, &replica()).await.unwrap(), Applied::Moved);
    let cancelled = rig.store.request_cancel(round.id, request, &alice()).await.unwrap_err();
    let pushed = rig.store.admit_push(push(&pipeline), &alice()).await.unwrap_err();
    let pulled = rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap_err();
    for error in [cancelled, pushed, pulled] {
        let problem = refused(error, Reason::DatabaseBehind);
        assert!(problem.message.contains("timeline 2)") && problem.message.contains("timeline 1)"), "both: {problem}");
        assert!(problem.message.contains("lockstep resync orders"), "the way out: {problem}");
    }
    assert_eq!(rig.store.get_round(round.id).await.unwrap(), before);
    assert_eq!(seen(&rig, &pipeline).await.behind.unwrap().reason, Reason::DatabaseBehind, "before anybody noted it");
    let listed = rig.store.list_pipelines(Page::default()).await.unwrap().items;
    assert_eq!(listed.iter().filter(|row| row.behind.is_some()).count(), 1);
}

#[tokio::test]
async fn nothing_else_is_looked_for_on_behalf_of_its_pipeline() {
    let rig = Rig::new().await;
    let scheduled = {
        let mut value = spec("orders", "orders").to_value();
        value["push_interval"] = "10s".into();
        lockstep_protocol::spec::PipelineSpec::from_value(value).unwrap()
    };
    let pipeline = rig.pipeline_of(new_pipeline(scheduled)).await;
    let Kind::Push(committed) = rig.commit(&pipeline, 10).await.kind else { panic!("a push") };
    installed(&rig, &pipeline).await;
    rig.store.keep_verification(finding(&pipeline, committed.committed.unwrap()), &alice()).await.unwrap();
    rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await.unwrap();
    let collection = rig.store.claim_upkeep("one", Duration::ZERO, 1).await.unwrap().pop().unwrap();
    promote(&rig).await;

    assert!(rig.store.claim_upkeep("two", LEASE, 10).await.unwrap().is_empty());
    assert!(!rig.store.renew_upkeep(collection.id, collection.term, LEASE, Tally::default()).await.unwrap());
    let ended = rig.store.apply_upkeep(&collection, &collection, &replica()).await.unwrap();
    assert_eq!(ended, UpkeepApplied::Moved);
    let asked = rig.store.admit_upkeep(upkeep(&pipeline, Work::Collect), &alice()).await;
    assert_eq!(asked.unwrap().id, collection.id, "the one that is under way");
    assert!(rig.store.claim_words(LEASE).await.unwrap().is_empty());
    assert!(rig.store.owed_marks(LEASE).await.unwrap().is_empty());
    assert!(rig.store.due_pushes(LEASE, 10).await.unwrap().due.is_empty());
    assert_eq!(rig.store.verify_turn().await.unwrap(), None);
}

/// A take-over that has its base and settles the pipeline's open round by it; whether the base names that round.
async fn adopted(rig: &Rig, mut before: TakeOver, round: Option<&Round>, counts: bool) -> TakeOver {
    for phase in [takeover::Phase::Fencing, takeover::Phase::Adopting] {
        let moved = rig.store.apply_take_over(&before, &to(&before, phase), None, &replica()).await.unwrap();
        let TakeOverApplied::Stored(next) = moved else { panic!("nobody else moves it") };
        before = next;
    }
    let newest = round.filter(|_| counts).map(|round| CommitRef {
        generation: round.generation,
        seq: Seq::FIRST,
        round: round.id,
        digest: Digest::of(b"commit"),
    });
    let base = FenceBase { generation: Generation::FIRST.next(), newest, tombstones: Vec::new() };
    let settled = round.map(|round| match settle(round, &base, KeyRead::NotYet, Utc::now()) {
        Settlement::Settled(decision) => (round.clone(), *decision),
        other => panic!("{other:?}"),
    });
    let adoption = Adoption { round: settled, last: None, learnt: Vec::new() };
    let done = to(&before, takeover::Phase::Done);
    match rig.store.apply_take_over(&before, &done, Some(adoption), &replica()).await.unwrap() {
        TakeOverApplied::Stored(next) => next,
        TakeOverApplied::Moved => panic!("nobody else moves it"),
    }
}

async fn resync(rig: &Rig, pipeline: &PipelineRow) -> TakeOver {
    rig.store.admit_take_over(take_over(pipeline, Purpose::Resync), &alice()).await.unwrap();
    rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap()
}

#[tokio::test]
async fn the_take_over_settles_what_is_open_and_gives_the_row_to_this_database() {
    for (counts, expected) in [(true, Phase::Committed), (false, Phase::Failed)] {
        let rig = Rig::new().await;
        let pipeline = rig.pipeline("orders").await;
        // Before its hosts were asked: its row knows no step.
        admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
        let round = rig.claim().await;
        promote(&rig).await;
        let taken = resync(&rig, &pipeline).await;
        adopted(&rig, taken, Some(&round), counts).await;
        assert_eq!(rig.store.get_round(round.id).await.unwrap().round.phase, expected);
        let row = seen(&rig, &pipeline).await;
        assert_eq!((row.behind, &row.database), (None, &rig.store.identity().await.unwrap()));
        admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
        rig.claim().await;
    }
}

#[tokio::test]
async fn a_take_over_that_another_database_began_leaves_its_row_behind() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let taken = resync(&rig, &pipeline).await;
    // A backup of the moment: what followed is unknown here.
    let statement = "UPDATE take_overs SET writer = jsonb_set(writer, '{timeline}', '2')";
    sqlx::query(statement).execute(&mut rig.sql().await).await.unwrap();
    promote(&rig).await;
    let taken = rig.store.get_take_over(taken.id).await.unwrap();
    adopted(&rig, taken, None, false).await;
    let row = seen(&rig, &pipeline).await;
    assert_eq!((row.generation, &row.claim), (Generation::FIRST.next(), &ClaimState::Owned));
    assert_eq!(row.behind.unwrap().reason, Reason::DatabaseBehind, "a second one has to follow");
    resync(&rig, &pipeline).await;
}

#[tokio::test]
async fn the_twin_does_the_same() {
    let database = MemoryDatabase::new(Utc::now);
    let postgres = Rig::new().await;
    let rig = Rig { database: postgres.database, store: database.store() };
    let pipeline = rig.pipeline("orders").await;
    let round = open_push(&rig, &pipeline).await;
    let mut other = database.identity();
    other.timeline += 1;
    database.restore(&database.backup(), other);
    // Requests of a store are to the database that it was made for.
    let rig = Rig { store: database.store(), ..rig };
    assert!(rig.store.claim_rounds("two", LEASE, 10).await.unwrap().is_empty());
    assert!(!rig.store.renew(round.id, round.term, LEASE).await.unwrap());
    let request = CancelRequest { by: "bob".to_owned(), cause: "enough".to_owned() };
    refused(rig.store.request_cancel(round.id, request, &alice()).await.unwrap_err(), Reason::DatabaseBehind);
    refused(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap_err(), Reason::DatabaseBehind);
    assert!(seen(&rig, &pipeline).await.behind.is_some());
    let taken = resync(&rig, &pipeline).await;
    adopted(&rig, taken, Some(&round), true).await;
    assert_eq!(rig.store.get_round(round.id).await.unwrap().round.phase, Phase::Committed);
    assert_eq!(seen(&rig, &pipeline).await.behind, None);
}
