//! A fake database of one pipeline, guarded like the real one: each transaction happens at one moment, but its answer may be lost or late.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use lockstep_protocol::{
    commit::CommitRef,
    host::Layout,
    id::{
        Fingerprint, Generation, LocalCheckpointId, PipelineId, PipelineName, RequestId, RoundId, RoundNo, Seq, Step,
        Term,
    },
    location::Location,
    planted::{self, Bug},
    problem::{Problem, Reason},
    round::{
        CancelRequest, Decision, Event, Kind, Participant, Phase, PullRequest, PullState, PushState, RetryPolicy,
        Round, WantedCut, check_cancellable, decide,
    },
};

use super::{
    audit,
    fault::Fault,
    timeline::{Instant, MILLISECOND, SECOND},
    world::{Sim, Way, request, time},
};

/// The newest commit that the database knows of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LastCommit {
    pub(super) commit: CommitRef,
    pub(super) step: Step,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) local_checkpoints: Vec<LocalCheckpointId>,
}

#[derive(Clone, Debug)]
pub(super) struct RoundRow {
    pub(super) round: Round,
    pub(super) lease_until: Option<Instant>,
    pub(super) cancel: Option<CancelRequest>,
    pub(super) admitted: Instant,
    pub(super) ended: Option<Instant>,
    /// Its decision was unknown at some time.
    pub(super) was_unknown: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) pipeline: PipelineId,
    pub(super) name: PipelineName,
    pub(super) layout: Layout,
    pub(super) location: Location,
    pub(super) generation: Generation,
    pub(super) fenced: Option<Problem>,
    round_no: RoundNo,
    seq: Seq,
    pub(super) last: Option<LastCommit>,
    pub(super) rounds: BTreeMap<RoundId, RoundRow>,
    requests: BTreeMap<RequestId, (Ask, RoundId)>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Push(WantedCut),
    Pull(PullRequest),
}

/// A request for a round, with what its caller drew for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) id: RequestId,
    /// Drawn anew for each call.
    pub(super) round: RoundId,
    pub(super) deadline: u64,
}

const RETRY: RetryPolicy = RetryPolicy {
    max_attempts: 5,
    base: std::time::Duration::from_millis(500),
    max: std::time::Duration::from_secs(30),
};

const WAY: Way = Way {
    lost: Fault::DatabaseRequestLost,
    answer_lost: Fault::DatabaseAnswerLost,
    late: Fault::DatabaseLate,
    twice: None,
    patience: 3 * SECOND,
    latency: 3 * MILLISECOND,
};

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// Nothing was done.
    Away,
    /// It may have been done, or may yet be.
    Unknown,
}

/// One transaction.
pub(super) async fn transact<R: 'static>(
    sim: &Sim,
    site: usize,
    body: impl Fn(&Sim, &mut Database) -> R + 'static,
) -> Result<R, Trouble> {
    if sim.happens(Fault::DatabaseAway) {
        sim.sleep(100 * MILLISECOND).await;
        return Err(Trouble::Away);
    }
    let answer = request(sim, WAY, move |sim| {
        let site = sim.site(site)?;
        Some(body(sim, &mut site.database.borrow_mut()))
    });
    answer.await.flatten().ok_or(Trouble::Unknown)
}

impl Database {
    pub(super) fn new(id: uuid::Uuid, name: PipelineName, layout: Layout, location: Location) -> Result<Self, Problem> {
        Ok(Self {
            pipeline: PipelineId::new(id),
            name,
            layout,
            location,
            generation: Generation::FIRST,
            fenced: None,
            round_no: RoundNo::new(1)?,
            seq: Seq::FIRST,
            last: None,
            rounds: BTreeMap::new(),
            requests: BTreeMap::new(),
        })
    }

    pub(super) fn active(&self) -> Option<&RoundRow> {
        self.rounds.values().find(|row| !row.round.phase.is_terminal())
    }

    /// Admission, in one transaction (push step 1).
    pub(super) fn admit(&mut self, sim: &Sim, request: &Request) -> Result<Round, Problem> {
        if let Some(own) = self.rounds.get(&request.round) {
            return Ok(own.round.clone());
        }
        if let Some((asked, round)) = self.requests.get(&request.id) {
            if *asked != request.ask {
                return Err(Problem::new(Reason::RequestIdReused, "other parameters under the same request id"));
            }
            return self
                .rounds
                .get(round)
                .map(|row| row.round.clone())
                .ok_or_else(|| Problem::new(Reason::RoundNotFound, "gone"));
        }
        if let Some(fenced) = &self.fenced {
            return Err(fenced.clone());
        }
        if let Some(active) = self.active().map(|row| row.round.clone()) {
            let supersedes = active.phase == Phase::Installing && matches!(request.ask, Ask::Pull(_));
            if supersedes {
                let decision = decide(&active, &Event::Superseded { by: request.round }, sim.clock());
                self.apply(sim, active.term, &active, &decision);
            } else if !planted::is(Bug::SecondRoundAdmitted) {
                return Err(Problem::new(Reason::RoundInProgress, format!("round {} is {}", active.id, active.phase)));
            }
        }
        let round = self.new_round(sim, request)?;
        self.round_no = self.round_no.next();
        if matches!(round.kind, Kind::Push(_)) {
            self.seq = self.seq.next();
        }
        sim.log(|| format!("db: round {} admitted: {:?}", round.round_no, request.ask));
        let row = RoundRow {
            round: round.clone(),
            lease_until: None,
            cancel: None,
            admitted: sim.now(),
            ended: None,
            was_unknown: false,
        };
        self.requests.insert(request.id, (request.ask, round.id));
        self.rounds.insert(round.id, row);
        audit::admitted(sim, self, &round);
        Ok(round)
    }

    fn new_round(&self, sim: &Sim, request: &Request) -> Result<Round, Problem> {
        let (phase, kind) = match request.ask {
            Ask::Push(wanted) => (
                Phase::Planning,
                Kind::Push(PushState::asked(self.seq, wanted, true, self.last.as_ref().map(|last| last.commit))),
            ),
            Ask::Pull(request) => (Phase::Resolving, Kind::Pull(PullState::asked(request))),
        };
        let deadline = TimeDelta::microseconds(i64::try_from(request.deadline).unwrap_or(i64::MAX));
        Ok(Round {
            id: request.round,
            pipeline: self.pipeline,
            pipeline_name: self.name.clone(),
            round_no: self.round_no,
            generation: self.generation,
            layout: self.layout,
            location: self.location.clone(),
            version: 1,
            term: Term::NONE,
            phase,
            deadline: sim.clock() + deadline,
            problem: None,
            cancel: None,
            participants: (0..self.layout.len())
                .map(|idx| Participant::waiting(idx, format!("http://host{idx}:1")))
                .collect(),
            retry: RETRY,
            kind,
        })
    }

    /// The guarded write (S6). None: version or term are not current, nothing was written.
    pub(super) fn apply(&mut self, sim: &Sim, writer: Term, before: &Round, decision: &Decision) -> Option<Round> {
        let row = self.rounds.get_mut(&before.id)?;
        let current = &row.round;
        let unguarded = planted::is(Bug::NoGuardInWhere);
        let version = current.version == before.version || unguarded || planted::is(Bug::NoVersionInWhere);
        let term = current.term == writer || unguarded || planted::is(Bug::NoTermInWhere);
        let active = !current.phase.is_terminal() || unguarded;
        if !(version && term && active) {
            sim.log(|| format!("db: write to round {} refused: moved", before.round_no));
            return None;
        }
        let replaced = std::mem::replace(&mut row.round, stored(before, decision));
        let next = row.round.clone();
        if next.phase.is_terminal() {
            row.ended = Some(sim.now());
            row.lease_until = None;
        }
        if let Kind::Push(push) = &next.kind {
            row.was_unknown |= push.settle.tries > 0;
        }
        for transition in &decision.transitions {
            sim.log(|| {
                let host = transition.host_idx.map_or_else(String::new, |host| format!(" host {host}"));
                format!(
                    "db: round {}{host}: {} -> {}: {}",
                    next.round_no, transition.from, transition.to, transition.cause
                )
            });
        }
        if decision.fence_pipeline && self.generation == next.generation && self.fenced.is_none() {
            self.fenced.clone_from(&next.problem);
        }
        self.learn_commit(&next);
        audit::changed(sim, self, (writer, before), &replaced, &next);
        Some(next)
    }

    fn learn_commit(&mut self, round: &Round) {
        let Kind::Push(push) = &round.kind else { return };
        let (Some(commit), Some(step)) = (push.committed, push.step) else { return };
        let newer = self
            .last
            .as_ref()
            .is_none_or(|last| (last.commit.generation, last.commit.seq) < (commit.generation, commit.seq));
        if newer {
            let local_checkpoints = round.participants.iter().filter_map(|p| p.local_checkpoint).collect();
            self.last = Some(LastCommit { commit, step, fingerprint: push.fingerprint, local_checkpoints });
        }
    }

    /// Rounds that nobody drives; each gets a new term.
    pub(super) fn claim(&mut self, sim: &Sim, lease: u64) -> Vec<Round> {
        let now = sim.now();
        let due =
            |row: &&mut RoundRow| !row.round.phase.is_terminal() && row.lease_until.is_none_or(|until| until < now);
        let claim = |row: &mut RoundRow| {
            row.round.term = row.round.term.next();
            row.round.version += 1;
            row.lease_until = Some(now + lease);
            sim.log(|| format!("db: round {} claimed, term {}", row.round.round_no, row.round.term));
            row.round.clone()
        };
        self.rounds.values_mut().filter(due).map(claim).collect()
    }

    pub(super) fn renew(&mut self, now: Instant, round: RoundId, term: Term, lease: u64) -> bool {
        match self.rounds.get_mut(&round) {
            Some(row) if row.round.term == term && !row.round.phase.is_terminal() => {
                row.lease_until = Some(now + lease);
                true
            }
            _ => false,
        }
    }

    /// Hands a round back.
    pub(super) fn release(&mut self, round: RoundId, term: Term) {
        if let Some(row) = self.rounds.get_mut(&round)
            && row.round.term == term
        {
            row.lease_until = None;
        }
    }

    /// Remembers that somebody wants a round to stop.
    pub(super) fn ask_to_cancel(&mut self, round: RoundId, request: CancelRequest) -> Result<(), Problem> {
        let Some(row) = self.rounds.get_mut(&round) else { return Ok(()) };
        check_cancellable(&row.round)?;
        row.cancel.get_or_insert(request);
        Ok(())
    }
}

/// What a write stores.
pub(super) fn stored(before: &Round, decision: &Decision) -> Round {
    let mut next = decision.next.clone();
    next.version = before.version.saturating_add(1);
    next
}

/// A guarded write whose lost answer is looked after (R6). `Ok(None)`: somebody else moved the round.
pub(super) async fn apply(
    sim: &Sim,
    site: usize,
    writer: Term,
    before: &Round,
    decision: &Decision,
) -> Result<Option<Round>, Trouble> {
    let (round, change) = (before.clone(), decision.clone());
    match transact(sim, site, move |sim, database| database.apply(sim, writer, &round, &change)).await {
        Err(Trouble::Unknown) => {}
        known => return known,
    }
    let id = before.id;
    let found = transact(sim, site, move |_, database| database.rounds.get(&id).map(|row| row.round.clone())).await?;
    let expected = stored(before, decision);
    match found {
        Some(found) if found == expected => Ok(Some(found)),
        Some(found) if (found.version, found.term) == (before.version, before.term) => Err(Trouble::Unknown),
        _ => Ok(None),
    }
}

/// Microseconds of the database's clock.
pub(super) fn at(when: chrono::DateTime<chrono::Utc>) -> Instant {
    u64::try_from((when - time(0)).num_microseconds().unwrap_or(0)).unwrap_or(0)
}
