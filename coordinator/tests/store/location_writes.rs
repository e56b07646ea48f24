//! R6 for every write about locations: take-overs, standbys, words, verifications, upkeep, retirements, schedules. The connection is cut around the COMMIT as
//! in `lost_answers`; what the caller is told is never wrong, and the whole database is then as it is without a cut, or as it was before.

mod standbys;
mod take_overs;
mod upkeep;
mod verifications;

use std::fmt::Debug;

use futures::future::BoxFuture;
use lockstep_coordinator::store::StoreError;

use crate::{
    ground,
    location_scene::{Scene, differences, plain},
    lost_answers::Said,
    rig::Rig,
    wire::{Cut, Wire},
};
use standbys::STANDBYS;
use take_overs::TAKE_OVERS;
use upkeep::UPKEEP;
use verifications::VERIFICATIONS;

/// What a write said, and all of its answer.
type Told = (Said, String);

type Write = (&'static str, for<'s> fn(&'s Scene<'_>) -> BoxFuture<'s, Told>);

fn told<T: Debug>(outcome: Result<T, StoreError>, done: impl Fn(&T) -> bool) -> Told {
    match outcome {
        Ok(value) => {
            let said = if done(&value) { Said::Done } else { Said::Moved };
            (said, plain(&format!("{value:?}")))
        }
        Err(StoreError::Unavailable(_)) => (Said::Unavailable, String::new()),
        Err(StoreError::UnknownOutcome(_)) => (Said::Unknown, String::new()),
        Err(StoreError::Problem(problem)) => panic!("refused: {problem}"),
    }
}

/// What a lost answer leaves open where the write can't be told from the same one by somebody else; its caller looks again.
const LEFT_OPEN: [&str; 21] = [
    "claim_take_overs",
    "renew_take_over",
    "due_standbys",
    "save_follow_state",
    "claim_words",
    "save_telling",
    "note_difference",
    "note_difference, a lost checkpoint",
    "found_again",
    "owed_marks",
    "settle_mark, it stands",
    "settle_mark, not yet",
    "claim_verify_budget",
    "renew_verify_budget",
    "save_verify_budget",
    "verify_turn",
    "due_pushes",
    "save_push_schedule",
    "claim_upkeep",
    "renew_upkeep",
    "release_upkeep",
];

const CUTS: [Cut; 4] = [Cut::Request, Cut::Answer, Cut::Both, Cut::Late];

/// One write in a database of its own; what it said, and all that is there then.
async fn run(wire: &Wire, cut: Option<Cut>, (name, write): Write) -> (Told, String, String) {
    let rig = Rig::new().await;
    let store = ground::connect_by(&rig.database, |url| wire.url(url)).await;
    let scene = Scene::new(rig, store, wire, cut);
    let cuts = wire.cuts();
    let told = write(&scene).await;
    wire.disarm();
    wire.land().await;
    assert_eq!(wire.cuts(), cuts + u64::from(cut.is_some()), "{name} was cut, {cut:?}");
    if told.0 == Said::Unknown {
        // Whatever is still under way is over once its table can be locked.
        let mut sql = scene.rig.sql().await;
        let mut all = sqlx::Connection::begin(&mut sql).await.unwrap();
        let tables = "take_overs, standbys, ready_words, upkeep, verifications, retirements, pipelines, push_schedules";
        let lock = format!("LOCK {tables}, verify_budget, verify_turns, accepted_losses IN EXCLUSIVE MODE");
        sqlx::Executor::execute(&mut *all, sqlx::AssertSqlSafe(lock)).await.unwrap();
        all.commit().await.unwrap();
    }
    let (before, after) = (scene.before(), scene.all().await);
    (told, before, after)
}

async fn never_told_wrongly(writes: &[Write]) {
    let wire = Wire::before(ground::port().await).await;
    for (name, write) in writes {
        let (calm, before, done) = run(&wire, None, (name, *write)).await;
        assert_eq!(calm.0, Said::Done, "{name} without a cut: {}", calm.1);
        assert_ne!(before, done, "{name} writes something");
        for cut in CUTS {
            let (told, was, is) = run(&wire, Some(cut), (name, *write)).await;
            assert!(was == before, "{name}: something else is given: {}", differences(&before, &was));
            let open = LEFT_OPEN.contains(name);
            println!("{cut:?} of {name}: told {:?}, done: {}", told.0, is == done);
            assert_eq!(told.0, if open { Said::Unknown } else { Said::Done }, "{name}, {cut:?}");
            match cut {
                Cut::Request if open => {
                    assert!(is == before, "{name}, {cut:?}, was written: {}", differences(&before, &is));
                }
                Cut::Both if open && is == before => {}
                _ => assert!(is == done, "{name}, {cut:?}, not as without the cut: {}", differences(&done, &is)),
            }
            if !open && *name != "fence_out" {
                assert_eq!(told.1, calm.1, "{name}, {cut:?}: the answer is the same");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_of_take_overs_change_nothing() {
    never_told_wrongly(&TAKE_OVERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_of_standbys_words_and_fences_change_nothing() {
    never_told_wrongly(&STANDBYS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_of_verifications_and_schedules_change_nothing() {
    never_told_wrongly(&VERIFICATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_of_upkeep_and_retirements_change_nothing() {
    never_told_wrongly(&UPKEEP).await;
}
