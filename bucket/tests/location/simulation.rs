//! A writer, an aborter, a taker and a reader of one location at once, over a store that loses, delays, duplicates and refuses. Every seed is
//! one history; a failure prints its seed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use lockstep_bucket::{
    Access, Checkpoint, Claim, DecisionOutcome, FenceOutcome, Lookup, MemoryBuckets, MemoryStore, acknowledge,
    claim_first, finish_base, latest, memory::fault::Fault, put_decision, put_fence,
};
use lockstep_protocol::{
    fence::{Counts, FenceBase},
    problem::Reason,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::sample::{abort, commit_bytes, fence, generation, round, seq};

const ROUNDS: u64 = 4;

async fn pause(rng: &mut StdRng, most: u32) {
    for _ in 0..rng.random_range(0..=most) {
        tokio::task::yield_now().await;
    }
}

/// Until it is known.
async fn decide(store: &MemoryStore, s: u64, bytes: Bytes, rng: &mut StdRng) -> DecisionOutcome {
    loop {
        match put_decision(store, (generation(1), seq(s)), bytes.clone(), round(1, s)).await {
            DecisionOutcome::Unknown(_) => pause(rng, 3).await,
            known => return known,
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Told {
    Committed,
    Aborted,
    Fenced,
}

/// Pushes round after round, acknowledging each as push step 6 says; stops when fenced.
async fn writer(store: MemoryStore, mut rng: StdRng) -> BTreeMap<u64, Told> {
    let mut told = BTreeMap::new();
    for s in 1..=ROUNDS {
        pause(&mut rng, 12).await;
        match decide(&store, s, commit_bytes(1, s), &mut rng).await {
            DecisionOutcome::Stands => {}
            DecisionOutcome::Aborted(_) => {
                told.insert(s, Told::Aborted);
                continue;
            }
            other => panic!("the writer of {s} got {other:?}"),
        }
        let counts = loop {
            match acknowledge(&store, generation(1), seq(s)).await {
                Ok(counts) => break counts,
                Err(_) => pause(&mut rng, 3).await,
            }
        };
        match counts {
            Counts::Yes => told.insert(s, Told::Committed),
            Counts::No => {
                told.insert(s, Told::Fenced);
                return told;
            }
            Counts::Undecided => panic!("acknowledged while undecided"),
        };
    }
    told
}

/// Tries to abort some of the rounds.
async fn aborter(store: MemoryStore, mut rng: StdRng) -> BTreeMap<u64, Told> {
    let mut told = BTreeMap::new();
    for s in 1..=ROUNDS {
        pause(&mut rng, 30).await;
        if rng.random_bool(0.5) {
            continue;
        }
        match decide(&store, s, Bytes::from(abort(1, s).encode()), &mut rng).await {
            DecisionOutcome::Stands | DecisionOutcome::Aborted(_) => told.insert(s, Told::Aborted),
            DecisionOutcome::Committed { .. } => told.insert(s, Told::Committed),
            other => panic!("the aborter of {s} got {other:?}"),
        };
    }
    told
}

/// Takes the location over; dies between fence and base in some histories.
async fn taker(store: MemoryStore, owner: u128, mut rng: StdRng) -> Option<FenceBase> {
    pause(&mut rng, 60).await;
    loop {
        match put_fence(&store, &fence(2, owner)).await {
            FenceOutcome::Mine => break,
            FenceOutcome::Lost(_) => return None,
            FenceOutcome::Unknown(_) => pause(&mut rng, 3).await,
            other => panic!("the taker got {other:?}"),
        }
    }
    if rng.random_bool(0.3) {
        return None;
    }
    loop {
        match finish_base(&store, generation(2)).await {
            Ok(base) => return Some(base),
            Err(problem) => {
                assert_ne!(problem.reason, Reason::ManifestInvalid, "{problem}");
                pause(&mut rng, 3).await;
            }
        }
    }
}

/// Everything `latest` said, in order.
async fn reader(store: MemoryStore, access: Access, over: Arc<AtomicBool>) -> Vec<Checkpoint> {
    let mut seen = Vec::new();
    while !over.load(Ordering::Relaxed) {
        match latest(&store, access).await {
            Lookup::Found(checkpoint) => seen.push(checkpoint),
            Lookup::Absent => assert!(seen.is_empty(), "absent after something was found"),
            Lookup::Unknown(_) => {}
        }
        tokio::task::yield_now().await;
    }
    seen
}

/// Lands late writes at any time.
async fn network(buckets: MemoryBuckets, mut rng: StdRng, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        pause(&mut rng, 10).await;
        let late = buckets.late();
        if late > 0 && rng.random_bool(0.3) {
            buckets.land(rng.random_range(0..late));
        }
        tokio::task::yield_now().await;
    }
}

/// What came of one history: how often each fault happened, and what the writer was told.
type Account = (Vec<(Fault, u64)>, Vec<Told>);

async fn history(seed: u64) -> Account {
    let buckets = MemoryBuckets::new(["bucket"]);
    let store = buckets.store("s3://bucket/orders".parse().unwrap());
    assert_eq!(claim_first(&store, &fence(1, 1)).await, Ok(Claim::Mine));
    buckets.random_faults(seed, 0.25);
    let rng = |role: u64| StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(role));
    let over = Arc::new(AtomicBool::new(false));

    let readers =
        [Access::ReadOnly, Access::Own].map(|access| tokio::spawn(reader(store.clone(), access, Arc::clone(&over))));
    let network = tokio::spawn(network(buckets.clone(), rng(9), Arc::clone(&over)));
    let writer = tokio::spawn(writer(store.clone(), rng(1)));
    let aborter = tokio::spawn(aborter(store.clone(), rng(2)));
    let takers = [2, 3].map(|owner| tokio::spawn(taker(store.clone(), owner, rng(owner as u64 + 2))));
    let (mut told, aborts) = (writer.await.unwrap(), aborter.await.unwrap());
    for taker in takers {
        taker.await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    network.await.unwrap();
    let mut seen = Vec::new();
    for reader in readers {
        seen.push(reader.await.unwrap());
    }
    buckets.calm();
    buckets.land_all();

    let newest = latest(&store, Access::Own).await.known().unwrap();
    let base = finish_base(&store, generation(2)).await.unwrap();
    let counts = |s: u64| base.includes(generation(1), seq(s));
    let writer_told: Vec<Told> = told.values().copied().collect();
    for (s, _) in told.iter().filter(|(_, told)| **told == Told::Committed) {
        assert!(counts(*s), "S15: round {s} was acknowledged and the take-over lost it");
    }
    for (s, abort) in aborts {
        // S3, S5: both sides were told the same. A fenced round's commit may stand without counting.
        match told.entry(s).or_insert(abort) {
            Told::Fenced => {}
            other => assert_eq!(*other, abort, "round {s}"),
        }
    }
    for (s, told) in told {
        match told {
            Told::Committed => {
                // An aborter that found the commit says nothing about fences: only the writer acknowledges.
                let key = format!("orders/{}", lockstep_protocol::key::Key::Commit(generation(1), seq(s)));
                assert_eq!(buckets.read("bucket", &key), Some(commit_bytes(1, s)));
            }
            Told::Aborted => assert!(newest.as_ref().is_none_or(|c| c.commit.seq != seq(s)), "S5: round {s}"),
            Told::Fenced => assert!(!counts(s), "S5: round {s} was told fenced and counts"),
        }
    }
    for seen in seen {
        for pair in seen.windows(2) {
            assert!(pair[0].commit.seq <= pair[1].commit.seq, "S11: latest went back");
        }
        // What a reader was shown before the take-over counts after it, or the take-over came in between unseen.
        if let (Some(last), Some(newest)) = (seen.last(), &newest) {
            assert!(last.commit.seq <= newest.commit.seq, "S11: latest went back in the end");
        }
    }
    assert_eq!(buckets.overwritten(), Vec::<String>::new(), "S7");
    (buckets.fault_counts(), writer_told)
}

#[test]
fn writers_takers_and_readers_agree_whatever_the_store_does() {
    const SEEDS: u64 = 400;
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    let mut told: BTreeMap<Told, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        match std::panic::catch_unwind(|| runtime.block_on(history(seed))) {
            Ok((happened, writer)) => {
                happened.into_iter().for_each(|(fault, count)| *faults.entry(fault).or_default() += count);
                writer.into_iter().for_each(|outcome| *told.entry(outcome).or_default() += 1);
            }
            Err(panic) => {
                eprintln!("the seed that fails is {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // Histories that never meet a fault or an outcome would prove nothing about it.
    for fault in [Fault::FailBefore, Fault::LoseAnswer, Fault::LandLate, Fault::Duplicate, Fault::Conflict] {
        assert!(faults.get(&fault).is_some_and(|&count| count > SEEDS / 10), "{fault:?} is too rare: {faults:?}");
    }
    for outcome in [Told::Committed, Told::Aborted, Told::Fenced] {
        assert!(told.get(&outcome).is_some_and(|&count| count > SEEDS / 20), "{outcome:?} is too rare: {told:?}");
    }
}
