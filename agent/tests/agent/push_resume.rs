//! A later attempt of a round goes on where the last one failed, and no upload stays open when none comes.

use lockstep_devkit::{FaultAction, FaultRule, S3Server};
use lockstep_proto::v1;

use crate::{
    harness::{BUCKET, Files, Host, files, noise, refusal, s3, until},
    push::{content, part, without_document},
};

fn state() -> Files {
    let mut state = files(&[("large/one", noise("one", (20 << 20) + 5)), ("large/two", noise("two", 11 << 20))]);
    state.extend((0..300).map(|number| (format!("small/{number:03}"), noise(&number.to_string(), 30_000))));
    state
}

/// In one request at a time, so that what was answered and what was not can be told apart.
fn order(host: &Host, round_no: u64, state: &Files) -> v1::PushOrder {
    let mut order = host.push_order(round_no, host.checkpoint(round_no, state), round_no);
    order.transfer =
        Some(v1::TransferOptions { part_size: 5 << 20, memory: 20 << 20, concurrency: 1, ..Default::default() });
    order
}

fn again(order: &v1::PushOrder, attempt: u32) -> v1::PushOrder {
    let mut order = order.clone();
    order.header.as_mut().unwrap().attempt = attempt;
    order
}

/// A failure that passes, of the requests after the first `spared`.
fn failure(operation: &str, spared: u64) -> FaultRule {
    FaultRule::new(FaultAction::Error { status: 400, code: "BadDigest".to_owned() })
        .operation(operation)
        .key_contains("data-")
        .skip(spared)
}

fn answered(s3: &S3Server, operation: &str) -> usize {
    s3.log().count(|request| request.operation == operation && request.status == Some(200))
}

fn open_uploads(s3: &S3Server) -> usize {
    s3.admin().open_uploads(BUCKET).unwrap().len()
}

async fn fails(s3: &S3Server, host: &Host, order: v1::PushOrder, rule: FaultRule) -> v1::Problem {
    let rule = s3.faults().add(rule);
    let problem = host.push(order).await.unwrap_err();
    assert!(s3.faults().hits(rule) > 0);
    s3.faults().remove(rule);
    problem
}

async fn cancel(host: &Host, header: v1::OrderHeader) -> bool {
    host.client.clone().cancel(v1::CancelOrder { header: Some(header) }).await.unwrap().into_inner().stopped
}

#[tokio::test]
async fn a_retried_attempt_sends_nothing_that_stands_already() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    // The pieces come first, then the packs: of those one goes through.
    let problem = fails(&s3, &host, order.clone(), failure("UploadPart", 3)).await;
    assert_eq!(problem.reason, "INTEGRITY");
    assert!(open_uploads(&s3) > 0);
    fails(&s3, &host, again(&order, 2), failure("PutObject", 1)).await;
    let done = host.push(again(&order, 3)).await.unwrap();

    // 5 and 3 pieces, two objects of them, two packs and the manifest: each sent once, over all attempts.
    let counts = ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"];
    assert_eq!(counts.map(|operation| answered(&s3, operation)), [2, 8, 2, 3]);
    let part = part(&s3, &done);
    assert_eq!(without_document(content(&s3, &part)), state());
    assert_eq!(done.bytes_uploaded, part.bytes());
    for attempt in [1, 2, 3] {
        let of_attempt = format!("-{attempt}/data-");
        let objects = part.objects.iter().filter(|object| object.key.contains(&of_attempt)).count();
        assert!(objects > 0, "nothing of attempt {attempt}: {:?}", part.objects);
    }
    assert_eq!(open_uploads(&s3), 0);
}

/// A second attempt is ordered while a request of the first one hangs.
async fn replaced_at(s3: &S3Server, host: &Host, order: &v1::PushOrder, hang: FaultRule) -> v1::PushDone {
    let hang = s3.faults().add(hang);
    host.client.clone().push(order.clone()).await.unwrap();
    until("a request to hang", async || s3.faults().hits(hang) > 0).await;
    let problem = refusal(host.client.clone().push(again(order, 2)).await);
    assert_eq!(problem.reason, "TRANSFER_IN_PROGRESS");
    until("the first attempt to end", async || {
        let described = host.client.clone().describe(v1::DescribeRequest {}).await.unwrap();
        described.into_inner().running.is_none()
    })
    .await;
    s3.faults().remove(hang);
    host.push(again(order, 2)).await.unwrap()
}

#[tokio::test]
async fn an_attempt_that_was_replaced_while_it_ran_is_gone_on_with() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    let hang = FaultRule::new(FaultAction::Hang).operation("UploadPart").skip(3);
    let done = replaced_at(&s3, &host, &order, hang).await;
    // The one that hung may have been taken in after all.
    assert!((8..=9).contains(&answered(&s3, "UploadPart")), "{}", answered(&s3, "UploadPart"));
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state());
    assert_eq!(open_uploads(&s3), 0);
}

#[tokio::test]
async fn a_file_that_changed_between_attempts_is_sent_anew() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    fails(&s3, &host, order.clone(), failure("UploadPart", 2)).await;
    let mut changed = state();
    changed.insert("large/one".to_owned(), noise("another one", (20 << 20) + 5));
    let path = host.folder(&order.local_checkpoint).join("large/one");
    std::fs::write(path, &changed["large/one"]).unwrap();
    let done = host.push(again(&order, 2)).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), changed);
    assert_eq!((answered(&s3, "UploadPart"), open_uploads(&s3)), (10, 0));
}

#[tokio::test]
async fn an_upload_that_the_store_lost_between_attempts_is_begun_anew() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    fails(&s3, &host, order.clone(), failure("UploadPart", 2)).await;
    let gone = FaultRule::new(FaultAction::Error { status: 404, code: "NoSuchUpload".to_owned() });
    let problem = fails(&s3, &host, again(&order, 2), gone.operation("UploadPart").times(1)).await;
    assert_eq!((problem.reason.as_str(), problem.retryable()), ("STORE_NOT_FOUND", v1::Retryable::Yes));
    let done = host.push(again(&order, 3)).await.unwrap();
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state());
    assert_eq!(open_uploads(&s3), 0);
}

#[tokio::test]
async fn a_completion_whose_answer_was_lost_is_found_out_by_the_next_attempt() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    let hang = FaultRule::new(FaultAction::HangAfterWrite).operation("CompleteMultipartUpload").times(1);
    let done = replaced_at(&s3, &host, &order, hang).await;
    // A piece of the other object may have been on its way when the first attempt was ended: the store took it, and nobody was told.
    assert!((8..=9).contains(&answered(&s3, "UploadPart")), "{}", answered(&s3, "UploadPart"));
    assert_eq!(open_uploads(&s3), 0);
    assert_eq!(without_document(content(&s3, &part(&s3, &done))), state());
}

#[tokio::test]
async fn uploads_that_wait_for_an_attempt_are_aborted_when_none_comes() {
    let s3 = s3().await;
    let left = async |round_no: u64, deadline: Option<chrono::DateTime<chrono::Utc>>| {
        let host = Host::start(&s3).await;
        let mut order = order(&host, round_no, &files(&[("large", noise("large", 11 << 20))]));
        order.deadline = deadline.map(|at| prost_types::Timestamp {
            seconds: at.timestamp(),
            nanos: at.timestamp_subsec_nanos().cast_signed(),
        });
        let problem = fails(&s3, &host, order.clone(), failure("UploadPart", 1)).await;
        (host, order, problem)
    };

    let (host, _, _) = left(1, None).await;
    assert!(open_uploads(&s3) > 0);
    let other = host.checkpoint(9, &files(&[("a", noise("a", 10))]));
    host.push(host.push_order(2, other, 9)).await.unwrap();
    until("another round's push to abort them", async || open_uploads(&s3) == 0).await;

    let (host, order, _) = left(3, None).await;
    let done = host.push(again(&order, 2)).await.unwrap();
    let (host, _, _) = left(4, None).await;
    assert!(open_uploads(&s3) > 0);
    let mut pull = host.pull_order(5, &done, 3);
    pull.local_checkpoint.clone_from(&done.local_checkpoint);
    host.pull(pull).await.unwrap();
    until("another round's pull to abort them", async || open_uploads(&s3) == 0).await;

    let (host, order, _) = left(6, None).await;
    assert!(open_uploads(&s3) > 0);
    assert!(cancel(&host, order.header.unwrap()).await);
    assert_eq!(open_uploads(&s3), 0, "cancelled");

    let (host, _, _) = left(7, None).await;
    assert!(open_uploads(&s3) > 0);
    tokio::task::spawn_blocking(|| host.agent.shutdown()).await.unwrap();
    assert_eq!(open_uploads(&s3), 0, "shut down");

    // Whichever comes first, the failure or the deadline: after both nothing is left.
    let (_host, _, problem) = left(8, Some(chrono::Utc::now() + chrono::Duration::seconds(6))).await;
    assert!(["INTEGRITY", "ROUND_DEADLINE"].contains(&problem.reason.as_str()), "{problem:?}");
    until("the deadline to abort them", async || open_uploads(&s3) == 0).await;
}

#[tokio::test]
async fn a_failure_that_does_not_pass_leaves_nothing_open() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    let denied = FaultRule::new(FaultAction::AccessDenied).operation("UploadPart").skip(3);
    let problem = fails(&s3, &host, order, denied).await;
    assert_eq!((problem.reason.as_str(), open_uploads(&s3)), ("STORE_DENIED", 0));
}

#[tokio::test]
async fn an_upload_whose_beginning_was_never_answered_is_aborted_too() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    let lost = FaultRule::new(FaultAction::ResetAfterWrite).operation("CreateMultipartUpload").times(1);
    s3.faults().add(lost);
    let denied = FaultRule::new(FaultAction::AccessDenied).operation("UploadPart").skip(1);
    fails(&s3, &host, order, denied).await;
    assert!(answered(&s3, "CreateMultipartUpload") > 0);
    assert_eq!(open_uploads(&s3), 0);
}

#[tokio::test]
async fn an_upload_that_begins_after_the_push_was_cancelled_is_aborted() {
    let s3 = s3().await;
    let host = Host::start(&s3).await;
    let order = order(&host, 1, &state());
    let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("CreateMultipartUpload"));
    host.client.clone().push(order.clone()).await.unwrap();
    until("the start to hang", async || s3.faults().hits(hang) > 0).await;
    assert!(cancel(&host, order.header.unwrap()).await);
    assert_eq!(answered(&s3, "CreateMultipartUpload"), 0);
    s3.faults().remove(hang);
    until("the upload to be aborted", async || s3.log().count_of("AbortMultipartUpload") > 0 && open_uploads(&s3) == 0)
        .await;
}
