//! Pipelines: names, locations, claims, etags.

use std::time::Duration;

use lockstep_coordinator::store::{
    AdmitTakeOver, ClaimOutcome, ClaimSettled, ClaimState, Created, NewPipeline, Page, PipelineSelector,
};
use lockstep_protocol::{
    id::{Generation, PipelineName},
    problem::{Problem, Reason},
    round::RetryPolicy,
    spec::{Initial, PipelineSpec},
    takeover::{self, Event, Purpose},
};

use crate::rig::{LEASE, Rig, admitted, alice, both, new_pipeline, push, refused, replica, request_id, spec};

#[tokio::test]
async fn a_created_pipeline_reads_back_whole_and_waits_for_its_claim() {
    let rig = Rig::new().await;
    let new = new_pipeline(spec("orders", "orders"));
    let created = rig.store.create_pipeline(new.clone(), &alice()).await.unwrap().into_row();
    assert_eq!(created.spec, new.spec);
    assert_eq!(created.fence_bytes, new.fence_bytes);
    assert_eq!(created.claim, ClaimState::Claiming);
    assert_eq!(created.generation, Generation::NONE);
    assert_eq!(created.database, rig.store.identity().await.unwrap());
    let name = PipelineSelector::Name(new.spec.name.clone());
    assert_eq!(rig.store.get_pipeline(&name).await.unwrap(), created);
    assert_eq!(rig.store.get_pipeline(&created.id.into()).await.unwrap(), created);
    assert_eq!(rig.store.list_pipelines(Page::default()).await.unwrap().items, [created]);
}

#[tokio::test]
async fn the_same_create_request_makes_one_pipeline_and_another_spec_is_refused() {
    let rig = Rig::new().await;
    let mut new = new_pipeline(spec("orders", "orders"));
    new.request_id = Some(request_id());
    let first = rig.store.create_pipeline(new.clone(), &alice()).await.unwrap();
    assert!(matches!(first, Created::New(_)));
    let mut again = new_pipeline(new.spec.clone());
    again.request_id = new.request_id;
    match rig.store.create_pipeline(again.clone(), &alice()).await.unwrap() {
        Created::Known(row) => assert_eq!(row.id, new.id),
        other @ Created::New(_) => panic!("{other:?}"),
    }
    again.spec = spec("orders", "elsewhere");
    let problem = refused(rig.store.create_pipeline(again, &alice()).await.unwrap_err(), Reason::RequestIdReused);
    assert_eq!(problem.metadata["pipeline"], new.id.to_string());
}

#[tokio::test]
async fn a_name_is_taken_once_even_when_eight_ask_at_the_same_time() {
    let rig = Rig::new().await;
    let asks = (0..8).map(|i| {
        let store = rig.store.clone();
        let new = new_pipeline(spec("orders", &format!("p{i}")));
        tokio::spawn(async move { store.create_pipeline(new, &alice()).await })
    });
    let mut made = 0;
    for ask in asks.collect::<Vec<_>>() {
        match ask.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => {
                refused(error, Reason::PipelineExists);
            }
        }
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn same_and_nested_locations_are_refused_naming_both() {
    let rig = Rig::new().await;
    rig.pipeline("a").await;
    for prefix in ["a", "a/b", ""] {
        let error = rig.store.create_pipeline(new_pipeline(spec("b", prefix)), &alice()).await.unwrap_err();
        let problem = refused(error, Reason::LocationOwned);
        assert_eq!(problem.metadata["owner"], "a", "{prefix:?}");
        assert!(problem.message.contains("pipeline b ") && problem.message.contains("pipeline a:"), "{problem}");
    }
    // "ab" only begins like "a".
    rig.store.create_pipeline(new_pipeline(spec("b", "ab")), &alice()).await.unwrap();
}

fn standby(name: &str, prefix: &str) -> PipelineSpec {
    PipelineSpec { initial: Initial::Standby, ..spec(name, prefix) }
}

#[tokio::test]
async fn a_standby_may_follow_the_location_of_a_running_pipeline_but_not_a_part_of_it() {
    let rig = Rig::new().await;
    rig.pipeline("a").await;
    let mut new = new_pipeline(standby("a-standby", "a"));
    new.fence_bytes = None;
    let row = rig.store.create_pipeline(new, &alice()).await.unwrap().into_row();
    assert_eq!(row.claim, ClaimState::Standby);
    let mut nested = new_pipeline(standby("b", "a/b"));
    nested.fence_bytes = None;
    refused(rig.store.create_pipeline(nested, &alice()).await.unwrap_err(), Reason::LocationOwned);
    let problem = refused(rig.store.admit_push(push(&row), &alice()).await.unwrap_err(), Reason::NotOwner);
    assert!(problem.message.contains("activate"), "{problem}");
}

#[tokio::test]
async fn a_claim_has_one_driver_at_a_time_and_a_stale_term_settles_nothing() {
    let rig = Rig::new().await;
    rig.store.create_pipeline(new_pipeline(spec("orders", "orders")), &alice()).await.unwrap();
    let first = rig.store.claim_claiming("one", Duration::ZERO).await.unwrap().pop().unwrap();
    let second = rig.store.claim_claiming("two", LEASE).await.unwrap().pop().expect("the first lease is over");
    assert!(second.claim_term > first.claim_term);
    assert!(rig.store.claim_claiming("three", LEASE).await.unwrap().is_empty());
    assert!(!rig.store.renew_claim(first.id, first.claim_term, LEASE).await.unwrap());
    assert!(rig.store.renew_claim(second.id, second.claim_term, LEASE).await.unwrap());

    let owned = || ClaimOutcome::Owned(Generation::FIRST);
    let stale = rig.store.settle_claim(first.id, second.version, first.claim_term, owned(), &replica()).await.unwrap();
    assert_eq!(stale, ClaimSettled::Moved);
    let settled =
        rig.store.settle_claim(second.id, second.version, second.claim_term, owned(), &replica()).await.unwrap();
    let ClaimSettled::Stored(row) = settled else { panic!("not stored") };
    assert_eq!((row.claim, row.generation), (ClaimState::Owned, Generation::FIRST));
}

#[tokio::test]
async fn a_claim_that_must_be_tried_again_shows_why_and_comes_back() {
    let rig = Rig::new().await;
    rig.store.create_pipeline(new_pipeline(spec("orders", "orders")), &alice()).await.unwrap();
    let row = rig.store.claim_claiming("one", LEASE).await.unwrap().pop().unwrap();
    let problem = Problem::new(Reason::StoreUnavailable, "no answer from s3");
    let again = ClaimOutcome::Again { problem: problem.clone(), after: Duration::ZERO };
    rig.store.settle_claim(row.id, row.version, row.claim_term, again, &replica()).await.unwrap();
    let seen = rig.store.get_pipeline(&row.id.into()).await.unwrap();
    assert_eq!((seen.claim, seen.claim_problem), (ClaimState::Claiming, Some(problem)));
    assert_eq!(rig.store.claim_claiming("two", LEASE).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_refused_claim_frees_name_and_location_and_tells_who_asks_by_id() {
    let rig = Rig::new().await;
    rig.store.create_pipeline(new_pipeline(spec("orders", "orders")), &alice()).await.unwrap();
    let row = rig.store.claim_claiming("one", LEASE).await.unwrap().pop().unwrap();
    let why = Problem::new(Reason::LocationOwned, "it is somebody else's").with("owner", "other");
    let outcome = ClaimOutcome::Refused(why.clone());
    rig.store.settle_claim(row.id, row.version, row.claim_term, outcome, &replica()).await.unwrap();

    assert_eq!(rig.store.get_pipeline(&row.id.into()).await.unwrap().claim, ClaimState::Refused(why));
    let by_name = PipelineSelector::Name(PipelineName::new("orders").unwrap());
    refused(rig.store.get_pipeline(&by_name).await.unwrap_err(), Reason::PipelineNotFound);
    rig.store.create_pipeline(new_pipeline(spec("orders", "orders")), &alice()).await.unwrap();
}

#[tokio::test]
async fn an_update_needs_the_present_etag_and_no_active_round_for_what_rounds_have_frozen() {
    let rig = Rig::new().await;
    let row = rig.pipeline("orders").await;
    let selector = PipelineSelector::Id(row.id);
    let renamed = PipelineSpec { name: PipelineName::new("sales").unwrap(), ..row.spec.clone() };
    let updated = rig.store.update_pipeline(&selector, renamed.clone(), Some(&row.etag), &alice()).await.unwrap();
    assert_ne!(updated.etag, row.etag);
    let stale = rig.store.update_pipeline(&selector, row.spec.clone(), Some(&row.etag), &alice()).await.unwrap_err();
    refused(stale, Reason::EtagMismatch);

    let round = admitted(rig.store.admit_push(push(&row), &alice()).await.unwrap()).round;
    let mut wider = renamed.clone();
    wider.layout = lockstep_protocol::host::Layout::hosts(4).unwrap();
    let error = rig.store.update_pipeline(&selector, wider, None, &alice()).await.unwrap_err();
    assert_eq!(refused(error, Reason::RoundInProgress).metadata["round"], round.id.to_string());
    // What no round has frozen may change at any time.
    let timed = PipelineSpec { push_interval: Some(Duration::from_secs(60)), ..renamed.clone() };
    let timed = rig.store.update_pipeline(&selector, timed, None, &alice()).await.unwrap();
    assert_eq!(timed.spec.push_interval, Some(Duration::from_secs(60)));

    let moved = PipelineSpec { location: spec("sales", "elsewhere").location, ..renamed };
    let error = rig.store.update_pipeline(&selector, moved, None, &alice()).await.unwrap_err();
    assert_eq!(refused(error, Reason::SpecInvalid).metadata["field"], "location");
}

#[tokio::test]
async fn a_pipeline_with_an_active_round_is_not_deleted_and_one_without_frees_its_name() {
    let rig = Rig::new().await;
    let row = rig.pipeline("orders").await;
    let selector = PipelineSelector::Id(row.id);
    admitted(rig.store.admit_push(push(&row), &alice()).await.unwrap());
    refused(rig.store.delete_pipeline(&selector, None, &alice()).await.unwrap_err(), Reason::RoundInProgress);
    let round = rig.claim().await;
    let problem = Problem::new(Reason::NoCommonCheckpoint, "no step that all have");
    rig.step(round, lockstep_protocol::round::Event::Refused(problem)).await;
    refused(rig.store.delete_pipeline(&selector, Some("another"), &alice()).await.unwrap_err(), Reason::EtagMismatch);
    rig.store.delete_pipeline(&selector, Some(&row.etag), &alice()).await.unwrap();
    refused(rig.store.get_pipeline(&selector).await.unwrap_err(), Reason::PipelineNotFound);
    rig.pipeline("orders").await;
}

#[tokio::test]
async fn what_was_deleted_is_not_made_anew_and_the_same_request_for_another_one_is() {
    both(async |rig| {
        let mut new = new_pipeline(spec("orders", "orders"));
        new.request_id = Some(request_id());
        let row = rig.pipeline_of(new.clone()).await;
        let anew = |spec| NewPipeline { id: row.id, spec, fence_bytes: None, follows: false, request_id: None };
        rig.store.check_made_anew(&anew(row.spec.clone())).await.unwrap();
        rig.store.delete_pipeline(&row.id.into(), None, &alice()).await.unwrap();

        // With its own spec, which has the digest of the deleted row, and with another name.
        for spec in [row.spec.clone(), spec("invoices", "orders")] {
            let name = spec.name.clone();
            let refusals = [
                rig.store.check_made_anew(&anew(spec.clone())).await.unwrap_err(),
                rig.store.create_pipeline(anew(spec), &alice()).await.unwrap_err(),
            ];
            for error in refusals {
                let problem = refused(error, Reason::PipelineNotFound);
                assert_eq!(problem.metadata["deleted_id"], row.id.to_string());
                assert!(problem.message.contains(&format!("take-over {name}")), "the way out: {problem}");
            }
        }
        assert!(rig.store.list_pipelines(Page::default()).await.unwrap().items.is_empty());
        // S14: who asks again for what it has created learns what that was.
        let again = rig.store.create_pipeline(new, &alice()).await.unwrap();
        assert!(matches!(again, Created::Known(known) if known.id == row.id && known.deleted_at.is_some()));
        let other = NewPipeline { id: new_pipeline(row.spec.clone()).id, ..anew(row.spec.clone()) };
        rig.store.check_made_anew(&other).await.unwrap();
        rig.store.create_pipeline(other, &alice()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn pages_of_pipelines_follow_each_other_without_gap_or_double() {
    let rig = Rig::new().await;
    for name in ["c", "a", "b"] {
        rig.pipeline(name).await;
    }
    let mut names = Vec::new();
    let mut page = Page { size: 2, token: None };
    loop {
        let listed = rig.store.list_pipelines(page.clone()).await.unwrap();
        names.extend(listed.items.iter().map(|row| row.spec.name.to_string()));
        match listed.next {
            Some(next) => page.token = Some(next),
            None => break,
        }
    }
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn who_goes_by_a_generation_that_has_moved_takes_nothing_over() {
    both(async |rig| {
        let row = rig.pipeline("orders").await;
        let ask = |seen| AdmitTakeOver {
            pipeline: row.id.into(),
            purpose: Purpose::Resync,
            chosen: None,
            request_id: None,
            seen: Some(seen),
            retry: RetryPolicy::default(),
        };
        let moved = row.generation.next();
        let error = rig.store.admit_take_over(ask(moved), &alice()).await.unwrap_err();
        let problem = refused(error, Reason::TakeOverInProgress);
        assert_eq!(problem.metadata["generation"], row.generation.to_string());
        assert_eq!(problem.metadata["requested"], moved.to_string());
        rig.store.admit_take_over(ask(row.generation), &alice()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_pipeline_is_deleted_only_once_its_take_over_has_ended() {
    let rig = Rig::new().await;
    let row = rig.pipeline("orders").await;
    let ask = AdmitTakeOver {
        pipeline: row.id.into(),
        purpose: Purpose::TakeOver,
        chosen: None,
        request_id: None,
        seen: None,
        retry: RetryPolicy::default(),
    };
    let admitted = rig.store.admit_take_over(ask, &alice()).await.unwrap();
    let error = rig.store.delete_pipeline(&row.id.into(), None, &alice()).await.unwrap_err();
    let problem = refused(error, Reason::TakeOverInProgress);
    assert_eq!(problem.metadata["take_over"], admitted.id.to_string());
    let claimed = rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap();
    let given_up = Event::Refused(Problem::new(Reason::LocationUnsuitable, "it can't be"));
    let decision = takeover::decide(&claimed, &given_up, chrono::Utc::now());
    rig.store.apply_take_over(&claimed, &decision, None, &replica()).await.unwrap();
    rig.store.delete_pipeline(&row.id.into(), None, &alice()).await.unwrap();
}

#[tokio::test]
async fn a_row_that_is_made_anew_follows_nothing_until_it_is_started() {
    both(async |rig| {
        for initial in [Initial::Running, Initial::Standby] {
            let name = format!("{initial:?}").to_lowercase();
            let spec = PipelineSpec { initial, ..spec(&name, &name) };
            let anew = NewPipeline { fence_bytes: None, follows: false, ..new_pipeline(spec) };
            let row = rig.store.create_pipeline(anew, &alice()).await.unwrap().into_row();
            assert_eq!(row.claim, ClaimState::Standby);
            // Twice, since rows of those that follow are made by the first look.
            for _ in 0..2 {
                assert_eq!(rig.store.due_standbys(LEASE, 10).await.unwrap().due, []);
            }
            assert!(rig.store.standbys(Some(row.id)).await.unwrap()[0].standing.stopped);
            rig.store.start_standby(&row.id.into(), None, &alice()).await.unwrap();
            let due = rig.store.due_standbys(LEASE, 10).await.unwrap().due;
            assert_eq!(due.iter().map(|due| due.following.pipeline()).collect::<Vec<_>>(), [row.id]);
        }
    })
    .await;
}
