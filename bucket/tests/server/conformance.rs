use lockstep_bucket::{conformance, probe};

use crate::ground::{connector, location, server, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_server_does_all_that_a_store_must() {
    let server = server().await;
    let right = connector(&server.endpoint(), "lockstep-secret").await;
    let wrong = connector(&server.endpoint(), "another-secret").await;
    let results = conformance::run(conformance::Subject {
        connector: &right,
        location: &location("conformance"),
        wrong_secret: Some(&wrong),
    })
    .await;
    assert_eq!(conformance::failures(&results), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_server_passes_the_probe_and_nothing_is_left() {
    let server = server().await;
    let report = probe(store(&server).await.as_ref()).await.unwrap();
    assert!(report.may_delete);
    assert_eq!(report.checks.len(), 6, "{report:?}");
    assert_eq!(report.left, Vec::<String>::new());
    assert_eq!(server.admin().keys("bucket", "").unwrap(), Vec::<String>::new());
}
