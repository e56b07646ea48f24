//! One replica's way to the twin: each transaction passes the replica's gate, and meets the fault that was drawn for it.

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use super::{MemoryDatabase, StoreFault, tables::Tables};
use crate::store::{
    StoreError,
    pool::Access,
    sqlstate::{Fail, Place},
};

/// Stands between one replica and everything outside of it. A gate that never opens again is a replica that was killed; one that opens late is a
/// replica that was stopped, or whose machine slept.
pub trait Gate: fmt::Debug + Send + Sync {
    /// Passed once before a request goes out, and once before its answer is seen.
    fn pass(&self) -> BoxFuture<'static, ()>;
}

/// Lets everything pass.
#[derive(Debug)]
pub(super) struct Open;

impl Gate for Open {
    fn pass(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One replica's way to the database.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) database: MemoryDatabase,
    pub(super) gate: Arc<dyn Gate>,
}

fn place() -> Place {
    Place { host: "memory".to_owned(), port: 0, database: "twin".to_owned() }
}

impl Link {
    /// One transaction, in a task of its own as in production. A body that refuses has changed nothing.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        body: impl FnOnce(&mut Tables, DateTime<Utc>) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, StoreError> {
        let link = self.clone();
        let work = async move {
            link.gate.pass().await;
            let (fault, before, after) = link.database.faults().draw(access);
            pause(before).await;
            let outcome = link.carry(operation, access, fault, body);
            pause(after).await;
            link.gate.pass().await;
            outcome
        };
        match tokio::spawn(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(StoreError::UnknownOutcome(place().problem(operation, format!("ended early: {error}")))),
        }
    }

    fn carry<T: Send + 'static>(
        &self,
        operation: &'static str,
        access: Access,
        fault: Option<StoreFault>,
        body: impl FnOnce(&mut Tables, DateTime<Utc>) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.database.clone();
        let act = move || {
            let now = database.now();
            body(&mut database.tables(), now).map_err(|fail| place().error(operation, &fail))
        };
        let lost = || {
            let problem = place().problem(operation, "fault: the answer was lost");
            Err(match access {
                Access::Read => StoreError::Unavailable(problem),
                Access::Write => StoreError::UnknownOutcome(problem),
            })
        };
        match fault {
            None => act(),
            Some(StoreFault::Unavailable) => {
                Err(StoreError::Unavailable(place().problem(operation, "fault: unavailable")))
            }
            Some(StoreFault::LostBefore) => lost(),
            Some(StoreFault::LostAfter) => {
                // A refusal that nobody hears changed nothing.
                let _ = act();
                lost()
            }
            Some(StoreFault::LandsLate(after)) => {
                let (database, losses) = (self.database.clone(), self.database.tables().losses);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    if database.tables().losses == losses {
                        let _ = act();
                    }
                });
                lost()
            }
        }
    }
}

async fn pause(duration: Duration) {
    if duration.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(duration).await;
    }
}
