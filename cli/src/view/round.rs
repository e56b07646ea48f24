//! Rounds and the audit trail.

use lockstep_client::{is_terminal, v1};

use crate::json::{kind_name, participant_phase_name, phase_name, source_name};
use crate::text::{self, NONE, or_none};

/// `push 12 of orders`.
pub(crate) fn what(round: &v1::Round) -> String {
    format!("{} {} of {}", kind_name(round.kind()), round.round_no, round.pipeline_name)
}

/// One line on how a round ended, or how far it is.
pub(crate) fn outcome(round: &v1::Round) -> String {
    let step = round.step.map_or_else(String::new, |step| format!(" step {step}"));
    let took = text::took(round.create_time.as_ref(), round.end_time.as_ref());
    let took = took.map_or_else(String::new, |took| format!(" in {}", text::duration(took)));
    let progress = round.progress.unwrap_or_default();
    let moved = |verb: &str| {
        format!(
            ": {} files, {}, {} {verb}",
            progress.files_total,
            text::size(progress.bytes_total),
            text::size(progress.bytes_transferred)
        )
    };
    let what = what(round);
    match round.phase() {
        v1::RoundPhase::Committed => format!("{what} committed{step}{took}{}", moved("sent")),
        v1::RoundPhase::Installed => {
            let from = source_name(round.source()).map_or_else(String::new, |source| format!(" from {source}"));
            format!("{what} installed{step}{from}{took}{}", moved("received"))
        }
        v1::RoundPhase::Fresh => format!("{what} found no checkpoint: every host starts fresh"),
        phase if is_terminal(round) => format!("{what} {}{took}", phase_name(phase)),
        phase => format!("{what} is {}{step}", phase_name(phase)),
    }
}

pub(crate) fn rounds(rounds: &[v1::Round]) -> String {
    let header = ["ROUND", "NO", "KIND", "PHASE", "STEP", "SIZE", "MOVED", "STARTED", "TOOK"];
    text::table(
        header,
        rounds.iter().map(|round| {
            let progress = round.progress.as_ref();
            [
                round.id.clone(),
                round.round_no.to_string(),
                kind_name(round.kind()),
                phase_name(round.phase()),
                round.step.map_or_else(|| NONE.to_owned(), |step| step.to_string()),
                progress.map_or_else(|| NONE.to_owned(), |progress| text::size(progress.bytes_total)),
                progress.map_or_else(|| NONE.to_owned(), |progress| text::size(progress.bytes_transferred)),
                text::time(round.create_time.as_ref()),
                text::took(round.create_time.as_ref(), round.end_time.as_ref())
                    .map_or_else(|| NONE.to_owned(), text::duration),
            ]
        }),
    )
}

fn periodically(round: &v1::Round) -> &'static str {
    if round.trigger() == v1::RoundTrigger::Periodic { ", periodic" } else { "" }
}

pub(crate) fn round(round: &v1::Round) -> String {
    let mut rows = vec![
        ("round", or_none(&round.id).to_owned()),
        ("pipeline", format!("{} ({})", round.pipeline_name, or_none(&round.pipeline_id))),
        ("kind", format!("{} {}{}", kind_name(round.kind()), round.round_no, periodically(round))),
        ("phase", phase_name(round.phase())),
        ("step", round.step.map_or_else(|| NONE.to_owned(), |step| step.to_string())),
    ];
    if !round.fingerprint.is_empty() {
        rows.push(("fingerprint", round.fingerprint.clone()));
    }
    if let Some(source) = source_name(round.source()) {
        rows.push(("source", source));
    }
    if let Some(commit) = &round.commit {
        rows.push(("commit", format!("generation {}, seq {}, round {}", commit.generation, commit.seq, commit.round)));
    }
    if let Some(base) = &round.base {
        rows.push(("base", format!("generation {}, seq {}, round {}", base.generation, base.seq, base.round)));
    }
    if let Some(progress) = &round.progress {
        rows.push(("data", data(progress)));
    }
    if let Some(records) = round.processed_records {
        rows.push(("records", records.to_string()));
    }
    rows.push(("started", text::time(round.create_time.as_ref())));
    match &round.end_time {
        Some(end) => rows.push(("ended", text::time(Some(end)))),
        None => rows.push(("deadline", text::time(round.deadline.as_ref()))),
    }
    rows.push(("term", round.term.to_string()));
    if !round.trace_id.is_empty() {
        rows.push(("trace", round.trace_id.clone()));
    }
    let mut shown = text::pairs(rows);
    if round.cancel_requested && !is_terminal(round) {
        shown.push_str("\n\ncancelling");
    }
    if let Some(problem) = &round.problem {
        shown.push_str(&format!("\n\n{}", problem_lines(problem)));
    }
    if !round.participants.is_empty() {
        shown.push_str(&format!("\n\n{}", participants(&round.participants)));
    }
    shown
}

fn data(progress: &v1::Progress) -> String {
    format!(
        "{} of {} in {} of {} files, {} over the network",
        text::size(progress.bytes_done),
        text::size(progress.bytes_total),
        progress.files_done,
        progress.files_total,
        text::size(progress.bytes_transferred)
    )
}

fn participants(participants: &[v1::Participant]) -> String {
    let header = ["HOST", "AGENT", "PHASE", "ATTEMPT", "DONE", "SIZE", "MOVED", "RATE", "LAST ERROR"];
    text::table(
        header,
        participants.iter().map(|participant| {
            let progress = participant.progress.unwrap_or_default();
            let rate = progress.bytes_per_second;
            [
                participant.host_idx.to_string(),
                participant.address.clone(),
                participant_phase_name(participant.phase()),
                participant.attempt.to_string(),
                text::size(progress.bytes_done),
                text::size(progress.bytes_total),
                text::size(progress.bytes_transferred),
                if rate == 0 { NONE.to_owned() } else { format!("{}/s", text::size(rate)) },
                participant
                    .problem
                    .as_ref()
                    .map_or_else(|| NONE.to_owned(), |p| format!("{}: {}", p.reason, p.message)),
            ]
        }),
    )
}

/// A typed error with its values, as the end of a listing.
pub(crate) fn problem_lines(problem: &v1::Problem) -> String {
    let mut lines = format!("{}: {}", problem.reason, problem.message);
    let mut values: Vec<_> = problem.metadata.iter().collect();
    values.sort();
    for (key, value) in values {
        lines.push_str(&format!("\n  {key}: {value}"));
    }
    lines
}

pub(crate) fn audit_trail(events: &[v1::AuditEvent]) -> String {
    let header = ["TIME", "ROUND", "HOST", "WHO", "WHAT", "FROM", "TO", "CAUSE"];
    text::table(
        header,
        events.iter().map(|event| {
            [
                text::time(event.time.as_ref()),
                // The first block of a UUID tells rounds of one listing apart.
                or_none(event.round.split('-').next().unwrap_or_default()).to_owned(),
                event.host_idx.map_or_else(|| NONE.to_owned(), |host| host.to_string()),
                event.actor.clone(),
                event.action.clone(),
                or_none(&event.from_phase).to_owned(),
                or_none(&event.to_phase).to_owned(),
                or_none(&event.cause).to_owned(),
            ]
        }),
    )
}
