//! A coordinator whose machine's clock is a day off, in either direction: leases, deadlines, schedules, retention and lag go by the database's clock, and S3 requests are signed by the
//! server's (ADR 28). The clock is really another one: `libfaketime` shifts what the process is told.

use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_client::v1::{self, RoundPhase, RoundTrigger};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{COORDINATOR_KEY, Cluster, Options, PIPELINE, agent_key, client_of},
    wait,
};

use crate::{
    pair::{checkpoint_all, owner_and_with},
    standby::{holds, standby},
};

/// As `FAKETIME` has it.
const DAYS: [&str; 2] = ["+1d", "-1d"];

/// No clock here differs from another right one by so much, and a wrong one differs by more.
const SAME: u64 = 600;

fn off(clock: &'static str) -> Options {
    Options {
        coordinator_clock: Some(clock),
        coordinator_flags: vec!["--gc-grace", "0s", "--gc-interval", "0s"],
        ..Options::default()
    }
}

/// That a time which the coordinator gave is of today's clock.
fn is_now(what: &str, time: Option<&prost_types::Timestamp>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let told = time.unwrap_or_else(|| panic!("{what} is told")).seconds.unsigned_abs();
    assert!(now.abs_diff(told) < SAME, "{what}: {told}, it is {now}");
}

async fn spec_with(cluster: &Cluster, change: impl FnOnce(&mut v1::PipelineSpec)) {
    let now = cluster.client.get_pipeline(PIPELINE).await.unwrap();
    let mut spec = now.spec.clone().unwrap();
    change(&mut spec);
    let update = v1::UpdatePipelineRequest {
        pipeline: PIPELINE.to_owned(),
        spec: Some(spec),
        etag: now.etag,
        ..v1::UpdatePipelineRequest::default()
    };
    cluster.client.update_pipeline(update).await.unwrap();
}

fn keep(min_age_seconds: i64) -> Option<v1::Retention> {
    let min_age = Some(prost_types::Duration { seconds: min_age_seconds, nanos: 0 });
    Some(v1::Retention { min_count: 1, min_age })
}

fn retired(cluster: &Cluster) -> u64 {
    let done = lockstep(cluster, &["gc", PIPELINE]);
    assert_eq!(done.code, 0, "{done:?}");
    done.document["collection"]["retired"].as_u64().unwrap()
}

async fn ages_and_schedules(clock: &'static str) {
    let cluster = Cluster::with(off(clock)).await;
    for step in [10, 20] {
        checkpoint_all(&cluster, step);
        let round = cluster.pushed().await;
        is_now("the end of a round", round.end_time.as_ref());
    }
    for checkpoint in cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap() {
        is_now("the time of a checkpoint", checkpoint.create_time.as_ref());
    }
    // A day ahead, step 10 would be old enough; a day behind, it never would be.
    spec_with(&cluster, |spec| spec.retention = keep(3600)).await;
    assert_eq!(retired(&cluster), 0, "nothing is an hour old ({clock})");
    spec_with(&cluster, |spec| spec.retention = keep(0)).await;
    assert_eq!(retired(&cluster), 1, "step 10 is old enough ({clock})");
    // The schedule counts from the end of the last push.
    checkpoint_all(&cluster, 30);
    spec_with(&cluster, |spec| spec.push_interval = Some(prost_types::Duration { seconds: 2, nanos: 0 })).await;
    wait::until("step 30 is pushed by itself", || async {
        let newest = cluster.client.get_checkpoint(PIPELINE, "latest").await.map_err(|error| error.to_string())?;
        if newest.step == 30 { Ok(()) } else { Err(format!("step {}", newest.step)) }
    })
    .await;
    let schedule = cluster.client.get_pipeline(PIPELINE).await.unwrap().push_schedule.unwrap();
    is_now("the next push", schedule.next_time.as_ref());
    let filter = v1::ListRoundsRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
    let rounds = cluster.client.list_rounds(filter, 100).await.unwrap();
    let periodic = rounds.iter().filter(|round| round.trigger() == RoundTrigger::Periodic).count();
    assert_eq!((rounds.len(), periodic), (3, 1), "no push too many ({clock})");
    // The store refuses a request of another day, which takes nobody more than one try a process.
    let refused = cluster
        .s3
        .requests()
        .into_iter()
        .filter(|request| request.access_key.as_deref() == Some(COORDINATOR_KEY) && request.status == Some(403));
    assert!((1..=8).contains(&refused.count()), "{clock}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_clock_is_a_day_ahead_retires_and_pushes_by_the_databases() {
    ages_and_schedules(DAYS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_clock_is_a_day_behind_retires_and_pushes_by_the_databases() {
    ages_and_schedules(DAYS[1]).await;
}

/// Held in its transfer of host 1 until the fault is removed.
async fn held_push(cluster: &Cluster, step: u64) -> (u64, v1::Round) {
    checkpoint_all(cluster, step);
    let fault = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
    let hang = cluster.s3.faults().add(fault);
    let round = cluster.start_push().await;
    wait::until("host 1 transfers", || async {
        if cluster.s3.faults().hits(hang) > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    (hang, round)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_clock_is_a_day_off_takes_no_lease_before_its_time_and_every_one_after() {
    for clock in DAYS {
        // No lease lapses while the machine is busy: whoever claims then does so by right.
        let mut cluster = Cluster::with(Options { lease: "10s", ..Options::default() }).await;
        cluster.set_coordinator_clock(Some(clock));
        let secret = format!("{COORDINATOR_KEY}-secret");
        // Whoever is there may claim a new round: the one with the right clock is alone until it has.
        let (hang, round) = held_push(&cluster, 10).await;
        let claimed = cluster.client.get_round(&round.id).await.unwrap();
        let (wrong, address) = cluster.another_coordinator("wrong", "127.0.0.1:0", &secret).await;
        // Whoever went by a clock that is wrong would take it at its first look, within a second: the other one leaves it alone.
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(3);
        wait::until("a few looks have passed", || async {
            let now = cluster.client.get_round(&round.id).await.map_err(|error| error.to_string())?;
            assert_eq!((now.term, now.phase()), (claimed.term, claimed.phase()), "{clock}: {now:?}");
            if tokio::time::Instant::now() >= until { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        // It dies; the one with the wrong clock takes over, and ends it.
        cluster.kill_coordinator();
        cluster.client = client_of(&format!("http://{address}"));
        let taken = |now: &v1::Round| now.term > claimed.term;
        cluster.round_when(&round.id, "the wrong clock's replica drives it", taken).await;
        cluster.s3.faults().remove(hang);
        let ended = cluster.client.wait_round(&round.id).await.unwrap();
        assert_eq!(ended.phase(), RoundPhase::Committed, "{clock}: {:?}", ended.problem);
        is_now("the end of a round", ended.end_time.as_ref());

        // And the reverse: asleep with a round, it is relieved by one with the right clock.
        let (hang, round) = held_push(&cluster, 20).await;
        let before = cluster.client.get_round(&round.id).await.unwrap().term;
        wrong.pause(true);
        cluster.set_coordinator_clock(None);
        cluster.start_coordinator().await;
        let taken = |now: &v1::Round| now.term > before;
        cluster.round_when(&round.id, "the right clock's replica drives it", taken).await;
        wrong.pause(false);
        cluster.s3.faults().remove(hang);
        let ended = cluster.client.wait_round(&round.id).await.unwrap();
        assert_eq!(ended.phase(), RoundPhase::Committed, "{clock}: {:?}", ended.problem);
        assert_eq!(cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap().len(), 2, "{clock}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_coordinator_is_a_day_off_lags_by_seconds_and_takes_over() {
    for clock in DAYS {
        let (owner, heir) = owner_and_with(off(clock), |_| {}).await;
        let held = holds(&heir, 20).await;
        is_now("its last look", held.look_time.as_ref());
        checkpoint_all(&owner, 30);
        owner.pushed().await;
        holds(&heir, 30).await;
        let lag = standby(&heir).await;
        let seconds = lag.lag.as_ref().map(|lag| lag.seconds).unwrap_or_default();
        assert!(seconds < SAME, "{clock}: {lag:?}");
        let done =
            heir.client.take_over(v1::TakeOverRequest { pipeline: "heir".to_owned(), ..Default::default() }).await;
        assert!(done.is_ok(), "{clock}: {done:?}");
        checkpoint_all(&heir, 40);
        let round = crate::pair::push(&heir, "heir").await;
        assert_eq!(round.phase(), RoundPhase::Committed, "{clock}: {:?}", round.problem);
        is_now("the end of a round", round.end_time.as_ref());
    }
}
