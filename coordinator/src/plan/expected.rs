//! The quick look at a bucket that a push expects to be as its last commit left it.
//!
//! What planning must know is that nothing has come *since*: no newer decision, no newer fence, no tombstone or mark on the base. Two listings and two looks tell
//! that at once, whatever the location holds. If anything is otherwise, or this replica doesn't remember the base, there is no answer, and the
//! thorough look finds out what it is.

use std::sync::Arc;

use lockstep_bucket::{Listed, Lookup, ObjectStore};
use lockstep_protocol::{
    commit::{CommitDocument, CommitRef},
    document::MAX_DOCUMENT_BYTES,
    id::{Generation, Seq},
    key::Key,
    round::Round,
};

use super::place::Place;

/// More keys than this are not what is expected.
const MOST: u16 = 4;

/// The document of the base, if the base is the newest decision, the location is ours and nothing speaks against reusing it; none: look thoroughly.
pub(super) async fn base_is_newest(
    place: &Place,
    round: &Round,
    base: &CommitRef,
    seq: Seq,
) -> Option<Arc<CommitDocument>> {
    if base.generation != round.generation || base.seq >= seq {
        return None;
    }
    let fence_length = place.known().own_fence(&round.location, round.generation, round.pipeline)?;
    let commit = place.known().commit(&base.digest)?;
    let bucket = place.bucket();
    // F2: fences are listed after commits, so a fence that came in between is seen.
    let listings = async {
        let commits = from(bucket, &Key::commits_of(base.generation), &base.key()).await?;
        let fences = from(bucket, Key::FENCES, &Key::Fence(round.generation)).await?;
        Some((commits, fences))
    };
    let (listings, retired, damaged) = futures::join!(
        listings,
        absent(bucket, Key::Retired(base.generation, base.seq)),
        absent(bucket, Key::Damaged(base.generation, base.seq)),
    );
    let (commits, fences) = listings?;
    let only_base = [Listed { key: base.key().to_string(), size: commit.length }];
    let as_expected = commits == only_base && only_own(&fences, round.generation, fence_length) && retired && damaged;
    as_expected.then(|| Arc::clone(&commit.document))
}

/// The keys of a folder from one on; none: not known, or too many.
async fn from(bucket: &dyn ObjectStore, prefix: &str, key: &Key) -> Option<Vec<Listed>> {
    let page = bucket.list(prefix, Some(&key.list_after()?), MOST).await.ok()?;
    page.next.is_none().then_some(page.objects)
}

/// Our own fence, with its base where it must have one, and none after it.
fn only_own(fences: &[Listed], generation: Generation, length: u64) -> bool {
    let fence = Listed { key: Key::Fence(generation).to_string(), size: length };
    match fences {
        [only] => generation == Generation::FIRST && *only == fence,
        [base, own] => base.key == Key::FenceBase(generation).to_string() && *own == fence,
        _ => false,
    }
}

async fn absent(bucket: &dyn ObjectStore, key: Key) -> bool {
    // By GET: the 404 of a HEAD has no code, so it would take a second request to prove anything.
    matches!(bucket.get(&key.to_string(), MAX_DOCUMENT_BYTES).await, Lookup::Absent)
}
