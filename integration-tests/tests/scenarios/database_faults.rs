//! Scenario 38: Postgres goes away for long in the middle of a round, and connections die during COMMIT, whether or not it happened.

use std::time::Duration;

use lockstep_client::v1::{self, RoundPhase};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, Cluster, Options, PIPELINE, agent_key},
    host::Host,
    own_postgres::{OwnPostgres, Stop},
    proxy::{Trap, TrapAction},
    wait,
};
use uuid::Uuid;

/// What the scenario says.
const OUTAGE: Duration = Duration::from_secs(30);

async fn cluster() -> (OwnPostgres, Cluster) {
    let postgres = OwnPostgres::start(38).await;
    let options = Options { database_url: Some(postgres.url()), ..Options::default() };
    let cluster = Cluster::with(options).await;
    for host in &cluster.hosts {
        host.checkpoint(10, &[("a", format!("{}", host.idx).as_bytes())]);
    }
    (postgres, cluster)
}

fn commits(cluster: &Cluster) -> usize {
    cluster.s3.admin().keys(BUCKET, "orders/commits/").unwrap().len()
}

/// Through a client that asks again while the coordinator has no database.
async fn ended(cluster: &Cluster, round: &str) -> v1::Round {
    wait::until("the round ends", || async {
        cluster.client.wait_round(round).await.map_err(|error| error.to_string())
    })
    .await
}

/// The length of the outage is what is tested.
async fn out(postgres: &mut OwnPostgres, how: Stop) {
    postgres.stop(how).await;
    tokio::time::sleep(OUTAGE).await;
    postgres.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s38_postgres_stopped_for_30_s_in_the_middle_of_a_push_costs_time_and_nothing_else() {
    let (mut postgres, cluster) = cluster().await;
    let hang = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("PutObject");
    let hang = cluster.s3.faults().add(hang);
    let round = cluster.start_push().await;
    let transfers = |round: &v1::Round| round.phase() == RoundPhase::Transferring;
    cluster.round_when(&round.id, "it transfers", transfers).await;
    postgres.stop(Stop::Fast).await;
    // The transfer ends while nobody can write that down.
    cluster.s3.faults().remove(hang);
    out(&mut postgres, Stop::Fast).await;
    let ended = ended(&cluster, &round.id).await;
    assert_eq!(ended.phase(), RoundPhase::Committed, "{:?}", ended.problem);
    assert_eq!(
        ended.participants.iter().map(|host| host.attempt).collect::<Vec<_>>(),
        [1, 1, 1],
        "nothing was sent twice"
    );
    assert_eq!(commits(&cluster), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn s38_postgres_crashed_for_30_s_in_the_middle_of_a_pull_ends_in_the_same_state() {
    let (mut postgres, mut cluster) = cluster().await;
    let before: Vec<_> = cluster.hosts.iter().map(Host::state).collect();
    cluster.pushed().await;
    for idx in 0..3 {
        cluster.lose_disk(idx).await;
    }
    let hang = FaultRule::new(FaultAction::Hang).access_key(agent_key(1)).operation("GetObject");
    let hang = cluster.s3.faults().add(hang);
    let round = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    let transfers = |round: &v1::Round| round.phase() == RoundPhase::Transferring;
    cluster.round_when(&round.id, "it transfers", transfers).await;
    postgres.stop(Stop::Crash).await;
    cluster.s3.faults().remove(hang);
    out(&mut postgres, Stop::Crash).await;
    let ended = ended(&cluster, &round.id).await;
    assert_eq!(ended.phase(), RoundPhase::Installed, "{:?}", ended.problem);
    let after: Vec<_> = cluster.hosts.iter().map(Host::state).collect();
    assert_eq!(after, before);
}

const LOSSES: [TrapAction; 3] = [TrapAction::LoseRequest, TrapAction::CutAfterRequest, TrapAction::LoseAnswer];

/// Whether it happened or not: the same request id finds out, and nothing is admitted twice.
#[tokio::test(flavor = "multi_thread")]
async fn s38_an_admission_whose_commit_is_lost_or_unanswered_is_one_round() {
    let (postgres, cluster) = cluster().await;
    for (step, loss) in (20..).zip(LOSSES) {
        for host in &cluster.hosts {
            host.checkpoint(step, &[("a", format!("{} {step}", host.idx).as_bytes())]);
        }
        let push = v1::StartPushRequest {
            pipeline: PIPELINE.to_owned(),
            request_id: Uuid::new_v4().to_string(),
            ..v1::StartPushRequest::default()
        };
        let trap = postgres.proxy.set(Trap::new("COMMIT", loss));
        let round = wait::until("the push is admitted", || async {
            cluster.client.start_push(push.clone()).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(postgres.proxy.sprung(trap), 1, "{loss:?}");
        let ended = ended(&cluster, &round.id).await;
        assert_eq!((ended.phase(), ended.step), (RoundPhase::Committed, Some(step)), "{loss:?}: {:?}", ended.problem);
        assert_eq!(cluster.client.start_push(push).await.unwrap().id, round.id, "{loss:?}");
    }
    let all = v1::ListRoundsRequest { pipeline: PIPELINE.to_owned(), ..v1::ListRoundsRequest::default() };
    assert_eq!(cluster.client.list_rounds(all, 100).await.unwrap().len(), LOSSES.len(), "one round each");
    assert_eq!(commits(&cluster), LOSSES.len());
}

/// A phase as a parameter of a statement: four bytes of length, then the text. The bare word stands in settings too ("read committed").
fn stored(phase: &str) -> Vec<u8> {
    let length = u32::try_from(phase.len()).unwrap().to_be_bytes();
    [&length, phase.as_bytes()].concat()
}

/// Each step of a push is one statement, its own COMMIT: lost before, cut behind, or unanswered.
#[tokio::test(flavor = "multi_thread")]
async fn s38_a_push_goes_on_over_every_lost_or_unanswered_write_of_its_phases() {
    let (postgres, cluster) = cluster().await;
    let mut step = 20;
    for phase in ["transferring", "committing", "committed"] {
        for loss in LOSSES {
            step += 1;
            for host in &cluster.hosts {
                host.checkpoint(step, &[("a", format!("{} {step}", host.idx).as_bytes())]);
            }
            let trap = postgres.proxy.set(Trap::new(stored(phase), loss));
            let round = cluster.start_push().await;
            let ended = ended(&cluster, &round.id).await;
            assert_eq!(ended.phase(), RoundPhase::Committed, "{phase}, {loss:?}: {:?}", ended.problem);
            assert_eq!(postgres.proxy.sprung(trap), 1, "{phase}, {loss:?}");
        }
    }
    assert_eq!(commits(&cluster), 9);
    let checkpoint = cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap();
    assert_eq!(checkpoint.step, step);
    assert!(cluster.verify(&checkpoint.id).await.problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s38_a_backend_terminated_in_the_middle_of_its_commit_has_written_nothing_and_the_round_goes_on() {
    let (postgres, cluster) = cluster().await;
    // Makes the first COMMIT of that phase last until its backend is ended: a sequence counts what is rolled back too.
    postgres
        .execute(
            "CREATE SEQUENCE commits_of_committed;
             CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF nextval('commits_of_committed') = 1 THEN PERFORM pg_sleep(600); END IF; RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON audit_events DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (NEW.to_phase = 'committed') EXECUTE FUNCTION linger()",
        )
        .await;
    let round = cluster.start_push().await;
    wait::until("a backend is ended in its COMMIT", || async {
        if postgres.terminate_asleep().await == 1 { Ok(()) } else { Err("none is in pg_sleep") }
    })
    .await;
    let ended = ended(&cluster, &round.id).await;
    assert_eq!(ended.phase(), RoundPhase::Committed, "{:?}", ended.problem);
    assert_eq!(commits(&cluster), 1);
}
