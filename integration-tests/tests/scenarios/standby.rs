//! Scenarios 25 and 30: a standby follows its location, and says how far behind it is.

use lockstep_client::v1::{self, RoundPhase, RoundTrigger, StandbyState};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE, client_of},
    http, wait,
};

use crate::pair::{HEIR, assert_same_state, checkpoint_all, is_installed, owner_and, start_agent, start_agent_with};

pub(crate) async fn standby(heir: &Cluster) -> v1::Standby {
    standby_of(heir, HEIR).await
}

async fn standby_of(cluster: &Cluster, pipeline: &str) -> v1::Standby {
    cluster.client.get_pipeline(pipeline).await.unwrap().standby.expect("it is a standby")
}

pub(crate) async fn holds(heir: &Cluster, step: u64) -> v1::Standby {
    holds_as(heir, HEIR, step).await
}

pub(crate) async fn holds_as(cluster: &Cluster, pipeline: &str, step: u64) -> v1::Standby {
    wait::until(&format!("the standby holds step {step}"), || async {
        let standby = standby_of(cluster, pipeline).await;
        let held = standby.held.as_ref().map(|held| held.step);
        if held == Some(step) { Ok(standby) } else { Err(format!("{standby:?}")) }
    })
    .await
}

/// Every round of the heir, the oldest first.
pub(crate) async fn rounds(heir: &Cluster) -> Vec<v1::Round> {
    let filter = v1::ListRoundsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let mut rounds = heir.client.list_rounds(filter, 1000).await.unwrap();
    rounds.sort_by_key(|round| round.round_no);
    rounds
}

/// Waits until the standby has looked at its location once more.
async fn looked_again(heir: &Cluster) {
    let before = standby(heir).await.look_time;
    wait::until("the standby looks again", || async {
        let now = standby(heir).await.look_time;
        if now.is_some() && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_a_standby_follows_every_push_by_itself_and_fetches_only_what_is_new() {
    let (owner, mut heir) = owner_and(&[], |_| {}).await;
    let standby_now = holds(&heir, 20).await;
    assert_eq!((standby_now.state(), standby_now.failures), (StandbyState::Following, 0));
    assert_same_state(&heir, &owner);

    // A second replica changes nothing: each standby is looked at by one at a time.
    let secret = format!("{COORDINATOR_KEY}-secret");
    let (_replica, other) = heir.another_coordinator("second", "127.0.0.1:0", &secret).await;
    for host in &owner.hosts {
        let large = vec![u8::try_from(host.idx).unwrap(); 300_000];
        host.checkpoint(30, &[("state.bin", b"step 30"), ("large.bin", &large)]);
    }
    owner.pushed().await;
    holds(&heir, 30).await;
    for host in &owner.hosts {
        let large = vec![u8::try_from(host.idx).unwrap(); 300_000];
        host.checkpoint(40, &[("state.bin", b"step 40"), ("large.bin", &large)]);
    }
    owner.pushed().await;
    holds(&heir, 40).await;
    assert_same_state(&heir, &owner);
    looked_again(&heir).await;
    looked_again(&heir).await;

    // The loop outlives the coordinator that kept it.
    heir.kill_coordinator();
    heir.client = client_of(&format!("http://{other}"));
    checkpoint_all(&owner, 50);
    owner.pushed().await;
    holds(&heir, 50).await;

    let pulls = rounds(&heir).await;
    assert!(pulls.iter().all(is_installed), "{pulls:?}");
    assert_eq!(pulls.iter().map(|pull| pull.step).collect::<Vec<_>>(), [20, 30, 40, 50].map(Some));
    assert!(pulls.iter().all(|pull| pull.trigger() == RoundTrigger::Periodic && pull.generation == 0));
    // Each pull has pinned what it fetched from the location of another, and has let it go.
    let put = owner.s3.requests().into_iter().filter(|request| request.method == "PUT" && request.status == Some(200));
    let pins: Vec<String> =
        put.filter_map(|request| request.key).filter(|key| key.starts_with("orders/pins/standby-")).collect();
    // A replica that takes a pull over from another one pins anew.
    let pinned = |pull: &v1::Round| pins.iter().any(|key| key.contains(&pull.id));
    assert!(pulls.iter().all(pinned), "{pins:?}");
    wait::until("every pin is gone", || async {
        let pins = owner.s3.admin().keys(BUCKET, "orders/pins/").unwrap();
        if pins.is_empty() { Ok(()) } else { Err(format!("{pins:?}")) }
    })
    .await;
    let fetched = pulls[2].progress.unwrap().bytes_transferred;
    assert!(fetched < 100_000, "{fetched} bytes for three files of a few bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_a_pin_that_an_ended_pull_has_left_goes_with_the_next_one_and_nobody_elses_does() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let pins = || owner.s3.admin().keys(BUCKET, "orders/pins/").unwrap();
    wait::until("the first pull has said good-bye", || async {
        if pins().is_empty() { Ok(()) } else { Err("pinned") }
    })
    .await;
    let by_hand = lockstep(&owner, &["checkpoint", "pin", PIPELINE, "20", "--name", "standby"]);
    assert_eq!(by_hand.code, 0, "{by_hand:?}");
    let by_hand = pins();
    // The farewell's own delete, and its look for what was left: as if the replica had died before them.
    let stays = FaultRule::new(FaultAction::AccessDenied).method("DELETE").key_contains("/pins/").times(2);
    owner.s3.faults().add(stays);
    owner.s3.clear_requests();
    checkpoint_all(&owner, 30);
    owner.pushed().await;
    holds(&heir, 30).await;
    let refused = |status: Option<u16>| status == Some(403);
    owner.s3.log().wait_for(2, |request| request.method == "DELETE" && refused(request.status)).await;
    assert_eq!(pins().len(), 2, "its pin stays: {:?}", pins());
    checkpoint_all(&owner, 40);
    owner.pushed().await;
    holds(&heir, 40).await;
    wait::until("only the pin of a person is left", || async {
        let left = pins();
        if left == by_hand { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_a_standby_keeps_what_its_location_has_damaged_since_until_a_newer_push() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    let held = holds(&heir, 20).await.held.unwrap().commit.unwrap();
    let newest = owner.client.list_checkpoints(PIPELINE, 1).await.unwrap().remove(0);
    assert_eq!(newest.id, held.round);
    let objects = owner.s3.admin().keys(BUCKET, "orders/host1/").unwrap();
    let pack = objects.iter().find(|key| key.contains(&newest.id) && !key.ends_with(".json")).unwrap();
    owner.s3.admin().flip_byte(BUCKET, pack, 0).unwrap();
    assert_ne!(owner.verify(&newest.id).await.problems, []);

    // `latest` is step 10 now. What the hosts hold was whole when it came.
    let problem = wait::until("the standby says why it keeps what it has", || async {
        let standby = standby(&heir).await;
        standby.problem.clone().ok_or(format!("{standby:?}"))
    })
    .await;
    assert_eq!(problem.reason, "CHECKPOINT_DAMAGED", "{problem:?}");
    assert_eq!(problem.metadata["checkpoint"], newest.id);
    assert!(problem.message.contains("lockstep standby start heir --checkpoint"), "{problem:?}");
    looked_again(&heir).await;
    let now = standby(&heir).await;
    assert_eq!((now.held.map(|held| held.step), now.newest.map(|newest| newest.step)), (Some(20), Some(10)));
    assert_eq!(
        rounds(&heir).await.iter().map(|pull| pull.step).collect::<Vec<_>>(),
        [Some(20)],
        "nothing older was pulled"
    );

    checkpoint_all(&owner, 30);
    owner.pushed().await;
    assert_eq!(holds(&heir, 30).await.problem, None);
    assert_same_state(&heir, &owner);
}

#[tokio::test(flavor = "multi_thread")]
async fn s25_a_standby_that_is_pinned_stays_on_its_checkpoint_until_it_is_told_otherwise() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let listed = heir.client.list_checkpoints(HEIR, 10).await.unwrap();
    let first = &listed.iter().find(|checkpoint| checkpoint.step == 10).unwrap().id;
    let started = heir.client.start_standby(HEIR, first).await.unwrap().standby.unwrap();
    assert_eq!(&started.pinned, first);
    holds(&heir, 10).await;
    checkpoint_all(&owner, 30);
    owner.pushed().await;
    looked_again(&heir).await;
    looked_again(&heir).await;
    let pinned = standby(&heir).await;
    assert_eq!((pinned.held.unwrap().step, pinned.newest.unwrap().step), (10, 30));
    assert_eq!(pinned.lag.unwrap().steps, 20, "what it holds is older than what there is");
    assert_same_state(&heir, &owner);

    // Told to stop it stays as well, and pulls nothing any more.
    let stopped = heir.client.stop_standby(HEIR).await.unwrap().standby.unwrap();
    assert_eq!((stopped.state(), stopped.next_time), (StandbyState::Stopped, None));
    let before = rounds(&heir).await.len();
    let unknown = "0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c11";
    heir.client.start_standby(HEIR, unknown).await.unwrap();
    wait::until("the pinned checkpoint is not found", || async {
        let standby = standby(&heir).await;
        match standby.problem.as_ref() {
            Some(problem) if problem.reason == "CHECKPOINT_NOT_FOUND" => Ok(()),
            _ => Err(format!("{standby:?}")),
        }
    })
    .await;
    assert_eq!(rounds(&heir).await.len(), before);
    assert_eq!(standby(&heir).await.held.unwrap().step, 10, "the last good one is kept");
    heir.client.start_standby(HEIR, "").await.unwrap();
    holds(&heir, 30).await;

    let refused = owner.client.start_standby(PIPELINE, "").await.unwrap_err();
    assert_eq!(refused.reason(), "LOCATION_OWNED");
    let trail = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let trail = heir.client.list_audit_events(trail, 1000).await.unwrap();
    let told: Vec<_> =
        trail.iter().filter(|event| event.action.contains("standby")).map(|e| e.actor.as_str()).collect();
    assert_eq!(told, ["scenario"; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a_standby_that_can_not_pull_keeps_what_it_has_and_says_how_far_behind_it_is() {
    let (owner, mut heir) = owner_and(&[], |_| {}).await;
    let even = holds(&heir, 20).await;
    assert_eq!(even.lag, Some(v1::StandbyLag::default()), "behind nothing");
    let before = heir.hosts[1].state();

    // Objects can't be fetched by one host, but the location still answers the coordinator.
    heir.kill_agent(1);
    start_agent_with(&owner, &mut heir, 1, "not-the-secret").await;
    checkpoint_all(&owner, 30);
    owner.pushed().await;
    checkpoint_all(&owner, 45);
    owner.pushed().await;
    let behind = wait::until("a pull has failed and it lags", || async {
        let standby = standby(&heir).await;
        let lag = standby.lag.unwrap_or_default();
        if standby.failures > 0 && lag.steps == 25 && lag.seconds > 0 {
            Ok(standby)
        } else {
            Err(format!("{standby:?}"))
        }
    })
    .await;
    let problem = behind.problem.unwrap();
    assert_eq!(problem.reason, "STORE_DENIED");
    let sent: u64 = heir.client.list_checkpoints(HEIR, 2).await.unwrap().iter().map(|c| c.bytes_uploaded).sum();
    let bytes = behind.lag.unwrap().bytes;
    assert!(bytes > 0 && bytes <= sent, "{bytes} of {sent}");
    assert_eq!(behind.held.unwrap().step, 20);
    assert_eq!(heir.hosts[1].state(), before, "the last good one is kept");
    let shown = |name: &str| format!("lockstep_standby_lag_{name}{{pipeline=\"{HEIR}\"}}");
    let address = heir.coordinator_http();
    let metric = async |name: &str| {
        let text = http::get(&address, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(&shown(name)).map(str::to_owned));
        line.and_then(|value| value.trim().parse::<f64>().ok())
    };
    wait::until("the metrics say so too", || async {
        let all = (metric("steps").await, metric("bytes").await, metric("seconds").await);
        match all {
            (Some(25.0), Some(bytes), Some(seconds)) if bytes > 0.0 && seconds > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    heir.kill_agent(1);
    start_agent(&owner, &mut heir, 1).await;
    let caught_up = holds(&heir, 45).await;
    assert_eq!((caught_up.lag, caught_up.failures), (Some(v1::StandbyLag::default()), 0));
    assert_same_state(&heir, &owner);
    wait::until("the metrics fall back to nothing", || async {
        let lag = (metric("steps").await, metric("seconds").await);
        if lag == (Some(0.0), Some(0.0)) { Ok(()) } else { Err(format!("{lag:?}")) }
    })
    .await;
    assert!(rounds(&heir).await.iter().any(|pull| pull.phase() == RoundPhase::Failed));
}
