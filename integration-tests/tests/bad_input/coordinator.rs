//! Every RPC of the coordinator, asked of a pipeline of its own: what happens to be accepted there is a real round or take-over, and would stand in the way of the good one's
//! rounds.

use std::collections::BTreeMap;

use lockstep_client::v1;
use lockstep_integration_tests::{
    cluster::{BUCKET, Cluster, Options, PIPELINE, agent_key},
    wait,
};
use prost::Message;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;

use crate::{
    answer::Kind,
    call::connect,
    cases::methods,
    fields::{Watch, try_method},
    steady::rounds_during,
};

/// A pipeline on which calls may do what they like, with an agent of its own.
const VICTIM: &str = "victim";

/// One that may be deleted, and one that may be created.
const DOOMED: &str = "doomed";
const UNBORN: &str = "unborn";

/// A good request for each method. They ask for plans where that is possible.
fn good(cluster: &Cluster, round: &v1::Round) -> BTreeMap<&'static str, Vec<u8>> {
    let page = 3;
    let pipeline = || VICTIM.to_owned();
    let request_id = "5f0c1a52-0000-4000-8000-000000000001".to_owned();
    let deadline = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    BTreeMap::from([
        (
            "CreatePipeline",
            v1::CreatePipelineRequest {
                spec: Some(solo(cluster, UNBORN, 1)),
                request_id: request_id.clone(),
                validate_only: true,
            }
            .encode_to_vec(),
        ),
        ("GetPipeline", v1::GetPipelineRequest { pipeline: pipeline() }.encode_to_vec()),
        ("ListPipelines", v1::ListPipelinesRequest { page_size: page, page_token: String::new() }.encode_to_vec()),
        (
            "UpdatePipeline",
            v1::UpdatePipelineRequest {
                pipeline: pipeline(),
                spec: Some(solo(cluster, VICTIM, 1)),
                update_mask: Some(prost_types::FieldMask { paths: vec!["transfer".to_owned()] }),
                etag: String::new(),
                validate_only: true,
            }
            .encode_to_vec(),
        ),
        (
            "DeletePipeline",
            v1::DeletePipelineRequest { pipeline: DOOMED.to_owned(), etag: "1".to_owned() }.encode_to_vec(),
        ),
        (
            "Activate",
            v1::ActivateRequest {
                pipeline: pipeline(),
                request_id: request_id.clone(),
                validate_only: true,
                selector: Some(v1::activate_request::Selector::Checkpoint(round.id.clone())),
            }
            .encode_to_vec(),
        ),
        (
            "AcceptLoss",
            v1::AcceptLossRequest {
                pipeline: pipeline(),
                checkpoint: round.id.clone(),
                cause: "tried".to_owned(),
                request_id: "5f0c1a52-0000-4000-8000-00000000000a".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "CancelTakeOver",
            v1::CancelTakeOverRequest {
                pipeline: pipeline(),
                take_over: "5f0c1a52-0000-4000-8000-000000000005".to_owned(),
                cause: "tried".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "StartStandby",
            v1::StartStandbyRequest { pipeline: pipeline(), checkpoint: round.id.clone() }.encode_to_vec(),
        ),
        ("StopStandby", v1::StopStandbyRequest { pipeline: pipeline() }.encode_to_vec()),
        (
            "TakeOver",
            v1::TakeOverRequest { pipeline: pipeline(), request_id: request_id.clone(), validate_only: true }
                .encode_to_vec(),
        ),
        (
            "Resync",
            v1::ResyncRequest { pipeline: pipeline(), spec: None, request_id: request_id.clone(), validate_only: true }
                .encode_to_vec(),
        ),
        (
            "PinCheckpoint",
            v1::PinCheckpointRequest {
                pipeline: pipeline(),
                checkpoint: round.id.clone(),
                name: "kept".to_owned(),
                request_id: request_id.clone(),
            }
            .encode_to_vec(),
        ),
        (
            "UnpinCheckpoint",
            v1::UnpinCheckpointRequest {
                pipeline: pipeline(),
                pin: "kept".to_owned(),
                request_id: "5f0c1a52-0000-4000-8000-000000000002".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "DeleteCheckpoint",
            v1::DeleteCheckpointRequest {
                pipeline: pipeline(),
                checkpoint: round.id.clone(),
                request_id: "5f0c1a52-0000-4000-8000-000000000003".to_owned(),
                validate_only: true,
            }
            .encode_to_vec(),
        ),
        (
            "CollectGarbage",
            v1::CollectGarbageRequest {
                pipeline: pipeline(),
                request_id: "5f0c1a52-0000-4000-8000-000000000004".to_owned(),
                validate_only: true,
            }
            .encode_to_vec(),
        ),
        (
            "StartPush",
            v1::StartPushRequest {
                pipeline: pipeline(),
                selector: Some(v1::start_push_request::Selector::Latest(true)),
                request_id: request_id.clone(),
                deadline,
                validate_only: true,
                force: true,
            }
            .encode_to_vec(),
        ),
        (
            "StartPull",
            v1::StartPullRequest {
                pipeline: pipeline(),
                selector: Some(v1::start_pull_request::Selector::Latest(true)),
                standby: Some(false),
                fail_if_none: Some(true),
                request_id,
                deadline,
                validate_only: true,
                ..v1::StartPullRequest::default()
            }
            .encode_to_vec(),
        ),
        ("GetRound", v1::GetRoundRequest { round: round.id.clone() }.encode_to_vec()),
        (
            "ListRounds",
            v1::ListRoundsRequest {
                pipeline: pipeline(),
                page_size: page,
                kind: 1,
                ..v1::ListRoundsRequest::default()
            }
            .encode_to_vec(),
        ),
        ("CancelRound", v1::CancelRoundRequest { round: round.id.clone(), cause: "tried".to_owned() }.encode_to_vec()),
        ("WatchRound", v1::WatchRoundRequest { round: round.id.clone() }.encode_to_vec()),
        (
            "ListCheckpoints",
            v1::ListCheckpointsRequest { pipeline: pipeline(), page_size: page, page_token: String::new() }
                .encode_to_vec(),
        ),
        (
            "GetCheckpoint",
            v1::GetCheckpointRequest { pipeline: pipeline(), checkpoint: round.id.clone() }.encode_to_vec(),
        ),
        (
            "VerifyCheckpoint",
            v1::VerifyCheckpointRequest { pipeline: pipeline(), checkpoint: round.id.clone(), structure_only: false }
                .encode_to_vec(),
        ),
        (
            "ListAuditEvents",
            v1::ListAuditEventsRequest {
                pipeline: pipeline(),
                round: round.id.clone(),
                page_size: page,
                page_token: String::new(),
            }
            .encode_to_vec(),
        ),
    ])
}

fn solo(cluster: &Cluster, name: &str, agent: usize) -> v1::PipelineSpec {
    let agents = vec![cluster.agents[agent].address.clone()];
    v1::PipelineSpec { hosts: 0, solo: true, agents, ..cluster.spec(name) }
}

/// The good pipeline with one agent, the victim with another, both with a checkpoint; the victim's push of it.
async fn cluster() -> (Cluster, v1::Round) {
    // Nothing is written by itself meanwhile.
    let coordinator_flags = vec!["--gc-interval", "0s"];
    let mut cluster = Cluster::with(Options { hosts: 2, create: false, coordinator_flags, ..Options::default() }).await;
    for (idx, name) in [PIPELINE, VICTIM].into_iter().enumerate() {
        let location = format!("s3://{BUCKET}/{name}?endpoint={}&path_style=true", cluster.endpoint());
        let flags = ["--pipeline", name, "--allow-location", &location].map(str::to_owned);
        let secret = format!("{}-secret", agent_key(u32::try_from(idx).unwrap()));
        cluster.kill_agent(idx);
        cluster.start_agent_as(idx, &["--solo".to_owned()], &flags, &secret).await;
        cluster.hosts[idx].checkpoint(10, &[("state.bin", b"some state")]);
        cluster.client.create_pipeline(solo(&cluster, name, idx)).await.unwrap();
    }
    let doomed = v1::PipelineSpec { initial: v1::Initial::Standby as i32, ..solo(&cluster, DOOMED, 1) };
    cluster.client.create_pipeline(doomed).await.unwrap();
    let push = v1::StartPushRequest { pipeline: VICTIM.to_owned(), ..v1::StartPushRequest::default() };
    let round = cluster.client.start_push(push).await.unwrap();
    let round = cluster.client.wait_round(&round.id).await.unwrap();
    assert_eq!(round.phase(), v1::RoundPhase::Committed, "{:?}", round.problem);
    (cluster, round)
}

/// What calls have written, the good pipeline's own rounds left out.
struct Written {
    database: Mutex<PgConnection>,
    good: String,
}

impl Written {
    async fn one(&self, statement: &'static str) -> String {
        let mut database = self.database.lock().await;
        sqlx::query_scalar(statement).bind(&self.good).fetch_one(&mut *database).await.unwrap()
    }
}

impl Watch for Written {
    async fn now(&self) -> String {
        self.one(
            "SELECT concat_ws(' ',
                (SELECT concat_ws(' ', count(*), sum(spec_version), sum(generation), count(deleted_at)) FROM pipelines),
                (SELECT count(*) FROM take_overs), (SELECT count(*) FROM cancel_requests), (SELECT count(*) FROM upkeep),
                (SELECT count(*) FROM requests WHERE pipeline_id::text <> $1),
                (SELECT concat_ws(' ', count(*), sum(version)) FROM rounds WHERE pipeline_id::text <> $1),
                (SELECT count(*) FROM audit_events WHERE pipeline_id::text <> $1))",
        )
        .await
    }

    /// What was accepted is a row that goes on after the call.
    async fn settled(&self) {
        wait::until("what was accepted has ended", || async {
            let active = self
                .one(
                    "SELECT concat_ws(' ',
                        (SELECT string_agg(kind || ' ' || phase, ', ') FROM rounds WHERE pipeline_id::text <> $1 AND ended_at IS NULL),
                        (SELECT string_agg(phase, ', ') FROM take_overs WHERE ended_at IS NULL),
                        (SELECT string_agg(kind, ', ') FROM upkeep WHERE ended_at IS NULL),
                        (SELECT string_agg(name, ', ') FROM pipelines WHERE claim = 'claiming' AND deleted_at IS NULL))",
                )
                .await;
            if active.is_empty() { Ok(()) } else { Err(active) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_of_each_rpc_of_the_coordinator_may_be_anything() {
    let (cluster, round) = cluster().await;
    let good = good(&cluster, &round);
    let channel = connect(&cluster.coordinator_url()).await;
    let database = Mutex::new(PgConnection::connect(cluster.database.url()).await.unwrap());
    let written = Written { database, good: cluster.client.get_pipeline(PIPELINE).await.unwrap().id };
    let mut figures = Vec::new();
    let rounds = rounds_during(&cluster, async {
        for (method, request) in methods("Coordinator") {
            let name = method.split_once('/').unwrap().1;
            let good =
                good.get(name).unwrap_or_else(|| panic!("{name} has no good request here to make bad ones from"));
            figures.push((method.clone(), try_method(&channel, &method, &request, good, &written).await));
        }
    })
    .await;
    for (method, came_to) in &figures {
        println!("{method}: {came_to:?}");
        assert!(came_to.contains_key(&Kind::Reason), "{method} refuses nothing");
    }
    println!("{} methods, {rounds} good rounds meanwhile", figures.len());
    let log = cluster.coordinator_log();
    assert!(!log.contains("panicked"), "{log}");
    // No location but those of the pipelines that there are.
    let outside = cluster.s3.admin().keys(BUCKET, "").unwrap().into_iter().find(|key| {
        let prefix = key.split('/').next().unwrap_or_default();
        ![PIPELINE, VICTIM, UNBORN].contains(&prefix)
    });
    assert_eq!(outside, None);
}
