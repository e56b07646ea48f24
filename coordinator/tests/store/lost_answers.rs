//! R6 for every write of the store: the connection is cut exactly around its COMMIT. What the caller is told is never wrong: done means done,
//! unavailable means not done, and what nobody can know is `UnknownOutcome`. Afterwards a look by another connection says what is true.

use std::time::Duration;

use chrono::Utc;
use futures::future::BoxFuture;
use lockstep_coordinator::store::{
    Admission, Applied, ClaimOutcome, ClaimSettled, HostProgress, PipelineRow, Store, StoreError,
};
use lockstep_protocol::{
    id::{Attempt, Generation},
    problem::{Problem, Reason},
    round::{CancelRequest, Event, Round, decide},
};
use sqlx::{Row as _, postgres::PgRow};

use crate::{
    ground,
    rig::{LEASE, Rig, admitted, alice, new_pipeline, planned, pull, push, replica, request_id, spec},
    wire::{Cut, Wire},
};

/// What a write said of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Said {
    Done,
    /// Somebody else was there first.
    Moved,
    Unavailable,
    Unknown,
}

fn said<T>(outcome: Result<T, StoreError>, of: impl Fn(T) -> Said) -> Said {
    match outcome {
        Ok(value) => of(value),
        Err(StoreError::Unavailable(_)) => Said::Unavailable,
        Err(StoreError::UnknownOutcome(_)) => Said::Unknown,
        Err(StoreError::Problem(problem)) => panic!("refused: {problem}"),
    }
}

/// What each write is tried on: made anew for each.
pub(crate) struct Given {
    pub(crate) rig: Rig,
    /// Through the proxy.
    pub(crate) store: Store,
    pub(crate) pipeline: PipelineRow,
    /// Claimed by replica one, transferring.
    round: Round,
    /// Still claiming its location, claimed by replica one; there is another one, `due`, that nobody has claimed.
    claiming: PipelineRow,
    /// Without a round; there is another one, `waiting`, with a push that nobody has claimed.
    idle: PipelineRow,
}

/// Its name, the write, and a query of how often it happened.
pub(crate) type Write = (&'static str, for<'g> fn(&'g Given) -> BoxFuture<'g, Said>, &'static str);

const fn done(is: bool) -> Said {
    if is { Said::Done } else { Said::Moved }
}

/// `$1` is the pipeline, `$2` the round, `$3` the claiming pipeline.
pub(crate) const WRITES: [Write; 16] = [
    (
        "create_pipeline",
        |given| {
            Box::pin(async move {
                let new = new_pipeline(spec("fresh", "fresh"));
                said(given.store.create_pipeline(new, &alice()).await, |_| Said::Done)
            })
        },
        "SELECT count(*) FROM pipelines WHERE name = 'fresh'",
    ),
    (
        "update_pipeline",
        |given| {
            Box::pin(async move {
                let mut changed = given.pipeline.spec.clone();
                changed.push_interval = Some(Duration::from_secs(60));
                let selector = given.pipeline.id.into();
                let etag = Some(given.pipeline.etag.as_str());
                said(given.store.update_pipeline(&selector, changed, etag, &alice()).await, |_| Said::Done)
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'pipeline_updated' AND pipeline_id = $1",
    ),
    (
        "delete_pipeline",
        |given| {
            Box::pin(async move {
                let selector = given.claiming.id.into();
                said(given.store.delete_pipeline(&selector, None, &alice()).await, |()| Said::Done)
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'pipeline_deleted' AND pipeline_id = $3",
    ),
    (
        "claim_claiming",
        |given| {
            Box::pin(async move { said(given.store.claim_claiming("two", LEASE).await, |rows| done(rows.len() == 1)) })
        },
        "SELECT count(*) FROM pipelines WHERE claim_lease_owner = 'two'",
    ),
    (
        "renew_claim",
        |given| {
            Box::pin(async move {
                let (id, term) = (given.claiming.id, given.claiming.claim_term);
                said(given.store.renew_claim(id, term, LEASE * 10).await, done)
            })
        },
        "SELECT count(*) FROM pipelines WHERE claim_lease_until > clock_timestamp() + interval '5 minutes'",
    ),
    (
        "settle_claim",
        |given| {
            Box::pin(async move {
                let (row, owned) = (&given.claiming, ClaimOutcome::Owned(Generation::FIRST));
                let settled = given.store.settle_claim(row.id, row.version, row.claim_term, owned, &replica()).await;
                said(settled, |settled| done(matches!(settled, ClaimSettled::Stored(_))))
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'pipeline_claim' AND to_phase = 'owned' AND pipeline_id = $3",
    ),
    (
        "admit_push",
        |given| {
            Box::pin(async move {
                said(given.store.admit_push(push(&given.idle), &alice()).await, |made| {
                    done(matches!(made, Admission::New(_)))
                })
            })
        },
        "SELECT count(*) FROM rounds WHERE pipeline_name = 'idle'",
    ),
    (
        "admit_pull",
        |given| {
            Box::pin(async move {
                let mut ask = pull(&given.idle);
                ask.request_id = Some(request_id());
                // Its own request id, answered by its own lost run: the same round, whatever it is called.
                said(given.store.admit_pull(ask, &alice()).await, |_| Said::Done)
            })
        },
        "SELECT count(*) FROM rounds WHERE pipeline_name = 'idle'",
    ),
    (
        "claim_rounds",
        |given| {
            Box::pin(async move {
                said(given.store.claim_rounds("two", LEASE, 8).await, |claimed| done(claimed.len() == 1))
            })
        },
        "SELECT count(*) FROM rounds WHERE lease_owner = 'two' AND term = 1",
    ),
    (
        "renew_all",
        |given| {
            Box::pin(async move {
                let held = vec![(given.round.id, given.round.term)];
                said(given.store.renew_all(held, LEASE * 10).await, |kept| done(kept.len() == 1))
            })
        },
        "SELECT count(*) FROM rounds WHERE lease_until > clock_timestamp() + interval '5 minutes'",
    ),
    (
        "release_all",
        |given| {
            Box::pin(async move {
                let held = vec![(given.round.id, given.round.term)];
                said(given.store.release_all(held, &replica()).await, |()| Said::Done)
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'round_released' AND round_id = $2",
    ),
    (
        "apply",
        |given| {
            Box::pin(async move {
                let decision = decide(&given.round, &planned(&given.round, 10), Utc::now());
                let applied = given.store.apply(&given.round, &decision, &replica()).await;
                said(applied, |applied| done(matches!(applied, Applied::Stored(_))))
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'round_phase' AND to_phase = 'transferring' AND round_id = $2",
    ),
    (
        "apply, a refusal with a NUL character",
        |given| {
            Box::pin(async move {
                let refused = Event::Refused(Problem::new(Reason::StoreDenied, "no\0 access").with("k\0ey", "a\0b"));
                let decision = decide(&given.round, &refused, Utc::now());
                let applied = given.store.apply(&given.round, &decision, &replica()).await;
                said(applied, |applied| done(matches!(applied, Applied::Stored(_))))
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'round_phase' AND to_phase = 'failed' AND round_id = $2",
    ),
    (
        "apply, a host's problem with a NUL character",
        |given| {
            Box::pin(async move {
                let round = given.rig.step(given.round.clone(), planned(&given.round, 10)).await;
                let problem = Problem::new(Reason::LocalIo, "the file a\0b can't be read");
                let failed = Event::HostFailed { host_idx: 1, attempt: Attempt::FIRST, problem, jitter: 0 };
                let applied = given.store.apply(&round, &decide(&round, &failed, Utc::now()), &replica()).await;
                said(applied, |applied| done(matches!(applied, Applied::Stored(_))))
            })
        },
        "SELECT count(*) FROM participants WHERE problem IS NOT NULL AND round_id = $2",
    ),
    (
        "request_cancel",
        |given| {
            Box::pin(async move {
                let request = CancelRequest { by: "bob".to_owned(), cause: "enough".to_owned() };
                said(given.store.request_cancel(given.round.id, request, &alice()).await, |record| {
                    done(record.cancel_requested.is_some())
                })
            })
        },
        "SELECT count(*) FROM audit_events WHERE event = 'cancel_requested' AND round_id = $2",
    ),
    (
        "save_progress",
        |given| {
            Box::pin(async move {
                let progress = HostProgress {
                    host_idx: 0,
                    attempt: Attempt::FIRST,
                    bytes_done: 1,
                    bytes_total: None,
                    files_done: 0,
                    files_total: None,
                    bytes_transferred: 1,
                    bytes_per_second: 1,
                };
                said(given.store.save_progress(given.round.id, given.round.term, &[progress]).await, done)
            })
        },
        "SELECT count(*) FROM progress WHERE round_id = $2",
    ),
];

pub(crate) async fn given(rig: Rig, store: Store) -> Given {
    let (pipeline, waiting, idle) =
        (rig.pipeline("orders").await, rig.pipeline("waiting").await, rig.pipeline("idle").await);
    admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    admitted(rig.store.admit_push(push(&waiting), &alice()).await.unwrap());
    rig.store.create_pipeline(new_pipeline(spec("claiming", "claiming")), &alice()).await.unwrap();
    let claiming = rig.store.claim_claiming("one", LEASE).await.unwrap().pop().unwrap();
    rig.store.create_pipeline(new_pipeline(spec("due", "due")), &alice()).await.unwrap();
    Given { rig, store, pipeline, round, claiming, idle }
}

pub(crate) async fn times_it_happened(given: &Given, truth: &'static str) -> i64 {
    // Each names what it needs; the rest is bound all the same, since a parameter that isn't named has no type.
    let truth = format!(
        "WITH given AS (SELECT $1::uuid, $2::uuid, $3::uuid) SELECT n.count FROM given, LATERAL ({truth}) AS n (count)"
    );
    let row: PgRow = sqlx::query(sqlx::AssertSqlSafe(truth))
        .bind(given.pipeline.id.uuid())
        .bind(given.round.id.uuid())
        .bind(given.claiming.id.uuid())
        .fetch_one(&mut given.rig.sql().await)
        .await
        .unwrap();
    row.get(0)
}

async fn try_all(cut: Cut) -> Vec<(&'static str, Said, i64)> {
    let wire = Wire::before(ground::port().await).await;
    let mut table = Vec::new();
    for (name, write, truth) in WRITES {
        let rig = Rig::new().await;
        let store = ground::connect_by(&rig.database, |url| wire.url(url)).await;
        let given = given(rig, store).await;
        let (cuts, before) = (wire.cuts(), times_it_happened(&given, truth).await);
        assert_eq!(before, 0, "{name}: {truth}");
        wire.arm(cut);
        let told = write(&given).await;
        wire.disarm();
        wire.land().await;
        assert_eq!(wire.cuts(), cuts + 1, "{name} was not cut");
        if told == Said::Unknown {
            // Whatever is still under way is over once the row can be locked.
            let mut sql = given.rig.sql().await;
            let mut all = sqlx::Connection::begin(&mut sql).await.unwrap();
            sqlx::Executor::execute(&mut *all, "LOCK pipelines, rounds, progress IN EXCLUSIVE MODE").await.unwrap();
            all.commit().await.unwrap();
        }
        let happened = times_it_happened(&given, truth).await;
        match told {
            Said::Done => assert_eq!(happened, 1, "{name}, {cut:?}: told that it is done"),
            Said::Moved | Said::Unavailable => assert_eq!(happened, 0, "{name}, {cut:?}: told {told:?}"),
            Said::Unknown => assert!(happened <= 1, "{name}, {cut:?}: done {happened} times"),
        }
        println!("{cut:?} of {name}: told {told:?}, happened {happened} times");
        table.push((name, told, happened));
    }
    table
}

/// What a lost answer leaves open where the write can't be told from the same one by somebody else; its caller looks again.
const LEFT_OPEN: [&str; 7] =
    ["delete_pipeline", "claim_claiming", "renew_claim", "claim_rounds", "renew_all", "release_all", "save_progress"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_found_or_said_to_be_unknown() {
    for (name, told, happened) in Box::pin(try_all(Cut::Answer)).await {
        assert_eq!(happened, 1, "{name}");
        let expected = if LEFT_OPEN.contains(&name) { Said::Unknown } else { Said::Done };
        assert_eq!(told, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrives_is_made_again_or_said_to_be_unknown() {
    for (name, told, happened) in Box::pin(try_all(Cut::Request)).await {
        let open = LEFT_OPEN.contains(&name) || name == "settle_claim";
        assert_eq!((told, happened), if open { (Said::Unknown, 0) } else { (Said::Done, 1) }, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_arrives_while_its_caller_is_cut_off_is_never_told_wrongly() {
    Box::pin(try_all(Cut::Both)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_lands_when_its_caller_has_looked_already_is_never_told_wrongly() {
    for (name, told, happened) in Box::pin(try_all(Cut::Late)).await {
        let open = LEFT_OPEN.contains(&name) || name == "settle_claim";
        assert_eq!((told, happened), (if open { Said::Unknown } else { Said::Done }, 1), "{name}");
    }
}
