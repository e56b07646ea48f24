//! Orders that are refused, repeated, late or replaced.

use lockstep_devkit::{FaultAction, FaultRule, S3Server};
use lockstep_proto::v1::{self, push_status_response::State};
use lockstep_rpc::RpcProblem;

use crate::harness::{BUCKET, Client, Host, files, noise, refusal, round_id, s3, status_request, until};

async fn host_with_checkpoint(s3: &S3Server) -> (Host, v1::PushOrder) {
    let host = Host::start(s3).await;
    let checkpoint = host.checkpoint(4, &files(&[("a", noise("a", 1000))]));
    let order = host.push_order(5, checkpoint, 4);
    (host, order)
}

async fn push_refused(client: &Client, order: &v1::PushOrder, change: impl FnOnce(&mut v1::OrderHeader)) -> RpcProblem {
    let mut order = order.clone();
    change(order.header.as_mut().unwrap());
    refusal(client.clone().push(order).await)
}

#[tokio::test]
async fn orders_for_another_agent_are_refused_by_their_own_reason_before_any_s3_request() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let client = &host.client;

    let problem = push_refused(client, &order, |header| header.pipeline_id = uuid::Uuid::new_v4().to_string()).await;
    assert_eq!(
        (problem.reason.as_str(), problem.metadata["own"].as_str()),
        ("PIPELINE_MISMATCH", crate::harness::PIPELINE)
    );

    let problem =
        push_refused(client, &order, |header| header.host_info = Some(v1::HostInfo { host_idx: 2, n_hosts: 3 })).await;
    assert_eq!(problem.reason, "HOST_INFO_MISMATCH");
    assert_eq!((problem.metadata["ordered"].as_str(), problem.metadata["own"].as_str()), ("2/3", "1/3"));

    let problem =
        push_refused(client, &order, |header| header.host_info = Some(v1::HostInfo { host_idx: 1, n_hosts: 4 })).await;
    assert_eq!((problem.reason.as_str(), problem.metadata["ordered"].as_str()), ("HOST_INFO_MISMATCH", "1/4"));

    let problem = push_refused(client, &order, |header| header.host_info = None).await;
    assert_eq!((problem.reason.as_str(), problem.metadata["ordered"].as_str()), ("HOST_INFO_MISMATCH", "solo"));

    for (host_idx, n_hosts) in [(3, 3), (0, 0)] {
        let problem =
            push_refused(client, &order, |header| header.host_info = Some(v1::HostInfo { host_idx, n_hosts })).await;
        assert_eq!((problem.reason.as_str(), problem.code), ("HOST_INFO_INVALID", tonic::Code::InvalidArgument));
    }

    let problem = push_refused(client, &order, |header| header.incarnation = uuid::Uuid::new_v4().to_string()).await;
    assert_eq!(
        (problem.reason.as_str(), problem.metadata["own"].clone()),
        ("INCARNATION_MISMATCH", host.agent.incarnation().to_string())
    );

    let problem =
        push_refused(client, &order, |header| header.own_location.as_mut().unwrap().bucket = "other".to_owned()).await;
    assert_eq!((problem.reason.as_str(), problem.code), ("LOCATION_NOT_ALLOWED", tonic::Code::PermissionDenied));
    assert!(problem.metadata["ordered"].contains("s3://other/") && problem.metadata["allowed"].contains("s3://acme/"));

    let problem = push_refused(client, &order, |header| {
        header.own_location.as_mut().unwrap().endpoint = "http://127.0.0.1:1".to_owned()
    })
    .await;
    assert_eq!(problem.reason, "LOCATION_NOT_ALLOWED");

    assert_eq!(s3.requests(), [], "a refused order made a request");
    // None of them was accepted, so none of them counts as the highest.
    assert_eq!(client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner().highest, None);
}

#[tokio::test]
async fn a_pull_from_a_location_that_is_not_allowed_is_refused_before_any_s3_request() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let done = host.push(order).await.unwrap();
    s3.clear_requests();
    let mut pull = host.pull_order(6, &done, 5);
    pull.source.as_mut().unwrap().prefix = "ckpt".to_owned();
    assert_eq!(refusal(host.client.clone().pull(pull).await).reason, "LOCATION_NOT_ALLOWED");
    assert_eq!(s3.requests(), []);
}

#[tokio::test]
async fn a_location_without_endpoint_is_that_of_the_process() {
    let s3 = s3().await;
    let (host, mut order) = host_with_checkpoint(&s3).await;
    order.header.as_mut().unwrap().own_location.as_mut().unwrap().endpoint.clear();
    host.push(order).await.unwrap();
}

#[tokio::test]
async fn orders_lower_than_the_highest_are_stale_also_after_a_restart() {
    let s3 = s3().await;
    let (host, mut order) = host_with_checkpoint(&s3).await;
    let header = order.header.as_mut().unwrap();
    (header.generation, header.term, header.attempt) = (3, 4, 2);
    host.push(order.clone()).await.unwrap();

    let check = async |host: &Host, order: &v1::PushOrder| {
        let client = &host.client;
        let problem = push_refused(client, order, |header| header.generation = 2).await;
        assert_eq!(
            (problem.reason.as_str(), problem.metadata["ordered"].as_str(), problem.metadata["own"].as_str()),
            ("STALE_GENERATION", "2", "3")
        );
        let problem = push_refused(client, order, |header| (header.round_no, header.round) = (4, round_id(4))).await;
        assert_eq!((problem.reason.as_str(), problem.metadata["own"].as_str()), ("STALE_ROUND", "5"));
        let problem = push_refused(client, order, |header| header.term = 3).await;
        assert_eq!((problem.reason.as_str(), problem.metadata["own"].as_str()), ("STALE_TERM", "4"));
    };
    check(&host, &order).await;
    let problem = push_refused(&host.client, &order, |header| header.attempt = 1).await;
    assert_eq!((problem.reason.as_str(), problem.metadata["own"].as_str()), ("STALE_ATTEMPT", "2"));

    let host = host.restart(&s3).await;
    order.header.as_mut().unwrap().incarnation = host.agent.incarnation().to_string();
    check(&host, &order).await;
    let highest = host.client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner().highest;
    assert_eq!(highest, Some(v1::OrderMark { generation: 3, round_no: 5, term: 4 }));
}

#[tokio::test]
async fn the_same_attempt_twice_is_one_transfer() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let first = host.push(order.clone()).await.unwrap();
    s3.clear_requests();
    let again = host.client.clone().push(order.clone()).await.unwrap().into_inner();
    assert_eq!(again.state, Some(State::Done(first)));
    assert_eq!(again.incarnation, host.agent.incarnation().to_string());
    assert_eq!(s3.requests(), []);

    // A new term of the same round is the same transfer; the old term is fenced by it.
    let mut claimed = order.clone();
    claimed.header.as_mut().unwrap().term = 2;
    assert!(matches!(host.client.clone().push(claimed).await.unwrap().into_inner().state, Some(State::Done(_))));
    assert_eq!(push_refused(&host.client, &order, |_| {}).await.reason, "STALE_TERM");
    let status = host.client.clone().push_status(status_request(order.header.unwrap(), 0)).await;
    assert_eq!(refusal(status).reason, "STALE_TERM");
}

#[tokio::test]
async fn an_unknown_round_was_not_requested() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let header = order.header.clone().unwrap();
    assert!(matches!(host.push_state(header.clone(), 0).await, State::NotRequested(_)));
    host.push(order).await.unwrap();
    // A push is no pull, and attempt 2 is not attempt 1.
    assert!(matches!(host.pull_state(header.clone(), 0).await, v1::pull_status_response::State::NotRequested(_)));
    let mut next = header;
    next.attempt = 2;
    assert!(matches!(host.push_state(next, 0).await, State::NotRequested(_)));
}

#[tokio::test]
async fn a_newer_round_waits_until_the_older_one_has_stopped() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("PutObject"));
    host.client.clone().push(order.clone()).await.unwrap();
    until("the upload to hang", async || s3.faults().hits(hang) > 0).await;

    let newer = {
        let mut newer = order.clone();
        let header = newer.header.as_mut().unwrap();
        (header.round_no, header.round) = (6, round_id(6));
        newer
    };
    let problem = refusal(host.client.clone().push(newer.clone()).await);
    assert_eq!((problem.reason.as_str(), problem.code), ("TRANSFER_IN_PROGRESS", tonic::Code::Aborted));
    assert_eq!(problem.metadata["round"], round_id(5));
    assert_eq!(problem.retryable, lockstep_rpc::Retryable::Yes);
    // The older round is fenced from this moment on.
    assert_eq!(push_refused(&host.client, &order, |_| {}).await.reason, "STALE_ROUND");

    until("the older one to stop", async || host.client.clone().push(newer.clone()).await.is_ok()).await;
    s3.faults().clear();
    let done = host.push_end(newer.header.unwrap()).await.unwrap();
    assert!(done.part.unwrap().key.contains(&round_id(6)));
}

#[tokio::test]
async fn a_cancelled_push_has_stopped_and_says_so() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("PutObject"));
    host.client.clone().push(order.clone()).await.unwrap();
    until("the upload to hang", async || s3.faults().hits(hang) > 0).await;
    let running = host.client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner().running.unwrap();
    assert_eq!((running.kind.as_str(), running.round.as_str()), ("push", round_id(5).as_str()));

    let cancelled =
        host.client.clone().cancel(v1::CancelOrder { header: order.header.clone() }).await.unwrap().into_inner();
    assert!(cancelled.stopped);
    let problem = host.push_end(order.header.unwrap()).await.unwrap_err();
    assert_eq!(problem.reason, "CANCELLED");
    assert_eq!(host.client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner().running, None);
}

#[tokio::test]
async fn a_transfer_ends_at_its_deadline() {
    let s3 = s3().await;
    let (host, mut order) = host_with_checkpoint(&s3).await;
    s3.faults().add(FaultRule::new(FaultAction::Hang).bucket(BUCKET));
    let soon = chrono::Utc::now() + std::time::Duration::from_millis(200);
    order.deadline =
        Some(prost_types::Timestamp { seconds: soon.timestamp(), nanos: soon.timestamp_subsec_nanos().cast_signed() });
    let problem = host.push(order).await.unwrap_err();
    assert_eq!((problem.reason.as_str(), problem.code), ("ROUND_DEADLINE", tonic::Code::DeadlineExceeded as i32));
}

/// A clock that is a day ahead of the coordinator's, and one that is a day behind: it is the time left that counts.
#[tokio::test]
async fn a_deadline_counts_from_the_order_whatever_the_clock_of_the_agent_says() {
    let s3 = s3().await;
    let (host, mut order) = host_with_checkpoint(&s3).await;
    let day = std::time::Duration::from_secs(24 * 3600);
    let by_clock = |at: chrono::DateTime<chrono::Utc>| {
        Some(prost_types::Timestamp { seconds: at.timestamp(), nanos: at.timestamp_subsec_nanos().cast_signed() })
    };
    order.deadline = by_clock(chrono::Utc::now() - day);
    order.time_left = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    host.push(order.clone()).await.unwrap();

    s3.faults().add(FaultRule::new(FaultAction::Hang).bucket(BUCKET));
    let header = order.header.as_mut().unwrap();
    (header.round, header.round_no) = (uuid::Uuid::new_v4().to_string(), header.round_no + 1);
    order.deadline = by_clock(chrono::Utc::now() + day);
    order.time_left = Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 });
    assert_eq!(host.push(order.clone()).await.unwrap_err().reason, "ROUND_DEADLINE");

    order.time_left = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let problem = refusal(host.client.clone().push(order).await);
    assert_eq!((problem.reason.as_str(), problem.metadata["field"].as_str()), ("SPEC_INVALID", "time_left"));
}

#[tokio::test]
async fn a_long_poll_answers_as_soon_as_the_transfer_has_ended() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("PutObject"));
    host.client.clone().push(order.clone()).await.unwrap();
    until("the upload to hang", async || s3.faults().hits(hang) > 0).await;
    let header = order.header.unwrap();
    let poll = tokio::spawn({
        let mut client = host.client.clone();
        let header = header.clone();
        async move { client.push_status(status_request(header, 60)).await.unwrap().into_inner() }
    });
    s3.faults().clear();
    // Were it not woken, the test's own time limit would end it long before the 60 s are over.
    let answer = tokio::time::timeout(std::time::Duration::from_secs(20), poll).await.unwrap().unwrap();
    assert!(matches!(answer.state, Some(State::Done(_) | State::InProgress(_))), "{answer:?}");
    host.push_end(header).await.unwrap();
}

#[tokio::test]
async fn transfer_options_outside_of_their_range_are_refused_with_the_field() {
    let s3 = s3().await;
    let (host, mut order) = host_with_checkpoint(&s3).await;
    order.transfer = Some(v1::TransferOptions { part_size: 1024, ..Default::default() });
    let problem = refusal(host.client.clone().push(order).await);
    assert_eq!((problem.reason.as_str(), problem.metadata["field"].as_str()), ("SPEC_INVALID", "transfer.part_size"));
}

#[tokio::test]
async fn describe_and_list_tell_who_and_what_is_there() {
    let s3 = s3().await;
    let (host, order) = host_with_checkpoint(&s3).await;
    let described = host.client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(described.pipeline, crate::harness::PIPELINE);
    assert_eq!(described.host_info, Some(v1::HostInfo { host_idx: 1, n_hosts: 3 }));
    assert_eq!(described.store, "directory");
    assert_eq!(described.allowed_locations.len(), 1);
    assert!(described.free_bytes > 0);
    let listed = host.client.clone().list_checkpoints(v1::ListLocalCheckpointsRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.incarnation, described.incarnation);
    let checkpoint = &listed.checkpoints[0];
    assert_eq!((checkpoint.uuid.as_str(), checkpoint.step), (order.local_checkpoint.as_str(), 4));
    assert_eq!(checkpoint.fingerprint, crate::harness::FINGERPRINT);
    assert_eq!(checkpoint.processed_records, Some(1004));
}
