//! What starts engines: every host is told once all of them have a pull's checkpoint, and a standby's once more when its activation is done.

use std::{fs, process::Command};

use lockstep_client::v1;
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{COORDINATOR_KEY, Cluster, agent_key},
    process, wait,
};
use serde_json::Value;

use crate::{
    pair::{HEIR, checkpoint_all, owner_and, ready_file, start_agent},
    standby::holds,
};

/// Starts the agent of one host again, with a ready file.
async fn start_with_file(cluster: &mut Cluster, idx: usize) {
    let identity = cluster.identity(idx);
    let flags = ["--ready-file".to_owned(), ready_file(cluster, idx).display().to_string()];
    let key = agent_key(u32::try_from(idx).unwrap());
    cluster.start_agent_as(idx, &identity, &flags, &format!("{key}-secret")).await;
}

fn said(cluster: &Cluster, idx: usize) -> Option<Value> {
    let text = fs::read(ready_file(cluster, idx)).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

/// Until every host's engine may do this at this step; what the hosts were told.
async fn every_host_is(cluster: &Cluster, role: &str, step: u64) -> Vec<Value> {
    wait::until(&format!("every host is {role} at step {step}"), || async {
        let said: Vec<Option<Value>> = (0..cluster.hosts.len()).map(|idx| said(cluster, idx)).collect();
        let like = |said: &Value| said["role"] == role && said["step"] == step;
        let all: Option<Vec<Value>> = said.iter().cloned().collect();
        all.filter(|all| all.iter().all(like)).ok_or_else(|| format!("{said:?}"))
    })
    .await
}

fn nobody_is(cluster: &Cluster, role: &str) {
    for idx in 0..cluster.hosts.len() {
        let said = said(cluster, idx);
        assert!(said.as_ref().is_none_or(|said| said["role"] != role), "host {idx}: {said:?}");
    }
}

/// What an init container runs.
fn wait_ready(agent: &str, more: &[&str]) -> (Option<i32>, String) {
    answer_of(Command::new(process::binary("lockstep-agent")).args(["wait-ready", "--agent", agent]).args(more))
}

/// The same, told by variables alone.
fn wait_ready_by_variables(agent: &str, role: &str, timeout: &str) -> (Option<i32>, String) {
    let variables =
        [("LOCKSTEP_AGENT", agent), ("LOCKSTEP_AGENT_WAIT_ROLE", role), ("LOCKSTEP_AGENT_WAIT_TIMEOUT", timeout)];
    answer_of(Command::new(process::binary("lockstep-agent")).arg("wait-ready").envs(variables))
}

fn answer_of(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn s01_engines_of_every_host_are_told_when_the_last_host_has_installed_also_if_the_coordinator_dies_before() {
    let mut cluster = Cluster::start().await;
    checkpoint_all(&cluster, 10);
    let pushed = cluster.pushed().await;
    for idx in 0..3 {
        cluster.kill_agent(idx);
        cluster.hosts[idx].wipe();
        start_with_file(&mut cluster, idx).await;
    }
    // It dies when the pull has ended on every host, before it has told any.
    cluster.kill_coordinator();
    cluster.arm("ready.before_sent=kill");
    cluster.start_coordinator().await;
    let pull = cluster.client.start_pull(Cluster::pull_request()).await.unwrap();
    cluster.coordinator_killed().await;
    let installed: Vec<_> = cluster.hosts.iter().map(|host| host.checkpoints().len()).collect();
    assert_eq!(installed, [1, 1, 1]);
    nobody_is(&cluster, "active");
    let (status, told) = wait_ready(&cluster.agents[0].address, &["--timeout", "1s"]);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("must not start yet"), "{told}");

    // The third host is away while another replica tells the rest.
    cluster.kill_agent(2);
    cluster.arm("");
    cluster.start_coordinator().await;
    let shown = wait::until("the others are told", || async {
        let ready = cluster.client.get_pipeline("orders").await.unwrap().ready.ok_or("nothing is owed")?;
        let owed: Vec<u32> = ready.not_told.iter().map(|host| host.host_idx).collect();
        if owed == [2] && ready.not_told[0].problem.is_some() { Ok(ready) } else { Err("not yet") }
    })
    .await;
    assert_eq!((shown.round.as_str(), shown.role()), (pull.id.as_str(), v1::Role::Active));
    assert_eq!(shown.not_told[0].problem.as_ref().unwrap().reason, "AGENT_UNREACHABLE");
    assert_eq!(said(&cluster, 2), None);
    start_with_file(&mut cluster, 2).await;

    let told = every_host_is(&cluster, "active", 10).await;
    for (said, host) in told.iter().zip(&cluster.hosts) {
        assert_eq!((&said["fresh"], &said["round"]), (&Value::Bool(false), &Value::String(pull.id.clone())));
        assert_eq!(said["checkpoint"], Value::String(host.checkpoints()[0].clone()));
    }
    wait::until("all are told", || async {
        let ready = cluster.client.get_pipeline("orders").await.unwrap().ready.ok_or("nothing is owed")?;
        if ready.told_time.is_some() && ready.not_told.is_empty() { Ok(()) } else { Err("not yet") }
    })
    .await;
    let (status, told) = wait_ready(&cluster.agents[1].address, &["--timeout", "30s"]);
    assert_eq!((status, told.contains("\"step\":10")), (Some(0), true), "{told}");

    // A sidecar that is killed says the same again, from its disk.
    cluster.kill_agent(0);
    fs::remove_file(ready_file(&cluster, 0)).unwrap();
    start_with_file(&mut cluster, 0).await;
    assert_eq!(said(&cluster, 0).unwrap()["role"], "active");
    assert_eq!(pushed.step, Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn s24_engines_of_a_standby_are_told_to_wait_and_to_write_only_when_the_activation_is_done() {
    let (owner, mut heir) = owner_and(&[], |_| {}).await;
    holds(&heir, 20).await;
    every_host_is(&heir, "standby", 20).await;
    let (status, told) = wait_ready(&heir.agents[0].address, &["--timeout", "1s"]);
    assert_eq!(status, Some(1), "{told}");
    let (status, told) = wait_ready(&heir.agents[0].address, &["--role", "standby", "--timeout", "30s"]);
    assert_eq!(status, Some(0), "{told}");
    let (status, told) = wait_ready_by_variables(&heir.agents[0].address, "active", "1s");
    assert!(status == Some(1) && told.contains("must not start yet"), "{told}");
    for role in ["standby", "any"] {
        let (status, told) = wait_ready_by_variables(&heir.agents[0].address, role, "30s");
        assert_eq!(status, Some(0), "{role}: {told}");
    }

    // The fence hangs: the activation is under way, and what it does by then makes nobody active. Its coordinator is killed and another one goes on.
    let fence = "orders/fences/00000000000000000002.json";
    let held = FaultRule::new(FaultAction::Hang).method("PUT").key_prefix(fence).access_key(COORDINATOR_KEY);
    let held = owner.s3.faults().add(held);
    let asked = v1::ActivateRequest { pipeline: HEIR.to_owned(), ..Default::default() };
    let waiting = tokio::spawn({
        let client = heir.client.clone();
        async move { client.activate(asked).await }
    });
    wait::until("the fence is being put", || async {
        if owner.s3.faults().hits(held) > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    nobody_is(&heir, "active");
    heir.kill_coordinator();
    assert!(waiting.await.unwrap().is_err());
    assert!(owner.s3.faults().remove(held));
    // One host can't pull the base: the location is fenced, and nobody may write before it can.
    checkpoint_all(&owner, 30);
    owner.pushed().await;
    heir.kill_agent(1);
    heir.start_coordinator().await;
    wait::until("the location is fenced", || async {
        let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
        if pipeline.generation == 2 && pipeline.active_round.is_some() { Ok(()) } else { Err(format!("{pipeline:?}")) }
    })
    .await;
    nobody_is(&heir, "active");
    start_agent(&owner, &mut heir, 1).await;

    wait::until("some host is active", || async {
        let active = (0..3).filter_map(|idx| said(&heir, idx)).find(|said| said["role"] == "active");
        active.ok_or("not yet")
    })
    .await;
    let pipeline = heir.client.get_pipeline(HEIR).await.unwrap();
    assert_eq!((pipeline.generation, pipeline.standby), (2, None), "the activation was not done");
    every_host_is(&heir, "active", 30).await;
}
