//! Somebody who looks for the newest checkpoint, again and again.

use lockstep_protocol::{
    finish::Finish,
    latest::{Access, Look},
};

use super::{Finishing, Place, TakeOvers, bucket::Bucket, facts, finish_step};
use crate::interned::Interned;

/// A reader between two requests.
#[derive(Clone, Hash, Debug)]
pub(super) struct Reader {
    access: Access,
    look: Option<Interned<Look>>,
    finishing: Option<Interned<Finish>>,
    /// Found in this look, and not yet known to hold.
    found: Option<Place>,
    /// What it answered last.
    seen: Option<Place>,
}

impl Reader {
    pub(super) const fn new(access: Access) -> Self {
        Self { access, look: None, finishing: None, found: None, seen: None }
    }

    pub(super) const fn seen(&self) -> Option<Place> {
        self.seen
    }

    pub(super) fn describe(&self) -> String {
        format!("saw {:?}, finds {:?}", self.seen, self.found)
    }
}

/// Requests whose answer can't change any more, or that concern nothing in this world, are answered at once.
fn is_settled(look: &Look) -> bool {
    matches!(
        look,
        Look::ListMarks(_)
            | Look::ReadTombstones(_)
            | Look::ReadCommits(_)
            | Look::ReadFollowing(_)
            | Look::ReadOwnBase(_)
    )
}

/// The next state, and what was found in it.
fn answer(bucket: &Bucket, look: Look) -> Option<(Look, Option<Place>)> {
    let next = match look {
        Look::ListFences(list) => list.answer((1..=bucket.highest()).map(facts::generation)).ok()?,
        Look::ReadBase(read) => {
            let base = bucket.base_document(facts::number(read.generation()));
            read.answer(base).ok()?
        }
        Look::ListCommits(list) => {
            let seqs = bucket.seqs(facts::number(list.generation()));
            list.answer(seqs)
        }
        Look::ListMarks(list) => list.answer([], []),
        Look::ReadTombstones(read) => read.answer(&[]),
        Look::ReadCommits(read) => {
            let newest = read.seqs().first().copied()?;
            let place = (facts::number(read.generation()), facts::seq_number(newest));
            read.check(&facts::commit(place)).ok()?;
            return Some((read.found(facts::commit(place)), Some(place)));
        }
        Look::ReadFollowing(read) => {
            let base = bucket.base_document(facts::number(read.generation()));
            read.answer(base).ok()?
        }
        Look::ReadOwnBase(read) => {
            let base = bucket.base_document(facts::number(read.generation()));
            read.answer(base)
        }
        Look::ReadSuccessor(read) => {
            let stands = bucket.has_fence(facts::number(read.generation()));
            read.answer(stands)
        }
        other @ (Look::FinishBase(_) | Look::Done) => other,
    };
    Some((next, None))
}

impl TakeOvers {
    pub(super) fn reader_step(&mut self, number: usize) {
        let reader = self.readers[number].clone();
        let look = reader.look.as_deref().cloned().unwrap_or_else(|| Look::begin(reader.access));
        if let Look::FinishBase(missing) = look {
            let begun = reader.finishing.as_deref().cloned();
            let next = match begun {
                None => Some(missing.begin()),
                Some(step) => finish_step(&mut self.bucket, &step),
            };
            let reader = &mut self.readers[number];
            match next.map(Finishing::from) {
                None => *reader = Reader { seen: reader.seen, ..Reader::new(reader.access) },
                Some(Finishing::At(step)) => reader.finishing = Some(step),
                Some(Finishing::Done(base)) => {
                    reader.finishing = None;
                    reader.look = Some(Interned::new(missing.answer((*base).clone())));
                }
            }
            return;
        }
        let mut found = reader.found;
        let mut at = Some(look);
        loop {
            // What is not known is asked again from the start.
            let Some((next, place)) = at.and_then(|look| answer(&self.bucket, look)) else {
                self.readers[number] = Reader { seen: reader.seen, ..Reader::new(reader.access) };
                return;
            };
            found = place.or(found);
            if matches!(next, Look::ListFences(_)) {
                found = None;
            }
            if matches!(next, Look::Done) {
                break;
            }
            if !is_settled(&next) {
                let reader = &mut self.readers[number];
                (reader.look, reader.found) = (Some(Interned::new(next)), found);
                return;
            }
            at = Some(next);
        }
        if found < reader.seen {
            self.went_back = reader.seen.map(|before| (before, found.unwrap_or_default()));
        }
        self.readers[number] = Reader { seen: found, ..Reader::new(reader.access) };
    }
}
