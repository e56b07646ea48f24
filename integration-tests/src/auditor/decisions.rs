//! Commits against their objects, and the bucket against the database.

use std::collections::BTreeSet;

use super::{
    Audit, Evidence,
    database::{PipelineRow, RoundRow},
    location::{Commit, Decision, LocationView, decision_key},
    parts::Follower,
};

/// A file that stores write themselves and engines don't: it is compared on disks, not in parts.
pub(super) const OWN_FILE: &str = "checkpoint.json";

/// What stands in a location, whichever pipelines wrote it one after the other.
pub(super) fn check_location(view: &LocationView, evidence: &Evidence, audit: &mut Audit) {
    let mut follower = Follower::default();
    for (place, commit) in view.standing() {
        audit.commits += 1;
        let name = format!("commit {}{}", view.prefix, decision_key(place));
        check_hosts(&name, commit, audit);
        for part in &commit.parts {
            match follower.follow(evidence, &view.prefix, commit, part) {
                Err((rule, what)) => audit.found(rule, format!("{name}: {what}")),
                Ok(followed) => {
                    // What the engine made is what was pushed.
                    let Some(made) = evidence.history.made.get(&part.local_checkpoint) else { continue };
                    let made_files = made.files.iter().filter(|(path, _)| *path != OWN_FILE);
                    let pushed = followed.files.iter().filter(|(path, _)| *path != OWN_FILE);
                    if !made_files.eq(pushed) || (made.step, made.host_idx) != (commit.step, part.host_idx) {
                        audit.found("S9", format!("{name}: host {} is not what its engine made", part.host_idx));
                    }
                }
            }
        }
        check_row(&name, commit, evidence, audit);
    }
    audit.files += follower.files;
    audit.aborts += view.decisions.values().filter(|decision| matches!(decision, Decision::Abort(_))).count();
    for (place, decision) in &view.decisions {
        let round = evidence.rows.rounds.get(&decision.round()).filter(|row| {
            let pipeline = evidence.rows.pipelines.get(&row.pipeline);
            row.pipeline == decision.pipeline() && pipeline.is_some_and(|pipeline| pipeline.prefix == view.prefix)
        });
        if round.is_none_or(|row| row.seq.map(|seq| (row.generation, seq)) != Some(*place)) {
            audit
                .found("S3", format!("{}{} decides a round that has no such place", view.prefix, decision_key(*place)));
        }
    }
    count_orphans(view, evidence, &follower.reached, audit);
}

/// What the database knows of one pipeline's rounds.
pub(super) fn check_pipeline(pipeline: &PipelineRow, view: &LocationView, evidence: &Evidence, audit: &mut Audit) {
    for round in evidence.rows.rounds.values().filter(|round| round.pipeline == pipeline.id) {
        check_bucket(round, view, evidence, audit);
    }
    check_newest(pipeline, view, audit);
}

/// S2, and the digest over the parts.
fn check_hosts(name: &str, commit: &Commit, audit: &mut Audit) {
    let named: Vec<u32> = commit.parts.iter().map(|part| part.host_idx).collect();
    if !named.iter().copied().eq(0..commit.n_hosts.max(1)) {
        audit.found("S2", format!("{name} has {} hosts and names {named:?}", commit.n_hosts));
    }
    let mut root = blake3::Hasher::new();
    for part in &commit.parts {
        root.update(format!("{} {} {}\n", part.host_idx, part.manifest, part.manifest_blake3).as_bytes());
    }
    if root.finalize().to_hex().as_str() != commit.root {
        audit.found("S1", format!("{name} has another root than its parts"));
    }
}

/// A standing commit is a committed row (S4), made of the very attempts that its participants name (S8).
fn check_row(name: &str, commit: &Commit, evidence: &Evidence, audit: &mut Audit) {
    let Some(row) = evidence.rows.rounds.get(&commit.round).filter(|row| row.pipeline == commit.pipeline) else {
        return audit.found("S4", format!("{name} stands and has no round"));
    };
    if row.phase != "committed" {
        audit.found("S4", format!("{name} stands and counts, its round {} is {}", row.id, row.phase));
    }
    let hosts = evidence.rows.hosts(row.id);
    for part in &commit.parts {
        let folder = if commit.n_hosts == 0 { "solo".to_owned() } else { format!("host{}", part.host_idx) };
        let expected = hosts.iter().find(|host| host.host_idx == part.host_idx).and_then(|host| {
            let incarnation = host.incarnation?;
            Some(format!("{folder}/{}/{}/{incarnation}-{}/part.json", commit.generation, row.id, host.attempt))
        });
        if expected.as_deref() != Some(part.manifest.as_str()) {
            audit.found(
                "S8",
                format!("{name} has host {}'s part from {}, its row says {expected:?}", part.host_idx, part.manifest),
            );
        }
    }
}

/// What a row says stands, stands (S4, S15); what it says will never count, doesn't (S5).
fn check_bucket(row: &RoundRow, view: &LocationView, evidence: &Evidence, audit: &mut Audit) {
    let Some(place) = row.seq.map(|seq| (row.generation, seq)) else { return };
    let key = format!("{}{}", view.prefix, decision_key(place));
    let name = format!("round {} at {key}", row.id);
    let mine = view.counted(place).filter(|commit| commit.round == row.id);
    match row.phase.as_str() {
        // A tombstone stands for a commit that was swept.
        "committed" if view.retired.contains(&place) => {}
        "committed" => {
            if mine.is_none() {
                return audit.found("S4", format!("{name} is committed, and no such commit counts"));
            }
            let stands = evidence.objects.get(&key);
            let digest = stands.map(|bytes| blake3::hash(bytes).to_hex().to_string());
            if digest != row.commit_digest || row.commit_bytes.as_ref() != stands {
                audit.found("S4", format!("{name} is committed with other bytes than stand there"));
            }
        }
        "failed" | "cancelled" => {
            if mine.is_some() {
                audit.found("S5", format!("{name} is {} and its commit counts", row.phase));
            }
        }
        other => audit.found("L1", format!("{name} is still {other}")),
    }
}

/// The newest commit that the pipeline knows of is the newest that stands, if it owns the location.
fn check_newest(pipeline: &PipelineRow, view: &LocationView, audit: &mut Audit) {
    let newest = view.standing().map(|(place, commit)| (place, commit.round)).max();
    let known = pipeline.last.zip(pipeline.last_round);
    let owns = pipeline.generation == view.highest_fence() && !pipeline.fenced;
    if owns && newest != known {
        audit.found("S4", format!("pipeline {} knows {known:?} as its newest commit, {newest:?} is", pipeline.name));
    }
}

fn count_orphans(view: &LocationView, evidence: &Evidence, reached: &BTreeSet<String>, audit: &mut Audit) {
    let below = evidence.objects.range(view.prefix.clone()..).take_while(|(key, _)| key.starts_with(&view.prefix));
    for (key, bytes) in below {
        let of_a_host = key[view.prefix.len()..].starts_with("host") || key[view.prefix.len()..].starts_with("solo/");
        if of_a_host && !reached.contains(key) {
            audit.orphans += 1;
            audit.orphan_bytes += bytes.len() as u64;
        }
    }
}
