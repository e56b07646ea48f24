//! What agents have just said of themselves, kept for the one who asks next.
//!
//! Admission asks the hosts whether there is anything to push, and a moment later the round's planning asks them the same. Where one replica does both, the
//! second question is answered from here: once, and only while it is fresh. Nothing rests on it: an order names the process that was described, and
//! an agent refuses what is meant for another one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Described, Host, Listing};

/// How long an answer is fresh.
const FRESH: Duration = Duration::from_secs(1);

/// Answers that nobody asked for again are forgotten when there are more.
const MANY: usize = 4096;

/// By address.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<BTreeMap<String, Answer>>);

#[derive(Debug)]
struct Answer {
    at: Instant,
    host: Host,
    said: (Described, Listing),
}

impl Recent {
    /// An agent has said this just now.
    pub(super) fn leave(&self, host: &Host, described: Described, listing: Listing) {
        let at = Instant::now();
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MANY {
            answers.retain(|_, answer| at - answer.at < FRESH);
        }
        answers.insert(host.address.clone(), Answer { at, host: host.clone(), said: (described, listing) });
    }

    /// What it said, if that is fresh and nobody has taken it yet.
    pub(super) fn take(&self, host: &Host) -> Option<(Described, Listing)> {
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&host.address)?;
        (answer.host == *host && answer.at.elapsed() < FRESH).then_some(answer.said)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::{host::Layout, id::Incarnation};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_answer_is_given_once_and_only_for_the_host_that_gave_it() {
        let recent = Recent::default();
        let layout = Layout::from_n_hosts(2).unwrap();
        let host = |idx| Host { slot: layout.slot(idx).unwrap(), address: "http://host:7402".to_owned() };
        let incarnation = Incarnation::new(Uuid::from_u128(1));
        let described = Described {
            pipeline: "orders".to_owned(),
            slot: layout.slot(0).unwrap(),
            incarnation,
            version: String::new(),
            highest: None,
            free_bytes: None,
        };
        let listing = Listing { incarnation, checkpoints: Vec::new() };
        recent.leave(&host(0), described.clone(), listing.clone());
        assert_eq!(recent.take(&host(1)), None, "another host is said to be there now");
        recent.leave(&host(0), described.clone(), listing.clone());
        assert_eq!(recent.take(&host(0)), Some((described, listing)));
        assert_eq!(recent.take(&host(0)), None);
    }
}
