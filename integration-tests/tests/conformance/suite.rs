//! The checks that every store has to pass, twin in memory included.

use lockstep_bucket::{conformance, probe};

use crate::{deviations, ground::Ground};

pub(crate) async fn does_all_that_a_store_must_but_for_what_is_known(ground: Ground) {
    let wrong = ground.asked_with_wrong_secret().await;
    let results = conformance::run(conformance::Subject {
        connector: &ground.connector,
        location: &ground.location(),
        wrong_secret: Some(&wrong),
    })
    .await;
    let known = deviations::failing_checks(ground.kind);
    for (check, _) in &known {
        assert!(results.iter().any(|result| result.name == *check), "there is no check {check}");
    }
    let surprises: Vec<String> = results
        .iter()
        .filter_map(|result| match (&result.failure, known.iter().find(|(check, _)| *check == result.name)) {
            (Some(failure), None) => Some(format!("{} fails: {failure}", result.name)),
            (None, Some((_, reason))) => Some(format!("{} passes, though it was known that {reason}", result.name)),
            _ => None,
        })
        .collect();
    assert!(surprises.is_empty(), "{}:\n{}", ground.kind, surprises.join("\n"));
}

pub(crate) async fn passes_the_probe_and_keeps_nothing_of_it(ground: Ground) {
    let store = ground.store().await;
    let report = probe(store.as_ref()).await.unwrap();
    assert!(report.may_delete, "{report:?}");
    assert_eq!(report.left, Vec::<String>::new());
    assert_eq!(store.list_all("").await.unwrap(), []);
}
