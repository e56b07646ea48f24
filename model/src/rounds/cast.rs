//! Who and what appears in the worlds: the same few ids, headers and documents each time, so that states can be told apart by small numbers.

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_protocol::{
    commit::{CommitPart, CommitRef},
    digest::Digest,
    fence::{FenceBase, Successor},
    host::Layout,
    id::{
        Attempt, Generation, Incarnation, LocalCheckpointId, PipelineId, PipelineName, RoundId, RoundNo, Seq, Step,
        Term,
    },
    key::AttemptPath,
    location::Location,
    order::{AgentIdentity, OrderHeader, OrderMark, PipelineSelector},
    round::{
        CancelRequest, Kind, Participant, Phase, PullRequest, PullState, PushState, RetryPolicy, Round, WantedCut,
    },
    spec::PullSelector,
};
use uuid::Uuid;

/// Hosts that a state has room for.
pub(super) const MOST_HOSTS: usize = 3;

/// Processes of one host that the cast knows: its first and its restarts.
pub(super) const MOST_INCARNATIONS: u8 = 4;

/// Small numbers and literals of the cast are valid by construction: a panic here is a defect of the model.
pub(super) fn valid<T, E: std::fmt::Debug>(made: Result<T, E>) -> T {
    made.unwrap_or_else(|error| unreachable!("the cast of the model is not valid: {error:?}"))
}

/// What one attempt of one host wrote: part manifest and objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Wrote {
    pub(super) round: u8,
    pub(super) host: u8,
    /// As its key names it.
    pub(super) incarnation: u8,
    pub(super) attempt: u8,
    pub(super) step: u8,
    /// The process that really wrote it.
    pub(super) by: u8,
}

/// The fixed cast. Rounds are numbered from 0, incarnations, attempts, steps and terms from 1.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) hosts: u8,
    max_attempts: u32,
    header: OrderHeader,
    identities: Vec<AgentIdentity>,
}

impl Cast {
    pub(super) fn new(hosts: u8, max_attempts: u32) -> Self {
        let location: Location = valid("s3://model/orders?endpoint=http://s3".parse());
        let name = valid(PipelineName::new("orders"));
        let layout = layout(hosts);
        let header = OrderHeader {
            pipeline: pipeline(),
            pipeline_name: name.clone(),
            slot: valid(layout.slot(0)),
            incarnation: incarnation(0, 1),
            generation: Generation::FIRST,
            round_no: valid(RoundNo::new(1)),
            term: Term::NONE,
            round: round_id(0),
            attempt: Attempt::FIRST,
            own_location: location.clone(),
        };
        let identities = (0..hosts)
            .flat_map(|host| (1..=MOST_INCARNATIONS).map(move |process| (host, process)))
            .map(|(host, process)| AgentIdentity {
                pipeline: PipelineSelector::Name(name.clone()),
                slot: valid(layout.slot(host.into())),
                incarnation: incarnation(host, process),
                allowed: vec![location.clone()],
            })
            .collect();
        Self { hosts, max_attempts, header, identities }
    }

    pub(super) fn layout(&self) -> Layout {
        layout(self.hosts)
    }

    /// What the agent process of a host was started with.
    pub(super) fn identity(&self, host: u8, process: u8) -> &AgentIdentity {
        &self.identities[usize::from(host) * usize::from(MOST_INCARNATIONS) + usize::from(process) - 1]
    }

    pub(super) const fn own_location(&self) -> &Location {
        &self.header.own_location
    }

    pub(super) fn header(&self, host: u8, process: u8, round: u8, attempt: u8, driver_term: u8) -> OrderHeader {
        OrderHeader {
            slot: valid(self.layout().slot(host.into())),
            incarnation: incarnation(host, process),
            round_no: round_no(round),
            term: term(driver_term),
            round: round_id(round),
            attempt: attempt_no(attempt),
            ..self.header.clone()
        }
    }

    fn round(&self, round: u8, phase: Phase, kind: Kind) -> Round {
        Round {
            id: round_id(round),
            pipeline: pipeline(),
            pipeline_name: self.header.pipeline_name.clone(),
            round_no: round_no(round),
            generation: Generation::FIRST,
            layout: self.layout(),
            location: self.header.own_location.clone(),
            version: 0,
            term: Term::NONE,
            phase,
            deadline: deadline(),
            problem: None,
            cancel: None,
            participants: (0..self.hosts).map(|host| Participant::waiting(host.into(), format!("h{host}"))).collect(),
            retry: RetryPolicy { max_attempts: self.max_attempts, ..RetryPolicy::default() },
            kind,
        }
    }

    /// As admission makes it.
    pub(super) fn push(&self, round: u8) -> Round {
        let kind = Kind::Push(PushState::asked(seq(round), WantedCut::Newest, false, None));
        self.round(round, Phase::Planning, kind)
    }

    /// As admission makes it.
    pub(super) fn pull(&self, round: u8) -> Round {
        let request = PullRequest {
            selector: PullSelector::Latest,
            standby: false,
            fail_if_none: true,
            allow_fingerprint: false,
            discard_local: false,
        };
        self.round(round, Phase::Resolving, Kind::Pull(PullState::asked(request)))
    }

    /// A part as its attempt reports it. Its digest names who wrote it, so that two attempts never wrote the same bytes.
    pub(super) fn part(&self, wrote: Wrote) -> CommitPart {
        CommitPart {
            host_idx: wrote.host.into(),
            local_checkpoint: local(wrote.host, wrote.step),
            manifest: self.path(wrote).manifest().to_string(),
            manifest_length: 1,
            manifest_blake3: Digest::of(format!("{wrote:?}").as_bytes()),
            files: 1,
            bytes: 1,
            bytes_uploaded: 1,
            processed_records: None,
        }
    }

    pub(super) fn path(&self, wrote: Wrote) -> AttemptPath {
        AttemptPath::new(
            valid(self.layout().slot(wrote.host.into())),
            Generation::FIRST,
            round_id(wrote.round),
            incarnation(wrote.host, wrote.incarnation),
            attempt_no(wrote.attempt),
        )
    }
}

fn layout(hosts: u8) -> Layout {
    valid(Layout::hosts(hosts.into()))
}

fn pipeline() -> PipelineId {
    PipelineId::new(Uuid::from_u128(1))
}

pub(super) fn round_id(round: u8) -> RoundId {
    RoundId::new(Uuid::from_u128(0x3000 + u128::from(round)))
}

fn round_no(round: u8) -> RoundNo {
    valid(RoundNo::new(u64::from(round) + 1))
}

pub(super) fn seq(round: u8) -> Seq {
    valid(Seq::new(u64::from(round) + 1))
}

pub(super) fn term(term: u8) -> Term {
    valid(Term::new(term.into()))
}

pub(super) fn attempt_no(attempt: u8) -> Attempt {
    valid(Attempt::new(attempt.into()))
}

pub(super) fn step(step: u8) -> Step {
    valid(Step::new(step.into()))
}

pub(super) fn incarnation(host: u8, process: u8) -> Incarnation {
    Incarnation::new(Uuid::from_u128(0x1000 + 0x100 * u128::from(host) + u128::from(process)))
}

/// Back from [`incarnation`].
pub(super) fn process_of(incarnation: Incarnation) -> u8 {
    valid(u8::try_from(incarnation.uuid().as_u128() & 0xff))
}

pub(super) fn local(host: u8, step: u8) -> LocalCheckpointId {
    LocalCheckpointId::new(Uuid::from_u128(0x2000 + 0x100 * u128::from(host) + u128::from(step)))
}

/// What an agent has persisted, as (round, term); none: no order yet.
pub(super) fn mark(mark: Option<(u8, u8)>) -> Option<OrderMark> {
    let (round, driver_term) = mark?;
    Some(OrderMark { generation: Generation::FIRST, round_no: round_no(round), term: term(driver_term) })
}

/// The commit of a round as a base of generation 2 names it. What its bytes are is of no matter there.
pub(super) fn commit_ref(round: u8) -> CommitRef {
    CommitRef { generation: Generation::FIRST, seq: seq(round), round: round_id(round), digest: Digest::of(&[round]) }
}

/// Generation 2 with its base, which names this round's commit or none.
pub(super) fn base(newest: Option<u8>) -> Successor {
    Successor::Base(FenceBase {
        generation: Generation::FIRST.next(),
        newest: newest.map(commit_ref),
        tombstones: Vec::new(),
    })
}

pub(super) fn cancel_request() -> CancelRequest {
    CancelRequest { by: "a user".to_owned(), cause: "asked".to_owned() }
}

/// The database's clock. `tick` tells moments apart where it matters: bytes that are made twice are not the same bytes.
pub(super) fn time(tick: u8) -> DateTime<Utc> {
    start() + TimeDelta::seconds(tick.into())
}

pub(super) fn deadline() -> DateTime<Utc> {
    start() + TimeDelta::hours(1)
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap_or_default()
}
