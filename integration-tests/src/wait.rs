//! Waiting on conditions.

use std::{fmt::Display, future::Future, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

/// Longest time that any condition of a test may take; generous, since test machines are small and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer. Panics with `what` and the last thing heard if there is none in [`PATIENCE`].
pub async fn until<T, E: Display, F: Future<Output = Result<T, E>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    let mut ticks = interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if started.elapsed() > PATIENCE => panic!("waited {PATIENCE:?} until {what}; last: {last}"),
            Err(_) => {}
        }
    }
}
