//! A fake S3: strongly consistent, with create-only PUT, reached over a network that loses, delays and repeats.

use std::{collections::BTreeMap, rc::Rc};

use lockstep_protocol::{
    key::Key,
    planted::{self, Bug},
};

use super::{
    audit,
    fault::Fault,
    timeline::{MILLISECOND, SECOND},
    world::{Sim, Way, request},
};

pub(super) type Bytes = Rc<[u8]>;

#[derive(Default, Debug)]
pub(super) struct Bucket {
    pub(super) objects: BTreeMap<String, Bytes>,
}

const WAY: Way = Way {
    lost: Fault::StoreRequestLost,
    answer_lost: Fault::StoreAnswerLost,
    late: Fault::StoreLate,
    twice: Some(Fault::StoreTwice),
    patience: 5 * SECOND,
    latency: 20 * MILLISECOND,
};

/// What a try to create an object came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Created {
    Done,
    Exists,
    /// Nothing was done.
    Refused,
    Unknown,
}

/// What a read came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Read {
    Found(Bytes),
    /// Proven.
    Absent,
    Unknown,
}

/// No answer, or none that says anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotKnown;

/// Create-only PUT.
pub(super) async fn create(sim: &Sim, key: &Key, bytes: &Bytes) -> Created {
    if sim.happens(Fault::StoreRefuses) {
        return Created::Refused;
    }
    let (key, bytes) = (key.to_string(), Rc::clone(bytes));
    let created = request(sim, WAY, move |sim| {
        let stands = sim.bucket.borrow().objects.contains_key(&key);
        sim.log(|| format!("s3: create {key}: {}", if stands { "exists" } else { "done" }));
        if stands && !overwrites(&key) {
            return Created::Exists;
        }
        store(sim, &key, &bytes);
        Created::Done
    });
    created.await.unwrap_or(Created::Unknown)
}

/// Whether somebody forgot the condition.
fn overwrites(key: &str) -> bool {
    match Key::parse(key) {
        Some(Key::Commit(..)) => planted::is(Bug::UnconditionalCommitPut),
        _ => false,
    }
}

/// PUT without a condition, for keys that only one attempt writes.
pub(super) async fn put(sim: &Sim, key: &Key, bytes: &Bytes) -> Result<(), NotKnown> {
    if sim.happens(Fault::StoreRefuses) {
        return Err(NotKnown);
    }
    let (key, bytes) = (key.to_string(), Rc::clone(bytes));
    request(sim, WAY, move |sim| {
        sim.log(|| format!("s3: put {key}"));
        store(sim, &key, &bytes);
    })
    .await
    .ok_or(NotKnown)
}

fn store(sim: &Sim, key: &str, bytes: &Bytes) {
    let before = sim.bucket.borrow_mut().objects.insert(key.to_owned(), Rc::clone(bytes));
    audit::written(sim, key, before.as_ref(), bytes);
}

/// As often as a reader with patience asks.
const READS: u32 = 4;

/// GET, asked again for a while where there is no answer.
pub(super) async fn get(sim: &Sim, key: &str) -> Read {
    let mut answer = Read::Unknown;
    for again in 0..READS {
        let name = key.to_owned();
        answer = match read(sim, move |sim| sim.bucket.borrow().objects.get(&name).cloned()).await {
            Ok(Some(bytes)) => return Read::Found(bytes),
            Ok(None) => return Read::Absent,
            Err(Trouble::Forbidden) => return Read::Unknown,
            Err(Trouble::NoAnswer) => Read::Unknown,
        };
        sim.sleep((500 * MILLISECOND) << again).await;
    }
    answer
}

/// The complete listing.
pub(super) async fn list(sim: &Sim, prefix: &str) -> Result<Vec<String>, NotKnown> {
    for again in 0..READS {
        let prefix = prefix.to_owned();
        let listed = read(sim, move |sim| {
            let bucket = sim.bucket.borrow();
            let from = bucket.objects.range(prefix.clone()..);
            from.map(|(key, _)| key.clone()).take_while(|key| key.starts_with(&prefix)).collect::<Vec<_>>()
        });
        match listed.await {
            Ok(keys) => return Ok(keys),
            Err(Trouble::Forbidden) if planted::is(Bug::EmptyListingOnDenied) => return Ok(Vec::new()),
            Err(Trouble::Forbidden) => return Err(NotKnown),
            Err(Trouble::NoAnswer) => {}
        }
        sim.sleep((500 * MILLISECOND) << again).await;
    }
    Err(NotKnown)
}

enum Trouble {
    Forbidden,
    NoAnswer,
}

async fn read<R: 'static>(sim: &Sim, look: impl Fn(&Sim) -> R + 'static) -> Result<R, Trouble> {
    if sim.happens(Fault::StoreRefuses) {
        return Err(Trouble::NoAnswer);
    }
    if sim.happens(Fault::StoreForbids) {
        return Err(Trouble::Forbidden);
    }
    // What a late or second read sees, nobody learns.
    if sim.happens(Fault::StoreAnswerLost) {
        sim.sleep(WAY.patience).await;
        return Err(Trouble::NoAnswer);
    }
    sim.sleep(sim.random(100, WAY.latency)).await;
    let seen = look(sim);
    sim.sleep(sim.random(100, WAY.latency)).await;
    Ok(seen)
}
