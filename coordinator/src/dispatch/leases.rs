//! Which rounds this replica holds. All leases are renewed in one statement; one that is not ours any more stops its driver at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lockstep_protocol::{
    id::{RoundId, Term},
    round::CancelRequest,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Services;

/// The rounds that are held.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Mutex<BTreeMap<RoundId, Held>>,
}

#[derive(Debug)]
struct Held {
    term: Term,
    lost: CancellationToken,
    cancel: watch::Sender<Option<CancelRequest>>,
}

/// What the driver of a round is told.
#[derive(Debug)]
pub(super) struct Hold {
    /// The lease turned out to be lost.
    pub(super) lost: CancellationToken,
    cancel: watch::Receiver<Option<CancelRequest>>,
}

impl Hold {
    /// Somebody asked to stop the round; the same request comes again as long as it is not decided. Never returns otherwise. May be dropped at any point.
    pub(super) async fn cancel_requested(&mut self) -> CancelRequest {
        while self.cancel.changed().await.is_ok() {
            if let Some(request) = self.cancel.borrow_and_update().clone() {
                return request;
            }
        }
        // Not held any more: `lost` tells, or the round is over.
        std::future::pending().await
    }
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RoundId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round was claimed, and maybe asked to stop before.
    pub(super) fn hold(&self, round: RoundId, term: Term, requested: Option<CancelRequest>) -> Hold {
        let lost = CancellationToken::new();
        let (cancel, mut asked) = watch::channel(requested);
        asked.mark_changed();
        if let Some(before) = self.lock().insert(round, Held { term, lost: lost.clone(), cancel }) {
            // This very replica lost the lease and claimed the round again before it noticed.
            before.lost.cancel();
        }
        Hold { lost, cancel: asked }
    }

    /// Somebody asked to stop a round; only its driver decides.
    pub(super) fn ask_to_stop(&self, round: RoundId, request: CancelRequest) {
        if let Some(held) = self.lock().get(&round) {
            held.cancel.send_replace(Some(request));
        }
    }

    /// The round is not driven here any more.
    pub(super) fn let_go(&self, round: RoundId, term: Term) {
        let mut held = self.lock();
        if held.get(&round).is_some_and(|held| held.term == term) {
            held.remove(&round);
        }
    }

    /// Whether a round is driven here.
    pub(super) fn holds(&self, round: RoundId) -> bool {
        self.lock().contains_key(&round)
    }

    /// All rounds that are driven here.
    pub(super) fn rounds(&self) -> Vec<RoundId> {
        self.lock().keys().copied().collect()
    }

    fn terms(&self) -> Vec<(RoundId, Term)> {
        self.lock().iter().map(|(round, held)| (*round, held.term)).collect()
    }

    fn settle(&self, asked: &[(RoundId, Term)], kept: &[RoundId]) {
        let held = self.lock();
        for (round, term) in asked {
            if !kept.contains(round)
                && let Some(held) = held.get(round).filter(|held| held.term == *term)
            {
                held.lost.cancel();
            }
        }
    }
}

/// Renews until it is told to stop. A database that doesn't answer takes nothing away: only *another* claim does, and the next renewal that gets
/// through tells of it.
pub(super) async fn keep(services: Arc<Services>, stop: CancellationToken) {
    let options = &services.options;
    while stop.run_until_cancelled(tokio::time::sleep(options.renew_every)).await.is_some() {
        let held = services.leases.terms();
        if !held.is_empty() {
            match services.store.renew_all(held.clone(), options.lease).await {
                Ok(kept) => services.leases.settle(&held, &kept),
                Err(error) => {
                    let problem = error.problem();
                    tracing::warn!(reason = %problem.reason, rounds = held.len(), "leases were not renewed: {}", problem.message);
                }
            }
        }
        if let Err(error) = services.clock.adjust(&services.store).await {
            tracing::debug!(reason = %error.problem().reason, "the database's clock was not read: {}", error.problem().message);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn term(term: u64) -> Term {
        Term::new(term).unwrap()
    }

    #[test]
    fn only_what_was_not_kept_is_lost() {
        let leases = Leases::default();
        let (kept, gone) = (RoundId::new(Uuid::from_u128(1)), RoundId::new(Uuid::from_u128(2)));
        let (kept_hold, gone_hold) = (leases.hold(kept, term(1), None), leases.hold(gone, term(1), None));
        let asked = leases.terms();
        // Claimed while the renewal was under way: it was not asked for, so it is not lost.
        let later = RoundId::new(Uuid::from_u128(3));
        let later_hold = leases.hold(later, term(1), None);
        leases.settle(&asked, &[kept]);
        let [kept, gone, later] = [kept_hold, gone_hold, later_hold].map(|hold| hold.lost.is_cancelled());
        assert!(!kept && gone && !later);
    }

    #[test]
    fn an_old_term_neither_loses_nor_frees_the_new_one() {
        let leases = Leases::default();
        let round = RoundId::new(Uuid::from_u128(1));
        let old = leases.hold(round, term(1), None).lost;
        let new = leases.hold(round, term(2), None).lost;
        assert!(old.is_cancelled(), "two drivers of one round");
        leases.let_go(round, term(1));
        leases.settle(&[(round, term(1))], &[]);
        assert!(!new.is_cancelled());
        assert_eq!(leases.terms(), [(round, term(2))]);
    }

    #[tokio::test]
    async fn a_request_to_stop_reaches_the_driver_also_if_it_is_older_than_the_claim() {
        let leases = Leases::default();
        let round = RoundId::new(Uuid::from_u128(1));
        let request = |by: &str| CancelRequest { by: by.to_owned(), cause: "a better idea".to_owned() };
        let mut hold = leases.hold(round, term(1), Some(request("alice")));
        assert_eq!(hold.cancel_requested().await, request("alice"));
        leases.ask_to_stop(round, request("bob"));
        assert_eq!(hold.cancel_requested().await, request("bob"));
        leases.ask_to_stop(RoundId::new(Uuid::from_u128(2)), request("carol"));
        assert!(!hold.cancel.has_changed().unwrap(), "of another round");
    }
}
