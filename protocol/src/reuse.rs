//! Which contents of the base a push uses again, so that garbage stays bounded without a garbage collector's help.
//!
//! An object stays as long as one file in it is used. A push therefore gives up objects that it could reuse: their files count as not in the base,
//! are packed anew and sent.
//!
//! 1. **At least half alive.** An object is reused only if at least half of its bytes are used: by this checkpoint, or by the base's parts of other hosts.
//! 2. **Few small packs.** Of objects with less than [`SMALL`] live bytes at most [`MOST_SMALL`] are reused. If there are more, the smallest are
//!    given up until [`KEPT_SMALL`] are left: the pushes to come have room, and what was merged is not merged again until it is among the smallest.
//!
//! What follows for one host, after every push, if a push writes packs that are full but for the last of each of its `b` pack builders:
//!
//! - bytes of all objects that the checkpoint reaches ≤ 2 × its live bytes;
//! - objects that it reaches ≤ live bytes / [`SMALL`] + [`MOST_SMALL`] + `b`;
//! - bytes sent again, over any number of pushes, ≤ bytes of files changed or removed + [`SMALL`] × packs shorter than 2 × [`SMALL`] ever written (at most `b` a
//!   push). For rule 1 gives up an object whose live bytes are fewer than its dead ones, each of which dies once. And rule 2 sends less than [`SMALL`] for each
//!   pack it removes; each such pack was written short, since one that was written longer than 2 × [`SMALL`] falls to rule 1 before it is small.
//!
//! With several hosts an object is counted alive through other hosts' parts of the *base*. If the other host drops its use in this very round, the bounds hold
//! after the next push of this host.
//!
//! How to use it: [`Reuse::object`] for each object of the own base part, [`Reuse::wants`] for each file found there, [`Reuse::decide`]. If that gives something
//! up and the base has parts of other hosts, read these, tell their files by [`Reuse::others_use`], and decide again: what looks dead from here may be alive there.

use std::collections::HashMap;

/// Live bytes below which an object is small.
pub const SMALL: u64 = 1 << 20;

/// Most small objects that a push reuses.
pub const MOST_SMALL: usize = 32;

/// Small objects that are left when there were more than [`MOST_SMALL`].
pub const KEPT_SMALL: usize = 16;

/// Names an object in one [`Reuse`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectId(u32);

/// What a push could use again. 24 bytes a file.
#[derive(Clone, Debug, Default)]
pub struct Reuse {
    ids: HashMap<String, ObjectId>,
    sizes: Vec<u64>,
    uses: Vec<Range>,
}

/// Part of an object that is used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Range {
    object: u32,
    /// By this checkpoint; else by another host's base part.
    wanted: bool,
    start: u64,
    end: u64,
}

/// Which objects are reused. A pure function of what the [`Reuse`] was told, whatever the order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Decision {
    reused: Vec<bool>,
    given_up: Vec<GivenUp>,
}

/// An object that could be used again and is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GivenUp {
    /// Which.
    pub object: ObjectId,
    /// Bytes of it that this checkpoint wanted, and now sends.
    pub wanted: u64,
    /// By which rule.
    pub why: Why,
}

/// Why an object is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Less than half of it is used.
    MostlyDead,
    /// There are too many small ones.
    ManySmall,
}

#[derive(Clone, Copy)]
struct Lives {
    object: u32,
    /// Bytes that this checkpoint wants.
    wanted: u64,
    /// Bytes that anybody uses.
    live: u64,
}

impl Reuse {
    /// Names an object of the base, by its key; the same key has the same name.
    pub fn object(&mut self, key: &str, size: u64) -> ObjectId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        // Each object is listed in a document of at most 64 MiB: 32 bits count all of one base's.
        let id = ObjectId(u32::try_from(self.sizes.len()).unwrap_or(u32::MAX));
        self.ids.insert(key.to_owned(), id);
        self.sizes.push(size);
        id
    }

    /// A file of this checkpoint lies there.
    pub fn wants(&mut self, object: ObjectId, offset: u64, length: u64) {
        self.add(object, offset, length, true);
    }

    /// A file of another host's base part lies there.
    pub fn others_use(&mut self, object: ObjectId, offset: u64, length: u64) {
        self.add(object, offset, length, false);
    }

    fn add(&mut self, object: ObjectId, offset: u64, length: u64, wanted: bool) {
        let Some(&size) = self.size_of(object) else { return };
        let (start, end) = (offset.min(size), offset.saturating_add(length).min(size));
        if start < end {
            self.uses.push(Range { object: object.0, wanted, start, end });
        }
    }

    fn size_of(&self, object: ObjectId) -> Option<&u64> {
        self.sizes.get(usize::try_from(object.0).ok()?)
    }

    /// Applies both rules. Takes time for sorting the files once.
    pub fn decide(&mut self) -> Decision {
        let mut decision = Decision { reused: vec![false; self.sizes.len()], given_up: Vec::new() };
        let mut small = Vec::new();
        for lives in self.lives() {
            let size = self.size_of(ObjectId(lives.object)).copied().unwrap_or(0);
            if lives.wanted == 0 {
                continue;
            }
            if lives.live < size.div_ceil(2) {
                decision.give_up(lives, Why::MostlyDead);
            } else if lives.live < SMALL {
                small.push(lives);
            } else {
                decision.reuse(lives);
            }
        }
        let keep = if small.len() > MOST_SMALL { KEPT_SMALL } else { small.len() };
        // Largest first; among equals the same ones whatever the order in which objects were named.
        let keys = self.keys();
        small.sort_unstable_by(|a, b| {
            let key = |lives: &Lives| keys.get(&lives.object).copied().unwrap_or_default();
            b.live.cmp(&a.live).then_with(|| key(a).cmp(key(b)))
        });
        for (rank, lives) in small.into_iter().enumerate() {
            if rank < keep {
                decision.reuse(lives);
            } else {
                decision.give_up(lives, Why::ManySmall);
            }
        }
        decision
    }

    fn keys(&self) -> HashMap<u32, &str> {
        self.ids.iter().map(|(key, id)| (id.0, key.as_str())).collect()
    }

    /// Per used object how much of it: ranges may overlap, since files of equal content lie in one place.
    fn lives(&mut self) -> Vec<Lives> {
        self.uses.sort_unstable_by_key(|range| (range.object, range.start, range.end));
        let mut all = Vec::new();
        for uses in self.uses.chunk_by(|a, b| a.object == b.object) {
            let Some(first) = uses.first() else { continue };
            let live = covered(uses.iter());
            let wanted = covered(uses.iter().filter(|range| range.wanted));
            all.push(Lives { object: first.object, wanted, live });
        }
        all
    }
}

/// Bytes in the union of ranges that are sorted by their start.
fn covered<'r>(ranges: impl Iterator<Item = &'r Range>) -> u64 {
    let mut reached = 0;
    let mut bytes = 0;
    for range in ranges {
        bytes += range.end.saturating_sub(range.start.max(reached));
        reached = reached.max(range.end);
    }
    bytes
}

impl Decision {
    /// Whether files that lie in this object are used where they are. False for one that no file of this checkpoint lies in.
    pub fn reuses(&self, object: ObjectId) -> bool {
        usize::try_from(object.0).ok().and_then(|index| self.reused.get(index)).copied().unwrap_or(false)
    }

    /// What is sent again although the base has it.
    pub fn given_up(&self) -> &[GivenUp] {
        &self.given_up
    }

    /// Bytes that are sent again although the base has them.
    pub fn sent_again(&self) -> u64 {
        self.given_up.iter().map(|object| object.wanted).sum()
    }

    fn reuse(&mut self, lives: Lives) {
        if let Some(reused) = usize::try_from(lives.object).ok().and_then(|index| self.reused.get_mut(index)) {
            *reused = true;
        }
    }

    fn give_up(&mut self, lives: Lives, why: Why) {
        self.given_up.push(GivenUp { object: ObjectId(lives.object), wanted: lives.wanted, why });
    }
}
