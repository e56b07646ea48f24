//! The location: what stands, and which PUTs are under way. A PUT that was sent lands at any time as long as its key is empty; sent twice, late and lost are the same.

use std::fmt::Write as _;

use lockstep_protocol::{fence::FenceBase, id::Seq, planted::Bug};

use super::{Action, Place, Places, SEQS, facts, overwrites};

/// Generations there may be.
const GENERATIONS: usize = 4;

/// What stands and what may land.
#[derive(Clone, Hash, Debug, Default)]
pub(super) struct Bucket {
    commits: Places,
    sent_commits: Places,
    /// Taker of each fence from generation 2 on.
    fences: [Option<u8>; GENERATIONS - 1],
    /// As bits, by taker.
    sent_fences: [u8; GENERATIONS - 1],
    bases: [Option<Option<Place>>; GENERATIONS - 1],
    sent_bases: [Vec<Option<Place>>; GENERATIONS - 1],
    overwritten: Option<&'static str>,
}

fn at(generation: u8) -> usize {
    usize::from(generation).saturating_sub(2)
}

impl Bucket {
    pub(super) fn has_fence(&self, generation: u8) -> bool {
        generation == 1 || self.fences.get(at(generation)).is_some_and(Option::is_some)
    }

    pub(super) fn highest(&self) -> u8 {
        (1..=4).take_while(|g| self.has_fence(*g)).last().unwrap_or(1)
    }

    pub(super) fn fence_of(&self, generation: u8) -> Option<u8> {
        self.fences.get(at(generation)).copied().flatten()
    }

    pub(super) fn base(&self, generation: u8) -> Option<Option<Place>> {
        if generation < 2 { None } else { self.bases.get(at(generation)).copied().flatten() }
    }

    pub(super) fn base_document(&self, generation: u8) -> Option<FenceBase> {
        Some(facts::base(generation, self.base(generation)?))
    }

    pub(super) const fn commits(&self) -> Places {
        self.commits
    }

    pub(super) fn has_commit(&self, place: Place) -> bool {
        self.commits.has(place)
    }

    pub(super) fn seqs(&self, generation: u8) -> Vec<Seq> {
        (1..=SEQS).filter(|s| self.commits.has((generation, *s))).map(facts::seq).collect()
    }

    pub(super) const fn overwritten(&self) -> Option<&'static str> {
        self.overwritten
    }

    pub(super) fn send_commit(&mut self, place: Place) {
        self.sent_commits.add(place);
    }

    pub(super) fn send_fence(&mut self, generation: u8, taker: u8) {
        if let Some(sent) = self.sent_fences.get_mut(at(generation)) {
            *sent |= 1 << taker;
        }
    }

    pub(super) fn send_base(&mut self, base: &FenceBase) {
        let newest = base.newest.map(facts::place);
        if let Some(sent) = self.sent_bases.get_mut(at(facts::number(base.generation)))
            && !sent.contains(&newest)
        {
            sent.push(newest);
            sent.sort_unstable();
        }
    }

    pub(super) fn landings(&self, actions: &mut Vec<Action>) {
        actions.extend(self.sent_commits.iter().filter(|place| !self.has_commit(*place)).map(Action::CommitLands));
        for generation in 2..=4 {
            let (fence, base) = (self.fences[at(generation)], self.bases[at(generation)]);
            for taker in 0..8 {
                let sent = self.sent_fences[at(generation)] & (1 << taker) != 0;
                if sent && (fence.is_none() || overwrites(Bug::UnconditionalFence) && fence != Some(taker)) {
                    actions.push(Action::FenceLands(generation, taker));
                }
            }
            for newest in &self.sent_bases[at(generation)] {
                if base.is_none() || overwrites(Bug::UnconditionalBase) && base != Some(*newest) {
                    actions.push(Action::BaseLands(generation, *newest));
                }
            }
        }
    }

    pub(super) fn land_commit(&mut self, place: Place) {
        self.commits.add(place);
    }

    pub(super) fn land_fence(&mut self, generation: u8, taker: u8) {
        if self.fences[at(generation)].replace(taker).is_some() {
            self.overwritten = Some("a fence");
        }
    }

    pub(super) fn land_base(&mut self, generation: u8, newest: Option<Place>) {
        if self.bases[at(generation)].replace(newest).is_some() {
            self.overwritten = Some("a base");
        }
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("commits {:?}", self.commits.iter().collect::<Vec<_>>());
        for generation in 2..=self.highest() {
            let base = self.base(generation).map_or_else(
                || "no base".to_owned(),
                |newest| newest.map_or_else(|| "base nothing".to_owned(), |(g, s)| format!("base ({g}, {s})")),
            );
            let _ = write!(text, ", fence {generation} of taker {:?} with {base}", self.fence_of(generation));
        }
        text
    }
}
