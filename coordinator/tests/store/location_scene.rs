//! What the writes about locations are tried on, and all that a database holds as text that two databases can share.

use std::sync::Mutex;

use chrono::{DateTime, TimeDelta, Utc};
use lockstep_coordinator::store::{
    AdmitTakeOver, AdmitUpkeep, Difference, Finding, NewPipeline, PipelineRow, Store, TakeOverApplied, Verification,
};
use lockstep_protocol::{
    commit::CommitRef,
    fence::FenceBase,
    id::{Attempt, Generation},
    problem::{Problem, Reason},
    ready::Telling,
    round::{Event, HostReport, Kind, RetryPolicy, Round, Transition},
    spec::PipelineSpec,
    takeover::{Decision, Phase, Prepared, Purpose, TakeOver},
    upkeep::{Upkeep, Work},
    verification::Scope,
};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use crate::{
    rig::{
        LEASE, Rig, admitted, alice, incarnation, new_pipeline, planned, pull, push, replica, resolved_locally, spec,
    },
    wire::{Cut, Wire},
};

pub(crate) struct Scene<'w> {
    pub(crate) rig: Rig,
    /// Through the proxy.
    pub(crate) store: Store,
    wire: &'w Wire,
    cut: Option<Cut>,
    /// All that was there right before the write.
    before: Mutex<String>,
}

impl<'w> Scene<'w> {
    pub(crate) const fn new(rig: Rig, store: Store, wire: &'w Wire, cut: Option<Cut>) -> Self {
        Self { rig, store, wire, cut, before: Mutex::new(String::new()) }
    }

    /// Everything is prepared: the next write is the one.
    pub(crate) async fn ready(&self) {
        *self.before.lock().unwrap() = self.all().await;
        if let Some(cut) = self.cut {
            self.wire.arm(cut);
        }
    }

    pub(crate) fn before(&self) -> String {
        self.before.lock().unwrap().clone()
    }

    /// All rows of all tables, but for ids, digests and exact times.
    pub(crate) async fn all(&self) -> String {
        let mut sql = self.rig.sql().await;
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT table_name::text FROM information_schema.tables
             WHERE table_schema = 'public' AND table_name NOT IN ('_sqlx_migrations') ORDER BY 1",
        )
        .fetch_all(&mut sql)
        .await
        .unwrap();
        let mut all = String::new();
        for table in tables {
            // Numbers of the audit trail are of a sequence, which what is rolled back uses up too; a standby's version only tells looks apart.
            let left_out = if table == "standbys" { "- 'version'" } else { "- 'id'" };
            let rows = format!("SELECT (to_jsonb(t) {left_out})::text AS row FROM {table} t");
            let rows = sqlx::query(AssertSqlSafe(rows)).fetch_all(&mut sql).await.unwrap();
            let mut lines: Vec<String> = rows.iter().map(|row| plain(&row.get::<String, _>("row"))).collect();
            lines.sort_unstable();
            all.extend(lines.into_iter().map(|line| format!("{table}: {line}\n")));
        }
        all
    }

    /// Owns its location in generation 1, with two commits.
    pub(crate) async fn owner(&self) -> (PipelineRow, [CommitRef; 2]) {
        let pipeline = self.rig.pipeline("orders").await;
        let mut commits = Vec::new();
        for step in [10, 20] {
            let Kind::Push(push) = self.rig.commit(&pipeline, step).await.kind else { panic!("a push") };
            commits.push(push.committed.unwrap());
        }
        let row = self.rig.store.get_pipeline(&pipeline.id.into()).await.unwrap();
        (row, commits.try_into().unwrap())
    }

    pub(crate) async fn standby(&self) -> PipelineRow {
        let mut value = spec("heir", "heir").to_value();
        value["initial"] = "standby".into();
        let new = NewPipeline { fence_bytes: None, ..new_pipeline(PipelineSpec::from_value(value).unwrap()) };
        self.rig.store.create_pipeline(new, &alice()).await.unwrap().into_row()
    }

    /// Claimed by replica one, in its first phase.
    pub(crate) async fn take_over(&self, pipeline: &PipelineRow, purpose: Purpose) -> TakeOver {
        self.rig.store.admit_take_over(take_over(pipeline, purpose), &alice()).await.unwrap();
        self.rig.store.claim_take_overs("one", LEASE).await.unwrap().pop().unwrap()
    }

    /// As it was decided, without anything to adopt.
    pub(crate) async fn moved(&self, before: &TakeOver, phase: Phase) -> TakeOver {
        let moved = self.rig.store.apply_take_over(before, &to(before, phase), None, &replica()).await.unwrap();
        match moved {
            TakeOverApplied::Stored(next) => next,
            TakeOverApplied::Moved => panic!("nobody else moves it"),
        }
    }

    /// Admitted and claimed by replica one.
    pub(crate) async fn upkeep(&self, pipeline: &PipelineRow, work: Work) -> Upkeep {
        self.rig.store.admit_upkeep(upkeep(pipeline, work), &alice()).await.unwrap();
        self.rig.store.claim_upkeep("one", LEASE, 1).await.unwrap().pop().unwrap()
    }

    /// A push that waits for its hosts.
    pub(crate) async fn pushing(&self, pipeline: &PipelineRow) -> Round {
        admitted(self.rig.store.admit_push(push(pipeline), &alice()).await.unwrap());
        let round = self.rig.claim().await;
        let event = planned(&round, 30);
        self.rig.step(round, event).await
    }

    /// Of a pull that is done on every host.
    pub(crate) async fn word(&self, pipeline: &PipelineRow) {
        admitted(self.rig.store.admit_pull(pull(pipeline), &alice()).await.unwrap());
        let round = self.rig.claim().await;
        let event = resolved_locally(&round, 4);
        let mut round = self.rig.step(round, event).await;
        for host_idx in 0..3 {
            let (attempt, incarnation, report) = (Attempt::FIRST, incarnation(host_idx), HostReport::Installed);
            round = self.rig.step(round, Event::HostDone { host_idx, attempt, incarnation, report }).await;
        }
        let incarnations = (0..3).map(|host_idx| Some(incarnation(host_idx))).collect();
        self.rig.step(round, Event::Confirmed { incarnations, jitter: 0 }).await;
    }

    pub(crate) async fn claimed_word(&self) -> Telling {
        let (pipeline, _) = self.owner().await;
        self.word(&pipeline).await;
        self.rig.store.claim_words(LEASE).await.unwrap().pop().unwrap()
    }

    /// Its newest checkpoint is noted as lost.
    pub(crate) async fn lost(&self) -> (PipelineRow, CommitRef) {
        let (pipeline, [_, newest]) = self.owner().await;
        let row = (pipeline.id, pipeline.generation);
        assert!(self.rig.store.note_difference(row, Difference::Lost(newest), problem(), &replica()).await.unwrap());
        (pipeline, newest)
    }

    /// Of the newest checkpoint, damaged: its mark is owed.
    pub(crate) async fn damaged(&self) -> Verification {
        let (pipeline, [_, newest]) = self.owner().await;
        self.rig.store.keep_verification(finding(&pipeline, newest), &alice()).await.unwrap()
    }
}

pub(crate) fn take_over(pipeline: &PipelineRow, purpose: Purpose) -> AdmitTakeOver {
    AdmitTakeOver {
        pipeline: pipeline.id.into(),
        purpose,
        chosen: None,
        request_id: None,
        seen: None,
        retry: RetryPolicy::default(),
    }
}

pub(crate) fn upkeep(pipeline: &PipelineRow, work: Work) -> AdmitUpkeep {
    AdmitUpkeep {
        pipeline: pipeline.id.into(),
        work,
        request_id: None,
        at_least_apart: None,
        retry: RetryPolicy::default(),
    }
}

pub(crate) fn finding(pipeline: &PipelineRow, commit: CommitRef) -> Finding {
    let problems = vec![problem()];
    let started_at = Utc::now();
    Finding { pipeline: pipeline.id, commit, scope: Scope::All, rolling: false, bytes: 10, problems, started_at }
}

pub(crate) fn problem() -> Problem {
    Problem::new(Reason::StoreUnavailable, "the store\0 is away").with("host_idx", 1)
}

/// With what a take-over has by then: fence 2, and a base that excludes everything.
pub(crate) fn to(before: &TakeOver, phase: Phase) -> Decision {
    let (generation, mut next) = (Generation::FIRST.next(), before.clone());
    next.phase = phase;
    next.fence = (phase != Phase::Preparing).then(|| Prepared { generation, bytes: "{}".to_owned() });
    let based = matches!(phase, Phase::Adopting | Phase::Pulling | Phase::Done);
    next.base = based.then(|| FenceBase { generation, newest: None, tombstones: Vec::new() });
    let (from, cause) = (before.phase.as_str(), "decided".to_owned());
    let transitions = vec![Transition { host_idx: None, from, to: phase.as_str(), cause }];
    Decision { next, transitions, fence_pipeline: false }
}

/// Without what differs between two runs of the same: ids, digests, and times but for whether they are to come.
pub(crate) fn plain(text: &str) -> String {
    let now = Utc::now();
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '+');
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(char) = rest.chars().next() {
        if !part(char) {
            plain.push(char);
            rest = &rest[char.len_utf8()..];
            continue;
        }
        let whole = &rest[..rest.find(|c| !part(c)).unwrap_or(rest.len())];
        rest = &rest[whole.len()..];
        let run = whole.trim_end_matches([':', '.']);
        plain.push_str(&match DateTime::parse_from_rfc3339(run) {
            Ok(at) if at <= now => "<past>".to_owned(),
            Ok(at) if at <= now + TimeDelta::minutes(5) => "<soon>".to_owned(),
            Ok(_) => "<late>".to_owned(),
            Err(_) if Uuid::parse_str(run).is_ok() => "<id>".to_owned(),
            Err(_) => without_hex(run),
        });
        plain.push_str(&whole[run.len()..]);
    }
    plain
}

/// Lines that only one of them has.
pub(crate) fn differences(left: &str, right: &str) -> String {
    let only = |of: &str, other: &str, mark: &str| {
        let lines = of.lines().filter(|line| !other.lines().any(|known| known == *line));
        lines.map(|line| format!("{mark} {line}\n")).collect::<String>()
    };
    only(left, right, "-") + &only(right, left, "+")
}

fn without_hex(run: &str) -> String {
    let hex = run.bytes().rev().take_while(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).count();
    if hex < 32 { run.to_owned() } else { format!("{}<hex>", &run[..run.len() - hex]) }
}
