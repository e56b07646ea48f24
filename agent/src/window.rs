//! How many requests are in flight: fewer while the store struggles, more again when it doesn't.
//!
//! The limit moves as TCP's does. "Slow down" halves it, a failure or an answer that takes several times as long as the quickest ones takes a step off it, and each
//! good answer adds a little, about one place for each round of requests. Cuts come at most twice a second: what was in flight when the first one came says nothing new.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Cuts come no quicker than this.
const BETWEEN_CUTS: Duration = Duration::from_millis(500);

/// What an answer may always take: below it nobody struggles.
const CALM: Duration = Duration::from_millis(200);

/// A time beyond this many of the best counts as slow.
const SLOW: f64 = 6.0;

/// Slowness alone does not cut below: a slow line is best used by a few requests at once.
const SLOW_FLOOR: f64 = 4.0;

/// Each answer lets the best time grow this much, so that what was once quick does not count for ever.
const FORGET: f64 = 1.002;

/// What moves one request's time beside its latency: about the bytes that take as long as an answer.
const OVERHEAD: f64 = 1_048_576.0;

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Signal {
    /// It moved so many bytes in this time.
    Answered { bytes: u64, took: Duration },
    /// The store asked to slow down.
    Throttled,
    /// No or no useful answer.
    Failed,
    /// Says nothing about the store's state.
    Silent,
}

/// Places for requests in flight.
#[derive(Debug)]
pub(crate) struct Window {
    places: Arc<Semaphore>,
    most: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: f64,
    /// Permits that exist, free or taken. Above the limit those that come back are not given out again.
    permits: usize,
    last_cut: Option<Instant>,
    /// Seconds for each MiB and a request's own MiB: the best, and what is usual now.
    best: f64,
    usual: f64,
}

/// One place among the requests in flight.
#[derive(Debug)]
pub(crate) struct Place {
    window: Arc<Window>,
    permit: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl Window {
    /// At most `most` at once; begins there, since most stores bear it.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let most = most.max(1);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(most)),
            most: most as f64,
            state: Mutex::new(State {
                limit: most as f64,
                permits: most,
                last_cut: None,
                best: f64::INFINITY,
                usual: 0.0,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place; first come, first served.
    pub(crate) async fn enter(self: &Arc<Self>) -> Place {
        // An error would say that the semaphore was closed, which nobody does: then there is no limit.
        let permit = Arc::clone(&self.places).acquire_owned().await.ok();
        Place { window: Arc::clone(self), permit, since: Instant::now() }
    }

    /// Requests that may be in flight now.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> usize {
        self.lock().limit as usize
    }

    fn note(&self, signal: Signal, now: Instant) {
        let mut state = self.lock();
        match signal {
            Signal::Answered { bytes, took } => {
                let time = took.as_secs_f64() / (1.0 + bytes as f64 / OVERHEAD);
                state.usual = if state.best.is_finite() { state.usual * 0.8 + time * 0.2 } else { time };
                state.best = (state.best * FORGET).min(time);
                if took > CALM && state.usual > state.best * SLOW {
                    if state.limit > SLOW_FLOOR {
                        let limit = (state.limit * 0.8).max(SLOW_FLOOR);
                        state.cut(limit, now);
                    }
                } else {
                    state.limit = (state.limit + 1.0 / state.limit).min(self.most);
                }
            }
            Signal::Throttled => {
                let limit = state.limit * 0.5;
                state.cut(limit, now);
            }
            Signal::Failed => {
                let limit = state.limit * 0.8;
                state.cut(limit, now);
            }
            Signal::Silent => {}
        }
        self.fit(&mut state);
        metrics::gauge!("lockstep_agent_request_window").set(state.limit);
    }

    /// Makes as many permits exist as the limit says; taken ones go when they come back.
    fn fit(&self, state: &mut State) {
        let wanted = state.limit as usize;
        if wanted > state.permits {
            self.places.add_permits(wanted - state.permits);
            state.permits = wanted;
        } else {
            state.permits -= self.places.forget_permits(state.permits - wanted);
        }
    }
}

impl State {
    fn cut(&mut self, limit: f64, now: Instant) {
        if self.last_cut.is_none_or(|last| now.duration_since(last) >= BETWEEN_CUTS) {
            self.limit = limit.max(1.0);
            self.last_cut = Some(now);
            tracing::debug!(limit = self.limit, "fewer requests at once: the store is slow or refuses");
        }
    }
}

impl Place {
    /// How long it was held.
    pub(crate) fn held(&self) -> Duration {
        self.since.elapsed()
    }

    /// Gives it back and tells how the request went.
    pub(crate) fn leave(self, signal: Signal) {
        self.leave_at(signal, Instant::now());
    }

    fn leave_at(mut self, signal: Signal, now: Instant) {
        self.give_back();
        self.window.note(signal, now);
    }

    fn give_back(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.window.lock();
        if state.permits > state.limit as usize {
            state.permits -= 1;
            permit.forget();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Signal = Signal::Answered { bytes: 0, took: Duration::from_millis(10) };

    /// All requests that may be made at once, after a time in which a cut may come again.
    async fn round(window: &Arc<Window>, now: &mut Instant, signal: Signal) -> usize {
        *now += BETWEEN_CUTS;
        let mut places = Vec::new();
        while places.len() < window.limit() {
            places.push(window.enter().await);
        }
        assert_eq!(window.places.available_permits(), 0, "no more than the limit are given out");
        let count = places.len();
        places.into_iter().for_each(|place| place.leave_at(signal, *now));
        count
    }

    #[tokio::test]
    async fn it_halves_on_slow_down_never_ends_and_grows_again_by_about_one_a_round() {
        let (window, mut now) = (Window::new(16), Instant::now());
        let mut sizes = Vec::new();
        for _ in 0..6 {
            sizes.push(round(&window, &mut now, Signal::Throttled).await);
        }
        assert_eq!(sizes, [16, 8, 4, 2, 1, 1]);
        let mut rounds = 0;
        while round(&window, &mut now, QUICK).await < 16 {
            rounds += 1;
        }
        assert!((12..=30).contains(&rounds), "{rounds} rounds");
    }

    #[tokio::test]
    async fn a_store_that_refuses_more_than_four_at_once_gets_about_four_at_once() {
        let (window, mut now) = (Window::new(16), Instant::now());
        let mut sizes = Vec::new();
        for _ in 0..60 {
            let many = window.limit() > 4;
            sizes.push(round(&window, &mut now, if many { Signal::Throttled } else { QUICK }).await);
        }
        assert!(sizes[10..].iter().all(|size| (2..=5).contains(size)), "{sizes:?}");
    }

    #[tokio::test]
    async fn answers_that_take_ever_longer_make_it_smaller_but_not_smaller_than_a_few() {
        let (window, mut now) = (Window::new(16), Instant::now());
        round(&window, &mut now, QUICK).await;
        for _ in 0..40 {
            // As of a server that does one after the other.
            let took = Duration::from_millis(100) * u32::try_from(window.limit()).unwrap();
            round(&window, &mut now, Signal::Answered { bytes: 0, took }).await;
        }
        assert_eq!(window.limit(), 4);
        // The same time for many bytes is no slowness.
        let window = Window::new(16);
        let mib = 1 << 20;
        round(&window, &mut now, Signal::Answered { bytes: mib, took: Duration::from_millis(20) }).await;
        for _ in 0..20 {
            round(&window, &mut now, Signal::Answered { bytes: 64 * mib, took: Duration::from_millis(700) }).await;
        }
        assert_eq!(window.limit(), 16);
    }

    #[tokio::test]
    async fn a_place_that_is_just_dropped_is_free_again() {
        let window = Window::new(2);
        let places = (window.enter().await, window.enter().await);
        places.0.leave(Signal::Throttled);
        drop(places.1);
        assert_eq!((window.limit(), window.places.available_permits()), (1, 1));
    }
}
