//! Admission: one active round a pipeline (S13), one round a request id (S14), numbers and base taken together.

use lockstep_coordinator::store::{Admission, FoundCut, Page, RoundFilter, RoundKind};
use lockstep_protocol::{
    id::{Seq, Step},
    location::Location,
    problem::{Problem, Reason},
    round::{Event, Kind, Phase, WantedCut},
};

use crate::rig::{FINGERPRINT, Rig, admitted, alice, local, pull, push, refused, request_id, resolved_locally};

#[tokio::test]
async fn an_admitted_push_is_stored_as_it_was_asked_for() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let mut ask = push(&pipeline);
    ask.request_id = Some(request_id());
    let record = admitted(rig.store.admit_push(ask.clone(), &alice()).await.unwrap());
    let round = &record.round;
    assert_eq!((round.round_no.get(), round.generation, round.phase), (1, pipeline.generation, Phase::Planning));
    assert_eq!(round.layout, pipeline.spec.layout);
    assert_eq!(round.location, pipeline.spec.location);
    let addresses: Vec<_> = round.participants.iter().map(|p| p.address.as_str()).collect();
    assert_eq!(addresses, ["http://agent-0:7402", "http://agent-1:7402", "http://agent-2:7402"]);
    assert_eq!(record.request_id, ask.request_id);
    assert_eq!((record.actor.as_str(), &record.traceparent), ("alice", &alice().traceparent));
    assert_eq!(record.transfer, pipeline.spec.transfer);
    assert_eq!(record.read_location, pipeline.spec.read_location);
    let lasts = round.deadline - record.created_at;
    assert!((3590..=3600).contains(&lasts.num_seconds()), "{lasts}");
    assert_eq!(rig.store.get_round(round.id).await.unwrap(), record);
}

#[tokio::test]
async fn the_same_request_id_is_the_same_round_in_whatever_phase() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let mut ask = push(&pipeline);
    ask.request_id = Some(request_id());
    let first = admitted(rig.store.admit_push(ask.clone(), &alice()).await.unwrap()).round;
    match rig.store.admit_push(ask.clone(), &alice()).await.unwrap() {
        Admission::Known(record) => assert_eq!(record.round, first),
        other => panic!("{other:?}"),
    }
    let round = rig.claim().await;
    let ended = rig.step(round, Event::Refused(Problem::new(Reason::NoCommonCheckpoint, "none"))).await;
    match rig.store.admit_push(ask, &alice()).await.unwrap() {
        Admission::Known(record) => assert_eq!((record.round.id, record.round.phase), (first.id, ended.phase)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_id_with_other_parameters_or_of_another_kind_is_refused() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let mut ask = push(&pipeline);
    ask.request_id = Some(request_id());
    let first = admitted(rig.store.admit_push(ask.clone(), &alice()).await.unwrap()).round;
    ask.force = true;
    let problem = refused(rig.store.admit_push(ask.clone(), &alice()).await.unwrap_err(), Reason::RequestIdReused);
    assert_eq!(problem.metadata["round"], first.id.to_string());
    let mut other = pull(&pipeline);
    other.request_id = ask.request_id;
    refused(rig.store.admit_pull(other, &alice()).await.unwrap_err(), Reason::RequestIdReused);
}

#[tokio::test]
async fn a_request_id_belongs_to_one_pipeline() {
    let rig = Rig::new().await;
    let (a, b) = (rig.pipeline("a").await, rig.pipeline("b").await);
    let id = Some(request_id());
    let first = admitted(rig.store.admit_push(push(&a), &alice()).await.unwrap());
    let mut ask = push(&b);
    ask.request_id = id;
    let second = admitted(rig.store.admit_push(ask, &alice()).await.unwrap());
    assert_ne!(first.round.id, second.round.id);
}

#[tokio::test]
async fn of_eight_pushes_at_once_one_is_admitted_and_the_others_are_told_which() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let other = rig.another().await;
    let asks = (0..8).map(|i| {
        let store = if i % 2 == 0 { rig.store.clone() } else { other.clone() };
        let ask = push(&pipeline);
        tokio::spawn(async move { store.admit_push(ask, &alice()).await })
    });
    let (mut won, mut named) = (Vec::new(), Vec::new());
    for ask in asks.collect::<Vec<_>>() {
        match ask.await.unwrap() {
            Ok(admission) => won.push(admitted(admission).round.id.to_string()),
            Err(error) => named.push(refused(error, Reason::RoundInProgress).metadata["round"].clone()),
        }
    }
    assert_eq!(won.len(), 1);
    assert!(named.iter().all(|named| *named == won[0]), "{named:?}");
    assert_eq!(rig.store.active_rounds().await.unwrap(), 1);
}

#[tokio::test]
async fn of_eight_calls_with_one_request_id_all_get_one_round() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let mut ask = push(&pipeline);
    ask.request_id = Some(request_id());
    let calls = (0..8).map(|_| {
        let (store, ask) = (rig.store.clone(), ask.clone());
        tokio::spawn(async move { store.admit_push(ask, &alice()).await })
    });
    let mut ids = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        ids.push(call.await.unwrap().unwrap().into_record().round.id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test]
async fn a_push_builds_on_the_newest_commit_and_takes_the_next_place() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let committed = rig.commit(&pipeline, 10).await;
    let Kind::Push(first) = &committed.kind else { panic!("a push") };
    let next = admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap()).round;
    let Kind::Push(second) = &next.kind else { panic!("a push") };
    assert_eq!((first.base, first.seq), (None, Seq::FIRST));
    assert_eq!(second.base, first.committed);
    assert_eq!((second.seq, next.round_no.get()), (Seq::FIRST.next(), 2));
    let row = rig.store.get_pipeline(&pipeline.id.into()).await.unwrap();
    let last = row.last_commit.unwrap();
    assert_eq!((Some(last.commit), last.step.get()), (first.committed, 10));
    assert_eq!(last.fingerprint, Some(FINGERPRINT));
    assert_eq!(last.local_checkpoints, [local(10, 0), local(10, 1), local(10, 2)]);
}

#[tokio::test]
async fn a_push_of_the_newest_commit_again_is_answered_with_it_unless_forced() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let committed = rig.commit(&pipeline, 10).await;
    for wanted in [WantedCut::Step(Step::new(10).unwrap()), WantedCut::Local(local(10, 2))] {
        let mut ask = push(&pipeline);
        ask.wanted = wanted;
        ask.request_id = Some(request_id());
        match rig.store.admit_push(ask.clone(), &alice()).await.unwrap() {
            Admission::AlreadyCommitted(record) => assert_eq!(record.round, committed),
            other => panic!("{other:?}"),
        }
        // The request id remembers, also when another commit is the newest.
        assert!(matches!(rig.store.admit_push(ask, &alice()).await.unwrap(), Admission::Known(_)));
    }
    // "Newest" is the same only if the hosts were asked, and hold exactly what was committed.
    let mut ask = push(&pipeline);
    let mut found = FoundCut {
        step: Step::new(10).unwrap(),
        fingerprint: Some(FINGERPRINT),
        local_checkpoints: (0..3).map(|host_idx| local(10, host_idx)).collect(),
    };
    ask.found = Some(found.clone());
    let again = rig.store.admit_push(ask.clone(), &alice()).await.unwrap();
    assert!(matches!(again, Admission::AlreadyCommitted(_)));
    ask.force = true;
    let forced = admitted(rig.store.admit_push(ask.clone(), &alice()).await.unwrap());
    let driven = rig.claim().await;
    assert_eq!(driven.id, forced.round.id);
    rig.step(driven, Event::Refused(Problem::new(Reason::NoCommonCheckpoint, "none"))).await;
    found.local_checkpoints[1] = local(11, 1);
    (ask.force, ask.found) = (false, Some(found));
    admitted(rig.store.admit_push(ask, &alice()).await.unwrap());
}

#[tokio::test]
async fn a_pull_supersedes_one_that_is_installing_and_nothing_else() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    let first = admitted(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap()).round;
    let problem = refused(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap_err(), Reason::RoundInProgress);
    assert_eq!((problem.metadata["kind"].as_str(), &problem.metadata["round"]), ("pull", &first.id.to_string()));

    let round = rig.claim().await;
    let installing = rig.step(round.clone(), resolved_locally(&round, 10)).await;
    assert_eq!(installing.phase, Phase::Installing);
    refused(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap_err(), Reason::RoundInProgress);

    let newer = admitted(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap()).round;
    let old = rig.store.get_round(first.id).await.unwrap();
    assert_eq!(old.round.phase, Phase::Failed);
    let problem = old.round.problem.unwrap();
    assert_eq!(problem.reason, Reason::Superseded);
    assert!(problem.message.contains(&newer.id.to_string()), "{problem}");
    assert!(old.ended_at.is_some());
    assert_eq!(rig.store.active_rounds().await.unwrap(), 1);
}

#[tokio::test]
async fn rounds_are_listed_newest_first_in_pages() {
    let rig = Rig::new().await;
    let (a, b) = (rig.pipeline("a").await, rig.pipeline("b").await);
    let mut made = Vec::new();
    for step in 1..=3 {
        made.push(rig.commit(&a, step).await.id);
    }
    let open = admitted(rig.store.admit_push(push(&b), &alice()).await.unwrap()).round.id;
    made.reverse();

    let filter = RoundFilter { pipeline: Some(a.id), ..RoundFilter::default() };
    let first = rig.store.list_rounds(filter.clone(), Page { size: 2, token: None }).await.unwrap();
    let rest = rig.store.list_rounds(filter, Page { size: 2, token: first.next.clone() }).await.unwrap();
    let ids: Vec<_> = first.items.iter().chain(&rest.items).map(|record| record.round.id).collect();
    assert_eq!(ids, made);
    assert_eq!(rest.next, None);

    let active = RoundFilter { active_only: true, ..RoundFilter::default() };
    let active = rig.store.list_rounds(active, Page::default()).await.unwrap();
    assert_eq!(active.items.iter().map(|record| record.round.id).collect::<Vec<_>>(), [open]);
    let pulls = RoundFilter { kind: Some(RoundKind::Pull), ..RoundFilter::default() };
    assert!(rig.store.list_rounds(pulls, Page::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_location_keeps_its_endpoint_and_style_in_the_row() {
    let rig = Rig::new().await;
    let location: Location = "s3://bucket/p?endpoint=http://h:1&region=eu&path_style=true".parse().unwrap();
    let mut spec = crate::rig::spec("styled", "styled");
    spec.location = location.clone();
    let row = rig.store.create_pipeline(crate::rig::new_pipeline(spec), &alice()).await.unwrap().into_row();
    assert_eq!(rig.store.get_pipeline(&row.id.into()).await.unwrap().spec.location, location);
}
