//! Every distinct round value of a world, numbered, and what the production `decide` and `effects` make of it.
//!
//! A state holds numbers; the round behind a number and the answer to (round, event) are worked out once, by the production code, and looked
//! up ever after: a world of millions of states has some thousand distinct rounds. What a number stands for is the same on all threads.
//!
//! A round is entered in a canonical form, so that states close: version and term are kept by the world, which compares them as the store does;
//! back-offs are always over, since any delay is possible; messages for readers are left out.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError, RwLock},
};

use chrono::TimeDelta;
use lockstep_protocol::{
    commit::{CommitDocument, DecisionObject},
    digest::Digest,
    id::Term,
    key::Key,
    problem::{Problem, Reason},
    round::{
        Effect, Kind, Participant, ParticipantPhase, Phase, Round, SettleState, check_cancellable, decide, effects,
    },
};

use super::{
    cast::{self, Cast},
    told::Told,
};

/// Most distinct rounds of one world.
const MOST_ROUNDS: usize = 1 << 16;
/// Most distinct decision documents of one world.
const MOST_PAPERS: usize = 1 << 8;

/// Number of a round value.
pub(super) type Page = u16;

/// Number of a decision document, from 1.
pub(super) type Paper = u8;

/// A round value and what follows from it alone.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) round: Round,
    pub(super) effects: Vec<Effect>,
    pub(super) cancellable: bool,
    pub(super) commit: Option<Paper>,
    pub(super) abort: Option<Paper>,
    /// An invariant that the value itself breaks.
    pub(super) broken: Option<String>,
}

impl Entry {
    pub(super) const fn phase(&self) -> Phase {
        self.round.phase
    }

    pub(super) fn participant(&self, host: u8) -> &Participant {
        &self.round.participants[usize::from(host)]
    }

    pub(super) fn attempt(&self, host: u8) -> u8 {
        u8::try_from(self.participant(host).attempt.get()).unwrap_or(u8::MAX)
    }

    /// The process that the present attempt of a host is for; 0: none yet.
    pub(super) fn process(&self, host: u8) -> u8 {
        self.participant(host).incarnation.map_or(0, cast::process_of)
    }

    /// One line for a trace.
    pub(super) fn describe(&self) -> String {
        let hosts: Vec<String> = self
            .round
            .participants
            .iter()
            .map(|p| {
                let process = p.incarnation.map_or(0, cast::process_of);
                format!("{} attempt {} process {process}", p.phase.as_str(), p.attempt)
            })
            .collect();
        let why = self.round.problem.as_ref().map_or_else(String::new, |problem| format!(" ({})", problem.reason));
        format!("{}{why} [{}]", self.round.phase, hosts.join("; "))
    }
}

/// A decision document.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) round: u8,
    pub(super) is_commit: bool,
    pub(super) digest: Digest,
    /// An invariant that the document itself breaks.
    pub(super) broken: Option<String>,
}

/// What `decide` made of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) next: Page,
    /// Whether anything must be stored, be it only a number of tries.
    pub(super) changes: bool,
    pub(super) fence_pipeline: bool,
}

type Question = (Page, Told, u8);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) cast: Cast,
    rounds: Box<[OnceLock<Entry>]>,
    rounds_by_text: Mutex<HashMap<String, Page>>,
    papers: Box<[OnceLock<Document>]>,
    papers_by_text: Mutex<HashMap<String, Paper>>,
    answers: RwLock<HashMap<Question, Answer>>,
}

impl Book {
    pub(super) fn new(cast: Cast) -> Self {
        Self {
            cast,
            rounds: (0..MOST_ROUNDS).map(|_| OnceLock::new()).collect(),
            rounds_by_text: Mutex::default(),
            papers: (0..MOST_PAPERS).map(|_| OnceLock::new()).collect(),
            papers_by_text: Mutex::default(),
            answers: RwLock::default(),
        }
    }

    pub(super) fn entry(&self, page: Page) -> &Entry {
        self.rounds[usize::from(page)].get().unwrap_or_else(|| unreachable!("round {page} was never entered"))
    }

    pub(super) fn document(&self, paper: Paper) -> &Document {
        self.papers[usize::from(paper)].get().unwrap_or_else(|| unreachable!("document {paper} was never entered"))
    }

    /// Distinct rounds, and distinct questions put to the production code.
    pub(super) fn size(&self) -> (usize, usize) {
        (
            self.rounds_by_text.lock().unwrap_or_else(PoisonError::into_inner).len(),
            self.answers.read().unwrap_or_else(PoisonError::into_inner).len(),
        )
    }

    /// What the production code decides. `tick` tells apart the moments at which a document may be made.
    pub(super) fn decide(&self, page: Page, told: Told, tick: u8) -> Answer {
        let question = (page, told, if told == Told::PartsChecked { tick } else { 0 });
        if let Some(known) = self.answers.read().unwrap_or_else(PoisonError::into_inner).get(&question) {
            return *known;
        }
        let before = &self.entry(page).round;
        let now = if told == Told::Deadline { cast::deadline() } else { cast::time(question.2) };
        let decision = decide(before, &told.event(&self.cast), now);
        let answer = Answer {
            changes: decision.changes(before),
            fence_pipeline: decision.fence_pipeline,
            next: self.enter(decision.next),
        };
        self.answers.write().unwrap_or_else(PoisonError::into_inner).insert(question, answer);
        answer
    }

    /// The number of a round.
    pub(super) fn enter(&self, round: Round) -> Page {
        let round = canonical(round);
        let text = format!("{round:?}");
        let mut known = self.rounds_by_text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = known.get(&text) {
            return *page;
        }
        let page = cast::valid(Page::try_from(known.len()));
        let entry = self.entry_of(round);
        // Nobody else fills it: the lock is held.
        let _ = self.rounds[usize::from(page)].set(entry);
        known.insert(text, page);
        page
    }

    fn entry_of(&self, round: Round) -> Entry {
        let (commit, abort) = match &round.kind {
            Kind::Push(push) => (
                push.commit_bytes.as_deref().map(|bytes| self.paper(&round, bytes)),
                push.abort_bytes.as_deref().map(|bytes| self.paper(&round, bytes)),
            ),
            Kind::Pull(_) => (None, None),
        };
        let later = cast::deadline() + TimeDelta::days(1);
        Entry {
            effects: effects(&round, later),
            cancellable: check_cancellable(&round).is_ok(),
            broken: broken(&round),
            commit,
            abort,
            round,
        }
    }

    fn paper(&self, round: &Round, bytes: &str) -> Paper {
        let mut known = self.papers_by_text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(paper) = known.get(bytes) {
            return *paper;
        }
        // 0 is an empty key.
        let paper = cast::valid(Paper::try_from(known.len() + 1));
        let _ = self.papers[usize::from(paper)].set(document(round, bytes));
        known.insert(bytes.to_owned(), paper);
        paper
    }
}

fn canonical(mut round: Round) -> Round {
    round.version = 0;
    round.term = Term::NONE;
    let bare = |problem: &Problem| Problem::new(problem.reason, "");
    let terminal = round.phase.is_terminal();
    round.problem = round.problem.as_ref().filter(|_| terminal).map(bare);
    for participant in &mut round.participants {
        // `decide` asks one thing of it only, while the host backs off: whether the checkpoint was lost.
        participant.problem = participant
            .problem
            .as_ref()
            .filter(|problem| {
                participant.phase == ParticipantPhase::BackingOff && problem.reason == Reason::CheckpointNotFound
            })
            .map(bare);
        participant.retry_at = None;
    }
    if let Kind::Push(push) = &mut round.kind {
        push.settle = SettleState::default();
    }
    if terminal {
        // Nothing is decided any more: how it came to its end is in the world's other parts.
        round.participants = round
            .participants
            .iter()
            .map(|participant| Participant::waiting(participant.host_idx, participant.address.clone()))
            .collect();
        if let Kind::Push(push) = &mut round.kind {
            push.abort_bytes = None;
            if round.phase != Phase::Committed {
                push.commit_bytes = None;
            }
        }
    }
    round
}

/// S8 and S9, as far as a row alone shows them.
fn broken(round: &Round) -> Option<String> {
    let Kind::Push(push) = &round.kind else { return None };
    for participant in &round.participants {
        let Some(part) = &participant.part else { continue };
        let Some(Key::PartManifest(path)) = Key::parse(&part.manifest) else {
            return Some(format!("S8: {:?} is no part manifest", part.manifest));
        };
        if Some(path.incarnation) != participant.incarnation || path.attempt != participant.attempt {
            return Some(format!(
                "S8: host {} counts a part of attempt {} by {}, its row names attempt {} by {:?}",
                participant.host_idx, path.attempt, path.incarnation, participant.attempt, participant.incarnation
            ));
        }
        if push.step.is_none() || Some(part.local_checkpoint) != participant.local_checkpoint {
            return Some(format!("S9: the part of host {} is of another cut", participant.host_idx));
        }
    }
    if round.phase == Phase::Committing && push.commit_bytes.is_none() {
        return Some("push step 4: committing without stored bytes".to_owned());
    }
    None
}

/// S2 and S9, as far as a document alone shows them.
fn document(round: &Round, bytes: &str) -> Document {
    let number = cast::valid(u8::try_from(round.round_no.get() - 1));
    let key = match &round.kind {
        Kind::Push(push) => Key::Commit(round.generation, push.seq).to_string(),
        Kind::Pull(_) => String::new(),
    };
    let (is_commit, broken) = match DecisionObject::parse(&key, bytes.as_bytes()) {
        Ok(DecisionObject::Commit(commit)) => (true, unlike(round, &commit)),
        Ok(DecisionObject::Abort(_)) => (false, None),
        Err(problem) => (false, Some(format!("S2: {problem}"))),
    };
    Document { round: number, is_commit, digest: Digest::of(bytes.as_bytes()), broken }
}

fn unlike(round: &Round, commit: &CommitDocument) -> Option<String> {
    let parts: Vec<_> = round.participants.iter().filter_map(|participant| participant.part.clone()).collect();
    let Kind::Push(push) = &round.kind else { return None };
    if commit.layout != round.layout || commit.parts != parts {
        return Some("S2: the commit does not name each host's part".to_owned());
    }
    (Some(commit.step) != push.step).then(|| "S9: the commit is of another step than its round".to_owned())
}
