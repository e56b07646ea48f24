//! The checks of docs/audit.md where a database has lost rows: what a resync learns again must not look unsound to an auditor.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use lockstep_coordinator::store::{Adoption, LastCommit, Learnt, PipelineRow, TakeOverApplied};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    digest::Digest,
    id::{Generation, RoundId, RoundNo, Seq, Step},
    takeover::{Phase, Purpose},
};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::{
    location_scene::{take_over, to},
    rig::{LEASE, Rig, admitted, alice, local, part_of, push, replica},
    trail::queries,
};

const STEP: u64 = 20;

/// A push of the pipeline's that stands in the bucket and that its database has lost.
fn lost_row(pipeline: &PipelineRow) -> Learnt {
    let round = RoundId::new(Uuid::from_u128(7));
    let document = CommitDocument {
        pipeline: pipeline.id,
        pipeline_name: pipeline.spec.name.clone(),
        generation: Generation::FIRST,
        seq: Seq::new(2).unwrap(),
        parent: None,
        base: None,
        round,
        round_no: RoundNo::new(7).unwrap(),
        step: Step::new(STEP).unwrap(),
        fingerprint: None,
        layout: pipeline.spec.layout,
        created_at: DateTime::UNIX_EPOCH,
        parts: (0..pipeline.spec.layout.len()).map(|host_idx| part_of(round, STEP, host_idx)).collect(),
        writer: "test".to_owned(),
        labels: BTreeMap::new(),
        partitions: Vec::new(),
        trace_id: None,
    };
    let digest = Digest::of(&document.encode());
    Learnt { commit: CommitRef { generation: document.generation, seq: document.seq, round, digest }, document }
}

/// As the take-over that ends a resync leaves it.
async fn resync(rig: &Rig, pipeline: &PipelineRow, learnt: Learnt) {
    rig.store.admit_take_over(take_over(pipeline, Purpose::Resync), &alice()).await.unwrap();
    let mut before = rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap();
    let last = LastCommit {
        commit: learnt.commit,
        step: learnt.document.step,
        fingerprint: None,
        local_checkpoints: vec![local(STEP, 0)],
        at: Utc::now(),
    };
    let mut adoption = Some(Adoption { round: None, last: Some(last), learnt: vec![learnt] });
    for phase in [Phase::Fencing, Phase::Adopting, Phase::Done] {
        let adopts = if phase == Phase::Done { adoption.take() } else { None };
        let moved = rig.store.apply_take_over(&before, &to(&before, phase), adopts, &replica()).await.unwrap();
        let TakeOverApplied::Stored(next) = moved else { panic!("nobody else moves it") };
        before = next;
    }
}

#[tokio::test]
async fn the_checks_of_the_auditors_guide_find_nothing_after_a_resync() {
    let rig = Rig::new().await;
    let pipeline = rig.pipeline("orders").await;
    rig.commit(&pipeline, 10).await;
    // Rounds 2 to 6 were pulls, or failed: no commit tells of them.
    let lost = lost_row(&pipeline);
    let round = lost.commit.round;
    resync(&rig, &pipeline, lost).await;
    assert_eq!(rig.store.get_round(round).await.unwrap().round.round_no, RoundNo::new(7).unwrap());
    let next = admitted(rig.store.admit_push(push(&pipeline), &alice()).await.unwrap());
    assert_eq!(next.round.round_no, RoundNo::new(8).unwrap());
    rig.claim().await;

    let mut sql = rig.sql().await;
    let checks: Vec<String> = queries().into_iter().filter(|query| query.contains("-- none")).collect();
    assert!(checks.len() >= 5, "{} checks", checks.len());
    for check in checks {
        let found = sqlx::query(AssertSqlSafe(check.clone())).fetch_all(&mut sql).await.unwrap();
        assert!(found.is_empty(), "{check}");
    }
}
