//! The audit trail, followed event by event: legal phases under current terms (S6), one active round a pipeline (S13).

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{
    Audit,
    database::{Event, Rows},
};

/// Where a round may go from a phase.
fn next_phases(phase: &str) -> &'static [&'static str] {
    match phase {
        "planning" => &["transferring", "failed", "cancelled"],
        // Resolving: what a pull was served from was retired by its owner (G5).
        "transferring" => &["committing", "installing", "resolving", "failed", "cancelled"],
        "committing" => &["committed", "failed", "cancelled"],
        "resolving" => &["transferring", "fresh", "failed", "cancelled"],
        "installing" => &["installed", "failed"],
        _ => &[],
    }
}

/// Where a host may go from a phase.
fn next_host_phases(phase: &str) -> &'static [&'static str] {
    match phase {
        "waiting" => &["ordered", "staged"],
        "ordered" => &["done", "staged", "installed", "backing_off", "failed", "waiting"],
        // Staged: while installing, a host that restarted is asked whether it still has it.
        "backing_off" => &["ordered", "staged", "backing_off", "failed", "waiting"],
        "done" => &["backing_off", "failed"],
        "staged" => &["installed", "backing_off", "failed", "waiting"],
        "installed" => &["backing_off"],
        _ => &[],
    }
}

pub(super) fn is_terminal(phase: &str) -> bool {
    matches!(phase, "committed" | "installed" | "fresh" | "failed" | "cancelled")
}

/// One round as far as its events were followed.
#[derive(Debug, Default)]
struct Followed {
    phase: String,
    hosts: HashMap<u32, String>,
    term: i64,
    version: i64,
    /// Who claimed the present term.
    driver: String,
}

pub(super) fn check(rows: &Rows, audit: &mut Audit) {
    let mut rounds: BTreeMap<Uuid, Followed> = BTreeMap::new();
    let mut active: BTreeMap<Uuid, Uuid> = BTreeMap::new();
    for (at, event) in rows.events.iter().enumerate() {
        audit.events += 1;
        let Some(id) = event.round else { continue };
        if event.event == "round_admitted" {
            if let Some(other) = active.insert(event.pipeline, id) {
                audit.found("S13", format!("round {id} was admitted while {other} was active (event {})", event.id));
            }
            let phase = event.to.clone().unwrap_or_default();
            rounds.insert(id, Followed { phase, version: 1, ..Followed::default() });
            continue;
        }
        let Some(round) = rounds.get_mut(&id) else {
            audit.found("S6", format!("event {} is of round {id}, which was never admitted", event.id));
            continue;
        };
        follow(round, id, event, is_settled_by_adoption(&rows.events[at..]), audit);
        if event.event == "round_phase" && is_terminal(&round.phase) {
            active.remove(&event.pipeline);
        }
    }
    for row in rows.rounds.values() {
        let Some(round) = rounds.get(&row.id) else {
            audit.found("S6", format!("round {} has no event", row.id));
            continue;
        };
        if (round.phase.as_str(), round.term) != (row.phase.as_str(), row.term) || round.version > row.version {
            let (phase, term) = (&round.phase, round.term);
            audit.found(
                "S6",
                format!("round {} is {} in term {}, its events say {phase}, {term}", row.id, row.phase, row.term),
            );
        }
        if row.ended_at.is_some() != is_terminal(&row.phase) {
            audit.found("S6", format!("round {} is {} and ended at {:?}", row.id, row.phase, row.ended_at));
        }
        for host in rows.hosts(row.id) {
            let followed = round.hosts.get(&host.host_idx).map_or("waiting", String::as_str);
            if followed != host.phase {
                audit.found(
                    "S6",
                    format!("host {} of round {} is {}, its events say {followed}", host.host_idx, row.id, host.phase),
                );
            }
        }
    }
}

/// Whether the first of these events was written by whoever drives a take-over of the pipeline, with the adoption of the new generation: that ends the open round in
/// the same transaction, whoever drives it.
fn is_settled_by_adoption(events: &[Event]) -> bool {
    let Some(event) = events.first() else { return false };
    let next = events.iter().find(|next| next.pipeline == event.pipeline && next.event == "take_over_phase");
    next.is_some_and(|next| next.actor == event.actor && next.from.as_deref() == Some("adopting"))
}

fn follow(round: &mut Followed, id: Uuid, event: &Event, adopted: bool, audit: &mut Audit) {
    let name = format!("event {} of round {id}, {}", event.id, event.event);
    let (from, to) = (event.from.as_deref().unwrap_or_default(), event.to.as_deref().unwrap_or_default());
    let (Some(term), Some(version)) = (event.term, event.version) else {
        // A caller's wish or note: nothing of the round changed.
        if matches!(event.event.as_str(), "round_phase" | "host_phase" | "round_claimed") {
            audit.found("S6", format!("{name} has no term"));
        }
        return;
    };
    if event.event == "round_claimed" {
        if is_terminal(&round.phase) || term != round.term + 1 || version <= round.version {
            audit.found("S6", format!("{name} is a claim of term {term} after term {} in {}", round.term, round.phase));
        }
        round.driver.clone_from(&event.actor);
    } else if term != round.term || version < round.version {
        audit.found(
            "S6",
            format!(
                "{name} was written under term {term}, version {version}; current were {} and {}",
                round.term, round.version
            ),
        );
    } else if event.actor.starts_with("replica ") && event.actor != round.driver && !adopted {
        audit.found("S6", format!("{name} was written by {}, term {term} is that of {}", event.actor, round.driver));
    }
    (round.term, round.version) = (term.max(round.term), version.max(round.version));
    match event.event.as_str() {
        "round_phase" => {
            if from != round.phase || !next_phases(from).contains(&to) {
                audit.found("S6", format!("{name} goes from {from} to {to}, the round was {}", round.phase));
            }
            // Not found: what a host has lost is nowhere any more (ADR 14).
            let may_fail = |word: &&str| event.cause.contains(word);
            if from == "installing"
                && to == "failed"
                && !["SUPERSEDED", "superseded", "CHECKPOINT_NOT_FOUND"].iter().any(may_fail)
            {
                audit.found(
                    "S6",
                    format!("{name} fails an installing pull though nothing superseded it: {}", event.cause),
                );
            }
            to.clone_into(&mut round.phase);
        }
        "host_phase" => {
            let host = round.hosts.entry(event.host_idx.unwrap_or(u32::MAX)).or_insert_with(|| "waiting".to_owned());
            if from != host || !next_host_phases(from).contains(&to) {
                audit.found("S6", format!("{name}: host {:?} goes from {from} to {to}, it was {host}", event.host_idx));
            }
            to.clone_into(host);
        }
        _ => {}
    }
}
