//! How many bytes a standby is behind: what the pushes since the checkpoint that its hosts hold have sent.

use lockstep_bucket::{Checkpoint, DecisionFound};
use lockstep_protocol::{
    commit::{CommitDocument, DecisionObject},
    standby::{Point, Sighting},
};

use crate::plan::place::Place;

/// Commits that are read to count their bytes. A standby that is further behind is told the size of the newest, which a pull never exceeds.
const WALK: u32 = 32;

/// Of no consequence for what is pulled: what can't be read is counted as if all had to be fetched.
pub(super) async fn bytes(place: &Place, newest: &Checkpoint, held: Option<Point>, before: &Sighting) -> u64 {
    let all = newest.document.parts.iter().map(|part| part.bytes).sum();
    let Some(held) = held else { return all };
    if held.commit == newest.commit {
        return 0;
    }
    let same = before.newest.is_some_and(|before| before.commit == newest.commit) && before.held == Some(held);
    if let Some(lag) = before.lag.filter(|_| same) {
        return lag.bytes;
    }
    let place = place.impatient();
    let mut sum = sent(&newest.document);
    let mut parent = newest.document.parent;
    for _ in 0..WALK {
        match parent {
            Some(commit) if commit == held.commit => return sum.min(all),
            Some(commit) => match place.decision(commit.generation, commit.seq).await {
                Ok(Some(DecisionFound::Decision(DecisionObject::Commit(document), _))) => {
                    sum += sent(&document);
                    parent = document.parent;
                }
                _ => return all,
            },
            None => return all,
        }
    }
    all
}

fn sent(document: &CommitDocument) -> u64 {
    document.parts.iter().map(|part| part.bytes_uploaded).sum()
}
