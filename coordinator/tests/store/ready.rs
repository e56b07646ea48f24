//! Words that hosts are owed, alike by Postgres and by its twin: with the end of a pull, until every host has answered, taken back by a newer install.

use std::{collections::BTreeMap, time::Duration};

use chrono::Utc;
use lockstep_coordinator::store::{AdmitPull, AdmitTakeOver, NewPipeline, PipelineRow, TakeOverApplied};
use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::FenceBase,
    id::{Attempt, Generation, RequestId, RoundId, Seq, Step},
    problem::{Problem, Reason},
    ready::{Role, Telling},
    round::{Event, HostReport, Phase, Resolved, Round, Source},
    takeover::{self, Purpose},
};

use crate::{
    location_scene::take_over,
    rig::{LEASE, Rig, admitted, alice, both, found, incarnation, new_pipeline, pull, replica, resolved_locally, spec},
};

/// A pull that is installing.
async fn installing(rig: &Rig, pipeline: &PipelineRow) -> Round {
    admitted(rig.store.admit_pull(pull(pipeline), &alice()).await.unwrap());
    let round = rig.claim().await;
    let event = resolved_locally(&round, 4);
    rig.step(round, event).await
}

async fn finish(rig: &Rig, mut round: Round) -> Round {
    for host_idx in 0..round.layout.len() {
        let report = HostReport::Installed;
        let done = Event::HostDone { host_idx, attempt: Attempt::FIRST, incarnation: incarnation(host_idx), report };
        round = rig.step(round, done).await;
    }
    let incarnations = (0..round.layout.len()).map(|host_idx| Some(incarnation(host_idx))).collect();
    let round = rig.step(round, Event::Confirmed { incarnations, jitter: 0 }).await;
    assert_eq!(round.phase, Phase::Installed);
    round
}

pub(crate) async fn installed(rig: &Rig, pipeline: &PipelineRow) -> Round {
    let round = installing(rig, pipeline).await;
    finish(rig, round).await
}

async fn word(rig: &Rig, pipeline: &PipelineRow) -> Option<Telling> {
    rig.store.word_of(pipeline.id).await.unwrap()
}

async fn claim(rig: &Rig, lease: Duration) -> Vec<Telling> {
    rig.store.claim_words(lease).await.unwrap()
}

fn all(word: &Telling) -> BTreeMap<u32, Result<(), Problem>> {
    word.owed().map(|host_idx| (host_idx, Ok(()))).collect()
}

#[tokio::test]
async fn a_word_is_stored_with_the_end_of_the_pull_and_owed_until_every_host_has_answered() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        let round = installing(&rig, &pipeline).await;
        assert_eq!((word(&rig, &pipeline).await, claim(&rig, LEASE).await), (None, vec![]));
        let round = finish(&rig, round).await;
        let owed = word(&rig, &pipeline).await.unwrap();
        assert_eq!((owed.round, owed.role, owed.term, owed.hosts.len()), (round.id, Role::Active, round.term, 3));

        let claimed = claim(&rig, LEASE).await.pop().unwrap();
        assert_eq!((claimed.term, claimed.version), (owed.term.next(), owed.version + 1));
        assert_eq!(claim(&rig, LEASE).await, [], "somebody tells already");

        let away = Problem::new(Reason::AgentUnreachable, "host 1 is away").with("host_idx", 1);
        let answers = BTreeMap::from([(0, Ok(())), (1, Err(away.clone())), (2, Ok(()))]);
        let mut next = claimed.after(&answers, rig.store.now().await.unwrap(), 0);
        assert!(next.retry_at.is_some() && next.told_at.is_none());
        // What a paused replica says of an older go is not stored.
        assert!(!rig.store.save_telling(&owed, next.clone()).await.unwrap());
        let later = next.retry_at;
        assert!(rig.store.save_telling(&claimed, next.clone()).await.unwrap());
        assert!(!rig.store.save_telling(&claimed, next.clone()).await.unwrap(), "once");
        let stored = word(&rig, &pipeline).await.unwrap();
        assert_eq!(
            (stored.hosts.clone(), stored.tries, stored.retry_at.is_some()),
            (next.hosts.clone(), 1, later.is_some())
        );
        assert_eq!((stored.hosts[1].problem.clone(), stored.owed().collect::<Vec<_>>()), (Some(away), vec![1]));

        // Its time comes.
        next = stored;
        let again = loop {
            match claim(&rig, Duration::ZERO).await.pop() {
                Some(again) => break again,
                None => tokio::task::yield_now().await,
            }
        };
        assert!(again.term > next.term && rig.store.now().await.unwrap() >= next.retry_at.unwrap());
        let told = again.after(&all(&again), rig.store.now().await.unwrap(), 0);
        assert!(rig.store.save_telling(&again, told).await.unwrap());
        let stored = word(&rig, &pipeline).await.unwrap();
        assert!(stored.told_at.is_some() && stored.hosts.iter().all(|host| host.told && host.problem.is_none()));
        assert_eq!(claim(&rig, Duration::ZERO).await, []);
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_ran_out_lets_another_replica_tell() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        installed(&rig, &pipeline).await;
        let first = claim(&rig, Duration::ZERO).await.pop().unwrap();
        let second = loop {
            match claim(&rig, LEASE).await.pop() {
                Some(second) => break second,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(second.term, first.term.next());
        let told = first.after(&all(&first), Utc::now(), 0);
        assert!(!rig.store.save_telling(&first, told).await.unwrap(), "its term is not current");
    })
    .await;
}

#[tokio::test]
async fn an_active_pull_keeps_words_back_and_one_that_installs_takes_them_back() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        let first = installed(&rig, &pipeline).await;
        admitted(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap());
        assert_eq!(claim(&rig, LEASE).await, []);
        assert_eq!(word(&rig, &pipeline).await.unwrap().round, first.id, "nothing was changed at any host yet");
        let round = rig.claim().await;
        let event = resolved_locally(&round, 4);
        let round = rig.step(round, event).await;
        assert_eq!((round.phase, word(&rig, &pipeline).await), (Phase::Installing, None));
        let round = finish(&rig, round).await;
        assert_eq!(word(&rig, &pipeline).await.unwrap().round, round.id);
    })
    .await;
}

#[tokio::test]
async fn nobody_is_told_for_a_fenced_or_deleted_pipeline() {
    both(async |rig| {
        let (fenced, deleted) = (rig.pipeline("fenced").await, rig.pipeline("deleted").await);
        for pipeline in [&fenced, &deleted] {
            installed(&rig, pipeline).await;
        }
        let problem = Problem::new(Reason::Fenced, "somebody else owns it");
        let generation = fenced.generation;
        assert!(rig.store.fence_out(fenced.id, generation, problem, &replica()).await.unwrap());
        rig.store.delete_pipeline(&deleted.id.into(), None, &alice()).await.unwrap();
        assert_eq!(claim(&rig, LEASE).await, []);
    })
    .await;
}

/// A standby that has pulled the commit of the base, or something else.
async fn standby(rig: &Rig, name: &str) -> PipelineRow {
    let new = NewPipeline { fence_bytes: None, ..new_pipeline(spec(name, name)) };
    let row = rig.store.create_pipeline(new, &alice()).await.unwrap().into_row();
    let ask = AdmitPull {
        request: lockstep_protocol::round::PullRequest { standby: true, fail_if_none: true, ..pull(&row).request },
        ..pull(&row)
    };
    admitted(rig.store.admit_pull(ask, &alice()).await.unwrap());
    let round = rig.claim().await;
    let event = resolved_locally(&round, 4);
    let round = rig.step(round, event).await;
    finish(rig, round).await;
    row
}

/// An activation of the standby is done, with this base.
async fn activated(rig: &Rig, row: &PipelineRow, newest: Option<CommitRef>) {
    rig.store.admit_take_over(take_over(row, Purpose::Activate), &alice()).await.unwrap();
    let mut before = rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap();
    let generation = Generation::FIRST.next();
    let fence = Some(takeover::Prepared { generation, bytes: "{}".to_owned() });
    let base = Some(FenceBase { generation, newest, tombstones: Vec::new() });
    for phase in [takeover::Phase::Preparing, takeover::Phase::Adopting, takeover::Phase::Done] {
        assert_eq!(word(rig, row).await.unwrap().role, Role::Standby, "before {phase}");
        let decision = takeover::Decision {
            next: takeover::TakeOver { phase, fence: fence.clone(), base: base.clone(), ..before.clone() },
            transitions: Vec::new(),
            fence_pipeline: false,
        };
        before = match rig.store.apply_take_over(&before, &decision, None, &replica()).await.unwrap() {
            TakeOverApplied::Stored(next) => next,
            TakeOverApplied::Moved => panic!("nobody else moves it"),
        };
    }
}

#[tokio::test]
async fn a_standbys_hosts_are_told_so_and_once_more_when_the_activation_is_done() {
    both(async |rig| {
        let row = standby(&rig, "heir").await;
        let claimed = claim(&rig, LEASE).await.pop().unwrap();
        assert_eq!(claimed.role, Role::Standby);
        let told = claimed.after(&all(&claimed), Utc::now(), 0);
        assert!(rig.store.save_telling(&claimed, told).await.unwrap());
        activated(&rig, &row, None).await;
        let active = word(&rig, &row).await.unwrap();
        assert_eq!((active.role, active.told_at, active.owed().count()), (Role::Active, None, 3));
        let again = claim(&rig, LEASE).await.pop().unwrap();
        assert!(again.role == Role::Active && again.term > claimed.term, "{again:?}");
    })
    .await;
}

#[tokio::test]
async fn what_an_activation_goes_on_from_is_kept_and_the_same_request_means_the_same_choice() {
    both(async |rig| {
        let row = standby(&rig, "heir").await;
        let chosen = |step| Some(takeover::Chosen::Step(Step::new(step).unwrap()));
        let request_id = Some(RequestId::new(uuid::Uuid::from_u128(7)));
        let ask = |chosen| AdmitTakeOver { chosen, request_id, ..take_over(&row, Purpose::Activate) };
        let admitted = rig.store.admit_take_over(ask(chosen(3)), &alice()).await.unwrap();
        assert_eq!(rig.store.get_take_over(admitted.id).await.unwrap().chosen, chosen(3));
        assert_eq!(rig.store.admit_take_over(ask(chosen(3)), &alice()).await.unwrap(), admitted);
        for other in [chosen(4), None] {
            let refused = rig.store.admit_take_over(ask(other), &alice()).await.unwrap_err();
            assert_eq!(refused.problem().reason, Reason::RequestIdReused, "{refused}");
        }
    })
    .await;
}

#[tokio::test]
async fn hosts_that_hold_another_checkpoint_than_the_base_are_not_made_active() {
    both(async |rig| {
        let row = standby(&rig, "heir").await;
        let (generation, seq) = (Generation::FIRST, Seq::FIRST);
        let round = RoundId::new(uuid::Uuid::new_v4());
        activated(&rig, &row, Some(CommitRef { generation, seq, round, digest: Digest::of(b"base") })).await;
        assert_eq!(word(&rig, &row).await.unwrap().role, Role::Standby);
    })
    .await;
}

#[tokio::test]
async fn a_fresh_start_that_discards_takes_the_word_back_before_the_first_host_is_cleared() {
    both(async |rig| {
        let pipeline = rig.pipeline("orders").await;
        installed(&rig, &pipeline).await;
        admitted(rig.store.admit_pull(pull(&pipeline), &alice()).await.unwrap());
        let round = rig.claim().await;
        let resolved = Resolved {
            source: Source::Fresh,
            location: None,
            commit: None,
            step: None,
            fingerprint: None,
            processed_records: None,
            parts: Vec::new(),
        };
        let hosts = found(&round, 4);
        let mut round = rig.step(round, Event::Resolved { resolved, hosts, discard: true }).await;
        assert_eq!((round.phase, word(&rig, &pipeline).await), (Phase::Resolving, None));
        for host_idx in 0..3 {
            let report = HostReport::Installed;
            let incarnation = incarnation(host_idx);
            round = rig.step(round, Event::HostDone { host_idx, attempt: Attempt::FIRST, incarnation, report }).await;
        }
        assert_eq!((round.phase, word(&rig, &pipeline).await.unwrap().round), (Phase::Fresh, round.id));
    })
    .await;
}
