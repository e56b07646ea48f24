//! What may happen to a round next, from drawn numbers: mostly what moves it on.

use lockstep_protocol::{
    commit::CommitRef,
    digest::Digest,
    fence::{FenceBase, Successor},
    id::{Generation, RoundId, Seq, Step},
    problem::{Problem, Reason},
    round::{CancelRequest, DecisionKnown, Event, HostReport, Kind, ParticipantPhase, Phase, Round, Source},
};
use uuid::Uuid;

use crate::rig::{found, part, planned, resolved_locally};

/// Drawn numbers from which events follow, the same for both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events {
    pub(super) sort: u32,
    pub(super) step: u64,
    pub(super) host: u32,
}

impl Events {
    /// What may happen to the round next.
    pub(crate) fn of(self, round: &Round) -> Vec<Event> {
        let host_idx = self.host % round.layout.len();
        let attempt = round.participants[host_idx as usize].attempt;
        let jitter = 500;
        let source = match &round.kind {
            Kind::Pull(pull) => pull.resolved.as_ref().and_then(|from| from.commit),
            Kind::Push(_) => None,
        };
        match (self.sort, source) {
            (10..=12, Some(commit)) => {
                let problem = Problem::new(Reason::CheckpointNotFound, "its\0 owner has retired it");
                vec![Event::SourceRetired { host_idx, attempt, commit, problem }]
            }
            (0..=2, _) => vec![Event::CancelRequested(CancelRequest { by: "bob".to_owned(), cause: "\0".to_owned() })],
            (3..=4, _) => vec![Event::Refused(Problem::new(Reason::Fenced, "a newer\0 owner"))],
            (5..=12, _) => {
                let reason = if self.step == 1 { Reason::NoSpace } else { Reason::AgentRestarted };
                let problem = Problem::new(reason, "what an agent\0 said").with("k\0", "v\0");
                vec![Event::HostFailed { host_idx, attempt, problem, jitter }]
            }
            (13, _) => vec![Event::Tick],
            // Two at once, as a driver stores them.
            (14..=20, _) => self.next(round).into_iter().take(2).collect(),
            _ => self.next(round),
        }
    }

    fn next(self, round: &Round) -> Vec<Event> {
        match (&round.kind, round.phase) {
            (Kind::Push(_), Phase::Planning) => vec![planned(round, self.step)],
            (Kind::Push(_), Phase::Transferring) => self.hosts(round),
            (Kind::Push(_), Phase::Committing) => vec![self.settled(round)],
            (Kind::Pull(_), Phase::Resolving) => vec![self.resolved(round)],
            (Kind::Pull(_), Phase::Transferring | Phase::Installing) => self.hosts(round),
            _ => vec![Event::Tick],
        }
    }

    /// Every host that is due moves on; with all of them done, the round.
    fn hosts(self, round: &Round) -> Vec<Event> {
        let mut events = Vec::new();
        for p in &round.participants {
            let (host_idx, attempt) = (p.host_idx, p.attempt);
            let Some(incarnation) = p.incarnation else { continue };
            let report = match (&round.kind, p.phase) {
                (_, ParticipantPhase::BackingOff) => {
                    events.push(Event::HostReady { host_idx, attempt, incarnation });
                    continue;
                }
                (Kind::Push(push), ParticipantPhase::Ordered) => HostReport::Part {
                    part: part(round, push.step.map_or(self.step, Step::get), host_idx),
                    step: push.step.unwrap(),
                    fingerprint: push.fingerprint,
                },
                (Kind::Pull(_), ParticipantPhase::Ordered) => HostReport::Staged,
                (Kind::Pull(_), ParticipantPhase::Staged) => HostReport::Installed,
                _ => continue,
            };
            events.push(Event::HostDone { host_idx, attempt, incarnation, report });
        }
        if events.is_empty() {
            events.push(match &round.kind {
                Kind::Push(_) => Event::PartsChecked { writer: "test".to_owned(), trace_id: None },
                Kind::Pull(_) => Event::Confirmed {
                    incarnations: round.participants.iter().map(|p| p.incarnation).collect(),
                    jitter: 500,
                },
            });
        }
        events
    }

    fn settled(self, round: &Round) -> Event {
        let other = RoundId::new(Uuid::from_u128(77));
        let base = FenceBase { generation: round.generation.next(), newest: None, tombstones: Vec::new() };
        let (decision, successor) = match self.step {
            1 => (DecisionKnown::Unknown(Problem::new(Reason::StoreUnavailable, "no\0 answer")), None),
            2 if self.host == 0 => (DecisionKnown::OtherRound(other), Some(Successor::Absent)),
            2 if self.host == 1 => (DecisionKnown::AbortStands, Some(Successor::Absent)),
            2 => (DecisionKnown::CommitStands, Some(Successor::Base(base))),
            _ => (DecisionKnown::CommitStands, Some(Successor::Absent)),
        };
        Event::Settled { decision, successor, jitter: 500 }
    }

    fn resolved(self, round: &Round) -> Event {
        let local = resolved_locally(round, self.step);
        let Event::Resolved { mut resolved, hosts, discard } = local else { return local };
        let Kind::Pull(pull) = &round.kind else { return Event::Tick };
        // Another one than those that were retired.
        let seq = 1 + pull.retired.len() as u64;
        match self.host {
            0 => {
                resolved.source = Source::Location;
                resolved.location = Some(round.location.clone());
                resolved.commit = Some(CommitRef {
                    generation: Generation::FIRST,
                    seq: Seq::new(seq).unwrap(),
                    round: RoundId::new(Uuid::from_u128(5)),
                    digest: Digest::of(b"commit"),
                });
                resolved.parts = (0..round.layout.len()).map(|host_idx| part(round, self.step, host_idx)).collect();
                Event::Resolved { resolved, hosts, discard }
            }
            1 if self.step == 1 => {
                (resolved.source, resolved.step, resolved.fingerprint) = (Source::Fresh, None, None);
                let hosts = found(round, self.step).into_iter().map(|mut host| {
                    host.local_checkpoint = None;
                    host
                });
                Event::Resolved { resolved, hosts: hosts.collect(), discard: false }
            }
            _ => Event::Resolved { resolved, hosts, discard },
        }
    }
}
