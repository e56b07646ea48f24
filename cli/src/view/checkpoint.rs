//! Checkpoints and verifications.

use lockstep_client::v1;

use super::problem_lines;
use crate::text::{self, or_none};

fn layout(checkpoint: &v1::Checkpoint) -> String {
    if checkpoint.n_hosts == 0 { "solo".to_owned() } else { checkpoint.n_hosts.to_string() }
}

/// When it was last re-read, and how much of it.
fn verified(checkpoint: &v1::Checkpoint) -> String {
    checkpoint.last_verification.as_ref().map_or_else(
        || "never".to_owned(),
        |last| {
            let scope = if last.structure_only { " (structure)" } else { "" };
            format!("{}{scope}", text::time(last.time.as_ref()))
        },
    )
}

/// As it is named on the command line: what can't be read has no UUID that anybody has seen.
fn name(checkpoint: &v1::Checkpoint) -> String {
    match (&checkpoint.unreadable, &checkpoint.commit) {
        (Some(_), Some(commit)) => format!("{}-{}", commit.generation, commit.seq),
        _ => checkpoint.id.clone(),
    }
}

/// What only a document that can be read tells.
fn told(checkpoint: &v1::Checkpoint, value: String) -> String {
    if checkpoint.unreadable.is_some() { "?".to_owned() } else { value }
}

fn condition(checkpoint: &v1::Checkpoint) -> &'static str {
    if checkpoint.unreadable.is_some() {
        return if checkpoint.damaged { "unreadable, damaged" } else { "unreadable" };
    }
    match (checkpoint.damaged, checkpoint.pins.is_empty()) {
        (true, _) => "damaged",
        (false, true) => "ok",
        (false, false) => "pinned",
    }
}

pub(crate) fn checkpoints(checkpoints: &[v1::Checkpoint]) -> String {
    let table = text::table(
        ["CHECKPOINT", "STEP", "HOSTS", "FILES", "SIZE", "SENT", "CONDITION", "CREATED", "VERIFIED"],
        checkpoints.iter().map(|checkpoint| {
            let told = |value| told(checkpoint, value);
            [
                name(checkpoint),
                told(checkpoint.step.to_string()),
                told(layout(checkpoint)),
                told(checkpoint.files.to_string()),
                told(text::size(checkpoint.bytes)),
                told(text::size(checkpoint.bytes_uploaded)),
                condition(checkpoint).to_owned(),
                told(text::time(checkpoint.create_time.as_ref())),
                verified(checkpoint),
            ]
        }),
    );
    let mut shown = table;
    for checkpoint in checkpoints {
        if let Some(why) = &checkpoint.unreadable {
            let name = name(checkpoint);
            shown.push_str(&format!("\n\n{name} can't be read: {}", why.message));
            if !checkpoint.damaged {
                shown.push_str(&format!("\nBring its commit document back, or give it up: checkpoint verify PIPELINE {name} marks it damaged."));
            }
        }
    }
    shown
}

fn unreadable(checkpoint: &v1::Checkpoint, why: &v1::Problem) -> String {
    let mut rows = vec![("checkpoint", name(checkpoint)), ("condition", condition(checkpoint).to_owned())];
    if let Some(commit) = &checkpoint.commit {
        rows.push(("commit", format!("generation {}, seq {}", commit.generation, commit.seq)));
    }
    rows.push(("verified", verified(checkpoint)));
    format!("{}\n\n{}", text::pairs(rows), problem_lines(why))
}

pub(crate) fn checkpoint(checkpoint: &v1::Checkpoint) -> String {
    if let Some(why) = &checkpoint.unreadable {
        return unreadable(checkpoint, why);
    }
    let mut rows = vec![
        ("checkpoint", checkpoint.id.clone()),
        ("pipeline", format!("{} ({})", checkpoint.pipeline_name, checkpoint.pipeline_id)),
        ("step", checkpoint.step.to_string()),
        ("fingerprint", or_none(&checkpoint.fingerprint).to_owned()),
        ("hosts", layout(checkpoint)),
        ("files", checkpoint.files.to_string()),
        ("size", text::size(checkpoint.bytes)),
        ("sent for it", text::size(checkpoint.bytes_uploaded)),
        ("condition", condition(checkpoint).to_owned()),
        ("created", text::time(checkpoint.create_time.as_ref())),
        ("verified", verified(checkpoint)),
        ("root digest", or_none(&checkpoint.root_digest).to_owned()),
    ];
    if let Some(commit) = &checkpoint.commit {
        rows.push(("commit", format!("generation {}, seq {}", commit.generation, commit.seq)));
    }
    for pin in &checkpoint.pins {
        let when = text::time(pin.pin_time.as_ref());
        rows.push(("pin", format!("{} ({}), by {} {when}", pin.name, pin.id, pin.pinned_by)));
    }
    if let Some(records) = checkpoint.processed_records {
        rows.push(("records", records.to_string()));
    }
    for problem in checkpoint.last_verification.iter().flat_map(|last| &last.problems) {
        rows.push(("broken", problem.message.clone()));
    }
    let parts = text::table(
        ["HOST", "LOCAL CHECKPOINT", "FILES", "SIZE", "SENT", "MANIFEST"],
        checkpoint.parts.iter().map(|part| {
            [
                part.host_idx.to_string(),
                part.local_checkpoint.clone(),
                part.files.to_string(),
                text::size(part.bytes),
                text::size(part.bytes_uploaded),
                part.manifest.as_ref().map_or_else(String::new, |manifest| manifest.key.clone()),
            ]
        }),
    );
    format!("{}\n\n{parts}", text::pairs(rows))
}

pub(crate) fn verification(last: &v1::VerifyCheckpointResponse) -> String {
    let progress = last.progress.unwrap_or_default();
    let named = last.checkpoint.as_ref().map_or_else(
        || "the checkpoint".to_owned(),
        |checkpoint| match checkpoint.unreadable {
            Some(_) => format!("checkpoint {}", name(checkpoint)),
            None => format!("checkpoint {} (step {})", checkpoint.id, checkpoint.step),
        },
    );
    let structure = last.checkpoint.as_ref().and_then(|checkpoint| checkpoint.last_verification.as_ref());
    if last.problems.is_empty() && structure.is_some_and(|last| last.structure_only) {
        return format!("{named}: its documents are whole and every object is there; no file was read");
    }
    if last.problems.is_empty() {
        return format!(
            "{named} is intact: {} files, {} re-read, every digest agrees",
            progress.files_done,
            text::size(progress.bytes_done)
        );
    }
    let mut shown = format!("{named} is damaged in {} places", last.problems.len());
    for problem in &last.problems {
        shown.push_str(&format!("\n{}", problem_lines(problem)));
    }
    shown
}
