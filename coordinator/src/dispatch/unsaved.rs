//! Reports of hosts that need not be stored one by one.
//!
//! A report that asks for nothing new, since other hosts are still at work, waits a moment for the next one: a round of a thousand hosts is not a thousand
//! writes. Nothing is at stake meanwhile: whoever takes the round over asks the hosts again, and they say the same again. The last report of all,
//! a failure, a phase, and whatever else moves the round is stored at once, with what waits.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::round::{Decision, Event, Round, decide, effects};
use tokio::time::Instant;

/// How long the first report waits for others.
const FIRST: Duration = Duration::from_millis(50);

/// How long a report waits at most: what people see of a round is not older. Each write doubles the wait up to this, so that hosts that come in
/// drop by drop cost few writes too.
const LONGEST: Duration = Duration::from_secs(2);

/// What has happened to a round and is not stored yet.
#[derive(Debug)]
pub(super) struct Unsaved {
    events: Vec<Event>,
    /// What they come to; none: nothing has happened.
    decision: Option<Decision>,
    until: Option<Instant>,
    wait: Duration,
}

impl Unsaved {
    pub(super) const fn new() -> Self {
        Self { events: Vec::new(), decision: None, until: None, wait: FIRST }
    }

    /// When what waits is to be stored.
    pub(super) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The round as it will be once everything is stored: hosts that have reported are not asked again.
    pub(super) fn seen<'r>(&'r self, round: &'r Round) -> &'r Round {
        self.decision.as_ref().map_or(round, |decision| &decision.next)
    }

    /// Something has happened.
    pub(super) fn add(&mut self, round: &Round, events: impl IntoIterator<Item = Event>, now: DateTime<Utc>) {
        for event in events {
            let so_far = self.decision.take().unwrap_or_else(|| undecided(round));
            self.decision = Some(after(so_far, &event, now));
            // Time goes on by itself.
            if event != Event::Tick {
                self.events.push(event);
            }
        }
        if !self.decision.as_ref().is_some_and(|decision| decision.changes(round)) {
            self.events.clear();
            self.decision = None;
        }
    }

    /// What is to be stored now, and the events again, in case that the round has moved meanwhile. None: nothing, or nothing yet.
    pub(super) fn take(&mut self, round: &Round, now: DateTime<Utc>) -> Option<(Decision, Vec<Event>)> {
        let decision = self.decision.as_ref()?;
        if may_wait(round, decision, &self.events, now) {
            let until = *self.until.get_or_insert_with(|| Instant::now() + self.wait);
            if until > Instant::now() {
                return None;
            }
        }
        if self.until.take().is_some() {
            self.wait = (self.wait * 2).min(LONGEST);
        }
        if decision.next.phase != round.phase {
            self.wait = FIRST;
        }
        self.decision.take().map(|decision| (decision, std::mem::take(&mut self.events)))
    }
}

/// Only reports, and nothing new is to be done because of them.
fn may_wait(round: &Round, decision: &Decision, events: &[Event], now: DateTime<Utc>) -> bool {
    let only_reports = events.iter().all(|event| matches!(event, Event::HostDone { .. }));
    let quiet = decision.next.phase == round.phase && decision.next.problem == round.problem;
    only_reports && quiet && {
        // A report only takes effects away, or is the last one and asks for something else.
        let before = effects(round, now);
        effects(&decision.next, now).first().is_none_or(|effect| before.contains(effect))
    }
}

fn undecided(round: &Round) -> Decision {
    Decision { next: round.clone(), transitions: Vec::new(), fence_pipeline: false }
}

fn after(so_far: Decision, event: &Event, now: DateTime<Utc>) -> Decision {
    let Decision { next, mut transitions, fence_pipeline } = so_far;
    let decision = decide(&next, event, now);
    transitions.extend(decision.transitions);
    Decision { next: decision.next, transitions, fence_pipeline: fence_pipeline || decision.fence_pipeline }
}

/// One decision after the other, as one.
pub(super) fn decide_all(round: &Round, events: &[Event], now: DateTime<Utc>) -> Decision {
    events.iter().fold(undecided(round), |so_far, event| after(so_far, event, now))
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::{
        commit::CommitPart,
        host::Layout,
        id::{Attempt, Generation, Incarnation, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step, Term},
        problem::{Problem, Reason},
        round::{HostReport, Kind, Participant, ParticipantPhase, Phase, PushState, RetryPolicy, WantedCut},
    };
    use uuid::Uuid;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn incarnation() -> Incarnation {
        Incarnation::new(Uuid::from_u128(9))
    }

    /// Every host is at work.
    fn transferring(hosts: u32) -> Round {
        let at_work = |host_idx| Participant {
            phase: ParticipantPhase::Ordered,
            incarnation: Some(incarnation()),
            ..Participant::waiting(host_idx, format!("http://host{host_idx}:7402"))
        };
        Round {
            id: RoundId::new(Uuid::from_u128(1)),
            pipeline: PipelineId::new(Uuid::from_u128(2)),
            pipeline_name: PipelineName::new("orders").unwrap(),
            round_no: RoundNo::new(1).unwrap(),
            generation: Generation::FIRST,
            layout: Layout::from_n_hosts(hosts).unwrap(),
            location: "s3://acme/orders".parse().unwrap(),
            version: 3,
            term: Term::new(1).unwrap(),
            phase: Phase::Transferring,
            deadline: now() + Duration::from_secs(60),
            problem: None,
            cancel: None,
            participants: (0..hosts).map(at_work).collect(),
            retry: RetryPolicy::default(),
            kind: Kind::Push(PushState {
                step: Some(Step::new(4).unwrap()),
                ..PushState::asked(Seq::FIRST, WantedCut::Newest, false, None)
            }),
        }
    }

    fn report(host_idx: u32) -> Event {
        let part = CommitPart {
            host_idx,
            local_checkpoint: Uuid::from_u128(7).to_string().parse().unwrap(),
            manifest: "part".to_owned(),
            manifest_length: 1,
            manifest_blake3: lockstep_protocol::digest::Digest::of(b"part"),
            files: 1,
            bytes: 5,
            bytes_uploaded: 5,
            processed_records: None,
        };
        let report = HostReport::Part { part, step: Step::new(4).unwrap(), fingerprint: None };
        Event::HostDone { host_idx, attempt: Attempt::FIRST, incarnation: incarnation(), report }
    }

    /// What is stored after this event; none: it waits.
    fn stored(unsaved: &mut Unsaved, round: &Round, event: Event) -> Option<(Decision, Vec<Event>)> {
        unsaved.add(round, [event], now());
        unsaved.take(round, now())
    }

    #[test]
    fn reports_wait_for_others_and_the_last_one_does_not() {
        let (round, mut unsaved) = (transferring(3), Unsaved::new());
        assert_eq!(stored(&mut unsaved, &round, report(1)), None);
        assert!(unsaved.until().is_some());
        assert_eq!(stored(&mut unsaved, &round, report(0)), None);
        // Not stored, but known: nobody asks these hosts again.
        assert_eq!(effects(unsaved.seen(&round), now()).len(), 1);
        assert_eq!(stored(&mut unsaved, &round, Event::Tick), None, "time alone stores nothing before its time");
        let (decision, events) = stored(&mut unsaved, &round, report(2)).expect("now the parts can be checked");
        assert_eq!((decision.transitions.len(), events.len()), (3, 3), "all three in one write");
        assert_eq!((unsaved.until(), unsaved.take(&round, now())), (None, None));
    }

    #[test]
    fn what_moves_the_round_is_stored_at_once_with_what_waits() {
        let (round, mut unsaved) = (transferring(3), Unsaved::new());
        assert_eq!(stored(&mut unsaved, &round, report(1)), None);
        let problem = Problem::new(Reason::AgentRestarted, "host 0 restarted");
        let failed = Event::HostFailed { host_idx: 0, attempt: Attempt::FIRST, problem, jitter: 0 };
        let (decision, _) = stored(&mut unsaved, &round, failed).expect("a failure does not wait");
        let phases: Vec<_> = decision.next.participants.iter().map(|host| host.phase).collect();
        assert_eq!(phases, [ParticipantPhase::BackingOff, ParticipantPhase::Done, ParticipantPhase::Ordered]);
    }

    #[test]
    fn the_deadline_ends_a_round_whose_reports_wait() {
        let (round, mut unsaved) = (transferring(3), Unsaved::new());
        assert_eq!(stored(&mut unsaved, &round, report(1)), None);
        let late = round.deadline;
        unsaved.add(&round, [Event::Tick], late);
        let (decision, _) = unsaved.take(&round, late).expect("the deadline has passed");
        assert_eq!(decision.next.phase, Phase::Failed);
    }

    #[test]
    fn what_changes_nothing_is_neither_stored_nor_kept() {
        let (round, mut unsaved) = (transferring(3), Unsaved::new());
        let stranger = Event::HostReady { host_idx: 0, attempt: Attempt::FIRST, incarnation: incarnation() };
        assert_eq!(stored(&mut unsaved, &round, stranger), None);
        assert_eq!((unsaved.until(), unsaved.seen(&round) == &round), (None, true));
    }

    #[test]
    fn hosts_that_come_in_drop_by_drop_are_stored_more_and_more_seldom() {
        let (round, mut unsaved) = (transferring(64), Unsaved::new());
        let mut waits = Vec::new();
        for host_idx in 0..8 {
            waits.push(unsaved.wait);
            assert_eq!(stored(&mut unsaved, &round, report(host_idx)), None);
            // Its time has come.
            unsaved.until = Some(Instant::now());
            assert!(unsaved.take(&round, now()).is_some());
        }
        assert!(waits.is_sorted() && waits[0] == FIRST && waits[7] == LONGEST, "{waits:?}");
    }
}
