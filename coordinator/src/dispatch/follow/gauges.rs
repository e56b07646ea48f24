//! Lag of every standby as metrics: the same at each replica, whichever looked last, since it is read from the database.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::Services;

/// How old they may be.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Gauges {
    shown: Option<Instant>,
    named: BTreeSet<String>,
}

impl Gauges {
    /// Shows what the database knows, unless that was done just now.
    pub(super) async fn show(&mut self, services: &Services) {
        if self.shown.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        let Ok(standbys) = services.store.standbys(None).await else { return };
        let now = services.clock.now();
        let mut gone = std::mem::take(&mut self.named);
        for standby in standbys {
            let name = standby.name.to_string();
            let sighting = standby.state.map(|state| state.sighting).unwrap_or_default();
            let (steps, bytes) = sighting.lag.map_or((0, 0), |lag| (lag.steps, lag.bytes));
            set(&name, steps, bytes, sighting.seconds(now));
            gone.remove(&name);
            self.named.insert(name);
        }
        // Activated or deleted: not behind anything any more.
        for name in gone {
            set(&name, 0, 0, 0);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge has no more digits")]
fn set(pipeline: &str, steps: u64, bytes: u64, seconds: u64) {
    let pipeline = || pipeline.to_owned();
    metrics::gauge!("lockstep_standby_lag_steps", "pipeline" => pipeline()).set(steps as f64);
    metrics::gauge!("lockstep_standby_lag_bytes", "pipeline" => pipeline()).set(bytes as f64);
    metrics::gauge!("lockstep_standby_lag_seconds", "pipeline" => pipeline()).set(seconds as f64);
}
