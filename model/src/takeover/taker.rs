//! A take-over of the location for one database.

use lockstep_protocol::{
    commit::CommitRef,
    fence::{Fence, FenceBase},
    finish::{AtKey, Finish},
    id::{Generation, Term},
    key::Key,
    problem::{Problem, Reason},
    round::{KeyRead, RetryPolicy},
    takeover::{
        Chosen, Effect, Event, Phase, Purpose, PutAnswer, Settlement, TakeOver, decide, effects, hands_over,
        judge_fence, settle,
    },
};
use uuid::Uuid;

use super::{Ask, Finishing, Place, TakeOvers, facts, finish_begin, finish_step};
use crate::interned::Interned;

/// Row and driver.
#[derive(Clone, Hash, Debug)]
pub(super) struct Taker {
    database: u8,
    /// Not admitted yet: an earlier one of the same database is not over (`TAKE_OVER_IN_PROGRESS`).
    waits: bool,
    row: Interned<TakeOver>,
    /// A base that the driver finishes.
    driver: Option<Finishing>,
}

impl Taker {
    pub(super) fn new(number: usize, ask: Ask, waits: bool) -> Self {
        let database = ask.database();
        let (purpose, chosen) = match ask {
            Ask::TakeOver(_) => (Purpose::TakeOver, None),
            Ask::Activate(_) => (Purpose::Activate, None),
            Ask::ActivateFrom(_, place) => (Purpose::Activate, Some(Chosen::Checkpoint(facts::commit(place).round))),
        };
        let row = TakeOver {
            id: Uuid::from_u128(number as u128 + 10),
            pipeline: facts::pipeline(database),
            pipeline_name: facts::name(),
            writer: facts::writer(database),
            location: facts::location(),
            purpose,
            holds: if database == 0 { Generation::FIRST } else { Generation::NONE },
            version: 0,
            term: Term::NONE,
            phase: purpose.first_phase(),
            chosen,
            warm: None,
            fence: None,
            base: None,
            problem: None,
            cancel: None,
            tries: 0,
            retry_at: None,
            retry: RetryPolicy::default(),
        };
        Self { database, waits, row: Interned::new(row), driver: None }
    }

    pub(super) fn is_over(&self) -> bool {
        !self.waits && self.row.phase.is_terminal()
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

    /// Its last pull found nothing that any try could bring, or somebody took over once more.
    fn ended_in_its_last_pull(&self) -> bool {
        self.row.phase == Phase::Failed && self.row.base.is_some()
    }

    pub(super) fn describe(&self) -> String {
        if self.waits {
            return "waits".to_owned();
        }
        let generation = self.generation().map_or_else(String::new, |generation| format!(" of {generation}"));
        format!("{}{generation}", self.row.phase)
    }
}

impl TakeOvers {
    /// Whether a step changes anything; a PUT without an answer does not.
    pub(super) fn taker_may_act(&self, number: usize) -> bool {
        let taker = &self.takers[number];
        if taker.waits {
            return false;
        }
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
                Effect::WarmPull => self.warm(number),
                Effect::Survey => self.survey(number),
                Effect::PutFence(generation) => self.judge(number, facts::number(generation)),
                Effect::FinishBase(generation) => self.finish(number, facts::number(generation)),
                Effect::Adopt => self.adopt(number),
                Effect::Pull(commit) => self.last_pull(number, commit),
            }
        }
    }

    /// Whether a commit that counts can be had.
    fn can_be_pulled(&self, place: Place) -> bool {
        self.bucket.has_commit(place) && self.counts(place) == Some(true) && !self.lost.has(place)
    }

    /// What it brings matters only where somebody has chosen it.
    fn warm(&mut self, number: usize) {
        let warm = match self.bounds.takers[number] {
            Ask::ActivateFrom(_, place) if self.can_be_pulled(place) => Some(facts::commit(place)),
            _ => None,
        };
        self.happens(number, &Event::Warmed(warm));
    }

    /// What is lost no try brings back, and who was taken over once more has nothing to pull for.
    fn last_pull(&mut self, number: usize, commit: CommitRef) {
        let fenced = self.takers[number].generation().is_some_and(|generation| self.bucket.has_fence(generation + 1));
        let refused = |reason, what: &str| Event::Refused(Problem::new(reason, what));
        let event = match (self.lost.has(facts::place(commit)), fenced) {
            (true, _) => refused(Reason::CheckpointDamaged, "it is damaged"),
            (false, true) => refused(Reason::Fenced, "a newer fence stands"),
            (false, false) => Event::Pulled(commit),
        };
        self.happens(number, &event);
    }

    fn happens(&mut self, number: usize, event: &Event) {
        let decision = decide(&self.takers[number].row, event, facts::now());
        let taker = &mut self.takers[number];
        taker.driver = None;
        let stored = decision.next.phase == Phase::Fencing && taker.row.phase != Phase::Fencing;
        let (before, next) = (taker.row.phase, decision.next.phase);
        let owns = hands_over(before, next) || (before, next) == (Phase::Adopting, Phase::Done);
        taker.row = Interned::new(decision.next);
        let (database, generation) = (taker.database, taker.generation());
        if decision.fence_pipeline {
            self.writers[usize::from(database)].fence();
        }
        if owns {
            self.writers[usize::from(database)].own();
        }
        if self.takers[number].is_over() {
            self.admit_next(database);
        }
        if let Some(generation) = generation.filter(|_| stored) {
            self.bucket.send_fence(generation, u8::try_from(number).unwrap_or_default());
        }
    }

    /// Nothing stands in the way of the next take-over of a database any more. Only a standby is activated.
    fn admit_next(&mut self, database: u8) {
        let writer = &self.writers[usize::from(database)];
        let (holds, standby) = (facts::generation(writer.generation()), writer.is_standby());
        let Some(next) = self.takers.iter_mut().find(|taker| taker.waits && taker.database == database) else { return };
        let refused = next.row.purpose == Purpose::Activate && !standby;
        let phase = if refused { Phase::Cancelled } else { next.row.phase };
        next.row = Interned::new(TakeOver { holds, phase, ..TakeOver::clone(&next.row) });
        next.waits = false;
        if refused {
            self.admit_next(database);
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
    ///
    /// A take-over that failed before it read its base lost its fence's key, or never put anything. One that failed after it did ended in its last pull: its fence stands and stays,
    /// and starts a generation in which nothing was and will be written, so that the next take-over, whoever's, goes on from the same commit.
    pub(super) fn check_takers(&self) -> Result<(), String> {
        for (number, taker) in self.takers.iter().enumerate() {
            let Some(generation) = taker.generation() else { continue };
            let stands = self.bucket.fence_of(generation).map(usize::from) == Some(number);
            let unpulled = taker.ended_in_its_last_pull();
            if taker.row.phase == Phase::Failed && !unpulled && stands {
                return Err(format!("S5: taker {number} was told that it lost, and fence {generation} is its own"));
            }
            let owns = unpulled || matches!(taker.row.phase, Phase::Adopting | Phase::Pulling | Phase::Done);
            if owns && !stands {
                return Err(format!("S7: taker {number} owns generation {generation}, whose fence is another's"));
            }
            if let Some(base) = &taker.row.base
                && self.bucket.base_document(generation).as_ref() != Some(base)
            {
                return Err(format!("S7: taker {number} went by another base {generation} than the one that stands"));
            }
            if unpulled || taker.row.phase == Phase::Pulling {
                self.check_unpulled(taker.database, generation)?;
            }
        }
        Ok(())
    }

    /// A generation whose owner doesn't have what it starts from.
    fn check_unpulled(&self, database: u8, generation: u8) -> Result<(), String> {
        let writer = &self.writers[usize::from(database)];
        if writer.generation() < generation {
            let held = writer.generation();
            return Err(format!("S7: database {database} adopted generation {generation}, its row holds {held}"));
        }
        if writer.generation() == generation && (!writer.is_standby() || writer.has_pushed()) {
            return Err(format!("S12: database {database} owns generation {generation} without what its base names"));
        }
        let (base, next) = (self.bucket.base(generation), self.bucket.base(generation + 1));
        if next.is_some() && next != base {
            return Err(format!(
                "S15: nothing was pushed in generation {generation}, which starts from {base:?}, and the next from {next:?}"
            ));
        }
        Ok(())
    }
}
