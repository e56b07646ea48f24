//! Scenarios 24 and 26 to 28: a standby becomes the owner of its location.

use lockstep_client::v1::{self, PullSource, RoundPhase, StandbyState};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, PIPELINE},
    host::State,
    wait,
};

use crate::{
    pair::{HEIR, checkpoint_all, owner_and, push, start_agent, start_agent_with},
    standby::{holds, rounds},
};

pub(crate) fn request() -> v1::ActivateRequest {
    v1::ActivateRequest { pipeline: HEIR.to_owned(), ..Default::default() }
}

/// Pushes this step; its files on every host.
pub(crate) async fn pushed(owner: &Cluster, step: u64) -> (v1::Round, Vec<State>) {
    let make = |host: &lockstep_integration_tests::host::Host| {
        host.state_of(host.checkpoint(step, &[("state.bin", format!("host {} at {step}", host.idx).as_bytes())]))
    };
    let states = owner.hosts.iter().map(make).collect();
    (owner.pushed().await, states)
}

pub(crate) fn states(cluster: &Cluster) -> Vec<State> {
    cluster.hosts.iter().map(|host| host.state()).collect()
}

/// Its processes are gone; what it has pushed is all that is left.
fn lose(owner: &mut Cluster) {
    owner.kill_coordinator();
    for idx in 0..3 {
        owner.kill_agent(idx);
        owner.hosts[idx].wipe();
    }
}

/// All processes of the heir die and come back; their disks stay.
async fn restart(owner: &Cluster, heir: &mut Cluster) {
    heir.kill_coordinator();
    restart_dead(owner, heir).await;
}

/// The same where its coordinator is dead already.
async fn restart_dead(owner: &Cluster, heir: &mut Cluster) {
    for idx in 0..3 {
        heir.kill_agent(idx);
        start_agent(owner, heir, idx).await;
    }
    heir.start_coordinator().await;
}

/// What an engine that starts asks for; a periodic push may be under way.
pub(crate) async fn start_engine(heir: &Cluster) -> v1::Round {
    let request = v1::StartPullRequest { pipeline: HEIR.to_owned(), standby: Some(false), ..Default::default() };
    let round = wait::until("no other round is active", || async {
        heir.client.start_pull(request.clone()).await.map_err(|error| error.to_string())
    })
    .await;
    heir.client.wait_round(&round.id).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_the_primary_is_lost_and_its_standby_goes_on_from_the_newest_push_also_after_a_restart() {
    let (mut owner, mut heir) = owner_and(&[], |_| {}).await;
    for step in [30, 40] {
        pushed(&owner, step).await;
        holds(&heir, step).await;
    }
    // The last one is not followed yet, or just being so.
    let (newest, expected) = pushed(&owner, 50).await;
    lose(&mut owner);
    let done = heir.client.activate(request()).await.unwrap();
    assert_eq!((done.generation, done.previous_owner_name.as_str()), (2, PIPELINE));
    assert_eq!(done.newest.unwrap().round, newest.id);
    let pipeline = done.pipeline.unwrap();
    assert_eq!((pipeline.generation, pipeline.standby), (2, None));
    assert_eq!(states(&heir), expected);

    restart(&owner, &mut heir).await;
    let started = start_engine(&heir).await;
    assert_eq!((started.phase(), started.step), (RoundPhase::Installed, Some(50)), "{:?}", started.problem);
    assert_eq!(states(&heir), expected);

    checkpoint_all(&heir, 60);
    let pushed = push(&heir, HEIR).await;
    assert_eq!((pushed.phase(), pushed.generation, pushed.seq), (RoundPhase::Committed, 2, 1), "{:?}", pushed.problem);
    // Who and why stand in the audit trail.
    let filter = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let trail = heir.client.list_audit_events(filter, 1000).await.unwrap();
    let phases: Vec<_> = trail.iter().filter(|event| event.action.contains("take_over")).collect();
    let named: Vec<&str> = phases.iter().map(|event| event.to_phase.as_str()).collect();
    assert_eq!(named, ["warming", "preparing", "fencing", "basing", "adopting", "pulling", "done"]);
    assert_eq!(phases[0].actor, "scenario");
    assert!(phases[0].cause.contains("activation"), "{}", phases[0].cause);
}

#[tokio::test(flavor = "multi_thread")]
async fn s26_once_activated_it_resumes_from_its_own_disks_and_follows_nobody_any_more() {
    let (owner, mut heir) = owner_and(&[], |spec| {
        spec.push_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    })
    .await;
    holds(&heir, 20).await;
    heir.client.activate(request()).await.unwrap();
    checkpoint_all(&heir, 33);
    wait::until("the new owner pushes by itself", || async {
        let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
        if pipeline.last_committed_step == Some(33) { Ok(()) } else { Err(format!("{pipeline:?}")) }
    })
    .await;
    // Newer than what was pushed last, on the disks alone.
    heir.kill_coordinator();
    checkpoint_all(&heir, 35);
    restart_dead(&owner, &mut heir).await;
    let pulls = async || rounds(&heir).await.iter().filter(|round| round.kind() == v1::RoundKind::Pull).count();
    let pulls_before = pulls().await;
    let started = start_engine(&heir).await;
    assert_eq!((started.phase(), started.step), (RoundPhase::Installed, Some(35)), "{:?}", started.problem);
    assert_eq!(started.source(), PullSource::Local);
    assert_eq!(started.progress.unwrap_or_default().bytes_transferred, 0);
    // It is no standby, and can't be told to be one by a slip.
    assert_eq!(heir.client.get_pipeline(HEIR).await.unwrap().standby, None);
    assert_eq!(heir.client.start_standby(HEIR, "").await.unwrap_err().reason(), "LOCATION_OWNED");
    let again = heir.client.activate(request()).await.unwrap();
    assert_eq!((again.generation, again.take_over.as_str()), (2, ""), "it is active already");
    wait::until("step 35 is pushed by itself", || async {
        let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
        if pipeline.last_committed_step == Some(35) { Ok(()) } else { Err(format!("{pipeline:?}")) }
    })
    .await;
    assert_eq!(pulls().await, pulls_before + 1, "only the engine's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_an_activation_whose_last_pull_fails_is_fenced_starts_nothing_stale_and_succeeds_later() {
    let (owner, mut heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let before = states(&heir);
    // Between the warm pull and the fence the owner pushes once more.
    let fence = "orders/fences/00000000000000000002.json";
    let held = FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(fence).access_key(COORDINATOR_KEY);
    let held = owner.s3.faults().add(held);
    let asked = v1::ActivateRequest { request_id: "0b9f1f0e-0f39-4f2b-9b06-0d9a3b8f2c12".to_owned(), ..request() };
    let waiting = tokio::spawn({
        let (client, asked) = (heir.client.clone(), asked.clone());
        async move { client.activate(asked).await }
    });
    wait::until("the fence is being put", || async {
        let filter = v1::ListAuditEventsRequest { pipeline: HEIR.to_owned(), ..Default::default() };
        let trail = heir.client.list_audit_events(filter, 1000).await.unwrap();
        if trail.iter().any(|event| event.to_phase == "fencing") { Ok(()) } else { Err(trail.len()) }
    })
    .await;
    let (newest, expected) = pushed(&owner, 30).await;
    heir.kill_agent(1);
    start_agent_with(&owner, &mut heir, 1, "not-the-secret").await;
    assert!(owner.s3.faults().remove(held));
    let failing = wait::until("the last pull has failed", || async {
        let rounds = rounds(&heir).await;
        let failed = rounds.iter().find(|round| round.phase() == RoundPhase::Failed && round.generation == 2);
        failed.cloned().ok_or_else(|| format!("{} rounds", rounds.len()))
    })
    .await;
    assert_eq!(failing.problem.unwrap().reason, "STORE_DENIED");
    // Fenced, not started: the owner is out, and nothing that is old counts as the new one's.
    assert_eq!(push(&owner, PIPELINE).await.problem.map(|problem| problem.reason), None, "30 is the newest already");
    checkpoint_all(&owner, 40);
    assert_eq!(push(&owner, PIPELINE).await.problem.unwrap().reason, "FENCED");
    let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
    assert_eq!((pipeline.generation, pipeline.standby.unwrap().state()), (2, StandbyState::Activating));
    let early = v1::StartPushRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    assert_eq!(heir.client.start_push(early).await.unwrap_err().reason(), "NOT_OWNER");
    assert_eq!(states(&heir)[1], before[1], "the host that can't pull keeps what it had");

    // Also the replica that drives it dies: the next one goes on with it.
    heir.kill_coordinator();
    assert!(waiting.await.unwrap().is_err(), "whoever waited was not told");
    heir.start_coordinator().await;
    heir.kill_agent(1);
    start_agent(&owner, &mut heir, 1).await;
    let done = wait::until("the activation has ended", || async {
        heir.client.activate(asked.clone()).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(done.generation, 2);
    wait::until("it is handed over", || async {
        let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
        if pipeline.standby.is_none() { Ok(()) } else { Err(format!("{pipeline:?}")) }
    })
    .await;
    assert_eq!(states(&heir), expected);
    let installed = rounds(&heir).await.into_iter().rfind(|round| round.phase() == RoundPhase::Installed).unwrap();
    assert_eq!(installed.commit.unwrap().round, newest.id, "exactly the base");
}

#[tokio::test(flavor = "multi_thread")]
async fn s27_two_operators_who_activate_at_once_make_one_activation() {
    let (owner, heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    let (one, other) = tokio::join!(heir.client.activate(request()), heir.client.activate(request()));
    let ids: Vec<String> = [&one, &other]
        .into_iter()
        .map(|said| match said {
            Ok(done) => done.take_over.clone(),
            Err(error) => {
                assert_eq!(error.reason(), "TAKE_OVER_IN_PROGRESS", "{error}");
                error.problem().unwrap().metadata["take_over"].clone()
            }
        })
        .filter(|id| !id.is_empty())
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "each names the same: {ids:?}");
    let fences = owner.s3.admin().keys(BUCKET, "orders/fences/").unwrap();
    assert_eq!(fences.len(), 3, "one fence and its base: {fences:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s28_a_standby_over_a_read_location_then_its_own_location_takes_over() {
    let (owner, mut heir) = owner_and(&[], |_| {}).await;
    // Created anew: its own location is empty, the owner's is only read.
    let created = heir.client.get_pipeline(HEIR).await.unwrap();
    // It may pull by itself meanwhile.
    heir.client.stop_standby(HEIR).await.unwrap();
    wait::until("it is deleted", || heir.client.delete_pipeline(HEIR, "")).await;
    let spec = v1::PipelineSpec {
        location: Some(owner.location(HEIR)),
        read_location: Some(owner.location(PIPELINE)),
        ..created.spec.unwrap()
    };
    heir.client.create_pipeline(spec).await.unwrap();
    holds(&heir, 20).await;
    let (_, expected) = pushed(&owner, 30).await;
    let standby = holds(&heir, 30).await;
    assert_eq!(standby.newest.unwrap().step, 30);
    let of_owner = owner.s3.admin().keys(BUCKET, "orders/").unwrap();
    let done = heir.client.activate(request()).await.unwrap();
    assert_eq!((done.generation, done.previous_owner_name.as_str(), done.newest), (1, "", None));
    assert_eq!(states(&heir), expected);
    assert_eq!(owner.s3.admin().keys(BUCKET, "orders/").unwrap(), of_owner, "a read location is never written");

    checkpoint_all(&heir, 77);
    let first = push(&heir, HEIR).await;
    assert_eq!((first.phase(), first.generation, first.seq), (RoundPhase::Committed, 1, 1), "{:?}", first.problem);
    // The owner is undisturbed and further on; the heir's own location counts for the heir.
    pushed(&owner, 90).await;
    for idx in 0..3 {
        heir.kill_agent(idx);
        heir.hosts[idx].wipe();
        start_agent(&owner, &mut heir, idx).await;
    }
    let started = start_engine(&heir).await;
    assert_eq!((started.phase(), started.step), (RoundPhase::Installed, Some(77)), "{:?}", started.problem);
    assert_eq!(started.source(), PullSource::Location);
}
