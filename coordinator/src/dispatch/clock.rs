//! The database's clock, by which leases, deadlines and retries are measured. No replica's own clock decides anything.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::store::{Store, StoreError};

/// The database's time as last read, carried on by the monotonic clock.
#[derive(Debug)]
pub(super) struct DatabaseClock {
    read: Mutex<(DateTime<Utc>, Instant)>,
}

impl DatabaseClock {
    /// Reads the clock. The answer's way back makes it late by at most the call's time; it never is ahead.
    pub(super) async fn read(store: &Store) -> Result<Self, StoreError> {
        let now = store.now().await?;
        Ok(Self { read: Mutex::new((now, Instant::now())) })
    }

    /// Reads it again: the two clocks drift apart.
    pub(super) async fn adjust(&self, store: &Store) -> Result<(), StoreError> {
        let now = store.now().await?;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = (now, Instant::now());
        Ok(())
    }

    /// What the database's clock says now.
    pub(super) fn now(&self) -> DateTime<Utc> {
        let (read, at) = *self.read.lock().unwrap_or_else(PoisonError::into_inner);
        TimeDelta::from_std(at.elapsed()).ok().and_then(|passed| read.checked_add_signed(passed)).unwrap_or(read)
    }

    /// When the database's clock will say this.
    pub(super) fn instant_of(&self, time: DateTime<Utc>) -> Instant {
        Instant::now() + (time - self.now()).to_std().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// What a file says before its tests.
    fn production(path: &Path) -> String {
        let text = fs::read_to_string(path).unwrap();
        text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
    }

    fn look(folder: &Path, asks: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                look(&path, asks);
            } else if !name.ends_with("tests.rs") && name != "fixture.rs" {
                let text = production(&path);
                if ["Utc::now", "Local::now", "SystemTime::now"].iter().any(|clock| text.contains(clock)) {
                    asks.push(path.display().to_string());
                }
            }
        }
    }

    /// A replica whose clock is off by a day is like any other: it has no place from which to ask it.
    #[test]
    fn no_replica_asks_its_own_clock() {
        let mut asks = Vec::new();
        look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut asks);
        assert!(asks.is_empty(), "the database's clock decides, not that of {asks:?}");
    }
}
