//! Waiting for a file that is about to come.

use std::{fmt, sync::Arc, time::Duration};

/// How long to wait for a checkpoint's `state.json`, and how.
#[derive(Clone)]
pub struct StateWait {
    at_most: Duration,
    interval: Duration,
    pause: Arc<dyn Fn(Duration) + Send + Sync>,
}

impl StateWait {
    /// Looks every `interval`, `at_most` in all. `pause` lets the time pass.
    pub fn new(at_most: Duration, interval: Duration, pause: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self { at_most, interval: interval.max(Duration::from_millis(1)), pause: Arc::new(pause) }
    }

    pub(super) const fn at_most(&self) -> Duration {
        self.at_most
    }

    /// Asks until there is an answer or the time is over. The last question comes after the last pause.
    pub(super) fn until<T, E>(&self, mut ask: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(answer) = ask()? {
                return Ok(Some(answer));
            }
            if waited >= self.at_most {
                return Ok(None);
            }
            (self.pause)(self.interval);
            waited += self.interval;
        }
    }
}

impl Default for StateWait {
    fn default() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_millis(100), std::thread::sleep)
    }
}

impl fmt::Debug for StateWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateWait")
            .field("at_most", &self.at_most)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}
