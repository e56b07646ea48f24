//! Random operations on a server and on the twin in memory, which must answer the same to each.
//!
//! `LOCKSTEP_SEED` plays another seed than the one of each run; a failure prints it. Others' servers have quirks that no change of ours brings about, so that a new seed each time would tell of
//! them in the middle of something else.

use std::{collections::BTreeSet, env, fmt};

use bytes::Bytes;
use futures::TryStreamExt as _;
use lockstep_bucket::{
    CreateOutcome, Lookup, MemoryBuckets, ObjectStore, PartTag, StoreError, StoreErrorKind, UploadId, WriteOutcome,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    deviations,
    ground::{BUCKET, Ground},
};

const OPERATIONS: usize = 2000;

const SEED: u64 = 17;

/// Few, so that operations meet; keys beside and below each other, and characters that need escaping.
const KEYS: [&str; 12] = [
    "a",
    "a/b",
    "a/b/c",
    "a-b",
    "data/host1/x",
    "data/host10/x",
    "data/host1",
    "sp ace",
    "per%20cent",
    "plus+",
    "ümläut/🦀",
    "z",
];

const PREFIXES: [&str; 8] = ["", "a", "a/", "data/host1", "data/host1/", "ü", "sp ", "nothing/"];

/// An upload in both stores. Kept when it has ended: what is done to it then must fail alike.
#[derive(Debug)]
struct Pair {
    key: &'static str,
    uploads: [UploadId; 2],
    parts: [Vec<PartTag>; 2],
}

/// Shown by its length only.
#[derive(Clone)]
struct Body(Bytes);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Create(&'static str, Body),
    Put(&'static str, Body),
    Get(&'static str, usize),
    Range(&'static str, u64, u64),
    Head(&'static str),
    List(&'static str, Option<&'static str>, u16),
    Delete(&'static str),
    DeleteMany(Vec<String>),
    Begin(&'static str),
    /// The upload, by its index.
    Part(usize, Body),
    Complete(usize),
    Abort(usize),
    Uploads(&'static str),
}

impl Operation {
    /// The key that it is about; a listing is about none.
    fn key(&self, uploads: &[Pair]) -> Option<&'static str> {
        match self {
            Self::Create(key, _) | Self::Put(key, _) | Self::Get(key, _) | Self::Range(key, ..) => Some(key),
            Self::Head(key) | Self::Delete(key) | Self::Begin(key) => Some(key),
            Self::Part(index, _) | Self::Complete(index) | Self::Abort(index) => Some(uploads[*index].key),
            Self::List(..) | Self::Uploads(_) | Self::DeleteMany(_) => None,
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Create(..) => "create",
            Self::Put(..) => "put",
            Self::Get(..) => "get",
            Self::Range(..) => "range",
            Self::Head(_) => "head",
            Self::List(..) => "list",
            Self::Delete(_) => "delete",
            Self::DeleteMany(_) => "delete_many",
            Self::Begin(_) => "begin",
            Self::Part(..) => "part",
            Self::Complete(_) => "complete",
            Self::Abort(_) => "abort",
            Self::Uploads(_) => "uploads",
        }
    }
}

fn body(random: &mut StdRng) -> Body {
    let length = match random.random_range(0..10) {
        0 => 0,
        1 => random.random_range(0..2_000_000),
        _ => random.random_range(0..2000),
    };
    let mut body = vec![0; length];
    random.fill(body.as_mut_slice());
    Body(Bytes::from(body))
}

/// Of a part: never one that another upload of its key may have too. Whether an upload that is gone was completed or aborted, a store tells by the object's ETag, which is one of its parts'.
fn part(random: &mut StdRng) -> Body {
    let mut body = body(random).0.to_vec();
    body.extend(random.random::<[u8; 16]>());
    Body(body.into())
}

fn draw(random: &mut StdRng, uploads: &[Pair]) -> Operation {
    let key = KEYS.choose(random).unwrap();
    let prefix = PREFIXES.choose(random).unwrap();
    let upload = |random: &mut StdRng| random.random_range(0..uploads.len());
    match random.random_range(0..100) {
        0..14 => Operation::Create(key, body(random)),
        14..26 => Operation::Put(key, body(random)),
        26..38 => Operation::Get(key, [10, 1000, 4_000_000][random.random_range(0..3)]),
        38..50 => Operation::Range(key, random.random_range(0..2500), random.random_range(0..1500)),
        50..58 => Operation::Head(key),
        58..68 => {
            let after = random.random_bool(0.5).then(|| *KEYS.choose(random).unwrap());
            Operation::List(prefix, after, random.random_range(1..15))
        }
        68..76 => Operation::Delete(key),
        76..80 => {
            let count = random.random_range(2..5);
            Operation::DeleteMany(KEYS.choose_multiple(random, count).map(|key| (*key).to_owned()).collect())
        }
        80..83 => Operation::Begin(key),
        _ if uploads.is_empty() => Operation::Begin(key),
        83..88 => Operation::Part(upload(random), part(random)),
        88..95 => match upload(random) {
            // Nobody asks for an object of no parts.
            index if uploads[index].parts[0].is_empty() => Operation::Part(index, part(random)),
            index => Operation::Complete(index),
        },
        95..97 => Operation::Abort(upload(random)),
        _ => Operation::Uploads(prefix),
    }
}

/// An answer without what may differ between stores: messages, ids, ETags.
#[derive(Clone, PartialEq, Eq)]
enum Answer {
    Done,
    Exists,
    Refused(StoreErrorKind),
    Unknown(StoreErrorKind),
    Absent,
    Bytes(Bytes),
    Size(u64),
    Page(Vec<(String, u64)>, Option<String>),
    /// Indices of uploads.
    Uploads(BTreeSet<usize>),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Exists => f.write_str("exists"),
            Self::Refused(kind) => write!(f, "refused: {kind:?}"),
            Self::Unknown(kind) => write!(f, "unknown: {kind:?}"),
            Self::Absent => f.write_str("absent"),
            Self::Bytes(bytes) => write!(f, "{} bytes {:?}", bytes.len(), &bytes[..bytes.len().min(8)]),
            Self::Size(size) => write!(f, "size {size}"),
            Self::Page(keys, next) => write!(f, "{keys:?}, next {next:?}"),
            Self::Uploads(indices) => write!(f, "uploads {indices:?}"),
        }
    }
}

fn written(outcome: WriteOutcome) -> Answer {
    match outcome {
        WriteOutcome::Done => Answer::Done,
        WriteOutcome::Refused(error) => Answer::Refused(error.kind),
        WriteOutcome::Unknown(error) => Answer::Unknown(error.kind),
    }
}

fn looked<T>(lookup: Lookup<T>, found: impl FnOnce(T) -> Answer) -> Answer {
    match lookup {
        Lookup::Found(value) => found(value),
        Lookup::Absent => Answer::Absent,
        Lookup::Unknown(error) => Answer::Unknown(error.kind),
    }
}

fn tried<T>(result: Result<T, StoreError>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(error) => Answer::Unknown(error.kind),
    }
}

/// Asks one of the two stores. A new upload or part is returned in `ids` and `tags`.
async fn ask(
    store: &dyn ObjectStore,
    side: usize,
    operation: &Operation,
    uploads: &mut [Pair],
) -> (Answer, Option<UploadId>) {
    let answer = match operation {
        Operation::Create(key, body) => match store.create(key, body.0.clone()).await {
            CreateOutcome::Done => Answer::Done,
            CreateOutcome::Exists => Answer::Exists,
            CreateOutcome::Refused(error) => Answer::Refused(error.kind),
            CreateOutcome::Unknown(error) => Answer::Unknown(error.kind),
        },
        Operation::Put(key, body) => written(store.put(key, body.0.clone().into()).await),
        Operation::Get(key, max) => looked(store.get(key, *max).await, Answer::Bytes),
        Operation::Range(key, offset, length) => match store.get_range(key, *offset, *length).await {
            Ok(stream) => {
                tried(stream.try_collect::<Vec<Bytes>>().await, |chunks| Answer::Bytes(chunks.concat().into()))
            }
            Err(error) => Answer::Unknown(error.kind),
        },
        Operation::Head(key) => looked(store.head(key).await, |meta| Answer::Size(meta.size)),
        Operation::List(prefix, after, max) => tried(store.list(prefix, *after, *max).await, |page| {
            Answer::Page(page.objects.into_iter().map(|listed| (listed.key, listed.size)).collect(), page.next)
        }),
        Operation::Delete(key) => written(store.delete(key).await),
        Operation::DeleteMany(keys) => {
            let outcomes = store.delete_many(keys).await;
            assert_eq!(outcomes.len(), keys.len());
            let failed = outcomes.into_iter().find(|outcome| *outcome != WriteOutcome::Done);
            written(failed.unwrap_or(WriteOutcome::Done))
        }
        Operation::Begin(key) => match store.create_multipart(key).await {
            Ok(id) => return (Answer::Done, Some(id)),
            Err(error) => Answer::Unknown(error.kind),
        },
        Operation::Part(index, body) => {
            let pair = &mut uploads[*index];
            // One part each, sent again and again: all but the last would need 5 MiB.
            let part = store.upload_part(pair.key, &pair.uploads[side], 1, body.0.clone().into()).await;
            tried(part, |tag| {
                pair.parts[side] = vec![tag];
                Answer::Done
            })
        }
        Operation::Complete(index) => {
            let pair = &uploads[*index];
            written(store.complete_multipart(pair.key, &pair.uploads[side], &pair.parts[side]).await)
        }
        Operation::Abort(index) => {
            let pair = &uploads[*index];
            written(store.abort_multipart(pair.key, &pair.uploads[side]).await)
        }
        Operation::Uploads(prefix) => tried(store.list_multipart(prefix).await, |open| {
            let index = |id: &UploadId| uploads.iter().position(|pair| pair.uploads[side] == *id);
            Answer::Uploads(open.iter().map(|open| index(&open.upload).unwrap_or(usize::MAX)).collect())
        }),
    };
    (answer, None)
}

pub(crate) async fn two_thousand_random_operations_answer_as_the_twin_does(ground: Ground) {
    let seed = env::var("LOCKSTEP_SEED").map_or(SEED, |text| text.parse().unwrap());
    println!("LOCKSTEP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let real = ground.store().await;
    let twin = MemoryBuckets::new([BUCKET]).store(ground.location());
    let mut uploads: Vec<Pair> = Vec::new();
    let mut seen: BTreeSet<(&str, String)> = BTreeSet::new();
    let mut deviated = BTreeSet::new();
    let mut history: Vec<(Option<&str>, String)> = Vec::new();
    for number in 0..OPERATIONS {
        let operation = draw(&mut random, &uploads);
        let (expected, twin_id) = ask(&twin, 0, &operation, &mut uploads).await;
        let (found, real_id) = ask(real.as_ref(), 1, &operation, &mut uploads).await;
        let (found_text, expected_text) = (format!("{found:?}"), format!("{expected:?}"));
        let known = deviations::answers(ground.kind).find(|known| {
            (known.operation, known.twin, known.server_says) == (operation.name(), &expected_text, &found_text)
        });
        let key = operation.key(&uploads);
        match known {
            Some(known) => drop(deviated.insert(known.operation)),
            None if found == expected => {}
            None => {
                let same = history.iter().filter(|(other, _)| *other == key).map(|(_, line)| line.as_str());
                let before = same.collect::<Vec<_>>().join("\n");
                panic!(
                    "{} answers {found_text}, the twin {expected_text}, at operation {number} of LOCKSTEP_SEED={seed}: \
                     {operation:?} of {key:?}, after\n{before}",
                    ground.kind
                );
            }
        }
        history.push((key, format!("{number}: {operation:?}: {found_text}")));
        if let (Operation::Begin(key), Some(twin_id), Some(real_id)) = (&operation, twin_id, real_id) {
            uploads.push(Pair { key, uploads: [twin_id, real_id], parts: [Vec::new(), Vec::new()] });
        }
        seen.insert((operation.name(), found_text.split(' ').next().unwrap_or_default().to_owned()));
    }
    // A run that never meets an existing key or an open upload would prove little.
    for (operation, answer) in
        [("create", "done"), ("delete_many", "done"), ("create", "exists"), ("get", "absent"), ("complete", "done")]
    {
        assert!(seen.contains(&(operation, answer.to_owned())), "no {operation} was answered {answer}: {seen:?}");
    }
    for known in deviations::answers(ground.kind) {
        assert!(deviated.contains(known.operation), "{} no longer answers so: {known:?}", ground.kind);
    }
    assert_eq!(real.list_all("").await.unwrap(), twin.list_all("").await.unwrap());
}
