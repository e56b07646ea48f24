//! Pipelines: created with their fence, shown, changed, forgotten; and every way to get one wrong.

use lockstep_proto::v1;
use lockstep_rpc::Retryable;
use tonic::Code;

use crate::harness::{BUCKET, Client, Coordinator, as_actor, refused, uuid};

fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() })
}

async fn get(client: &mut Client, name: &str) -> v1::Pipeline {
    client.get_pipeline(v1::GetPipelineRequest { pipeline: name.to_owned() }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_owns_its_location_once_it_is_created() {
    let mut coordinator = Coordinator::start().await;
    let mut spec = coordinator.spec("orders");
    spec.pull_interval = Some(prost_types::Duration { seconds: 120, nanos: 0 });
    let pipeline = coordinator.create(spec.clone()).await.unwrap();
    assert_eq!(pipeline.generation, 1);
    assert_eq!(pipeline.warnings, Vec::<String>::new(), "pull_interval counts once it is a standby");
    assert_eq!(pipeline.spec.as_ref().unwrap().agents, spec.agents);
    assert!(pipeline.active_round.is_none() && pipeline.last_push.is_none() && pipeline.fenced.is_none());
    let fence = coordinator.s3.requests().into_iter().find(|request| {
        request.method == "PUT" && request.key.as_deref() == Some("orders/fences/00000000000000000001.json")
    });
    assert_eq!(fence.unwrap().status, Some(200));

    let client = &mut coordinator.client;
    assert_eq!(get(client, "orders").await, pipeline);
    assert_eq!(get(client, &pipeline.id).await, pipeline);
    let listed = client.list_pipelines(v1::ListPipelinesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.pipelines, [pipeline]);
    assert_eq!(listed.next_page_token, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_id_creates_one_pipeline() {
    let mut coordinator = Coordinator::start().await;
    let request =
        v1::CreatePipelineRequest { spec: Some(coordinator.spec("orders")), request_id: uuid(), validate_only: false };
    let first = coordinator.client.create_pipeline(request.clone()).await.unwrap().into_inner();
    let again = coordinator.client.create_pipeline(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.id, first.id);

    let mut other = request.clone();
    other.spec.as_mut().unwrap().name = "orders-2".to_owned();
    let problem = refused(coordinator.client.create_pipeline(other).await, "REQUEST_ID_REUSED");
    assert_eq!(problem.code, Code::InvalidArgument);
    assert_eq!(problem.metadata["request_id"], request.request_id);
    let malformed = v1::CreatePipelineRequest { request_id: "again".to_owned(), ..request };
    assert_eq!(refused(coordinator.client.create_pipeline(malformed).await, "SPEC_INVALID").metadata["value"], "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_checks_everything_and_writes_nothing() {
    let mut coordinator = Coordinator::start().await;
    let dry = |spec| v1::CreatePipelineRequest { spec: Some(spec), validate_only: true, ..Default::default() };
    let planned = coordinator.client.create_pipeline(dry(coordinator.spec("orders"))).await.unwrap().into_inner();
    assert_eq!((planned.id.as_str(), planned.etag.as_str()), ("", ""));
    assert_eq!(coordinator.writes(), 0);
    let listed = coordinator.client.list_pipelines(v1::ListPipelinesRequest::default()).await.unwrap().into_inner();
    assert!(listed.pipelines.is_empty());

    coordinator.create(coordinator.spec("orders")).await.unwrap();
    let writes = coordinator.writes();
    refused(coordinator.client.create_pipeline(dry(coordinator.spec("orders"))).await, "PIPELINE_EXISTS");
    let mut squatter = coordinator.spec("squatter");
    squatter.location = Some(coordinator.location("orders"));
    let problem = refused(coordinator.client.create_pipeline(dry(squatter)).await, "LOCATION_OWNED");
    assert_eq!(problem.metadata["owner_name"], "orders");
    let mut nowhere = coordinator.spec("nowhere");
    nowhere.location.as_mut().unwrap().bucket = "no-such-bucket".to_owned();
    let problem = refused(coordinator.client.create_pipeline(dry(nowhere)).await, "STORE_NOT_FOUND");
    assert_eq!(problem.metadata["bucket"], "no-such-bucket");
    assert_eq!(coordinator.writes(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owned_or_overlapping_location_is_refused_naming_its_owner() {
    let mut coordinator = Coordinator::start().await;
    let owner = coordinator.create(coordinator.spec("orders")).await.unwrap();
    for prefix in ["orders", "orders/inner", ""] {
        let mut spec = coordinator.spec("squatter");
        spec.location = Some(coordinator.location(prefix));
        let problem = coordinator.create(spec).await.unwrap_err();
        assert_eq!((problem.reason.as_str(), problem.code), ("LOCATION_OWNED", Code::FailedPrecondition), "{prefix}");
        assert!(problem.message.contains("orders") && problem.message.contains("squatter"), "{problem}");
        assert_eq!(problem.retryable, Retryable::AfterFix);
    }
    // Its owner is undisturbed, and keeps it under another name too.
    let renamed = v1::UpdatePipelineRequest {
        pipeline: "orders".to_owned(),
        spec: Some(v1::PipelineSpec { name: "orders-eu".to_owned(), ..Default::default() }),
        update_mask: mask(&["name"]),
        ..Default::default()
    };
    let renamed = coordinator.client.update_pipeline(renamed).await.unwrap().into_inner();
    assert_eq!((renamed.id, renamed.generation), (owner.id, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_location_fenced_by_another_database_is_refused() {
    let mut first = Coordinator::start().await;
    let mut second = Coordinator::start().await;
    let owner = first.create(first.spec("orders")).await.unwrap();
    let mut spec = second.spec("squatter");
    spec.location = Some(first.location("orders"));
    let problem = second.create(spec).await.unwrap_err();
    assert_eq!(problem.reason, "LOCATION_OWNED", "{problem:?}");
    assert_eq!(problem.metadata["owner"], owner.id);
    assert!(problem.message.contains("orders") && problem.message.contains("squatter"), "{problem}");
    // Refused for good: the name is free again.
    let listed = second.client.list_pipelines(v1::ListPipelinesRequest::default()).await.unwrap().into_inner();
    assert!(listed.pipelines.is_empty(), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_missing_or_denied_is_the_answer() {
    let mut coordinator = Coordinator::start().await;
    let mut nowhere = coordinator.spec("nowhere");
    nowhere.location.as_mut().unwrap().bucket = "no-such-bucket".to_owned();
    let problem = coordinator.create(nowhere).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.code), ("STORE_NOT_FOUND", Code::NotFound), "{problem:?}");
    assert_eq!(problem.metadata["bucket"], "no-such-bucket");
    assert!(problem.metadata.contains_key("http_status"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_spec_is_refused_by_field() {
    let mut coordinator = Coordinator::start().await;
    type Change = fn(&mut v1::PipelineSpec);
    let cases: [(&str, &str, Change); 9] = [
        ("SPEC_INVALID", "name", |s| s.name = "Orders".to_owned()),
        ("SPEC_INVALID", "agents", |s| s.agents.truncate(2)),
        ("SPEC_INVALID", "bucket", |s| s.location.as_mut().unwrap().bucket = "acme/ckpt".to_owned()),
        ("SPEC_INVALID", "prefix", |s| s.location.as_mut().unwrap().prefix = "../up".to_owned()),
        ("SPEC_INVALID", "read_location", |s| s.read_location.clone_from(&s.location)),
        ("SPEC_INVALID", "hosts", |s| s.hosts = 0),
        ("SPEC_INVALID", "initial", |s| s.initial = 7),
        ("STANDBY_FIELD_REMOVED", "standby", |s| s.standby = Some(true)),
        ("STANDBY_FIELD_REMOVED", "standby", |s| s.standby = Some(false)),
    ];
    for (reason, field, change) in cases {
        let mut spec = coordinator.spec("orders");
        change(&mut spec);
        let problem = coordinator.create(spec).await.unwrap_err();
        assert_eq!(problem.reason, reason, "{problem:?}");
        assert_eq!(problem.code, Code::InvalidArgument);
        assert_eq!(problem.metadata["field"], field, "{problem:?}");
        assert_eq!(problem.retryable, Retryable::AfterFix);
    }
    let mut crowd = coordinator.spec("orders");
    crowd.hosts = 5000;
    let problem = coordinator.create(crowd).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.metadata["n_hosts"].as_str()), ("HOST_INFO_INVALID", "5000"));
    let nothing = v1::CreatePipelineRequest::default();
    assert_eq!(refused(coordinator.client.create_pipeline(nothing).await, "SPEC_INVALID").metadata["field"], "spec");
    assert_eq!(coordinator.s3.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_its_mask_names_and_compares_the_etag() {
    let mut coordinator = Coordinator::start().await;
    let created = coordinator.create(coordinator.spec("orders")).await.unwrap();
    let update = |paths: &[&str], spec: v1::PipelineSpec, etag: &str| v1::UpdatePipelineRequest {
        pipeline: "orders".to_owned(),
        spec: Some(spec),
        update_mask: mask(paths),
        etag: etag.to_owned(),
        validate_only: false,
    };
    let two_minutes = v1::PipelineSpec {
        push_interval: Some(prost_types::Duration { seconds: 120, nanos: 0 }),
        ..Default::default()
    };
    let client = &mut coordinator.client;
    let dry = v1::UpdatePipelineRequest {
        validate_only: true,
        ..update(&["push_interval"], two_minutes.clone(), &created.etag)
    };
    let planned = client.update_pipeline(dry).await.unwrap().into_inner();
    assert_eq!(planned.spec.unwrap().push_interval, two_minutes.push_interval);
    assert_eq!(get(client, "orders").await, created);

    let request = update(&["push_interval"], two_minutes.clone(), &created.etag);
    let changed = client.update_pipeline(request.clone()).await.unwrap().into_inner();
    assert_ne!(changed.etag, created.etag);
    let spec = changed.spec.clone().unwrap();
    assert_eq!(spec.push_interval, two_minutes.push_interval);
    assert_eq!(spec.agents, created.spec.unwrap().agents);

    let other = v1::PipelineSpec { push_interval: None, ..Default::default() };
    let stale =
        refused(client.update_pipeline(update(&["push_interval"], other, &created.etag)).await, "ETAG_MISMATCH");
    assert_eq!(stale.code, Code::Aborted);
    assert_eq!(
        (stale.metadata["etag"].as_str(), stale.metadata["requested"].as_str()),
        (&*changed.etag, &*created.etag)
    );

    let unknown = update(&["push_intervall"], two_minutes, "");
    assert_eq!(refused(client.update_pipeline(unknown).await, "SPEC_INVALID").metadata["field"], "update_mask");
    let moved = v1::PipelineSpec {
        location: Some(v1::Location {
            prefix: "elsewhere".to_owned(),
            bucket: BUCKET.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let problem = refused(client.update_pipeline(update(&["location"], moved, "")).await, "SPEC_INVALID");
    assert_eq!(problem.metadata["field"], "location");
    let removed = v1::PipelineSpec { standby: Some(true), ..Default::default() };
    refused(client.update_pipeline(update(&["name"], removed, "")).await, "STANDBY_FIELD_REMOVED");
    // What the schedule has seen by now is no change of the spec.
    let unscheduled = |pipeline| v1::Pipeline { push_schedule: None, ..pipeline };
    assert_eq!(unscheduled(get(client, "orders").await), unscheduled(changed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pipeline_leaves_its_bucket_and_its_trail() {
    let mut coordinator = Coordinator::start().await;
    let created = coordinator.create(coordinator.spec("orders")).await.unwrap();
    let writes = coordinator.writes();
    let client = &mut coordinator.client;
    let delete = |etag: &str| v1::DeletePipelineRequest { pipeline: "orders".to_owned(), etag: etag.to_owned() };
    refused(client.delete_pipeline(delete("0")).await, "ETAG_MISMATCH");
    client.delete_pipeline(as_actor(delete(&created.etag), "alice")).await.unwrap();
    for name in ["orders", &created.id] {
        let request = v1::GetPipelineRequest { pipeline: name.to_owned() };
        let problem = refused(client.get_pipeline(request).await, "PIPELINE_NOT_FOUND");
        assert_eq!((problem.code, problem.metadata["pipeline"].as_str()), (Code::NotFound, name));
    }
    let request = v1::ListAuditEventsRequest { pipeline: created.id, ..Default::default() };
    let events = client.list_audit_events(request).await.unwrap().into_inner().events;
    let deleted = events.iter().find(|event| event.action == "pipeline_deleted").unwrap();
    assert_eq!(deleted.actor, "alice");
    assert_eq!(coordinator.writes(), writes);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_and_a_foreign_token_is_refused() {
    let mut coordinator = Coordinator::start().await;
    for name in ["a", "b", "c"] {
        coordinator.create(coordinator.spec(name)).await.unwrap();
    }
    let client = &mut coordinator.client;
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListPipelinesRequest { page_size: 2, page_token: token };
        let page = client.list_pipelines(request).await.unwrap().into_inner();
        assert!(page.pipelines.len() <= 2);
        names.extend(page.pipelines.into_iter().map(|pipeline| pipeline.spec.unwrap().name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c"]);
    let negative = v1::ListPipelinesRequest { page_size: -1, ..Default::default() };
    assert_eq!(refused(client.list_pipelines(negative).await, "SPEC_INVALID").metadata["field"], "page_size");
    let foreign = v1::ListRoundsRequest { page_token: "nonsense".to_owned(), ..Default::default() };
    refused(client.list_rounds(foreign).await, "SPEC_INVALID");
    let foreign = v1::ListAuditEventsRequest { page_token: "nonsense".to_owned(), ..Default::default() };
    refused(client.list_audit_events(foreign).await, "SPEC_INVALID");
    let foreign = v1::ListCheckpointsRequest {
        pipeline: "a".to_owned(),
        page_token: "nonsense".to_owned(),
        ..Default::default()
    };
    refused(client.list_checkpoints(foreign).await, "SPEC_INVALID");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_is_a_printable_name() {
    let mut coordinator = Coordinator::start().await;
    let request = as_actor(v1::DeletePipelineRequest { pipeline: "orders".to_owned(), ..Default::default() }, "a\tb");
    let problem = refused(coordinator.client.delete_pipeline(request).await, "SPEC_INVALID");
    assert_eq!(problem.metadata["field"], "x-lockstep-actor");
    // Who gives no name is known by where the call came from.
    coordinator.create(coordinator.spec("orders")).await.unwrap();
    let request = v1::ListAuditEventsRequest { pipeline: "orders".to_owned(), ..Default::default() };
    let events = coordinator.client.list_audit_events(request).await.unwrap().into_inner().events;
    assert_eq!(events[0].actor, "anonymous@127.0.0.1");
    assert_eq!((events[0].action.as_str(), events[0].pipeline_name.as_str()), ("pipeline_created", "orders"));
}
