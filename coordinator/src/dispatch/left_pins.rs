//! Pins that pulls of this database have left: a replica that died between a pull's end and its farewell, or a store that did not let go of the pin. Such a pin would keep its checkpoint until somebody
//! unpins it. Looked for where pins are listed anyhow, by a collection of the owner, and at the end of each pull that was pinned.
//!
//! A pin goes only if the very round that put it is a row of this database, and over: what another database put, or a person, is never touched.

use lockstep_bucket::{ObjectStore, WriteOutcome, pins};
use lockstep_protocol::{
    id::{PipelineName, RoundId, Term},
    pin::Pin,
};

use super::{Services, protect};

/// How [`protect`] signs its pins.
pub(super) fn signed(round: RoundId, term: Term, pipeline: &PipelineName) -> String {
    format!("pull {round}, term {term}, of pipeline {pipeline}")
}

/// The round that put a pin: the one that it is signed with, if its key is that of this round's pin.
fn round_of(pin: &Pin) -> Option<RoundId> {
    let (round, rest) = pin.pinned_by.strip_prefix("pull ")?.split_once(", term ")?;
    let (term, _) = rest.split_once(", of pipeline ")?;
    let (round, term): (RoundId, Term) = (round.parse().ok()?, Term::new(term.parse().ok()?).ok()?);
    (protect::key(round, term, pin.commit) == pin.key()).then_some(round)
}

/// Lists the pins of pulls, and removes those that are over. Best effort: the next pull or collection looks again.
pub(super) async fn look(services: &Services, bucket: &dyn ObjectStore) {
    match pins::list_pins_named(bucket, protect::PIN).await {
        Ok(pins) => remove(services, bucket, &pins).await,
        Err(problem) => tracing::debug!(reason = %problem.reason, "left pins were not looked for: {}", problem.message),
    }
}

/// Removes those of ended pulls among these.
pub(super) async fn remove(services: &Services, bucket: &dyn ObjectStore, pins: &[Pin]) {
    for (pin, round) in pins.iter().filter_map(|pin| Some((pin, round_of(pin)?))) {
        match services.store.get_round(round).await {
            Ok(record) if record.round.phase.is_terminal() => {}
            Ok(_) => continue,
            // No row of ours, or nobody knows.
            Err(error) => {
                let problem = error.problem();
                tracing::debug!(reason = %problem.reason, "a pin stays: {}", problem.message);
                continue;
            }
        }
        match bucket.delete(&pin.key().to_string()).await {
            WriteOutcome::Done => {
                tracing::info!(round.id = %round, checkpoint = %pin.commit.round, "a pin that an ended pull had left is removed");
            }
            WriteOutcome::Refused(error) | WriteOutcome::Unknown(error) => {
                tracing::info!(%error, "a pin that an ended pull had left was not removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use lockstep_protocol::{
        commit::CommitRef,
        digest::Digest,
        id::{Generation, Seq},
        key::Key,
    };
    use uuid::Uuid;

    use super::*;

    fn round(n: u128) -> RoundId {
        RoundId::new(Uuid::from_u128(n))
    }

    fn term(n: u64) -> Term {
        Term::new(n).unwrap()
    }

    fn heir() -> PipelineName {
        PipelineName::new("heir").unwrap()
    }

    fn pin(by: &str) -> Pin {
        let commit =
            CommitRef { generation: Generation::FIRST, seq: Seq::FIRST, round: round(9), digest: Digest::of(b"9") };
        let Key::Pin(name, id) = protect::key(round(1), term(1), commit) else { unreachable!() };
        Pin { name, id, commit, pinned_by: by.to_owned(), pinned_at: DateTime::UNIX_EPOCH }
    }

    #[test]
    fn a_pin_is_of_a_pull_only_if_its_key_and_its_signature_say_so() {
        let signed = signed(round(1), term(1), &heir());
        assert_eq!(round_of(&pin(&signed)), Some(round(1)));
        assert_eq!(round_of(&pin("alice")), None);
        assert_eq!(round_of(&pin(&super::signed(round(2), term(1), &heir()))), None, "another pull's key");
        let later = super::signed(round(1), term(2), &heir());
        assert_eq!(round_of(&pin(&later)), None, "another term's key");
        assert_eq!(round_of(&Pin { name: "audit".to_owned(), ..pin(&signed) }), None);
        assert_eq!(round_of(&Pin { id: Uuid::from_u128(5), ..pin(&signed) }), None, "a person named it so");
        let other = CommitRef { round: round(8), ..pin("").commit };
        assert_eq!(round_of(&Pin { commit: other, ..pin(&signed) }), None, "of another checkpoint");
    }
}
