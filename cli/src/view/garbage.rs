//! Collections, and what would go.

use lockstep_client::v1;

use crate::text;

/// In one line.
pub(crate) fn collection(collection: &v1::Collection) -> String {
    let mut shown = format!(
        "{} {}: {} checkpoints retired, {} swept, {} objects ({}) and {} uploads deleted",
        collection.phase,
        text::time(collection.end_time.as_ref().or(collection.create_time.as_ref())),
        collection.retired,
        collection.swept,
        collection.objects,
        text::size(collection.bytes),
        collection.uploads
    );
    if collection.put_off > 0 {
        shown.push_str(&format!(", {} put off to a later one", collection.put_off));
    }
    if let Some(problem) = &collection.problem {
        shown.push_str(&format!("; {}: {}", problem.reason, problem.message));
    }
    shown
}

/// Key by key, in the order in which it would go.
pub(crate) fn would_go(answer: &v1::CollectGarbageResponse) -> String {
    let commit = |commit: &v1::CommitRef| format!("{} ({}-{})", commit.round, commit.generation, commit.seq);
    let mut lines: Vec<String> = Vec::new();
    lines.extend(answer.retire.iter().map(|one| format!("retire checkpoint {}", commit(one))));
    lines.extend(answer.sweep.iter().map(|one| format!("sweep checkpoint {}", commit(one))));
    lines.extend(answer.uploads.iter().map(|upload| format!("abort upload {} of {}", upload.upload, upload.key)));
    lines.extend(answer.objects.iter().map(|object| {
        let why = if object.orphan { "orphan" } else { "swept" };
        format!("delete {} ({}, {why})", object.key, text::size(object.bytes))
    }));
    let listed = u64::try_from(answer.objects.len()).unwrap_or(u64::MAX);
    let more = answer.object_count.saturating_sub(listed);
    if more > 0 {
        lines.push(format!("and {more} more objects"));
    }
    if let Some(problem) = &answer.problem {
        lines.push(format!("something stays that might go; {}: {}", problem.reason, problem.message));
    }
    lines.push(format!(
        "{} objects ({}) and {} uploads would go, {} checkpoints would be retired; nothing was changed",
        answer.object_count,
        text::size(answer.bytes),
        answer.uploads.len(),
        answer.retire.len()
    ));
    lines.join("\n")
}
