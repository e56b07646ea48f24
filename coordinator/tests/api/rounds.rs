//! Rounds: started, watched, cancelled; and every way to ask for one wrongly.

use std::time::Duration;

use lockstep_coordinator::{api::ApiOptions, plan::PlanOptions};
use lockstep_proto::v1::{self, start_pull_request, start_push_request};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::{
    agents::Agents,
    harness::{Client, Coordinator, as_actor, refused, uuid},
};

pub(crate) fn push(pipeline: &str) -> v1::StartPushRequest {
    v1::StartPushRequest { pipeline: pipeline.to_owned(), ..Default::default() }
}

pub(crate) fn pull(pipeline: &str) -> v1::StartPullRequest {
    v1::StartPullRequest { pipeline: pipeline.to_owned(), standby: Some(false), ..Default::default() }
}

/// A pipeline whose agents don't answer: its rounds plan until somebody stops them.
async fn unreachable() -> (Coordinator, v1::Pipeline) {
    let mut coordinator = Coordinator::start().await;
    let pipeline = coordinator.create(coordinator.spec("orders")).await.unwrap();
    (coordinator, pipeline)
}

async fn watch(client: &mut Client, round: &str) -> Vec<v1::Round> {
    let request = v1::WatchRoundRequest { round: round.to_owned() };
    client.watch_round(request).await.unwrap().into_inner().map(Result::unwrap).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_admitted_at_once_watched_and_cancelled() {
    let (mut coordinator, pipeline) = unreachable().await;
    let mut client = coordinator.client.clone();
    let round = coordinator.client.start_push(as_actor(push("orders"), "alice")).await.unwrap().into_inner();
    assert_eq!(round.kind(), v1::RoundKind::Push);
    assert_eq!(round.phase(), v1::RoundPhase::Planning);
    assert_eq!((round.pipeline_id.as_str(), round.pipeline_name.as_str()), (pipeline.id.as_str(), "orders"));
    assert_eq!((round.round_no, round.seq, round.generation), (1, 1, 1));
    assert_eq!(round.participants.len(), 3);
    assert_eq!(round.participants[2].address, "http://127.0.0.3:9");
    assert!(round.deadline.is_some() && round.end_time.is_none());

    let id = round.id.clone();
    let watching = tokio::spawn(async move { watch(&mut client, &id).await });
    let cancel = v1::CancelRoundRequest { round: round.id.clone(), cause: "wrong day".to_owned() };
    let cancelled = coordinator.client.cancel_round(as_actor(cancel.clone(), "bob")).await.unwrap().into_inner();
    assert_eq!(cancelled.phase(), v1::RoundPhase::Cancelled);
    let problem = cancelled.problem.clone().unwrap();
    assert_eq!((problem.reason.as_str(), problem.metadata["by"].as_str()), ("CANCELLED", "bob"));
    assert!(problem.message.contains("wrong day"), "{problem:?}");

    let seen = watching.await.unwrap();
    assert_eq!(seen.last(), Some(&cancelled));
    assert!(seen.windows(2).all(|pair| pair[0].version <= pair[1].version && pair[0] != pair[1]), "{seen:#?}");
    // The same request again is a retry; another one comes too late.
    let retried = coordinator.client.cancel_round(as_actor(cancel.clone(), "bob")).await.unwrap().into_inner();
    assert_eq!(retried, cancelled);
    let again = refused(coordinator.client.cancel_round(as_actor(cancel, "carol")).await, "ROUND_NOT_CANCELLABLE");
    assert_eq!((again.code, again.metadata["phase"].as_str()), (Code::FailedPrecondition, "cancelled"));

    let get = v1::GetRoundRequest { round: round.id.clone() };
    assert_eq!(coordinator.client.get_round(get).await.unwrap().into_inner(), cancelled);
    // A watch of what is over says so and ends.
    assert_eq!(watch(&mut coordinator.client, &round.id).await, [cancelled]);
    let request = v1::ListAuditEventsRequest { round: round.id.clone(), ..Default::default() };
    let events = coordinator.client.list_audit_events(request).await.unwrap().into_inner().events;
    let told: Vec<_> = events.iter().map(|event| (event.action.as_str(), event.actor.as_str())).collect();
    assert!(told.contains(&("round_admitted", "alice")), "{told:?}");
    assert!(told.contains(&("cancel_requested", "bob")), "{told:?}");
    assert!(events.iter().any(|event| event.to_phase == "cancelled"), "{events:#?}");
    assert!(events.iter().all(|event| event.round == round.id && event.pipeline_name == "orders"), "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_round_keeps_others_and_changes_of_its_ground_out() {
    let (mut coordinator, _) = unreachable().await;
    let round = coordinator.client.start_push(push("orders")).await.unwrap().into_inner();
    let client = &mut coordinator.client;
    let second = refused(client.start_push(push("orders")).await, "ROUND_IN_PROGRESS");
    assert_eq!((second.code, second.metadata["round"].as_str()), (Code::Aborted, round.id.as_str()));
    let dry = v1::StartPushRequest { validate_only: true, ..push("orders") };
    assert_eq!(refused(client.start_push(dry).await, "ROUND_IN_PROGRESS").metadata["round"], round.id);
    let third = refused(client.start_pull(pull("orders")).await, "ROUND_IN_PROGRESS");
    assert_eq!(third.metadata["round"], round.id);
    let delete = v1::DeletePipelineRequest { pipeline: "orders".to_owned(), ..Default::default() };
    assert_eq!(refused(client.delete_pipeline(delete).await, "ROUND_IN_PROGRESS").metadata["round"], round.id);
    let update = v1::UpdatePipelineRequest {
        pipeline: "orders".to_owned(),
        spec: Some(v1::PipelineSpec { agents: vec!["http://orders-{host}:7402".to_owned()], ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["agents".to_owned()] }),
        ..Default::default()
    };
    assert_eq!(refused(client.update_pipeline(update).await, "ROUND_IN_PROGRESS").metadata["round"], round.id);

    let get = v1::GetPipelineRequest { pipeline: "orders".to_owned() };
    let shown = client.get_pipeline(get).await.unwrap().into_inner();
    assert_eq!(shown.active_round.unwrap().id, round.id);
    assert_eq!(shown.last_push.unwrap().id, round.id);
    assert!(shown.last_pull.is_none());
    let list = |kind: v1::RoundKind, active_only| v1::ListRoundsRequest {
        pipeline: "orders".to_owned(),
        kind: kind.into(),
        active_only,
        ..Default::default()
    };
    let rounds = client.list_rounds(list(v1::RoundKind::Push, true)).await.unwrap().into_inner().rounds;
    assert_eq!(rounds.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), [round.id.as_str()]);
    assert!(client.list_rounds(list(v1::RoundKind::Pull, false)).await.unwrap().into_inner().rounds.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_id_gives_the_same_round_in_whatever_phase() {
    let (mut coordinator, _) = unreachable().await;
    let request = v1::StartPushRequest { request_id: uuid(), ..push("orders") };
    let client = &mut coordinator.client;
    let first = client.start_push(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.request_id, request.request_id);
    assert_eq!(client.start_push(request.clone()).await.unwrap().into_inner().id, first.id);
    let other = v1::StartPushRequest { selector: Some(start_push_request::Selector::Step(7)), ..request.clone() };
    let problem = refused(client.start_push(other).await, "REQUEST_ID_REUSED");
    assert_eq!((problem.code, problem.metadata["request_id"].as_str()), (Code::InvalidArgument, &*request.request_id));
    client.cancel_round(v1::CancelRoundRequest { round: first.id.clone(), ..Default::default() }).await.unwrap();
    let known = client.start_push(request).await.unwrap().into_inner();
    assert_eq!((known.id.as_str(), known.phase()), (first.id.as_str(), v1::RoundPhase::Cancelled));
    let next = client.start_push(push("orders")).await.unwrap().into_inner();
    assert_ne!(next.id, first.id);
    assert_eq!((next.round_no, next.seq), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_by_field() {
    let (mut coordinator, _) = unreachable().await;
    let client = &mut coordinator.client;
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    for (field, request) in [
        ("deadline", v1::StartPushRequest { deadline: seconds(8 * 24 * 3600), ..push("orders") }),
        ("deadline", v1::StartPushRequest { deadline: seconds(-1), ..push("orders") }),
        ("request id", v1::StartPushRequest { request_id: "1".to_owned(), ..push("orders") }),
        (
            "step",
            v1::StartPushRequest { selector: Some(start_push_request::Selector::Step(u64::MAX)), ..push("orders") },
        ),
        (
            "latest",
            v1::StartPushRequest { selector: Some(start_push_request::Selector::Latest(false)), ..push("orders") },
        ),
        ("pipeline", push("")),
        ("name", push("No Such Name")),
    ] {
        let problem = refused(client.start_push(request).await, "SPEC_INVALID");
        assert_eq!((problem.code, problem.metadata["field"].as_str()), (Code::InvalidArgument, field), "{problem:?}");
    }
    let unset = v1::StartPullRequest { standby: None, ..pull("orders") };
    let problem = refused(client.start_pull(unset).await, "STANDBY_UNSET");
    assert_eq!((problem.code, problem.metadata["field"].as_str()), (Code::InvalidArgument, "standby"));
    let selector = Some(start_pull_request::Selector::Checkpoint("newest".to_owned()));
    refused(client.start_pull(v1::StartPullRequest { selector, ..pull("orders") }).await, "SPEC_INVALID");

    let absent = uuid();
    assert_eq!(refused(client.start_push(push(&absent)).await, "PIPELINE_NOT_FOUND").metadata["pipeline"], absent);
    refused(client.start_pull(pull("nobody")).await, "PIPELINE_NOT_FOUND");
    let get = v1::GetRoundRequest { round: absent.clone() };
    let problem = refused(client.get_round(get).await, "ROUND_NOT_FOUND");
    assert_eq!((problem.code, problem.metadata["round"].as_str()), (Code::NotFound, absent.as_str()));
    let cancel = v1::CancelRoundRequest { round: absent.clone(), ..Default::default() };
    refused(client.cancel_round(cancel).await, "ROUND_NOT_FOUND");
    let unknown = v1::WatchRoundRequest { round: absent.clone() };
    assert_eq!(client.watch_round(unknown).await.unwrap_err().code(), Code::NotFound);
    let audit = v1::ListAuditEventsRequest { round: absent, ..Default::default() };
    refused(client.list_audit_events(audit).await, "ROUND_NOT_FOUND");
    let shouting = v1::CancelRoundRequest { round: uuid(), cause: "a\u{7}b".to_owned() };
    assert_eq!(refused(client.cancel_round(shouting).await, "SPEC_INVALID").metadata["field"], "cause");
}

/// Three hosts that say what they hold.
pub(crate) async fn described(steps: &[&[u64]]) -> (Coordinator, Agents) {
    let agents = Agents::start("orders", steps).await;
    let preview =
        PlanOptions { unreachable_after: Duration::from_millis(300), store_patience: Duration::from_millis(300) };
    let mut coordinator = Coordinator::start_with(ApiOptions { preview, ..ApiOptions::default() }).await;
    let mut spec = coordinator.spec("orders");
    spec.hosts = u32::try_from(steps.len()).unwrap();
    spec.agents.clone_from(&agents.addresses);
    coordinator.create(spec).await.unwrap();
    (coordinator, agents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_push_shows_the_cut_and_starts_nothing() {
    let (mut coordinator, agents) = described(&[&[100, 200, 300], &[100, 200], &[200, 300]]).await;
    let dry = v1::StartPushRequest { validate_only: true, ..push("orders") };
    let writes = coordinator.writes();
    let planned = coordinator.client.start_push(dry.clone()).await.unwrap().into_inner();
    assert_eq!((planned.id.as_str(), planned.step), ("", Some(200)));
    let chosen: Vec<_> = planned.participants.iter().map(|p| p.local_checkpoint.as_str()).collect();
    let own = &agents.checkpoints;
    assert_eq!(chosen, [own[0][1].uuid.as_str(), own[1][1].uuid.as_str(), own[2][0].uuid.as_str()]);
    assert!(planned.participants.iter().all(|p| !p.incarnation.is_empty()));

    let selector = Some(start_push_request::Selector::Step(300));
    let problem =
        refused(coordinator.client.start_push(v1::StartPushRequest { selector, ..dry }).await, "NO_COMMON_CHECKPOINT");
    assert_eq!(problem.code, Code::FailedPrecondition);
    assert_eq!(problem.metadata["host0_steps"], "300,200,100");
    assert_eq!(problem.metadata["host1_steps"], "200,100");
    let list = v1::ListRoundsRequest { pipeline: "orders".to_owned(), ..Default::default() };
    assert!(coordinator.client.list_rounds(list).await.unwrap().into_inner().rounds.is_empty());
    assert_eq!(coordinator.writes(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_pull_shows_its_source_and_starts_nothing() {
    let (mut coordinator, agents) = described(&[&[100], &[100]]).await;
    let dry = v1::StartPullRequest { validate_only: true, ..pull("orders") };
    let planned = coordinator.client.start_pull(dry.clone()).await.unwrap().into_inner();
    assert_eq!((planned.id.as_str(), planned.source(), planned.step), ("", v1::PullSource::Local, Some(100)));
    assert_eq!(planned.participants[1].local_checkpoint, agents.checkpoints[1][0].uuid);
    let absent = uuid();
    let selector = Some(start_pull_request::Selector::Checkpoint(absent.clone()));
    let request = v1::StartPullRequest { selector, ..dry.clone() };
    let problem = refused(coordinator.client.start_pull(request).await, "CHECKPOINT_NOT_FOUND");
    assert!(problem.message.contains(&absent), "{problem}");
    let standby = v1::StartPullRequest { standby: Some(true), ..dry };
    refused(coordinator.client.start_pull(standby).await, "CHECKPOINT_NOT_FOUND");
    let list = v1::ListRoundsRequest { pipeline: "orders".to_owned(), ..Default::default() };
    assert!(coordinator.client.list_rounds(list).await.unwrap().into_inner().rounds.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_round_tells_who_is_swapped_or_silent() {
    let agents = Agents::start("orders", &[&[100], &[100]]).await;
    let preview =
        PlanOptions { unreachable_after: Duration::from_millis(300), store_patience: Duration::from_millis(300) };
    let mut coordinator = Coordinator::start_with(ApiOptions { preview, ..ApiOptions::default() }).await;
    let dry = |pipeline: &str| v1::StartPushRequest { validate_only: true, ..push(pipeline) };
    let mut spec = coordinator.spec("orders");
    (spec.hosts, spec.agents) = (2, vec![agents.addresses[1].clone(), agents.addresses[0].clone()]);
    coordinator.create(spec.clone()).await.unwrap();
    let problem = refused(coordinator.client.start_push(dry("orders")).await, "HOST_INFO_MISMATCH");
    assert_eq!(problem.code, Code::FailedPrecondition);
    assert!(problem.metadata.contains_key("ordered") && problem.metadata.contains_key("own"), "{problem:?}");

    (spec.name, spec.agents, spec.location) =
        ("others".to_owned(), agents.addresses.clone(), Some(coordinator.location("others")));
    coordinator.create(spec).await.unwrap();
    let problem = refused(coordinator.client.start_push(dry("others")).await, "PIPELINE_MISMATCH");
    assert_eq!(problem.metadata["own"], "orders");

    coordinator.create(coordinator.spec("silent")).await.unwrap();
    let problem = refused(coordinator.client.start_push(dry("silent")).await, "AGENT_UNREACHABLE");
    assert_eq!(problem.code, Code::Unavailable);
    assert!(problem.metadata["address"].starts_with("http://127.0.0."), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_its_coordinator_stops_and_its_round_is_handed_back() {
    let (coordinator, _) = unreachable().await;
    let mut client = coordinator.client.clone();
    let round = client.start_push(push("orders")).await.unwrap().into_inner();
    let mut watching = client.watch_round(v1::WatchRoundRequest { round: round.id }).await.unwrap().into_inner();
    assert!(watching.next().await.unwrap().is_ok());
    let stopping = tokio::spawn(coordinator.stop());
    let last = loop {
        match watching.next().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert_eq!(last.unwrap().unwrap_err().code(), Code::Unavailable);
    stopping.await.unwrap();
}
