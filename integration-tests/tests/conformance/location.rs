//! A whole location's life, through the functions that coordinators and agents use.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, TimeZone as _, Utc};
use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use lockstep_bucket::{
    Access, Checkpoint, Claim, DecisionFound, DecisionOutcome, Entry, FenceOutcome, Lookup, ObjectStore, Selector,
    WriteOutcome, acknowledge, claim_first, find, finish_base, latest, list_checkpoints, owner, probe, put_decision,
    put_fence, read_decision, verify_checkpoint,
};
use lockstep_protocol::{
    commit::{AbortRecord, CommitDocument, CommitPart, CommitRef, DecisionObject},
    digest::Digest,
    fence::{Counts, Fence, Writer},
    host::Layout,
    id::{Attempt, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step},
    key::AttemptPath,
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
    problem::Reason,
};
use uuid::Uuid;

use crate::ground::Ground;

const FIRST: Generation = Generation::FIRST;

fn seq(seq: u64) -> Seq {
    Seq::new(seq).unwrap()
}

fn time(seconds: u64) -> DateTime<Utc> {
    Utc.timestamp_opt(1_790_000_000, 0).unwrap() + std::time::Duration::from_secs(seconds)
}

fn round(seq: u64) -> RoundId {
    RoundId::new(Uuid::from_u128(u128::from(seq)))
}

fn pipeline(number: u128) -> PipelineId {
    PipelineId::new(Uuid::from_u128(0xabc0_0000 + number))
}

fn fence(generation: Generation, of: u128) -> Fence {
    Fence {
        generation,
        pipeline: pipeline(of),
        pipeline_name: PipelineName::new(format!("pipeline-{of}")).unwrap(),
        writer: Writer::Direct,
        take_over: Uuid::from_u128(of),
        created_at: time(0),
        released: false,
    }
}

/// Writes the part of a host that is alone, of two files in one object, and returns the commit that names it.
fn write_part(store: &dyn ObjectStore, number: u64) -> BoxFuture<'_, CommitDocument> {
    write_part_at(store, attempt(number), number).boxed()
}

/// Where the round of that number writes.
fn attempt(number: u64) -> AttemptPath {
    let slot = Layout::Solo.slot(0).unwrap();
    AttemptPath::new(slot, FIRST, round(number), Incarnation::new(Uuid::from_u128(7)), Attempt::FIRST)
}

async fn write_part_at(store: &dyn ObjectStore, path: AttemptPath, number: u64) -> CommitDocument {
    let (first, second) = ([b'a'; 20_000], [b'b'; 30_000]);
    let content = Bytes::from([&first[..], &second[..]].concat());
    let file = |name: &str, offset: u64, content: &[u8]| FileEntry {
        path: RelativePath::new(name).unwrap(),
        size: content.len() as u64,
        blake3: Digest::of(content),
        head: None,
        object: Some(0),
        offset,
        length: content.len() as u64,
    };
    let manifest = PartManifest {
        pipeline: pipeline(1),
        slot: Layout::Solo.slot(0).unwrap(),
        generation: FIRST,
        round: path.round,
        incarnation: path.incarnation,
        attempt: path.attempt,
        local_checkpoint: LocalCheckpointId::new(Uuid::from_u128(u128::from(number) + 100)),
        step: Step::new(number * 10).unwrap(),
        fingerprint: None,
        processed_records: None,
        store_meta: String::new(),
        objects: vec![ObjectEntry { key: path.data(0).to_string(), size: 50_000 }],
        files: vec![file("state/first", 0, &first), file("state/second", 20_000, &second)],
        delta: None,
    };
    let bytes = Bytes::from(manifest.encode());
    let key = path.manifest().to_string();
    assert_eq!(store.put(&path.data(0).to_string(), content.into()).await, WriteOutcome::Done);
    assert_eq!(store.put(&key, bytes.clone().into()).await, WriteOutcome::Done);
    CommitDocument {
        pipeline: pipeline(1),
        pipeline_name: PipelineName::new("pipeline-1").unwrap(),
        generation: FIRST,
        seq: seq(number),
        parent: None,
        base: None,
        round: round(number),
        round_no: RoundNo::new(number).unwrap(),
        step: manifest.step,
        fingerprint: None,
        layout: Layout::Solo,
        created_at: time(number),
        parts: vec![CommitPart {
            host_idx: 0,
            local_checkpoint: manifest.local_checkpoint,
            manifest: key,
            manifest_length: bytes.len() as u64,
            manifest_blake3: Digest::of(&bytes),
            files: 2,
            bytes: 50_000,
            bytes_uploaded: 50_000,
            processed_records: None,
        }],
        trace_id: None,
        writer: "conformance".to_owned(),
        labels: BTreeMap::new(),
        partitions: Vec::new(),
    }
}

fn entry(checkpoint: &Checkpoint) -> Entry {
    Entry::Whole(Box::new(checkpoint.clone()))
}

fn checkpoint(document: &CommitDocument) -> Checkpoint {
    let (generation, seq, round) = (document.generation, document.seq, document.round);
    let commit = CommitRef { generation, seq, round, digest: Digest::of(&document.encode()) };
    Checkpoint { commit, document: document.clone(), damaged: false }
}

fn abort(of: &CommitDocument) -> AbortRecord {
    AbortRecord {
        pipeline: of.pipeline,
        generation: of.generation,
        seq: of.seq,
        round: of.round,
        aborted_by: "conformance".to_owned(),
        cause: "cancelled".to_owned(),
        aborted_at: time(0),
    }
}

pub(crate) async fn a_location_lives_from_its_claim_to_the_next_generation(ground: Ground) {
    let store = ground.store().await;
    let store = store.as_ref();
    probe(store).await.unwrap();

    // Claimed once, and by one.
    assert_eq!(owner(store).await, Lookup::Absent);
    assert_eq!(latest(store, Access::Own).await, Lookup::Absent);
    assert_eq!(claim_first(store, &fence(FIRST, 1)).await, Ok(Claim::Mine));
    assert_eq!(claim_first(store, &fence(FIRST, 1)).await, Ok(Claim::Mine), "the answer of the first was lost");
    assert_eq!(claim_first(store, &fence(FIRST, 2)).await, Ok(Claim::OwnedBy(fence(FIRST, 1))));

    // Decided once: the same bytes stand again, others don't.
    let one = write_part(store, 1).await;
    let bytes = Bytes::from(one.encode());
    let put = |bytes: Bytes, round: RoundId| put_decision(store, (FIRST, seq(1)), bytes, round);
    assert_eq!(put(bytes.clone(), one.round).await, DecisionOutcome::Stands);
    assert_eq!(put(bytes.clone(), one.round).await, DecisionOutcome::Stands);
    let other = CommitDocument { round: round(99), ..one.clone() };
    let theirs = put(Bytes::from(other.encode()), other.round).await;
    assert_eq!(theirs, DecisionOutcome::OtherRound { round: one.round });
    let late = put(Bytes::from(abort(&one).encode()), one.round).await;
    let digest = Digest::of(&bytes);
    assert_eq!(late, DecisionOutcome::Committed { document: Box::new(one.clone()), digest });
    assert_eq!(acknowledge(store, FIRST, seq(1)).await, Ok(Counts::Yes));

    // An abort record decides, too, and is no checkpoint.
    let two = write_part(store, 2).await;
    let given_up = abort(&two);
    let put = |bytes: Vec<u8>| put_decision(store, (FIRST, seq(2)), Bytes::from(bytes), two.round);
    assert_eq!(put(given_up.encode()).await, DecisionOutcome::Stands);
    assert_eq!(put(two.encode()).await, DecisionOutcome::Aborted(given_up.clone()));
    let decision = DecisionFound::Decision(DecisionObject::Abort(given_up.clone()), Digest::of(&given_up.encode()));
    assert_eq!(read_decision(store, FIRST, seq(2)).await, Lookup::Found(decision));

    // Found by everything that names it, and whole.
    let three = write_part(store, 3).await;
    let outcome = put_decision(store, (FIRST, seq(3)), Bytes::from(three.encode()), three.round).await;
    assert_eq!(outcome, DecisionOutcome::Stands);
    let (old, new) = (checkpoint(&one), checkpoint(&three));
    for access in [Access::Own, Access::ReadOnly] {
        assert_eq!(latest(store, access).await, Lookup::Found(new.clone()));
        assert_eq!(list_checkpoints(store, access, 10).await, Ok(vec![entry(&new), entry(&old)]));
        for (selector, expected) in
            [(Selector::Round(one.round), &old), (Selector::Step(three.step), &new), (Selector::Time(time(2)), &old)]
        {
            assert_eq!(find(store, selector, access).await, Lookup::Found(expected.clone()), "{selector:?}");
        }
        assert_eq!(find(store, Selector::Round(two.round), access).await, Lookup::Absent);
    }
    assert_eq!(verify_checkpoint(store, &three, &|_| ()).await, Ok(Vec::new()));

    // Taken over: what stood counts, what lands late does not.
    let second = FIRST.next();
    assert_eq!(put_fence(store, &fence(second, 2)).await, FenceOutcome::Mine);
    match latest(store, Access::ReadOnly).await {
        Lookup::Unknown(problem) => assert_eq!(problem.reason, Reason::TakeOverInProgress),
        other => panic!("{other:?}"),
    }
    let base = finish_base(store, second).await.unwrap();
    assert_eq!(base.newest, Some(new.commit));
    let late = write_part(store, 4).await;
    let outcome = put_decision(store, (FIRST, seq(4)), Bytes::from(late.encode()), late.round).await;
    assert_eq!(outcome, DecisionOutcome::Stands);
    assert_eq!(acknowledge(store, FIRST, seq(4)).await, Ok(Counts::No));
    assert_eq!(acknowledge(store, FIRST, seq(3)).await, Ok(Counts::Yes));
    assert_eq!(list_checkpoints(store, Access::ReadOnly, 10).await, Ok(vec![entry(&new), entry(&old)]));
    assert_eq!(owner(store).await, Lookup::Found(fence(second, 2)));

    // Damage is found.
    let hit = attempt(3).data(0).to_string();
    assert_eq!(store.put(&hit, Bytes::from(vec![b'a'; 50_000]).into()).await, WriteOutcome::Done);
    let broken = verify_checkpoint(store, &three, &|_| ()).await.unwrap();
    assert_eq!(broken.iter().map(|problem| problem.reason).collect::<Vec<_>>(), [Reason::Integrity]);
    assert_eq!(store.delete(&hit).await, WriteOutcome::Done);
    let broken = verify_checkpoint(store, &three, &|_| ()).await.unwrap();
    assert_eq!(broken.iter().map(|problem| problem.reason).collect::<Vec<_>>(), [Reason::CheckpointDamaged; 2]);
}

pub(crate) async fn racing_takers_make_one_owner(ground: Ground) {
    let store = ground.store().await;
    let store = store.as_ref();
    let fences: Vec<Fence> = (1..=8).map(|taker| fence(FIRST, taker)).collect();
    let claims = join_all(fences.iter().map(|fence| claim_first(store, fence))).await;
    let claims: Vec<Claim> = claims.into_iter().map(Result::unwrap).collect();
    let owners: Vec<&Fence> = fences.iter().zip(&claims).filter(|(_, c)| **c == Claim::Mine).map(|(f, _)| f).collect();
    let [first] = owners.as_slice() else { panic!("{claims:?}") };
    let lost = claims.iter().filter(|claim| **claim == Claim::OwnedBy((*first).clone())).count();
    assert_eq!(lost, 7, "{claims:?}");
    assert_eq!(owner(store).await, Lookup::Found((*first).clone()));

    let second: Vec<Fence> = (11..=18).map(|taker| fence(FIRST.next(), taker)).collect();
    let outcomes = join_all(second.iter().map(|fence| put_fence(store, fence))).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == FenceOutcome::Mine).count(), 1, "{outcomes:?}");
    let bases = join_all((0..8).map(|_| finish_base(store, FIRST.next()))).await;
    assert!(bases.iter().all(|base| *base == bases[0] && base.is_ok()), "{bases:?}");
}
