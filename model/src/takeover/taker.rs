//! A take-over of the location for one database.

use lockstep_protocol::{
    fence::{Fence, FenceBase},
    finish::{AtKey, Finish},
    id::{Generation, Term},
    key::Key,
    round::{KeyRead, RetryPolicy},
    takeover::{Effect, Event, Phase, Purpose, PutAnswer, Settlement, TakeOver, decide, effects, judge_fence, settle},
};
use uuid::Uuid;

use super::{Finishing, Place, TakeOvers, facts, finish_begin, finish_step};
use crate::interned::Interned;

/// Row and driver.
#[derive(Clone, Hash, Debug)]
pub(super) struct Taker {
    database: u8,
    row: Interned<TakeOver>,
    /// A base that the driver finishes.
    driver: Option<Finishing>,
}

impl Taker {
    pub(super) fn new(number: usize, database: u8, activates: bool) -> Self {
        let row = TakeOver {
            id: Uuid::from_u128(number as u128 + 10),
            pipeline: facts::pipeline(database),
            pipeline_name: facts::name(),
            writer: facts::writer(database),
            location: facts::location(),
            purpose: if activates { Purpose::Activate } else { Purpose::TakeOver },
            holds: if database == 0 { Generation::FIRST } else { Generation::NONE },
            version: 0,
            term: Term::NONE,
            phase: Phase::Preparing,
            warm: None,
            fence: None,
            base: None,
            problem: None,
            cancel: None,
            tries: 0,
            retry_at: None,
            retry: RetryPolicy::default(),
        };
        Self { database, row: Interned::new(row), driver: None }
    }

    pub(super) fn is_over(&self) -> bool {
        self.row.phase.is_terminal()
    }

    pub(super) const fn remembers(&self) -> bool {
        self.driver.is_some()
    }

    pub(super) fn forget(&mut self) {
        self.driver = None;
    }

    fn generation(&self) -> Option<u8> {
        self.row.generation().map(facts::number)
    }

    pub(super) fn describe(&self) -> String {
        let generation = self.generation().map_or_else(String::new, |generation| format!(" of {generation}"));
        format!("{}{generation}", self.row.phase)
    }
}

impl TakeOvers {
    /// Whether a step changes anything; a PUT without an answer does not.
    pub(super) fn taker_may_act(&self, number: usize) -> bool {
        let taker = &self.takers[number];
        match effects(&taker.row, facts::now()).first() {
            None => false,
            Some(Effect::PutFence(generation)) => self.bucket.has_fence(facts::number(*generation)),
            Some(Effect::Adopt) => self.settled(taker).is_some(),
            Some(_) => true,
        }
    }

    pub(super) fn taker_step(&mut self, number: usize) {
        for effect in effects(&self.takers[number].row, facts::now()) {
            match effect {
                Effect::WarmPull => self.happens(number, &Event::Warmed(None)),
                Effect::Survey => self.survey(number),
                Effect::PutFence(generation) => self.judge(number, facts::number(generation)),
                Effect::FinishBase(generation) => self.finish(number, facts::number(generation)),
                Effect::Adopt => self.adopt(number),
                Effect::Pull(commit) => self.happens(number, &Event::Pulled(commit)),
            }
        }
    }

    fn happens(&mut self, number: usize, event: &Event) {
        let decision = decide(&self.takers[number].row, event, facts::now());
        let taker = &mut self.takers[number];
        taker.driver = None;
        let stored = decision.next.phase == Phase::Fencing && taker.row.phase != Phase::Fencing;
        taker.row = Interned::new(decision.next);
        let (database, generation) = (taker.database, taker.generation());
        if decision.fence_pipeline {
            self.writers[usize::from(database)].fence();
        }
        if let Some(generation) = generation.filter(|_| stored) {
            self.bucket.send_fence(generation, u8::try_from(number).unwrap_or_default());
        }
    }

    /// Step 1: the highest fence, and its base.
    fn survey(&mut self, number: usize) {
        if let Some(Finishing::At(step)) = self.takers[number].driver.clone() {
            let next = finish_step(&mut self.bucket, &step);
            // Once it stands all is looked at again.
            self.takers[number].driver = next.filter(|step| !matches!(step, Finish::Done(_))).map(Finishing::from);
            return;
        }
        let highest = self.bucket.highest();
        if highest > 1 && self.bucket.base(highest).is_none() {
            self.takers[number].driver = finish_begin(&mut self.bucket, highest).map(Finishing::from);
            return;
        }
        let fence = match self.bucket.fence_of(highest) {
            None => Some(facts::first_fence()),
            Some(taker) => self.fence_of(taker),
        };
        self.happens(number, &Event::Surveyed { highest: fence });
    }

    fn fence_of(&self, taker: u8) -> Option<Fence> {
        let stored = self.takers[usize::from(taker)].row.fence.as_ref()?;
        Fence::parse(&Key::Fence(stored.generation).to_string(), stored.bytes.as_bytes()).ok()
    }

    /// Step 2: what stands at the key of the fence, after the own retried PUT was answered.
    fn judge(&mut self, number: usize, generation: u8) {
        let Some(found) = self.bucket.fence_of(generation) else { return };
        let (mine, found) = (&self.takers[number].row.fence, &self.takers[usize::from(found)].row.fence);
        let (Some(mine), Some(found)) = (mine, found) else { return };
        let key = Key::Fence(mine.generation).to_string();
        let known = judge_fence(&key, mine.bytes.as_bytes(), PutAnswer::Exists, Some(found.bytes.as_bytes()));
        match known {
            Ok(Some(known)) => self.happens(number, &Event::Fenced(known)),
            Ok(None) => {}
            Err(problem) => self.happens(number, &Event::Unknown { problem, jitter: 0 }),
        }
    }

    /// Step 3.
    fn finish(&mut self, number: usize, generation: u8) {
        let next = match self.takers[number].driver.clone() {
            None => finish_begin(&mut self.bucket, generation),
            Some(Finishing::At(step)) => finish_step(&mut self.bucket, &step),
            Some(Finishing::Done(base)) => {
                return self.happens(number, &Event::BaseStands(FenceBase::clone(&base)));
            }
        };
        self.takers[number].driver = next.map(Finishing::from);
    }

    /// The open push of the taker's database and how it is settled; none: it can't be yet.
    fn settled(&self, taker: &Taker) -> Option<Option<(Place, lockstep_protocol::round::Phase)>> {
        let Some(place) = self.writers[usize::from(taker.database)].open() else { return Some(None) };
        let round = facts::round(place);
        // Of a later generation's base production says that it needs another.
        let mut base = FenceBase::clone(taker.row.base.as_ref()?);
        let mut key = KeyRead::NotYet;
        loop {
            match settle(&round, &base, key, facts::now()) {
                Settlement::Settled(decision) => return Some(Some((place, decision.next.phase))),
                Settlement::NeedsBase(generation) => base = self.bucket.base_document(facts::number(generation))?,
                Settlement::NeedsKey(..) if self.bucket.has_commit(place) => {
                    key = KeyRead::Holds(AtKey::Commit(facts::commit(place)));
                }
                Settlement::NeedsKey(..) => key = KeyRead::Absent,
                Settlement::Undecided => return None,
            }
        }
    }

    fn adopt(&mut self, number: usize) {
        let taker = self.takers[number].clone();
        let (Some(settled), Some(generation)) = (self.settled(&taker), taker.generation()) else { return };
        if let Some((place, phase)) = settled {
            self.conclude(taker.database, place, phase);
        }
        self.writers[usize::from(taker.database)].adopt(generation);
        self.happens(number, &Event::Adopted);
    }

    /// Whoever lost doesn't own, and whoever owns is alone.
    pub(super) fn check_takers(&self) -> Result<(), String> {
        for (number, taker) in self.takers.iter().enumerate() {
            let Some(generation) = taker.generation() else { continue };
            let stands = self.bucket.fence_of(generation).map(usize::from) == Some(number);
            if taker.row.phase == Phase::Failed && stands {
                return Err(format!("S5: taker {number} was told that it lost, and fence {generation} is its own"));
            }
            if matches!(taker.row.phase, Phase::Adopting | Phase::Pulling | Phase::Done) && !stands {
                return Err(format!("S7: taker {number} owns generation {generation}, whose fence is another's"));
            }
            if let Some(base) = &taker.row.base
                && self.bucket.base_document(generation).as_ref() != Some(base)
            {
                return Err(format!("S7: taker {number} went by another base {generation} than the one that stands"));
            }
        }
        Ok(())
    }
}
