//! What a run came to, in figures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    time::Duration,
};

use chrono::{DateTime, Utc};
use lockstep_integration_tests::auditor::{
    Audit,
    database::{Event, Rows},
};
use uuid::Uuid;

use crate::{schedule::Fault, strike::Struck};

/// Everything that is printed at the end.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    faults: BTreeMap<&'static str, (u32, u32)>,
    rounds: BTreeMap<(String, String), u32>,
    reasons: BTreeMap<String, u32>,
    changed_hands: usize,
    from_unknown: usize,
    to_claim: Vec<Duration>,
    to_end: Vec<Duration>,
    longest: Option<(Duration, String)>,
    longest_silence: Option<(Duration, String)>,
    /// Since the last fault, until the last round had ended.
    pub(crate) settled: Duration,
    pub(crate) refused: BTreeMap<String, u32>,
    pub(crate) without_space: u32,
    pub(crate) lost_answers: usize,
    pub(crate) audit: Audit,
}

fn is_terminal(phase: &str) -> bool {
    matches!(phase, "committed" | "installed" | "fresh" | "failed" | "cancelled")
}

/// One round as the audit trail tells it.
#[derive(Debug)]
struct Life<'e> {
    events: Vec<&'e Event>,
}

impl Life<'_> {
    /// Who drove it at a time, and whether it had not ended then.
    fn driver(&self, at: DateTime<Utc>) -> Option<&str> {
        let mut driver = None;
        for event in self.events.iter().take_while(|event| event.at <= at) {
            match event.event.as_str() {
                "round_claimed" => driver = event.actor.strip_prefix("replica "),
                "round_released" => driver = None,
                "round_phase" if event.to.as_deref().is_some_and(is_terminal) => return None,
                _ => {}
            }
        }
        driver
    }

    fn first(&self, after: DateTime<Utc>, like: impl Fn(&Event) -> bool) -> Option<Duration> {
        let event = self.events.iter().find(|event| event.at > after && like(event))?;
        (event.at - after).to_std().ok()
    }

    fn ended(event: &Event) -> bool {
        event.event == "round_phase" && event.to.as_deref().is_some_and(is_terminal)
    }
}

fn lives(rows: &Rows) -> BTreeMap<Uuid, Life<'_>> {
    let mut lives: BTreeMap<Uuid, Life<'_>> = BTreeMap::new();
    for event in &rows.events {
        if let Some(round) = event.round {
            lives.entry(round).or_insert_with(|| Life { events: Vec::new() }).events.push(event);
        }
    }
    lives
}

/// Replicas that a fault took away.
fn taken(fault: &Fault) -> Vec<usize> {
    match fault {
        Fault::KillCoordinator { which, .. } | Fault::StopCoordinator { which, .. } => vec![*which],
        Fault::KillBothCoordinators { .. } => vec![0, 1],
        _ => Vec::new(),
    }
}

impl Report {
    pub(crate) fn new(seed: u64, struck: &[Struck], rows: &Rows, audit: Audit) -> Self {
        let mut report = Self { seed, audit, ..Self::default() };
        for strike in struck {
            let (done, skipped) = report.faults.entry(strike.fault.class()).or_default();
            *if strike.done { done } else { skipped } += 1;
        }
        for round in rows.rounds.values() {
            *report.rounds.entry((round.kind.clone(), round.phase.clone())).or_default() += 1;
            if let Some(reason) = round.reason.as_ref().filter(|_| round.phase == "failed") {
                *report.reasons.entry(reason.clone()).or_default() += 1;
            }
            report.changed_hands += usize::from(round.term > 1);
            report.from_unknown += usize::from(round.unknown_tries > 0);
        }
        let lives = lives(rows);
        for strike in struck {
            let replicas: BTreeSet<String> =
                taken(&strike.fault).iter().map(|which| format!("coordinator{which}")).collect();
            for life in lives.values() {
                if life.driver(strike.struck).is_some_and(|driver| replicas.contains(driver)) {
                    report.to_claim.extend(life.first(strike.struck, |event| event.event == "round_claimed"));
                    report.to_end.extend(life.first(strike.struck, Life::ended));
                }
            }
        }
        report.to_claim.sort();
        report.to_end.sort();
        for (id, life) in &lives {
            report.note_times(*id, life, rows);
        }
        report
    }

    fn note_times(&mut self, id: Uuid, life: &Life<'_>, rows: &Rows) {
        let Some(round) = rows.rounds.get(&id) else { return };
        let name = format!("{} {id}, {}", round.kind, round.phase);
        if let Some(lasted) = round.ended_at.and_then(|ended| (ended - round.created_at).to_std().ok()) {
            self.longest = self.longest.take().max(Some((lasted, name.clone())));
        }
        let end = life.events.iter().position(|event| Life::ended(event)).unwrap_or(0);
        for pair in life.events[..=end].windows(2) {
            if let Ok(silence) = (pair[1].at - pair[0].at).to_std() {
                let what = format!("{name}, before {} to {}", pair[1].event, pair[1].to.as_deref().unwrap_or("?"));
                self.longest_silence = self.longest_silence.take().max(Some((silence, what)));
            }
        }
    }
}

/// Of sorted values; 0 to 100.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

fn quantiles(sorted: &[Duration]) -> String {
    match (percentile(sorted, 50), percentile(sorted, 99), sorted.last()) {
        (Some(p50), Some(p99), Some(most)) => {
            let seconds = Duration::as_secs_f64;
            format!(
                "p50 {:.2} s, p99 {:.2} s, longest {:.2} s of {}",
                seconds(&p50),
                seconds(&p99),
                seconds(most),
                sorted.len()
            )
        }
        _ => "none".to_owned(),
    }
}

fn list<K: Display>(counts: impl IntoIterator<Item = (K, u32)>) -> String {
    let listed: Vec<String> = counts.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u32 = self.faults.values().map(|(done, _)| done).sum();
        writeln!(f, "seed {}: {faults} faults in {:.0} s", self.seed, self.took.as_secs_f64())?;
        for (class, (done, skipped)) in &self.faults {
            let skipped = if *skipped > 0 { format!(" ({skipped} skipped: not possible here)") } else { String::new() };
            writeln!(f, "  {done:4}  {class}{skipped}")?;
        }
        let rounds = self.rounds.iter().map(|((kind, phase), count)| (format!("{kind} {phase}"), *count));
        writeln!(f, "rounds: {}", list(rounds))?;
        writeln!(f, "failed because of: {}", list(self.reasons.iter().map(|(reason, count)| (reason, *count))))?;
        writeln!(
            f,
            "resolved from unknown: {} rounds whose decision was unknown at least once, {} database writes",
            self.from_unknown, self.lost_answers
        )?;
        writeln!(f, "rounds that changed hands: {}", self.changed_hands)?;
        writeln!(f, "from the loss of a coordinator to the next claim: {}", quantiles(&self.to_claim))?;
        writeln!(f, "from the loss of a coordinator to the round's end: {}", quantiles(&self.to_end))?;
        for (what, longest) in [("longest round", &self.longest), ("longest silence in a round", &self.longest_silence)]
        {
            if let Some((lasted, which)) = longest {
                writeln!(f, "{what}: {:.1} s ({which})", lasted.as_secs_f64())?;
            }
        }
        writeln!(f, "all rounds had ended {:.1} s after the last fault", self.settled.as_secs_f64())?;
        writeln!(
            f,
            "calls refused: {}; checkpoints without space: {}",
            list(self.refused.iter().map(|(reason, count)| (reason, *count))),
            self.without_space
        )?;
        let audit = &self.audit;
        writeln!(
            f,
            "audited: {} commits, {} aborts, {} files, {} installed pulls, {} events; orphans: {} objects, {} bytes, {} open uploads",
            audit.commits,
            audit.aborts,
            audit.files,
            audit.installed,
            audit.events,
            audit.orphans,
            audit.orphan_bytes,
            audit.open_uploads
        )?;
        write!(f, "findings: {}", audit.findings.len())
    }
}
